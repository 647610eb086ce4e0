"""Every answer of a teacher, in an append-only JSON Lines file: the resume point and audit trail of
a synthesis.

A last line that a killed process left unfinished is moved to ``<file>.torn``. One process writes
at a time; a second one is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cac_align.runs.files import append_whole, atomic_write


@dataclass(frozen=True)
class Attempt:
    """One answer of the teacher.

    key: of the question (``RecordQuestion.key``).
    task: its ``label``.
    round: counted from 1.
    reasons: against the answer; none means verified.
    error: why teacher or reviewer gave no answer; such an attempt is no round.
    num_prompt_tokens, num_tokens: including a reviewer's.
    unreviewed: the answer is fine and only its review is missing. The review's own line counts the
        reviewer's tokens alone.
    """

    key: str
    record: str
    task: str
    round: int
    text: str = ""
    reasons: tuple[str, ...] = ()
    error: str | None = None
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    unreviewed: bool = False

    @property
    def verified(self) -> bool:
        return self.error is None and not self.reasons

    @property
    def answer(self) -> str:
        """The JSON object of a verified answer, without text around it."""
        start = self.text.index("{")
        _, end = json.JSONDecoder(strict=False).raw_decode(self.text, start)
        return self.text[start:end]

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Attempt:
        return cls(**{**row, "reasons": tuple(row["reasons"])})


def record_provenance(path: Path, made: Mapping[str, str]) -> None:
    """Record in ``path`` how its folder is made. Raises ``ValueError`` where the folder was made
    otherwise.
    """
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        other = sorted(name for name in {*made, *before} if made.get(name) != before.get(name))
        if other:
            name = other[0]
            was, now = before.get(name), made.get(name)
            raise ValueError(
                f"{path.parent}: was made with {name} = {was}, now it is {now}; use the same, or another folder"
            )
    atomic_write(path, json.dumps(made, indent=1, sort_keys=True) + "\n")


class AttemptLog:
    """The log at ``path``, created when it does not exist. Thread-safe.

    Raises ``ValueError`` while another process writes it, and for a damaged line that is not the
    last.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise ValueError(
                f"{self.path}: another process is writing it; wait for it, or give another folder"
            ) from error
        self.by_key: dict[str, list[Attempt]] = {}
        self._totals: Counter[str] = Counter()
        self._repair()
        with open(self.path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    self._keep(Attempt.from_json(json.loads(line)))
                except (ValueError, TypeError, KeyError) as error:
                    self.close()
                    raise ValueError(
                        f"{self.path}:{number}: not an attempt: {error}; delete the line to ask again"
                    ) from error

    def close(self) -> None:
        os.close(self._fd)

    def rounds(self, key: str) -> list[Attempt]:
        """The answers to a question so far, in order, without failed attempts."""
        with self._lock:
            return [attempt for attempt in self.by_key.get(key, ()) if attempt.error is None]

    def unreviewed(self, key: str) -> Attempt | None:
        """The last attempt at a question if only its review is missing."""
        with self._lock:
            attempts = self.by_key.get(key)
            last = attempts[-1] if attempts else None
        return last if last is not None and last.unreviewed else None

    def add(self, attempt: Attempt) -> None:
        """Append an attempt; on return it is in the file. Raises ``OSError`` when it cannot be
        written whole.
        """
        # ASCII, because a teacher's text may hold U+2028 and its like, at which many a reader splits lines.
        line = (json.dumps(asdict(attempt)) + "\n").encode("ascii")
        with self._lock:
            append_whole(self._fd, line, self.path)
            self._keep(attempt)

    def totals(self) -> dict[str, int]:
        """Numbers of answers, rejections, failures and tokens in the file."""
        with self._lock:
            return {
                name: self._totals[name]
                for name in ("answers", "rejected", "failures", "prompt_tokens", "answer_tokens")
            }

    def _keep(self, attempt: Attempt) -> None:
        self.by_key.setdefault(attempt.key, []).append(attempt)
        self._totals["answers"] += attempt.error is None
        self._totals["rejected"] += bool(attempt.reasons)
        self._totals["failures"] += attempt.error is not None
        self._totals["prompt_tokens"] += attempt.num_prompt_tokens
        self._totals["answer_tokens"] += attempt.num_tokens

    def _repair(self) -> None:
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end == len(data):
            return
        with open(f"{self.path}.torn", "ab") as torn:
            torn.write(data[end:] + b"\n")
        os.ftruncate(self._fd, end)
