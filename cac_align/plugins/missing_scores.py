"""What a host that cannot take "no score" gets instead: a named policy, and never a number without
a notice.

scores, prompts → apply_policy → one float per video, or ``MissingScoreError``
scores, prompts → values_or_none → one float or None per video, for a host that leaves out None by itself

    raise     A missing score stops the call with ``MissingScoreError`` and its reason.
    neutral   A missing score becomes the mean of the scored members of its prompt's group, so that its advantage is 0.
              That holds for a whole group only: a call that does not hold exactly ``group_size`` videos of the prompt
              raises, and so does a group without any score.

Either way, once ``min_seen`` videos were seen, a share of missing scores above
``max_unscored_share`` raises.

The ``Score`` itself stays NaN, and so does its line in the ledger. Only the number that the host
gets is substituted, and every substitution is logged with the policy and the run's count.
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


class MissingScoreError(RuntimeError):
    """A score is missing, and the policy does not let the host go on without it."""


@dataclass(frozen=True)
class MissingScorePolicy:
    """What happens when a score is missing. Raises ``ValueError`` for a policy that cannot work."""

    # "raise" or "neutral", as the module describes them.
    on_missing: Literal["raise", "neutral"] = "raise"
    # The largest share of missing scores among all videos seen, in [0, 1].
    max_unscored_share: float = 0.1
    # How many videos are seen before that share is judged.
    min_seen: int = 32
    # Videos of one prompt, over all ranks, that the host compares with each other; "neutral" needs it.
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.on_missing not in ("raise", "neutral"):
            raise ValueError(f"on_missing must be 'raise' or 'neutral', received {self.on_missing!r}")
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


class ScoreCount:
    """How many videos a run has seen, and how many of them had no score. Thread-safe and picklable."""

    def __init__(self, seen: int = 0, unscored: int = 0) -> None:
        self._lock = threading.Lock()
        self.seen, self.unscored = seen, unscored

    def __reduce__(self) -> tuple[type[ScoreCount], tuple[int, int]]:
        return (ScoreCount, (self.seen, self.unscored))

    def add(self, scores: Sequence[Score]) -> tuple[int, int]:
        """Add the scores of one call; returns (seen, unscored) of the run so far."""
        with self._lock:
            self.seen += len(scores)
            self.unscored += sum(not score.scored for score in scores)
            return self.seen, self.unscored


def apply_policy(
    prompts: Sequence[str], scores: Sequence[Score], policy: MissingScorePolicy, count: ScoreCount
) -> list[float]:
    """One finite float per score. Equal prompts of this call are one group.

    Raises ``MissingScoreError`` as the policy says, with the prompt and the reason of the first
    missing score.
    """
    missing, state, first = _count_missing(prompts, scores, policy, count)
    if missing and policy.on_missing == "raise":
        raise MissingScoreError(f"{len(missing)} of {len(scores)} videos have no score ({state}); {first}")
    values = [score.value for score in scores]
    for index in missing:
        members = [score for prompt, score in zip(prompts, scores, strict=True) if prompt == prompts[index]]
        if len(members) != policy.group_size:
            raise MissingScoreError(
                f"this call holds {len(members)} videos of the prompt and its group {policy.group_size}: "
                f"the mean of another set is not neutral ({state}); {first}"
            )
        group = [score.value for score in members if score.scored]
        if not group:
            raise MissingScoreError(
                f"no video of this prompt's group has a score, so none is neutral ({state}); {first}"
            )
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


def values_or_none(
    prompts: Sequence[str], scores: Sequence[Score], policy: MissingScorePolicy, count: ScoreCount
) -> list[float | None]:
    """One finite float per score, None for a missing one.

    Raises ``MissingScoreError`` when too many are missing.
    """
    _count_missing(prompts, scores, policy, count)
    return [score.value if score.scored else None for score in scores]


def _count_missing(
    prompts: Sequence[str], scores: Sequence[Score], policy: MissingScorePolicy, count: ScoreCount
) -> tuple[list[int], str, str]:
    """Add this call to the count.

    Returns the positions of the missing scores, the run's state in words, and the first one's
    prompt and reason. Raises ``MissingScoreError`` when too many scores of the run are missing.
    """
    seen, unscored = count.add(scores)
    missing = [index for index, score in enumerate(scores) if not score.scored]
    if not missing:
        return [], "", ""
    state = f"policy {policy}; this run: {unscored} of {seen} unscored ({unscored / seen:.1%})"
    first = f"prompt {_short(prompts[missing[0]])}: {scores[missing[0]].error}"
    if seen >= policy.min_seen and unscored / seen > policy.max_unscored_share:
        raise MissingScoreError(f"too many videos without a score ({state}); latest: {first}")
    return missing, state, first


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 80 else prompt[:77] + "…")
