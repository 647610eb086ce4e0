"""A file that appears under its name when it is whole: a kill or a full disk leaves the former one, or none.

``whole_file(path)`` → a temporary file beside it → os.replace
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike[str], needed_bytes: int = 0) -> Iterator[Path]:
    """Give the path of a temporary file beside ``path``; when the block ends, it takes ``path``'s
    place.

    When the block raises, nothing of the new file stays. Raises ``OSError`` with ``path`` as its
    ``filename`` when the file cannot be written; its ``needed_bytes`` is the least that the file
    takes: ``needed_bytes``, or what was written of it if that is more.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
        _remove_leftovers(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(part)):
            raise
        named = OSError(error.errno, error.strerror, str(path))
        written = part.stat().st_size if part.exists() else 0
        named.needed_bytes = max(needed_bytes, written)  # pyright: ignore[reportAttributeAccessIssue]
        raise named from error
    finally:
        part.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Delete the unfinished files of ``path`` that killed processes of this machine left behind."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        owner = part.name.split(".")[-2]
        if owner.isdecimal() and not _is_alive(int(owner)):
            part.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    """Whether this machine runs a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
