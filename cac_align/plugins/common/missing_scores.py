"""What a host that cannot take "no score" gets instead: a named policy, and never a number without
a notice.

scores, groups → training_values → one float per video, or ``MissingScoreError``
scores, prompts → evaluation_values → one float per video; missing ones are left out of the host's mean
scores, prompts → values_or_none → one float or None per video, for a host that leaves out None by itself

In training:

    neutral   A missing score becomes the mean of the scored members of its prompt's group, so that its advantage is 0.
              The group is gathered over all ranks. A group that is not whole raises, and so does a call in which no
              video of any rank has a score.
              Rewards that compare are an exception: they score one group per call, and a group without any score gets
              one number for all its videos.
    raise     A missing score stops the call with ``MissingScoreError`` and its reason.

In evaluation:

    leave_out A missing score does not move the host's mean, and is counted.
    raise     As above.

Everywhere a budget holds: once ``min_seen`` videos were seen, a share of missing scores above
``max_unscored_share`` raises, and so do ``MAX_IN_A_ROW`` missing scores one after another.

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

from cac_align.plugins.common.ranks import Member, Ranks
from cac_align.rewards.reward import Score

log = logging.getLogger(__name__)

MAX_IN_A_ROW = 32
"""So many videos of one process without a score, one after another, mean that the judge is gone."""


class MissingScoreError(RuntimeError):
    """A score is missing, and the policy does not let the host go on without it."""


class RunStopped(BaseException):
    """There are no scores.

    Not an ``Exception``, so that a host which catches those cannot go on with a number of its own.
    """


@dataclass(frozen=True)
class MissingScorePolicy:
    """What happens when a score is missing. Raises ``ValueError`` for a policy that cannot work."""

    # In training: "neutral" or "raise", as the module describes them.
    on_missing: Literal["neutral", "raise"] = "neutral"
    # The largest share of missing scores among all videos seen, in [0, 1].
    max_unscored_share: float = 0.02
    # How many videos are seen before that share is judged: 1 missing of the first 10 says nothing about the run.
    min_seen: int = 200
    # Videos of one prompt, over all ranks, that the host compares with each other. None takes those of one call of all
    # ranks; only a stated size shows that a group is not whole.
    group_size: int | None = None
    # In evaluation: "leave_out" or "raise".
    on_missing_evaluation: Literal["leave_out", "raise"] = "leave_out"

    def __post_init__(self) -> None:
        if self.on_missing not in ("neutral", "raise"):
            raise ValueError(f"on_missing must be 'neutral' or 'raise', received {self.on_missing!r}")
        if self.on_missing_evaluation not in ("leave_out", "raise"):
            raise ValueError(
                f"on_missing_evaluation must be 'leave_out' or 'raise', received {self.on_missing_evaluation!r}"
            )
        if not 0 <= self.max_unscored_share <= 1:
            raise ValueError(f"max_unscored_share must lie in [0, 1], received {self.max_unscored_share!r}")
        if self.min_seen < 1:
            raise ValueError(f"min_seen must be at least 1 video, received {self.min_seen!r}")
        if self.group_size is not None and self.group_size < 2:
            raise ValueError(f"group_size must be at least 2 videos, received {self.group_size!r}")

    def __str__(self) -> str:
        return f"{self.on_missing}, at most {self.max_unscored_share:.1%} unscored"


class ScoreCount:
    """How many videos a process has seen, how many of them had no score, and how many of the last ones
    in a row. Thread-safe and picklable.
    """

    def __init__(self, seen: int = 0, unscored: int = 0, in_a_row: int = 0) -> None:
        self._lock = threading.Lock()
        self.seen, self.unscored, self.in_a_row = seen, unscored, in_a_row

    def __reduce__(self) -> tuple[type[ScoreCount], tuple[int, int, int]]:
        return (ScoreCount, (self.seen, self.unscored, self.in_a_row))

    def add(self, scores: Sequence[Score]) -> tuple[int, int]:
        """Add the scores of one call; returns (seen, unscored) of the process so far."""
        with self._lock:
            self.seen += len(scores)
            for score in scores:
                self.unscored += not score.scored
                self.in_a_row = 0 if score.scored else self.in_a_row + 1
            return self.seen, self.unscored


@dataclass(frozen=True)
class _Missing:
    """The missing scores of one call: their positions, the run's state in words, the first one's prompt
    and reason.
    """

    positions: list[int]
    state: str = ""
    first: str = ""

    def error(self, why: str) -> MissingScoreError:
        return MissingScoreError(f"{why} ({self.state}); {self.first}")


def training_values(
    prompts: Sequence[str],
    scores: Sequence[Score],
    policy: MissingScorePolicy,
    count: ScoreCount,
    *,
    groups: Sequence[str] | None = None,
    ranks: Ranks | None = None,
    call: int = 0,
    timeout_s: float = 600.0,
    unscored_group: float | None = None,
) -> list[float]:
    """One finite float per score.

    groups: which videos the host compares with each other; equal prompts where it is None. ranks:
    who else scores videos of these groups, in a call of the same number; None: nobody. timeout_s:
    how many seconds a rank with a missing score waits for the others' scores. unscored_group: what
    every video of a group gets where no video of the call has a score; None: the call fails. Raises
    ``MissingScoreError`` as the policy says, with the prompt and the reason of the first missing
    score.
    """
    groups = list(prompts if groups is None else groups)
    values = [score.value for score in scores]
    members: list[Member] = [
        (group, score.value if score.scored else None) for group, score in zip(groups, scores, strict=True)
    ]
    spread = ranks is not None and ranks.world_size > 1
    if ranks is not None and spread and policy.on_missing == "neutral":
        ranks.post(call, members)
    missing = _count_missing(prompts, scores, policy, count, ranks if spread else None)
    if not missing.positions:
        return values
    if policy.on_missing == "raise":
        raise missing.error(f"{len(missing.positions)} of {len(scores)} videos have no score")
    whole_here = all(groups.count(groups[index]) == policy.group_size for index in missing.positions)
    if ranks is not None and spread and not (whole_here and any(score.scored for score in scores)):
        try:
            members = ranks.collect(call, timeout_s)
        except TimeoutError as error:
            raise missing.error(
                f"the group could not be gathered: {error}. Let one call per rank hold all of the rank's videos of a "
                "step (Flow-Factory: batch_size), or set on_missing 'raise'"
            ) from error
    for index in missing.positions:
        values[index], source = _neutral_value(groups[index], members, policy, missing, unscored_group)
        log.warning(
            "no score, sent %.6g instead, %s (%s); prompt %s: %s",
            values[index],
            source,
            missing.state,
            _short(prompts[index]),
            scores[index].error,
        )
    return values


def _neutral_value(
    group: str, members: Sequence[Member], policy: MissingScorePolicy, missing: _Missing, unscored_group: float | None
) -> tuple[float, str]:
    """The number that gives a video of this group the advantage 0, and what it is in words."""
    own = [value for name, value in members if name == group]
    size = len(own) if policy.group_size is None else policy.group_size
    if len(own) != size or size < 2:
        stated = "of unknown size" if policy.group_size is None else str(size)
        raise missing.error(
            f"one call of all ranks holds {len(own)} videos of the prompt and its group {stated}: the mean of another "
            "set is not neutral. Let one call hold whole groups (Flow-Factory: batch_size), or set on_missing 'raise'"
        )
    scored = [value for value in own if value is not None]
    if scored:
        return math.fsum(scored) / len(scored), f"the mean of {len(scored)} scored of its group of {size}"
    others = [value for _, value in members if value is not None]
    if not others and unscored_group is not None:
        return unscored_group, f"the same number for its whole group of {size}, none of which has a score"
    if not others:
        raise missing.error("no video of this prompt's group has a score, so none is neutral")
    # The same number for the whole group, on every rank: nobody in it has an advantage.
    return math.fsum(others) / len(others), f"the call's mean for its group of {size}, none of which has a score"


def evaluation_values(
    prompts: Sequence[str],
    scores: Sequence[Score],
    policy: MissingScorePolicy,
    count: ScoreCount,
    *,
    left_out: float | None = None,
    ranks: Ranks | None = None,
) -> list[float]:
    """One float per score of an evaluation, which compares no videos with each other.

    left_out: the number that the host itself leaves out of its mean (flow_grpo: -10). Without one,
    a missing score becomes the mean of the scored videos of its call, which moves that mean least,
    or NaN where there are none: the host's mean is then NaN as well and not a number that no judge
    gave. Raises ``MissingScoreError`` as the policy says.
    """
    missing = _count_missing(prompts, scores, policy, count, ranks, evaluation=True)
    if missing.positions and policy.on_missing_evaluation == "raise":
        raise missing.error(f"{len(missing.positions)} of {len(scores)} evaluation videos have no score")
    scored = [score.value for score in scores if score.scored]
    if left_out is None:
        left_out = math.fsum(scored) / len(scored) if scored else math.nan
    for index in missing.positions:
        log.warning(
            "no score, left out of the evaluation (%s); prompt %s: %s",
            missing.state,
            _short(prompts[index]),
            scores[index].error,
        )
    return [score.value if score.scored else left_out for score in scores]


def values_or_none(
    prompts: Sequence[str], scores: Sequence[Score], policy: MissingScorePolicy, count: ScoreCount
) -> list[float | None]:
    """One finite float per score, None for a missing one.

    Raises ``MissingScoreError`` when too many are missing.
    """
    _count_missing(prompts, scores, policy, count)
    return [score.value if score.scored else None for score in scores]


def _count_missing(
    prompts: Sequence[str],
    scores: Sequence[Score],
    policy: MissingScorePolicy,
    count: ScoreCount,
    ranks: Ranks | None = None,
    evaluation: bool = False,
) -> _Missing:
    """Add this call to the count, of all ranks where there are several, and find its missing scores.

    Raises ``MissingScoreError`` when too many scores of the run are missing.
    """
    seen, unscored = count.add(scores)
    missing = [index for index, score in enumerate(scores) if not score.scored]
    if ranks is not None and ranks.world_size > 1:
        seen, unscored = ranks.add_to_count(len(scores), len(missing), evaluation)
    if not missing:
        return _Missing([])
    name = f"evaluation policy {policy.on_missing_evaluation}" if evaluation else f"policy {policy.on_missing}"
    where = "this run's evaluations" if evaluation else "this run"
    budget = f"at most {policy.max_unscored_share:.1%} unscored"
    state = f"{name}, {budget}; {where}: {unscored} of {seen} unscored ({unscored / seen:.1%})"
    found = _Missing(missing, state, f"prompt {_short(prompts[missing[0]])}: {scores[missing[0]].error}")
    if seen >= policy.min_seen and unscored / seen > policy.max_unscored_share:
        raise found.error("too many videos without a score")
    if count.in_a_row >= MAX_IN_A_ROW and policy.max_unscored_share < 1:
        raise found.error(f"{count.in_a_row} videos in a row without a score")
    return found


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 80 else prompt[:77] + "…")
