"""``attempts.jsonl``: every judgement of an original and every attempt to repair it, with its costs.

what an attempt depends on → ``attempt_key`` → ``RepairLog.find`` | ``RepairLog.add``

A row is found again by its content (video, prompt, mask, strength, seed, who repairs, who judges),
never because a file exists. A row without a verdict is not final: the attempt is judged again, and
the later row counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cac_align.rewards.metered import Usage
from cac_align.runs.files import append_lines
from cac_align.runs.metrics_log import read_rows


@dataclass(frozen=True)
class Costs:
    """clips: videos made. frame_steps: frames × denoising steps. judge_calls: answers asked of judges. judge_tokens:
    read and written by them; None where a judge does not say.
    """

    clips: int = 0
    frame_steps: int = 0
    judge_calls: int = 0
    judge_tokens: int | None = 0

    @classmethod
    def of(cls, usage: Usage, *, clips: int = 0, frame_steps: int = 0) -> Costs:
        return cls(clips, frame_steps, usage.calls, usage.tokens)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Costs:
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})

    def __add__(self, other: Costs) -> Costs:
        usage = Usage(self.judge_calls, self.judge_tokens) + Usage(other.judge_calls, other.judge_tokens)
        return Costs.of(usage, clips=self.clips + other.clips, frame_steps=self.frame_steps + other.frame_steps)

    def to_json(self) -> dict[str, int | None]:
        return asdict(self)


def attempt_key(**facts: Any) -> str:
    """The identity of an attempt: sha256 over all that it depends on, as canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class RepairLog:
    """The rows of ``attempts.jsonl`` by key. A row that a kill tore is left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = {row["key"]: row for row in read_rows(path) if "key" in row}

    def find(self, key: str) -> dict[str, Any] | None:
        """The last row of this attempt; None for one that is not finished."""
        return self._rows.get(key)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row in one write. Raises ``OSError`` where it cannot be written whole."""
        append_lines(self.path, json.dumps(dict(row), ensure_ascii=True) + "\n")
        self._rows[row["key"]] = dict(row)
