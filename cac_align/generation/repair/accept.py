"""When a repaired video takes the place of the original: the judge and held-out guards must agree.

scores of judge and guards before and after, rule → ``compare`` → ``Decision`` (accepted, why)

A judge that says where it saw a defect can be satisfied by what it does not see: a thing that stands
still, or is gone. So the judge alone never decides; guards that did not choose the window must not
be worse off. A missing score is never an accept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cac_align.rewards.reward import Score


@dataclass(frozen=True)
class Assessment:
    """What the judge and the guards say about one video. ranges: the width of each guard's scale, 1 where unknown."""

    score: Score
    guards: Mapping[str, Score]
    ranges: Mapping[str, float]


@dataclass(frozen=True)
class AcceptRule:
    """min_gain: by how much the judge's score must rise. tolerance: how much a guard's score may fall, as a share
    of its scale. Raises ``ValueError`` for negative or infinite ones.
    """

    min_gain: float = 0.05
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        for name in ("min_gain", "tolerance"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number, 0 or more, received {value}")


@dataclass(frozen=True)
class Decision:
    """Whether a repair is kept, and why, in one sentence."""

    accepted: bool
    reason: str


def compare(before: Assessment, after: Assessment, rule: AcceptRule) -> Decision:
    """Whether the second video is better than the first one by the judge and no worse by any guard."""
    for who, assessment in (("the original", before), ("the repair", after)):
        if not assessment.score.scored:
            return Decision(False, f"no verdict on {who}: {assessment.score.error}")
        for name, score in assessment.guards.items():
            if not score.scored:
                return Decision(False, f"guard {name} has no score of {who}: {score.error}")
    gain = after.score.value - before.score.value
    if gain < rule.min_gain:
        return Decision(False, f"the judge's score changed by {gain:+.3g}, less than {rule.min_gain:g}")
    for name, score in after.guards.items():
        fall = before.guards[name].value - score.value
        if fall > rule.tolerance * before.ranges[name]:
            return Decision(False, f"guard {name} fell by {fall:.3g}, from {before.guards[name].value:.3g}")
    guards = f"; {' and '.join(after.guards)} did not fall" if after.guards else ""
    return Decision(True, f"the judge's score rose by {gain:.3g}{guards}")
