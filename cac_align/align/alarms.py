"""The guards: an alarm in plain sentences when the reward rises while something else falls.

video → ``rewards.motion`` → number      watched readings (the same prompts and seeds, step after step) → ``alarms`` → sentences

A reward that sees only defects is satisfied by a scene that hardly moves: in a first trial DiffusionNFT cut anomalies from 40 % to 1 %
and slowed the motion by a quarter. So the same prompts and seeds are sampled again and again, and compared with the model before training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reading:
    """The watched videos at one step: means over the same prompts and seeds. NaN: not measured, or no video scored.

    totals: the score of each watched video, NaN where it has none. each: the same of "motion", "held_out" and the alignment parts.
    Readings are compared on the videos that have the number in both.
    """

    step: int
    total: float
    motion: float
    held_out: float = math.nan
    parts: Mapping[str, float] | None = None
    totals: tuple[float, ...] = ()
    each: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def unscored(self) -> int:
        """How many of the watched videos have no score."""
        return sum(map(math.isnan, self.totals))

    def scored_enough(self, max_unscored: float) -> bool:
        return self.unscored <= max_unscored * len(self.totals)

    def to_json(self) -> dict[str, object]:
        plain = {name: None if math.isnan(value) else value for name, value in (self.parts or {}).items()}
        numbers = {"total": self.total, "motion": self.motion, "held_out": self.held_out}
        return {
            "step": self.step,
            **{name: None if math.isnan(value) else value for name, value in numbers.items()},
            "parts": plain,
            "unscored": self.unscored,
            "totals": _nulls(self.totals),
            "each": {name: _nulls(values) for name, values in self.each.items()},
        }

    @classmethod
    def from_json(cls, row: Mapping[str, object]) -> Reading:
        total, moved, held_out = (
            math.nan if row[name] is None else float(row[name]) for name in ("total", "motion", "held_out")
        )
        parts = {name: math.nan if value is None else float(value) for name, value in dict(row["parts"]).items()}
        each = {name: _nans(values) for name, values in dict(row.get("each", {})).items()}
        return cls(int(row["step"]), total, moved, held_out, parts, _nans(row.get("totals", ())), each)

    def of(self, name: str) -> tuple[float, tuple[float, ...]]:
        """ "total", "motion", "held_out" or a part: its mean, and each video's own (none in a row kept before readings had them)."""
        if name == "total":
            return self.total, self.totals
        mean = getattr(self, name) if name in ("motion", "held_out") else (self.parts or {}).get(name, math.nan)
        return float(mean), self.each.get(name, ())


def _nulls(values: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def _nans(values: Any) -> tuple[float, ...]:
    return tuple(math.nan if value is None else float(value) for value in values)


def gain(before: Reading, after: Reading) -> float:
    """How much the total rose from one reading to a later one, on the videos that are scored in both; NaN where none is."""
    old, new = _in_both(before, after, "total")
    return new - old


def alarms(readings: Sequence[Reading], tolerance: float, max_unscored: float = 0.1) -> list[str]:
    """What the last reading says against the first, in sentences; empty when all is well or there is nothing to compare.

    tolerance: how far a number may fall, as a share of its first value. Motion speaks even when the total does not rise.
    max_unscored: the share of videos without a score from which on that is said.
    """
    if len(readings) < 2:
        return []
    first, last = readings[0], readings[-1]
    rises = gain(first, last) > 0
    told = []
    if not last.scored_enough(max_unscored):
        told.append(
            f"Step {last.step}: {last.unscored} of the {len(last.totals)} watched videos have no score; the numbers are those of the "
            "others, and this LoRA is not taken for the best one."
        )
    (old, new), (before, after) = _in_both(first, last, "total"), _in_both(first, last, "motion")
    if _fell(before, after, tolerance):
        told.append(
            f"Step {last.step}: the watched videos move {1 - after / before:.0%} less than before training "
            f"({before:.3f} → {after:.3f} frame heights per second) while the reward goes from {old:.4f} to {new:.4f}: it may be "
            "paying for standing still."
        )
    falling = {"held_out": "the held-out reward"}
    falling |= {name: f"prompt alignment ({name})" for name in first.parts or {} if is_alignment(name)}
    for name, words in falling.items():
        if (lost := _lost(first, last, name)) > max_unscored * len(last.totals):
            told.append(
                f"Step {last.step}: {lost} of the {len(last.totals)} watched videos have a score and no longer {words}; the others "
                "are compared."
            )
        before, after = _in_both(first, last, name)
        if rises and _fell(before, after, tolerance):
            told.append(
                f"Step {last.step}: {words} fell from {before:.4f} to {after:.4f} while the reward rose from {old:.4f} to {new:.4f}: "
                "the reward is probably being hacked."
            )
    return told


def is_alignment(part: str) -> bool:
    """Whether a part of a score says how well the video fits its prompt."""
    return part.split("/")[-1] == "alignment"


def _in_both(before: Reading, after: Reading, name: str) -> tuple[float, float]:
    """The means of a number over the videos that have it in both readings; NaN where none has."""
    (mean, old), (later, new) = before.of(name), after.of(name)
    if not (old and new):
        return mean, later
    pairs = [pair for pair in zip(old, new, strict=True) if not any(map(math.isnan, pair))]
    if not pairs:
        return math.nan, math.nan
    return sum(first for first, _ in pairs) / len(pairs), sum(last for _, last in pairs) / len(pairs)


def _lost(before: Reading, after: Reading, name: str) -> int:
    """How many videos had this number, and still have a score but not it."""
    had = before.each.get(name, ())
    has = after.each.get(name) or (math.nan,) * len(had)
    return sum(
        not math.isnan(a) and math.isnan(b) and not math.isnan(c)
        for a, b, c in zip(had, has, after.totals, strict=False)
    )


def _fell(before: float, after: float, tolerance: float) -> bool:
    return math.isfinite(before) and math.isfinite(after) and before - after > tolerance * abs(before)


def unscored_too_often(rows: Sequence[Mapping[str, Any]], limit: float, patience: int, since: int = 0) -> str | None:
    """Why to stop when too many videos of the last ``patience`` steps have no score, or None. rows: of the log, in order.

    since: the first step that counts; a run that goes on with a mended reward is not stopped for what was unscored before.
    """
    recent = [row for row in rows if "videos" in row and row["step"] >= since][-patience:]
    if len(recent) < patience:
        return None
    share = sum(row["unscored"] for row in recent) / sum(row["videos"] for row in recent)
    if share <= limit:
        return None
    reasons = "; ".join(dict.fromkeys(error for row in recent for error in row.get("errors", ())))
    return (
        f"{share:.0%} of the videos of the last {len(recent)} steps have no score (max_unscored is {limit:.0%}): {reasons[:500]}. "
        "Mend the reward and run the same command: it goes on after this step (with allow_changed_reward=true where it judges otherwise now)"
    )


def skipped_too_often(rows: Sequence[Mapping[str, Any]], limit: int, samples: Path) -> str | None:
    """Why to stop when more than ``limit`` steps were skipped for numbers that are not finite, or None."""
    skipped = [row for row in rows if row.get("skipped")]
    if len(skipped) <= limit:
        return None
    return (
        f"{len(skipped)} steps were skipped (max_skipped is {limit}), the last because {skipped[-1]['skipped']}; their latents are in "
        f"{samples}. Lower lr or noise_level in a new out=, or raise max_skipped and run again"
    )
