"""How a reward behaves within groups: spread against noise, ties, saturation, order effects, and its cost.

groups of videos of one prompt → ``rank_groups`` → GroupBehaviour · what asking took → ``run_cost`` → RunCost
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from cac_align.evaluation.audit.asking import Asker, AuditQuestion, Spent
from cac_align.evaluation.audit.pairs import AuditGroup
from cac_align.evaluation.statistics import NO_ESTIMATE, Estimate, mean_interval, share
from cac_align.rewards.combine import bounds_of
from cac_align.rewards.normalise import TIE
from cac_align.rewards.reward import Score

MIN_GROUP_STD = 1e-3
"""Standard deviation below which Flow-GRPO gives a group no advantage (``min_group_std`` of a recipe)."""
_EDGE = 0.01


@dataclass(frozen=True)
class GroupBehaviour:
    """``size``: videos of the largest group. ``spread``: mean standard deviation within a group.
    ``noise``: standard deviation of the same question asked twice; None where nothing was asked
    twice. ``zero_std``: share of groups below ``MIN_GROUP_STD``. ``ties``: share of tied pairs within
    groups. ``top`` and ``bottom``: share of the scores within 1 % of the range's ends (of the
    declared bounds, else of the scores seen). ``position_bias`` and ``cycles``: of rewards that
    compare (``rewards.pairwise.diagnostics``).
    """

    groups: int
    size: int
    unscored: int
    spread: Estimate
    noise: float | None
    zero_std: Estimate
    ties: float | None
    top: float | None
    bottom: float | None
    position_bias: Estimate
    cycles: Estimate


@dataclass(frozen=True)
class RunCost:
    """What judging one Flow-GRPO run would take at this speed.

    ``seconds``: wall time, one video after another as here. tokens: None where a judge does not say.
    """

    steps: int
    prompts_per_step: int
    group_size: int
    seconds_per_video: float
    cpu_seconds_per_video: float
    tokens_per_video: float | None
    videos: int
    seconds: float


def rank_groups(groups: Sequence[AuditGroup], asker: Asker, repeats: int = 4) -> GroupBehaviour:
    """Ask about every group, and about ``repeats`` videos of the first group a second time."""
    cases = [[AuditQuestion(group.prompt, video) for video in group.videos] for group in groups]
    answers = asker.ask(cases)
    columns = [np.array([score.value for score in row if score.scored]) for row in answers]
    ranked = [column for column in columns if len(column) >= 2]
    values = np.concatenate(ranked) if ranked else np.array([])
    low, high = bounds_of(asker.reward) or ((values.min(), values.max()) if len(values) else (0.0, 1.0))
    edge = _EDGE * (high - low)
    leads = [abs(a - b) for column in ranked for a, b in combinations(column, 2)]
    spreads = [float(column.std()) for column in ranked]
    scores = [score for row in answers for score in row]
    return GroupBehaviour(
        groups=len(ranked),
        size=max(map(len, ranked), default=0),
        unscored=sum(not score.scored for score in scores),
        spread=mean_interval(spreads) if spreads else NO_ESTIMATE,
        noise=_noise(cases, answers, asker, repeats),
        zero_std=share(sum(std < MIN_GROUP_STD for std in spreads), len(spreads)) if spreads else NO_ESTIMATE,
        ties=float(np.mean([lead < TIE for lead in leads])) if leads else None,
        top=float(np.mean(values >= high - edge)) if len(values) else None,
        bottom=float(np.mean(values <= low + edge)) if len(values) else None,
        position_bias=_of_groups(answers, "group/position_bias"),
        cycles=_of_groups(answers, "group/cycles"),
    )


def run_cost(spent: Spent, steps: int, prompts_per_step: int, group_size: int) -> RunCost | None:
    """The judge's part of a run; None where nothing was asked."""
    if not spent.videos:
        return None
    videos, each = steps * prompts_per_step * group_size, spent.seconds / spent.videos
    tokens = None if spent.tokens is None else spent.tokens / spent.videos
    cpu = spent.cpu_seconds / spent.videos
    return RunCost(steps, prompts_per_step, group_size, each, cpu, tokens, videos, videos * each)


def _noise(
    cases: Sequence[Sequence[AuditQuestion]], answers: Sequence[Sequence[Score]], asker: Asker, repeats: int
) -> float | None:
    """The standard deviation of one answer, from the differences of two: √(mean d² / 2)."""
    if not cases or repeats < 1:
        return None
    chosen = cases[0] if asker.compares else cases[0][:repeats]
    second = asker.ask([chosen], again=True)[0]
    apart = [b.value - a.value for a, b in zip(answers[0], second, strict=False) if a.scored and b.scored]
    return float(np.sqrt(np.mean(np.square(apart)) / 2)) if apart else None


def _of_groups(answers: Sequence[Sequence[Score]], name: str) -> Estimate:
    """A part that a comparing reward reports of each group, also as a component of a combination."""
    found = []
    for row in answers:
        parts = {key: value for score in row for key, value in score.parts.items()}
        values = [v for key, v in parts.items() if (key == name or key.endswith(f"/{name}")) and not np.isnan(v)]
        if values:
            found.append(float(np.mean(values)))
    return mean_interval(found) if found else NO_ESTIMATE
