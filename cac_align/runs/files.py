"""Files and folders that are replaced at once: a kill leaves the old one or the new one, never half
of one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def atomic_write(path: Path, text: str) -> None:
    """Write a small text file beside its place, then move it there.

    Raises ``OSError`` with the path and ``needed_bytes`` when that fails; nothing of the new file stays.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    data = text.encode("utf-8")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        error.filename, error.needed_bytes = str(path), len(data)  # pyright: ignore[reportAttributeAccessIssue]
        raise
    finally:
        part.unlink(missing_ok=True)


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
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(former, ignore_errors=True)


def make_weights_readable(folder: Path) -> None:
    """Let group and others read the weights in a folder (mode 0644): safetensors writes them for
    their owner only, and a server often runs as somebody else.
    """
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
