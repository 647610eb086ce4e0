"""The ledger: an append-only JSONL of scores that is the cache, the resume point and the audit
trail.

cached(reward, ledger) → look up (video content + prompt + provenance) → score the rest → append
    → Scores

A line is ``{"key", "kind", "time", "prompt", "video", "video_hash", "reward", "score", "parts",
"judgement", "error", "provenance", "extra"}``. Key and kind stand first, so that opening a ledger
reads 70 bytes of each line; the evidence is parsed when it is asked for. There are four kinds:

- ``score``: a score, served again.
- ``missing``: a video without score, kept for audit and tried again.
- ``combined``: the score of a combination. It is never served again, because with ``group`` and
  ``rank`` normalisation it depends on the other videos of the call.
- ``extra``: facts that were added to a key later.

Several processes may append at once: the rows of one call are one write on an O_APPEND descriptor
under an exclusive file lock. Each row of several carries ``rest``, the number of rows of its call
that follow, so that rows of a call that a kill cut off are moved to ``<name>.torn`` with a warning,
all of them: what is left of a batch would be judged in a batch of another size, whose numbers differ
in the last digits. A damaged line elsewhere is described in ``faults`` and skipped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cac_align.core.video import Video
from cac_align.rewards.reward import Score
from cac_align.runs.files import append_whole

_HEAD = re.compile(
    rb'\{"key": "([0-9a-f]{64})", "kind": "(score|missing|combined|extra)"(?:, "rest": ([0-9]{1,9})(?=[,}]))?'
)


def provenance_digest(provenance: Mapping[str, str]) -> str:
    """sha256 of the provenance's canonical JSON."""
    return hashlib.sha256(_canonical(dict(provenance))).hexdigest()


def score_key(prompt: str, video: Video, provenance: Mapping[str, str]) -> str:
    """A score's key: sha256 of (video content hash, prompt, provenance digest), 64 hexadecimal
    digits.

    Raises ``ValueError`` when the video's bytes cannot be read.
    """
    return hashlib.sha256(_canonical([video.content_hash, prompt, provenance_digest(provenance)])).hexdigest()


def unreadable_key(name: str, prompt: str, provenance: Mapping[str, str]) -> str:
    """The key of a video whose bytes cannot be read, made of its name: for audit only, never found
    again.
    """
    return hashlib.sha256(_canonical(["unreadable", name, prompt, provenance_digest(provenance)])).hexdigest()


