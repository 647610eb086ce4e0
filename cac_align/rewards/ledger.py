"""The ledger: an append-only JSONL of scores that is the cache, the resume point and the audit trail at once.

wrap(reward) → look up (video content + prompt + provenance) → score only the rest → append one line each → Scores in order

A line is ``{"key", "kind", "time", "prompt", "video", "video_hash", "reward", "score", "parts", "judgement", "error", "provenance",
"extra"}``; key and kind stand first, so that opening reads 70 bytes of each line and the evidence is parsed only when it is asked for.
Kinds: ``score`` (served again), ``missing`` (kept for audit, tried again), ``combined`` (what a combination made of its
components; never served, because ``group`` and ``rank`` values depend on the videos beside it), ``extra`` (added later to a key).

Several processes may append at once: each line is one write on an O_APPEND descriptor under an exclusive file lock. A line torn
by a killed process is moved to ``<name>.torn`` with a warning; a damaged line in the middle is named in ``faults`` and skipped.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cac_align.core.video import Video
from cac_align.rewards.combine import Combined
from cac_align.rewards.reward import Reward, Score

_HEAD = re.compile(rb'\{"key": "([0-9a-f]{64})", "kind": "(score|missing|combined|extra)"')


def provenance_digest(provenance: Mapping[str, str]) -> str:
    """sha256 of the provenance's canonical JSON."""
    return hashlib.sha256(_canonical(dict(provenance))).hexdigest()


def score_key(prompt: str, video: Video, provenance: Mapping[str, str]) -> str:
    """What a score is filed under: sha256 of (video content hash, prompt, provenance digest). 64 hexadecimal digits.

    Raises ``ValueError`` when the video's bytes cannot be read.
    """
    return hashlib.sha256(_canonical([video.content_hash, prompt, provenance_digest(provenance)])).hexdigest()


def unreadable_key(name: str, prompt: str, provenance: Mapping[str, str]) -> str:
    """What a video whose bytes cannot be read is filed under, by its name: for audit, never a hit."""
    return hashlib.sha256(_canonical(["unreadable", name, prompt, provenance_digest(provenance)])).hexdigest()


