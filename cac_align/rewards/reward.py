"""The reward contract: prompts and videos in, one honest Score per video out.

prompts, videos → Reward → list[Score(value, parts, evidence, error)]

A value of NaN means "no score", and then ``error`` says why; no failure becomes a number. A reward
is a callable with a name and a provenance; it is picklable, thread-safe and deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Protocol, runtime_checkable

from cac_align.core.judgement import Judgement
from cac_align.core.video import Video, check_pairs

__all__ = ["Reward", "Score", "check_pairs", "stable_provenance"]

_MACHINE_ENTRIES = ("vlm/served", "vlm/dtype", "vlm/preprocessing", "vlm/vision_attention")


def stable_provenance(provenance: Mapping[str, str]) -> dict[str, str]:
    """The entries that identify the judge and how it is asked, without those of the machine and of
    the server's state.
    """
    return {name: value for name, value in provenance.items() if not name.endswith(_MACHINE_ENTRIES)}


@dataclass(frozen=True)
class Score:
    """One video's score. Higher is better. Raises ``ValueError`` when value and error disagree."""

    # The score; NaN when there is none.
    value: float
    # Named numbers that the value was made from, e.g. {"alignment": 2.4, "physics": 3.1, "style": 3.4}.
    parts: Mapping[str, float] = field(default_factory=dict)
    # The judgement behind it, if any.
    evidence: Judgement | None = None
    # Why there is no score; None when there is one.
    error: str | None = None
    # What produced it: model, prompts, sampling, normaliser.
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if math.isinf(self.value):
            raise ValueError(f"Score.value must be finite or NaN, received {self.value}")
        if math.isnan(self.value) and not self.error:
            raise ValueError("Score without a value needs its reason: pass error=, or use Score.missing(reason)")
        if not math.isnan(self.value) and self.error:
            raise ValueError(
                f"Score has both a value ({self.value}) and an error ({self.error!r}); a failed score has no value"
            )

    @classmethod
    def missing(
        cls,
        reason: str,
        *,
        parts: Mapping[str, float] | None = None,
        evidence: Judgement | None = None,
        provenance: Mapping[str, str] | None = None,
    ) -> Score:
        """A score without value, and the reason."""
        return cls(math.nan, parts or {}, evidence, reason or "no reason given", provenance or {})

    @property
    def scored(self) -> bool:
        return not math.isnan(self.value)

    def to_json(self) -> dict[str, Any]:
        """A JSON object (``score`` is null when there is none) that ``from_json`` turns back into
        an equal Score.
        """
        return {
            "score": self.value if self.scored else None,
            "parts": {name: (None if math.isnan(part) else part) for name, part in self.parts.items()},
            "judgement": self.evidence.to_json() if self.evidence else None,
            "error": self.error,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Score:
        """Inverse of ``to_json``; unknown keys are ignored. Raises ``ValueError`` for anything else."""
        try:
            return cls(
                value=_number(row["score"]),
                parts={name: _number(part) for name, part in row["parts"].items()},
                evidence=Judgement.from_json(row["judgement"]) if row["judgement"] else None,
                error=row["error"],
                provenance=dict(row["provenance"].items()),
            )
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(f"not a score: {error!r}") from error


def _number(value: Any) -> float:
    """The number of a JSON value; null is NaN. Raises ``TypeError`` for another one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, NoneType)):
        raise TypeError(f"expected a number or null, received {value!r:.60}")
    return math.nan if value is None else float(value)


@runtime_checkable
class Reward(Protocol):
    """Anything that scores videos. Best-of-N, alignment, the service, the ledger and the report all
    take one.
    """

    @property
    def name(self) -> str: ...

    @property
    def provenance(self) -> Mapping[str, str]:
        """What identifies the score: model and revision or weight hash, prompt hash, frame
        sampling, normaliser.
        """
        ...

    def __call__(self, prompts: Sequence[str], videos: Sequence[Video]) -> list[Score]:
        """One Score per video, in order. A video's failure is its Score's ``error`` and does not
        affect the others.

        Raises ``ValueError`` when ``prompts`` and ``videos`` differ in length.
        """
        ...
