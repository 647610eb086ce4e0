"""A full disk, recognised behind whatever error a library made of it, and said in one sentence."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, a used-up quota and a file that grew beyond its limit."""

_FILE_LIMIT = "File too large"

_WORDS = (
    "No space left on device",
    "Disk quota exceeded",
    _FILE_LIMIT,
    "inline_container.cc",
    "basic_ios::clear: iostream error",
)
"""What safetensors writes of such an error, and what torch does, which finds less written than it asked for."""

_SQLITE = ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMOPEN", "SQLITE_IOERR_SHMSIZE")
"""Names that sqlite gives to such an error."""

_UNFINISHED = re.compile(r"^\.(.+?)(?:\.\d+)?\.part$")  # a file's or folder's name until it is whole

_SMALL = 64 * 2**10  # a disk with less free space is full


def disk_full_message(error: BaseException, out: Path | None, command: str) -> str | None:
    """One sentence with the path, the space and the command that resumes; None for another error.

    out: where the command writes. Libraries such as safetensors, torch and sqlite tell of a full disk
    without its error number; then their words decide, or the free space under ``out``.
    """
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    found = next((each for each in links if isinstance(each, OSError) and each.errno in _FULL), None)
    name = found.filename if found is not None else None
    path = Path(os.fsdecode(name)) if isinstance(name, (str, bytes)) else out
    if path is not None:
        path = Path(*(_UNFINISHED.sub(r"\1", component) for component in path.parts))
    free = free_bytes(path)
    told = any(words in str(each) for each in links for words in _WORDS)
    told = told or any(getattr(each, "sqlite_errorname", "") in _SQLITE for each in links)
    if found is None and not told:
        if not isinstance(error, (RuntimeError, OSError)) and type(error).__module__ != "sqlite3":
            return None
        if free is None or free >= _SMALL:
            return None
    needed = max(getattr(each, "needed_bytes", 0) for each in links)
    room = "" if free is None else f" ({free} bytes are free" + (f", at least {needed} are needed)" if needed else ")")
    place = path or "the output"
    limited = found.errno == errno.EFBIG if found is not None else any(_FILE_LIMIT in str(each) for each in links)
    if limited:
        return (
            f"{place}: a file may not grow to the size that it needs{room}; raise the limit (`ulimit -f`, or the file "
            f"system's), then resume with: {command}"
        )
    return f"{place}: the disk is full{room}; free space, then resume with: {command}"


def free_bytes(path: Path | None) -> int | None:
    """Free bytes where ``path`` lies or would lie; None where that cannot be told."""
    place = None if path is None else path.absolute()
    while place is not None and not place.exists() and place != place.parent:
        place = place.parent
    try:
        return None if place is None else shutil.disk_usage(place).free
    except OSError:
        return None
