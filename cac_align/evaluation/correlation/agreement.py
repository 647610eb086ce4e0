"""How a reward's order agrees with people's: Spearman, Kendall, and accuracy over pairs, with intervals.

human scores, reward's scores, prompts → rank_agreement → RankAgreement

All three depend on order alone, so a reward needs no scale. Kendall is tau-b. Of the pairs that people scored
differently, accuracy is the share that the reward orders alike; a tie of the reward counts one half. "Within a prompt"
takes only pairs of one prompt: that is what Best-of-N and group advantages rest on.

Intervals: percentile bootstrap over prompts, because videos of one prompt are no independent cases; over videos where
there are fewer than ten prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cac_align.evaluation.statistics import NO_ESTIMATE, Estimate

_MIN_PROMPTS = 10
"""With fewer prompts a bootstrap over them says little."""


@dataclass(frozen=True)
class RankAgreement:
    """One axis of human scores against one reward. ``left_out`` counts the videos without a score of either."""

    axis: str
    n: int
    prompts: int
    left_out: int
    spearman: Estimate
    kendall: Estimate
    pairs: Estimate
    pairs_within_prompt: Estimate
    resampled: str

    def to_json(self) -> dict[str, Any]:
        row = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value.to_json() if isinstance(value, Estimate) else value for name, value in row.items()}


def rank_agreement(
    axis: str,
    human: Sequence[float | None],
    reward: Sequence[float | None],
    prompts: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> RankAgreement:
    """Compare the scores of the same videos. None and NaN are missing, and such videos are left out.

    A measure is None where it is undefined: fewer than two videos, or all scores of one side equal. Raises
    ``ValueError`` for lengths that differ.
    """
    if not len(human) == len(reward) == len(prompts):
        raise ValueError(
            f"expected one score of each side per video, received {len(human)}, {len(reward)}, {len(prompts)}"
        )
    people = np.array([np.nan if value is None else value for value in human], float)
    judged = np.array([np.nan if value is None else value for value in reward], float)
    both = np.isfinite(people) & np.isfinite(judged)
    people, judged = people[both], judged[both]
    names, group = np.unique(np.array(prompts, dtype=object)[both].astype(str), return_inverse=True)
    n = len(people)
    by_prompt = len(names) >= _MIN_PROMPTS
    measure = _Measures(people, judged, group)
    whole = measure.of(np.ones(n))
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples if n else 0):
        units = len(names) if by_prompt else n
        counts = np.bincount(rng.integers(0, units, units), minlength=units).astype(float)
        drawn.append(measure.of(counts[group] if by_prompt else counts))
    spearman, kendall, pairs, within = (
        _estimate(value, [row[place] for row in drawn], n) for place, value in enumerate(whole)
    )
    unit = "prompts" if by_prompt else "videos"
    return RankAgreement(axis, n, len(names), int((~both).sum()), spearman, kendall, pairs, within, unit)


class _Measures:
    """The four measures for videos that count a given number of times each."""

    def __init__(self, people: np.ndarray, judged: np.ndarray, group: np.ndarray) -> None:
        self.people, self.judged = people, judged
        h, r = np.sign(people[:, None] - people), np.sign(judged[:, None] - judged)
        same = group[:, None] == group
        self.alike, self.h2, self.r2 = h * r, h * h, r * r
        self.alike_within, self.h2_within = self.alike * same, self.h2 * same

    def of(self, counts: np.ndarray) -> tuple[float, float, float, float]:
        """(Spearman, Kendall's tau-b, accuracy over pairs, accuracy within prompts); NaN where undefined."""
        with np.errstate(divide="ignore", invalid="ignore"):
            alike, h2, r2 = (counts @ matrix @ counts for matrix in (self.alike, self.h2, self.r2))
            within = counts @ self.alike_within @ counts / (counts @ self.h2_within @ counts)
            tau = alike / np.sqrt(h2 * r2)
            return self._spearman(counts), float(tau), float((1 + alike / h2) / 2), float((1 + within) / 2)

    def _spearman(self, counts: np.ndarray) -> float:
        from scipy.stats import rankdata

        picked = np.repeat(np.arange(len(counts)), counts.astype(int))
        if len(picked) < 2:
            return float("nan")
        a, b = rankdata(self.people[picked]), rankdata(self.judged[picked])
        a, b = a - a.mean(), b - b.mean()
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _estimate(value: float, drawn: Sequence[float], n: int) -> Estimate:
    """The value with its interval; without one where a resample had none."""
    if not np.isfinite(value):
        return NO_ESTIMATE
    if not drawn or not np.isfinite(drawn).all():
        return Estimate(value, None, None, n)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, min(float(low), value), max(float(high), value), n)
