"""Files and folders that are replaced at once: a kill leaves the old one or the new one, never half
of one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cac_align.core.whole_file import whole_file


def atomic_write(path: Path, text: str) -> None:
    """Write a small text file beside its place, then move it there.

    Raises ``OSError`` with the path and ``needed_bytes`` when that fails; nothing of the new file stays.
    """
    data = text.encode("utf-8")
    with whole_file(path, len(data)) as part:
        part.write_bytes(data)


def append_whole(file: int, data: bytes, path: Path) -> None:
    """Append to an open file with one write; what cannot be written whole is removed again.

    file: a descriptor, open for appending, that nobody else writes meanwhile. Raises ``OSError`` with
    the path and ``needed_bytes`` when that fails.
    """
    start, why = os.fstat(file).st_size, errno.ENOSPC
    try:
        if os.write(file, data) == len(data):
            return
        os.ftruncate(file, start)
    except OSError as error:
        why = error.errno
    failed = OSError(why, os.strerror(why or 0), str(path))
    failed.needed_bytes = len(data)  # pyright: ignore[reportAttributeAccessIssue]
    raise failed


def append_lines(path: Path, lines: str) -> None:
    """Append lines to a text file that no other process writes, whole or not at all; it is created
    where there is none. Raises ``OSError`` as ``append_whole`` does.
    """
    with open(path, "ab", buffering=0) as file:
        append_whole(file.fileno(), lines.encode(), path)


def atomic_folder(place: Path, fill: Callable[[Path], Any]) -> None:
    """Let ``fill(folder)`` make a folder beside its place, then move it there. When ``fill``
    raises, nothing of it stays.
    """
    part, former = place.with_name(f".{place.name}.part"), place.with_name(f".{place.name}.former")
    shutil.rmtree(part, ignore_errors=True)
    try:
        fill(part)
        shutil.rmtree(former, ignore_errors=True)
        if place.exists():
            os.replace(place, former)
        os.replace(part, place)
    except BaseException as error:
        discard_unfinished(part, error)
        raise
    shutil.rmtree(former, ignore_errors=True)


def discard_unfinished(part: Path, error: BaseException) -> None:
    """Delete a folder that an error left unfinished, and note in the error's ``needed_bytes`` how much
    it held.
    """
    held = 0
    with contextlib.suppress(OSError):  # another process of this run may be deleting it as well
        held = sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
    error.needed_bytes = held + getattr(error, "needed_bytes", 0)  # pyright: ignore[reportAttributeAccessIssue]
    shutil.rmtree(part, ignore_errors=True)


def make_weights_readable(folder: Path) -> None:
    """Let group and others read the weights in a folder (mode 0644): safetensors writes them for
    their owner only, and a server often runs as somebody else.
    """
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
