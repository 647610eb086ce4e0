"""Alarms of an alignment: the reward rises while something else falls, or too many scores are
missing.

evaluation results (the same prompts and seeds, step after step) → ``find_alarms`` → sentences
rows of log.jsonl → ``unscored_too_often``, ``skipped_too_often`` → why the run must stop, or None

A reward that only looks for defects prefers scenes that hardly move: in a first run DiffusionNFT
lowered the anomaly rate from 40 % to 1 % and made the videos move a quarter less. So the same
prompts and seeds are sampled again and again, and compared with the videos from before training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EvalResult:
    """The evaluation videos of one step. NaN: not measured, or no video with a score.

    total, normal_flow_speed (frame heights per second), held_out: means of the score, of how fast
    the videos move, and of the held-out reward. parts: means of the score's components. totals: the
    score of each video, NaN without one. per_video: the number of each video for
    "normal_flow_speed", "held_out" and the alignment parts. Two results are compared on the videos
    that have the number in both.
    """

    step: int
    total: float
    normal_flow_speed: float
    held_out: float = math.nan
    parts: Mapping[str, float] | None = None
    totals: tuple[float, ...] = ()
    per_video: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def unscored(self) -> int:
        """How many of the videos have no score."""
        return sum(map(math.isnan, self.totals))

    def scored_enough(self, max_unscored: float) -> bool:
        """Whether at most this share of the videos has no score."""
        return self.unscored <= max_unscored * len(self.totals)

    def to_json(self) -> dict[str, object]:
        """A line of ``eval.jsonl``; null stands for NaN."""
        numbers = {"total": self.total, "normal_flow_speed": self.normal_flow_speed, "held_out": self.held_out}
        return {
            "step": self.step,
            **{name: None if math.isnan(value) else value for name, value in numbers.items()},
            "parts": {name: None if math.isnan(value) else value for name, value in (self.parts or {}).items()},
            "unscored": self.unscored,
            "totals": _nulls(self.totals),
            "per_video": {name: _nulls(values) for name, values in self.per_video.items()},
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> EvalResult:
        """The inverse of ``to_json``."""
        total, speed, held_out = _nans([row[name] for name in ("total", "normal_flow_speed", "held_out")])
        parts = dict(zip(row["parts"], _nans(row["parts"].values()), strict=True))
        per_video = {name: _nans(values) for name, values in row["per_video"].items()}
        return cls(int(row["step"]), total, speed, held_out, parts, _nans(row["totals"]), per_video)

    def values_of(self, name: str) -> tuple[float, tuple[float, ...]]:
        """(mean, number of each video) of "total", "normal_flow_speed", "held_out" or a part.

        The second is empty where it was not recorded.
        """
        if name == "total":
            return self.total, self.totals
        mean = (
            getattr(self, name) if name in ("normal_flow_speed", "held_out") else (self.parts or {}).get(name, math.nan)
        )
        return float(mean), self.per_video.get(name, ())


def _nulls(values: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def _nans(values: Any) -> tuple[float, ...]:
    return tuple(math.nan if value is None else float(value) for value in values)


def total_gain(before: EvalResult, after: EvalResult) -> float:
    """How much the mean score rose, on the videos that have a score in both results; NaN where none
    has.
    """
    old, new = _means_in_both(before, after, "total")
    return new - old


def is_best(results: Sequence[EvalResult], max_unscored: float = 0.1) -> bool:
    """Whether the last result's total lies above all earlier ones, on the videos that have a score
    in both.

    A result without a total, or in which more than ``max_unscored`` of the videos have no score, is
    never the best.
    """
    if len(results) < 2 or math.isnan(results[-1].total) or not results[-1].scored_enough(max_unscored):
        return False
    return all(not total_gain(before, results[-1]) <= 0 for before in results[:-1])  # NaN does not count against it


def find_alarms(results: Sequence[EvalResult], tolerance: float, max_unscored: float = 0.1) -> list[str]:
    """What is wrong with the last result compared with the first, in sentences; empty when nothing
    is.

    tolerance: how far a number may fall, as a share of its first value. A lost normal-flow speed is an
    alarm even when the total does not rise. max_unscored: the share of videos without a score above which
    there is an alarm.
    """
    if len(results) < 2:
        return []
    first, last = results[0], results[-1]
    rises = total_gain(first, last) > 0
    found = []
    if not last.scored_enough(max_unscored):
        found.append(
            f"Step {last.step}: {last.unscored} of the {len(last.totals)} evaluation videos have no "
            "score; the numbers are "
            "those of the others, and this LoRA cannot become the best one."
        )
    (old, new), (before, after) = _means_in_both(first, last, "total"), _means_in_both(first, last, "normal_flow_speed")
    if _fell(before, after, tolerance):
        found.append(
            f"Step {last.step}: the normal-flow speed of the evaluation videos is {1 - after / before:.0%} lower than "
            f"before training ({before:.3f} → {after:.3f} frame heights per second) while the reward goes from "
            f"{old:.4f} to {new:.4f}: the reward may prefer videos that stand still."
        )
    falling = {"held_out": "the held-out reward"}
    falling |= {name: f"prompt alignment ({name})" for name in first.parts or {} if is_alignment(name)}
    for name, words in falling.items():
        if (lost := _num_lost(first, last, name)) > max_unscored * len(last.totals):
            found.append(
                f"Step {last.step}: {lost} of the {len(last.totals)} evaluation videos have a score but "
                f"no longer {words}; "
                "the others are compared."
            )
        before, after = _means_in_both(first, last, name)
        if rises and _fell(before, after, tolerance):
            found.append(
                f"Step {last.step}: {words} fell from {before:.4f} to {after:.4f} while the reward rose "
                f"from {old:.4f} to "
                f"{new:.4f}: the reward is probably being hacked."
            )
    return found


def is_alignment(part: str) -> bool:
    """Whether a part of a score says how well the video fits its prompt."""
    return part.split("/")[-1] == "alignment"


def _means_in_both(before: EvalResult, after: EvalResult, name: str) -> tuple[float, float]:
    """The means of a number over the videos that have it in both results; NaN where none has."""
    (mean, old), (later, new) = before.values_of(name), after.values_of(name)
    if not (old and new):
        return mean, later
    pairs = [pair for pair in zip(old, new, strict=True) if not any(map(math.isnan, pair))]
    if not pairs:
        return math.nan, math.nan
    return sum(first for first, _ in pairs) / len(pairs), sum(last for _, last in pairs) / len(pairs)


def _num_lost(before: EvalResult, after: EvalResult, name: str) -> int:
    """How many videos had this number before, and now have a score without it."""
    had = before.per_video.get(name, ())
    has = after.per_video.get(name) or (math.nan,) * len(had)
    return sum(
        not math.isnan(a) and math.isnan(b) and not math.isnan(c)
        for a, b, c in zip(had, has, after.totals, strict=False)
    )


def _fell(before: float, after: float, tolerance: float) -> bool:
    return math.isfinite(before) and math.isfinite(after) and before - after > tolerance * abs(before)


def unscored_too_often(
    rows: Sequence[Mapping[str, Any]], limit: float, patience: int, first_step: int = 0
) -> str | None:
    """Why to stop when more than ``limit`` of the videos of the last ``patience`` steps have no
    score, or None.

    rows: those of log.jsonl, in order. first_step: earlier steps do not count; after a resume with
    a repaired reward, the videos without a score from before must not stop the run.
    """
    recent = [row for row in rows if "videos" in row and row["step"] >= first_step][-patience:]
    if len(recent) < patience:
        return None
    share = sum(row["unscored"] for row in recent) / sum(row["videos"] for row in recent)
    if share <= limit:
        return None
    reasons = "; ".join(dict.fromkeys(error for row in recent for error in row.get("errors", ())))
    return (
        f"{share:.0%} of the videos of the last {len(recent)} steps have no score (max_unscored is {limit:.0%}): "
        f"{reasons[:500]}. Repair the reward and run the same command: it resumes after this step (with "
        "allow_changed_reward=true where the reward scores differently now)"
    )


def skipped_too_often(rows: Sequence[Mapping[str, Any]], limit: int, samples: Path) -> str | None:
    """Why to stop when more than ``limit`` steps were skipped for numbers that are not finite, or
    None.

    samples: the folder with the latents of the skipped steps.
    """
    skipped = [row for row in rows if row.get("skipped")]
    if len(skipped) <= limit:
        return None
    return (
        f"{len(skipped)} steps were skipped (max_skipped is {limit}), the last because {skipped[-1]['skipped']}; their "
        f"latents are in {samples}. Lower lr or noise_level in a new out=, or raise max_skipped and run again"
    )