class Ledger:
    """A ledger file, open for reading and appending; made when it does not exist. Thread-safe; picklable by its path.

    write: False only reads: nothing is made or mended. faults: damaged lines found so far, one sentence each.
    Raises ``ValueError`` when the path cannot be a ledger, or is a file of another kind, which is left as it is.
    """

    def __init__(self, path: str | os.PathLike[str], write: bool = True) -> None:
        self.path = Path(path).absolute()
        self._write = write
        self.faults: list[str] = []
        self._lock = threading.RLock()
        self._fd, self._pid = -1, -1
        self._forget()
        with self._lock, self._file():
            self._refuse_another_kind()
            if write:
                self._repair_tail()
            self._catch_up()

    def __reduce__(self) -> tuple[Any, ...]:
        return (Ledger, (self.path, self._write))

    @property
    def num_scores(self) -> int:
        """How many scores can be served."""
        return len(self._scores)

    def wrap(self, reward: Reward, *, videos_at_once: int = 16) -> Reward:
        """The same reward (name, provenance, bounds), which looks here first, scores only the rest and appends it.

        Of a combination the components are wrapped, and what it made of them is filed as rows of kind ``combined``.
        videos_at_once: how many videos the reward is given per call, each batch being written as soon as it is scored: it is what
        a kill can cost. Raise it for a server that takes more at a time.
        """
        from cac_align.rewards.cached import Logged, Remembered

        if isinstance(reward, Combined):
            wrapped = {
                name: self.wrap(component, videos_at_once=videos_at_once)
                for name, component in reward.components.items()
            }
            return Logged(reward.with_components(wrapped), self)
        return Remembered(reward, self, videos_at_once)

    def find(self, key: str) -> Score | None:
        """The score filed under ``key``, or None. A row that turns out to be damaged is named in ``faults`` and is no hit."""
        row = self._row(self._scores, key)
        return None if row is None else Score.from_json(row)

    def combined(self, key: str) -> Score | None:
        """The last combined score filed under ``key``, or None. For reading back, never served to a reward's caller."""
        row = self._row(self._combined, key)
        return None if row is None else Score.from_json(row)

    def annotate(self, key: str, **extra: Any) -> None:
        """Add facts to a key later on: host step, group, advantage. They come back from ``extra(key)`` and in ``rows()``."""
        if not re.fullmatch(r"[0-9a-f]{64}", key):
            raise ValueError(
                f"expected a ledger key of 64 hexadecimal digits, received {key!r}; make one with score_key"
            )
        self._append([{"key": key, "kind": "extra", "time": _now(), "extra": extra}])

    def extra(self, key: str) -> list[dict[str, Any]]:
        """Everything ``annotate`` was told about ``key``, in order."""
        with self._lock, self._file():
            self._catch_up()
            rows = [self._parse(offset) for offset in self._extras.get(key, ())]
        return [row["extra"] for row in rows if row is not None]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every readable row in the order of the file, as written. Damaged lines are named in ``faults`` and skipped."""
        with self._lock, self._file():
            self._catch_up()
            end = self._end
        with open(self.path, "rb") as file:
            while (offset := file.tell()) < end:
                line = file.readline()
                if offset in self._damaged:
                    continue
                try:
                    yield json.loads(line)
                except ValueError:
                    self._fault(offset, "is not JSON")

    def record(self, entries: Sequence[tuple[str, str, str, Video, str, Score]]) -> None:
        """Append scores: (key, kind, prompt, video, reward name, score) each, one line each."""
        rows = []
        for key, kind, prompt, video, reward, score in entries:
            row = {"key": key, "kind": kind, "time": _now(), "prompt": prompt, "video": video.name}
            row |= {"video_hash": _hash_or_none(video), "reward": reward, **score.to_json(), "extra": {}}
            rows.append(row)
        self._append(rows)

    # ---- the file -------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._scores: dict[str, int] = {}  # key → offset of its line
        self._combined: dict[str, int] = {}
        self._extras: dict[str, list[int]] = {}
        self._damaged: set[int] = set()  # offsets of lines that were named in ``faults``
        self._end = 0  # everything before this offset has been scanned; always just after a newline
        self._line_number = 0

    @contextmanager
    def _file(self) -> Iterator[int]:
        """The descriptor, under the exclusive lock that every process takes. Reopened after a fork: a lock belongs to the open
        file, and a child that inherited it would not be kept out by its parent."""
        if self._pid != os.getpid():
            how = os.O_RDWR | os.O_APPEND | os.O_CREAT if self._write else os.O_RDONLY
            try:
                if self._write:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                self._fd = os.open(self.path, how | os.O_CLOEXEC, 0o644)
            except OSError as error:
                cure = "; give a writable file" if self._write else ""
                raise ValueError(f"{self.path}: cannot be opened as a ledger: {error.strerror}{cure}") from error
            self._pid = os.getpid()
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX if self._write else fcntl.LOCK_SH)
        except OSError as error:  # Lustre without its option flock, some network folders
            raise ValueError(
                f"{self.path}: this file system locks no files ({error.strerror}), and a ledger without locks is torn by its writers; mount "
                "it with locks (Lustre: flock), or keep the ledger on another file system"
            ) from error
        try:
            yield self._fd
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _catch_up(self) -> None:
        """Scan what has been appended since the last look, by this process or another: heads only, whole lines only."""
        size = os.fstat(self._fd).st_size
        if size == self._end:
            return
        if size < self._end:
            warnings.warn(f"{self.path}: became shorter while it was open; reading it again", stacklevel=4)
            self._forget()
        with open(self.path, "rb") as file:
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._line_number += 1
                head = _HEAD.match(line)
                if head is None or not line.endswith(b"}\n"):
                    self._fault(self._end, f"(line {self._line_number}) is damaged")
                else:
                    self._index(head[1].decode(), head[2], self._end)
                self._end += len(line)

    def _index(self, key: str, kind: bytes, offset: int) -> None:
        if kind == b"score":
            self._scores[key] = offset
        elif kind == b"combined":
            self._combined[key] = offset
        elif kind == b"extra":
            self._extras.setdefault(key, []).append(offset)

    def _row(self, index: dict[str, int], key: str) -> dict[str, Any] | None:
        with self._lock, self._file():
            self._catch_up()
            if key not in index:
                return None
            row = self._parse(index[key])
            if row is None:
                del index[key]
            return row

    def _parse(self, offset: int) -> dict[str, Any] | None:
        with open(self.path, "rb") as file:
            file.seek(offset)
            line = file.readline()
        try:
            return json.loads(line)
        except ValueError:
            self._fault(offset, "is not JSON")
            return None

    def _append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """One line per row, each with one write. Raises ``OSError`` when it cannot be written whole; the torn piece is taken back."""
        # ASCII, because a model's text may hold U+2028 and its like, at which many a reader splits lines.
        lines = [
            (json.dumps(row, ensure_ascii=True, allow_nan=False, default=_plain) + "\n").encode("ascii") for row in rows
        ]
        with self._lock, self._file() as fd:
            self._repair_tail()
            for data in lines:
                start = os.fstat(fd).st_size
                try:
                    written = os.write(fd, data)
                except OSError as error:
                    raise OSError(
                        error.errno, f"the ledger cannot be written: {error.strerror}", str(self.path)
                    ) from error
                if written != len(data):
                    os.ftruncate(fd, start)
                    full = f"the ledger took {written} of {len(data)} bytes of a row; is the disk full? Free space and run again"
                    raise OSError(errno.ENOSPC, full, str(self.path))
            self._catch_up()

    def _refuse_another_kind(self) -> None:
        """A video or a prompt file given as a ledger would be cut behind its last newline, as a torn row is."""
        if os.fstat(self._fd).st_size == 0:
            return
        with open(self.path, "rb") as file:
            if any(_HEAD.match(line) for line in file):
                return
            file.seek(0)
            line, begun = file.readline(), b'{"key": "'
        if line[: len(begun)] != begun[: len(line)] or line.endswith(b"\n"):  # not the torn beginning of a first row
            raise ValueError(f"{self.path}: is not a ledger: no line of it is a ledger's row; give another file")

    def _repair_tail(self) -> None:
        """End the file with a newline: a line cut short by a dead process is moved aside. Called under the lock only, where nobody
        is in the middle of writing."""
        size = os.fstat(self._fd).st_size
        if size == 0 or os.pread(self._fd, 1, size - 1) == b"\n":
            return
        start = _after_last_newline(self._fd, size)
        tail = os.pread(self._fd, size - start, start)
        if _HEAD.match(tail) and _is_json(tail):
            os.write(self._fd, b"\n")  # only its newline was lost
            return
        torn = self.path.with_name(self.path.name + ".torn")
        with open(torn, "ab") as file:
            file.write(tail + b"\n")
        os.ftruncate(self._fd, start)
        self.faults.append(f"{self.path}: the last line was torn ({len(tail)} bytes) and was moved to {torn.name}")
        warnings.warn(self.faults[-1], stacklevel=4)

    def _fault(self, offset: int, what: str) -> None:
        if offset not in self._damaged:
            self._damaged.add(offset)
            self.faults.append(f"{self.path}: the row at byte {offset} {what}; skipped")
            warnings.warn(self.faults[-1], stacklevel=4)


def _hash_or_none(video: Video) -> str | None:
    try:
        return video.content_hash
    except (ValueError, OSError):
        return None


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def _plain(value: Any) -> Any:
    """numpy and torch scalars in ``extra`` as plain numbers."""
    if hasattr(value, "item"):
        return value.item()
    raise ValueError(f"extra values must be JSON (numbers, strings, lists, objects), received {type(value).__name__}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _after_last_newline(fd: int, size: int) -> int:
    """Offset just after the file's last newline (0 when it has none), read backwards."""
    end = size
    while end > 0:
        start = max(0, end - 65536)
        position = os.pread(fd, end - start, start).rfind(b"\n")
        if position >= 0:
            return start + position + 1
        end = start
    return 0
