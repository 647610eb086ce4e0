"""What a host that cannot take "no score" gets instead: a named policy, never a silent number.

scores, prompts → Policy.on_missing → one float per video, or Unscored

    raise     any missing score stops the call with ``Unscored`` and its reason
    neutral   a missing score becomes the mean of the scored members of its prompt's group, so that its advantage is 0. That
              holds for the whole group only: a call that has not exactly ``group_size`` videos of the prompt raises, and so
              does a group without a single scored member
    budget    either way, once ``min_seen`` videos were seen, a share of missing ones above ``max_unscored_share`` raises

scores, prompts → optional → one float or None per video, for a host that leaves out None by itself; the budget holds there too

The ``Score`` itself stays NaN and so does its line in the ledger; only the number handed to the host is substituted, and every
substitution is logged with the policy's name and the run's count.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cac_align.rewards.reward import Score

log = logging.getLogger(__name__)


class Unscored(RuntimeError):
    """The policy does not allow the host to go on without a score."""


@dataclass(frozen=True)
class Policy:
    """on_missing: "raise" or "neutral". max_unscored_share: of all videos seen, in [0, 1]. min_seen: videos before it is judged.

    group_size: videos of one prompt over which the host takes the mean of its advantages (over all ranks); "neutral" needs it.
    """

    on_missing: Literal["raise", "neutral"] = "raise"
    max_unscored_share: float = 0.1
    min_seen: int = 32
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.on_missing not in ("raise", "neutral"):
            raise ValueError(
                f"on_missing must be 'raise' or 'neutral' (the mean of the prompt's group), received {self.on_missing!r}"
            )
        if not 0 <= self.max_unscored_share <= 1:
            raise ValueError(f"max_unscored_share must lie in [0, 1], received {self.max_unscored_share!r}")
        if self.min_seen < 1:
            raise ValueError(f"min_seen must be at least 1 video, received {self.min_seen!r}")
        if self.group_size is not None and self.group_size < 2:
            raise ValueError(f"group_size must be at least 2 videos, received {self.group_size!r}")
        if self.on_missing == "neutral" and self.group_size is None:
            raise ValueError(
                "on_missing 'neutral' needs group_size, the videos per prompt that the host compares; received None. "
                "Where a call does not hold them all, use on_missing 'raise'"
            )

    def __str__(self) -> str:
        return f"{self.on_missing}, at most {self.max_unscored_share:.1%} unscored"


class Tally:
    """How many videos a run has seen, and how many of them had no score. Thread-safe; pickles as its two counts."""

    def __init__(self, seen: int = 0, unscored: int = 0) -> None:
        self._lock = threading.Lock()
        self.seen, self.unscored = seen, unscored

    def __reduce__(self) -> tuple[type[Tally], tuple[int, int]]:
        return (Tally, (self.seen, self.unscored))

    def count(self, scores: Sequence[Score]) -> tuple[int, int]:
        """Add one call; returns (seen, unscored) of the run so far."""
        with self._lock:
            self.seen += len(scores)
            self.unscored += sum(not score.scored for score in scores)
            return self.seen, self.unscored


def numbers(prompts: Sequence[str], scores: Sequence[Score], policy: Policy, tally: Tally) -> list[float]:
    """One finite float per score, by the policy. Equal prompts of this call are one group.

    Raises ``Unscored`` as the policy says, with the prompt and the reason of the first missing score.
    """
    missing, state, first = _within_budget(prompts, scores, policy, tally)
    if missing and policy.on_missing == "raise":
        raise Unscored(f"{len(missing)} of {len(scores)} videos have no score ({state}); {first}")
    values = [score.value for score in scores]
    for index in missing:
        members = [score for prompt, score in zip(prompts, scores, strict=True) if prompt == prompts[index]]
        if len(members) != policy.group_size:
            raise Unscored(
                f"this call holds {len(members)} videos of the prompt and its group {policy.group_size}: the mean of another set "
                f"is not neutral ({state}); {first}"
            )
        group = [score.value for score in members if score.scored]
        if not group:
            raise Unscored(f"no video of this prompt's group has a score, so none is neutral ({state}); {first}")
        values[index] = math.fsum(group) / len(group)
        log.warning(
            "no score, sent %.6g instead, the mean of %d scored of its group (%s); prompt %s: %s",
            values[index],
            len(group),
            state,
            _short(prompts[index]),
            scores[index].error,
        )
    return values


def optional(prompts: Sequence[str], scores: Sequence[Score], policy: Policy, tally: Tally) -> list[float | None]:
    """One finite float per score, None for a missing one. Raises ``Unscored`` when the budget is used up."""
    _within_budget(prompts, scores, policy, tally)
    return [score.value if score.scored else None for score in scores]


def _within_budget(
    prompts: Sequence[str], scores: Sequence[Score], policy: Policy, tally: Tally
) -> tuple[list[int], str, str]:
    """Counts the call. Positions of the missing scores, the run's state and the first one's prompt and reason in words.

    Raises ``Unscored`` when the budget is used up.
    """
    seen, unscored = tally.count(scores)
    missing = [index for index, score in enumerate(scores) if not score.scored]
    if not missing:
        return [], "", ""
    state = f"policy {policy}; this run: {unscored} of {seen} unscored ({unscored / seen:.1%})"
    first = f"prompt {_short(prompts[missing[0]])}: {scores[missing[0]].error}"
    if seen >= policy.min_seen and unscored / seen > policy.max_unscored_share:
        raise Unscored(f"too many videos without a score ({state}); latest: {first}")
    return missing, state, first


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 80 else prompt[:77] + "…")