class Ledger:
    """A ledger file, open for reading and appending. Thread-safe; pickled by its path.

    The file is created when it does not exist. write: False opens it for reading only; nothing is
    created or repaired. ``faults`` has a sentence for every damaged line found so far. Raises
    ``ValueError`` when the path cannot be opened or is a file of another kind, which is left
    unchanged.
    """

    def __init__(self, path: str | os.PathLike[str], write: bool = True) -> None:
        self.path = Path(path).absolute()
        self._write = write
        self.faults: list[str] = []
        self._lock = threading.RLock()
        self._fd, self._pid = -1, -1
        self._reset_index()
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

    def find(self, key: str) -> Score | None:
        """The score of ``key``, or None. A damaged row counts as none and is described in
        ``faults``.
        """
        return self._score(self._scores, key)

    def combined(self, key: str) -> Score | None:
        """The last combined score of ``key``, or None, as ``find`` does."""
        return self._score(self._combined, key)

    def annotate(self, key: str, **extra: Any) -> None:
        """Add facts to a key, such as step, group or advantage; ``extra(key)`` and ``rows()``
        return them.

        Raises ``ValueError`` for a text that is not a ledger key.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", key):
            raise ValueError(
                f"expected a ledger key of 64 hexadecimal digits, received {key!r}; make one with score_key"
            )
        self._append([{"key": key, "kind": "extra", "time": _now(), "extra": extra}])

    def extra(self, key: str) -> list[dict[str, Any]]:
        """Everything that ``annotate`` added to ``key``, in order."""
        with self._lock, self._file():
            self._catch_up()
            rows = [self._parse(offset)[0] for offset in self._extras.get(key, ())]
        return [row["extra"] for row in rows if row is not None]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every readable row in the order of the file. Damaged lines are described in ``faults``
        and skipped.
        """
        with self._lock, self._file():
            self._catch_up()
            end = self._end
        with open(self.path, "rb") as file:
            while (offset := file.tell()) < end:
                line = file.readline()
                if offset in self._damaged:
                    continue
                try:
                    yield _read_row(line)[0]
                except ValueError as error:
                    self._fault(offset, f"cannot be read ({error})")

    def record(self, entries: Sequence[tuple[str, str, str, Video, str, Score]]) -> None:
        """Append scores, one line each; an entry is (key, kind, prompt, video, name of the reward,
        score).
        """
        rows = []
        for key, kind, prompt, video, reward, score in entries:
            row = {"key": key, "kind": kind, "time": _now(), "prompt": prompt, "video": video.name}
            row |= {"video_hash": _hash_or_none(video), "reward": reward, **score.to_json(), "extra": {}}
            rows.append(row)
        self._append(rows)

    # ---- the file -------------------------------------------------------------------------------------------------

    def _reset_index(self) -> None:
        self._scores: dict[str, int] = {}  # key → offset of its line
        self._combined: dict[str, int] = {}
        self._extras: dict[str, list[int]] = {}
        self._damaged: set[int] = set()  # offsets of lines that ``faults`` describes
        self._whole = -1  # the file's size after this object last saw that it ends with a whole call
        self._end = 0  # everything before this offset has been scanned; always just after a newline
        self._line_number = 0

    @contextmanager
    def _file(self) -> Iterator[int]:
        """The file descriptor, under a lock that every process takes.

        It is reopened after a fork: a lock belongs to the open file, so a child that inherited it
        would not be excluded by its parent.
        """
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
                f"{self.path}: this file system locks no files ({error.strerror}), and a ledger without locks is "
                "damaged by concurrent writers; mount it with locks (Lustre: flock), or keep the ledger elsewhere"
            ) from error
        try:
            yield self._fd
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _catch_up(self) -> None:
        """Index the whole lines that any process has appended since the last call; only their heads
        are read.
        """
        size = os.fstat(self._fd).st_size
        if size == self._end:
            return
        if size < self._end:
            warnings.warn(f"{self.path}: became shorter while it was open; reading it again", stacklevel=4)
            self._reset_index()
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

    def _score(self, index: dict[str, int], key: str) -> Score | None:
        with self._lock, self._file():
            self._catch_up()
            if key not in index:
                return None
            _, score = self._parse(index[key])
            if score is None:
                del index[key]
            return score

    def _parse(self, offset: int) -> tuple[dict[str, Any] | None, Score | None]:
        with open(self.path, "rb") as file:
            file.seek(offset)
            line = file.readline()
        try:
            return _read_row(line)
        except ValueError as error:
            self._fault(offset, f"cannot be read ({error})")
            return None, None

    def _append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write one line per row, all in one write.

        Raises ``OSError`` when they cannot be written whole; their part is removed again.
        """
        # ASCII, because a model's text may hold characters such as U+2028, at which some readers split lines.
        lines = []
        for number, row in enumerate(rows, 1):
            rest = {"rest": len(rows) - number} if len(rows) > 1 else {}
            ordered = {"key": row["key"], "kind": row["kind"], **rest, **row}
            lines.append(json.dumps(ordered, ensure_ascii=True, allow_nan=False, default=_plain) + "\n")
        data = "".join(lines).encode("ascii")
        with self._lock, self._file() as fd:
            self._repair_tail()
            append_whole(fd, data, self.path)
            self._whole = os.fstat(fd).st_size
            self._catch_up()

    def _refuse_another_kind(self) -> None:
        """Raise ``ValueError`` for a file that is no ledger; repairing it would cut it after its
        last newline.
        """
        if os.fstat(self._fd).st_size == 0:
            return
        with open(self.path, "rb") as file:
            if any(_HEAD.match(line) for line in file):
                return
            file.seek(0)
            line, begun = file.readline(), b'{"key": "'
        if line[: len(begun)] != begun[: len(line)] or line.endswith(b"\n"):  # not the torn beginning of a first row
            raise ValueError(f"{self.path} is not a ledger: none of its lines is a ledger row; give another file")

    def _repair_tail(self) -> None:
        """Make the file end with a newline: the incomplete line of a killed process is moved to
        ``<name>.torn``.

        Call it under the lock only, when no process is writing.
        """
        size = os.fstat(self._fd).st_size
        if size in (0, self._whole):
            return
        if os.pread(self._fd, 1, size - 1) != b"\n":
            start = _after_last_newline(self._fd, size)
            if _is_row(os.pread(self._fd, size - start, start)):
                os.write(self._fd, b"\n")  # only its newline is missing
                size, start = size + 1, size + 1
        else:
            start = size
        start = self._start_of_incomplete_call(start)
        self._whole = start
        if start == size:
            return
        tail = os.pread(self._fd, size - start, start)
        torn = self.path.with_name(self.path.name + ".torn")
        with open(torn, "ab") as file:
            file.write(tail if tail.endswith(b"\n") else tail + b"\n")
        os.ftruncate(self._fd, start)
        self.faults.append(
            f"{self.path}: the last line was torn ({len(tail)} bytes with its call's rows) and was moved to {torn.name}"
        )
        warnings.warn(self.faults[-1], stacklevel=4)

    def _start_of_incomplete_call(self, end: int) -> int:
        """Offset of the first row of a call whose last row is not among the lines before ``end``; else ``end``."""
        start, expected = end, None
        while start > 0:
            begin = _after_last_newline(self._fd, start - 1)
            head = _HEAD.match(os.pread(self._fd, min(start - begin, 200), begin))
            rest = int(head[3]) if head is not None and head[3] is not None else 0
            if rest == 0 or rest != (rest if expected is None else expected):
                break
            start, expected = begin, rest + 1
        return start

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
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")  # noqa: UP017 (a client on Python 3.10)


def _read_row(line: bytes) -> tuple[dict[str, Any], Score | None]:
    """A row, and the score in it; None in a row of kind ``extra``. Raises ``ValueError`` for a line that
    is none.
    """
    try:
        row = json.loads(line)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(row, dict) or not isinstance(row.get("extra"), dict):
        raise ValueError("it is no row of a ledger")
    is_extra = row.get("kind") == "extra"
    for name in ("key", "kind") if is_extra else ("key", "kind", "prompt", "video", "reward"):
        if not isinstance(row.get(name), str):
            raise ValueError(f"its {name} is no text")
    return row, None if is_extra else Score.from_json(row)


def _is_row(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return _HEAD.match(line) is not None


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
