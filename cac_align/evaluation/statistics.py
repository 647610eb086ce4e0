"""Intervals, paired tests and agreement: the one place where reports count.

Wilson intervals for shares, percentile bootstrap intervals for means, McNemar's exact test and a
sign-flip permutation test for paired values, Krippendorff's alpha for raters. The work is done by
scipy, statsmodels and krippendorff.

An estimate over no cases is None, never 0 and never NaN.

Sources: Wilson 1927; Efron 1979 (percentile bootstrap); McNemar 1947 (exact form); Krippendorff
2011 (alpha).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A value, the interval around it (``low``, ``high``) and the number of cases ``n`` behind it.

    ``value`` is None when there were no cases; ``low`` and ``high`` are None when no interval can
    be given.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}

    def __str__(self) -> str:
        if self.value is None:
            return "–"
        return f"{self.value:.3f}" if self.low is None else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


NO_ESTIMATE = Estimate(None, None, None, 0)


def share(hits: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """The share hits / n with its Wilson score interval, which stays inside [0, 1].

    Raises ``ValueError`` unless 0 <= hits <= n.
    """
    from scipy.stats import binomtest

    if not 0 <= hits <= n:
        raise ValueError(f"share needs 0 <= hits <= n, received hits={hits}, n={n}")
    if n == 0:
        return NO_ESTIMATE
    interval = binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return Estimate(hits / n, float(interval.low), float(interval.high), n)


def vote_share(votes: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """The mean of values in [0, 1], one per video, with a Wilson interval whose n is the number of
    videos.

    A value is 0, 1, or the share of the video's raters. For votes of 0 and 1 this equals ``share``.
    Split votes vary less than 0/1 votes of the same mean, so the interval is conservative. Raises
    ``ValueError`` for a vote outside [0, 1].
    """
    if not all(0 <= vote <= 1 for vote in votes):
        raise ValueError(f"votes must lie in [0, 1], received {[vote for vote in votes if not 0 <= vote <= 1][:3]}")
    if all(vote in (0, 1) for vote in votes):
        return share(int(sum(votes)), len(votes), confidence=confidence)
    from statsmodels.stats.proportion import proportion_confint  # takes a fractional count, which scipy's does not

    total = float(sum(votes))
    interval: Any = proportion_confint(total, len(votes), alpha=1 - confidence, method="wilson")
    low, high = map(float, interval)
    return Estimate(total / len(votes), max(0.0, low), min(1.0, high), len(votes))


def mean_interval(
    values: Sequence[float], *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """The mean with its percentile bootstrap interval. Equal values give an interval of zero width.

    Raises ``ValueError`` for a value that is not finite: the caller leaves missing scores out and
    counts them.
    """
    from scipy.stats import bootstrap

    sample = np.asarray(values, dtype=float)
    if sample.ndim != 1:
        raise ValueError(f"mean_interval needs a flat list of numbers, received shape {sample.shape}")
    if not np.isfinite(sample).all():
        raise ValueError("mean_interval received a value that is not finite; leave unscored videos out and count them")
    if sample.size == 0:
        return NO_ESTIMATE
    mean = float(sample.mean())
    if np.all(sample == sample[0]):
        return Estimate(mean, mean, mean, int(sample.size))
    result = bootstrap(
        (sample,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // sample.size),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Estimate(mean, float(low), float(high), int(sample.size))


def counts_interval(
    groups: Sequence[tuple[int, int]],
    statistic: Callable[..., np.ndarray],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of a statistic that depends only on the hits in each group.

    groups: (hits, n) per group. Resampling the n videos of a group with replacement is the same as
    drawing hits* from Binomial(n, hits / n), so the bootstrap needs no videos. Groups are resampled
    separately because a benchmark fixes the size of its classes. statistic: receives one array of
    hits* per group, shape (resamples,), and returns shape (resamples,). Undefined draws (NaN, for
    example a precision without a prediction) are left out.

    Returns None when at least half of the draws are undefined.
    """
    rng = np.random.default_rng(seed)
    drawn = [rng.binomial(n, hits / n, size=resamples) if n else np.zeros(resamples, dtype=int) for hits, n in groups]
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.asarray(statistic(*drawn), dtype=float)
    values = values[np.isfinite(values)]
    if values.size <= resamples / 2:
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedTest:
    """A paired test of two measurements of the same cases.

    ``difference`` is second − first, in the unit of the measure. ``p_value`` is two-sided.
    ``only_first`` and ``only_second`` count the cases in which only that one was true (McNemar).
    """

    name: str
    n: int
    difference: float | None
    p_value: float | None
    only_first: int | None = None
    only_second: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> PairedTest:
    """McNemar's exact test on paired yes/no outcomes.

    Raises ``ValueError`` when the two sequences differ in length.
    """
    from scipy.stats import binomtest

    if len(first) != len(second):
        raise ValueError(f"mcnemar needs paired outcomes, received {len(first)} and {len(second)}")
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    n = len(a)
    if n == 0:
        return PairedTest("McNemar, exact", 0, None, None, 0, 0)
    discordant = only_first + only_second
    p_value = 1.0 if discordant == 0 else float(binomtest(only_second, discordant, 0.5).pvalue)
    return PairedTest("McNemar, exact", n, (only_second - only_first) / n, p_value, only_first, only_second)


def paired_permutation(
    first: Sequence[float], second: Sequence[float], *, resamples: int = 9999, seed: int = 0
) -> PairedTest:
    """Sign-flip permutation test on the mean paired difference, second − first.

    It is exact where 2^n <= ``resamples``. Raises ``ValueError`` when the two sequences differ in
    length or hold a value that is not finite.
    """
    from scipy.stats import permutation_test

    if len(first) != len(second):
        raise ValueError(f"paired_permutation needs paired values, received {len(first)} and {len(second)}")
    differences = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    if not np.isfinite(differences).all():
        raise ValueError(
            "paired_permutation received a value that is not finite; leave incomplete pairs out and count them"
        )
    n = differences.size
    if n == 0:
        return PairedTest("paired permutation", 0, None, None)
    if n == 1:  # scipy needs two cases; with one, both signs are equally extreme
        return PairedTest("paired permutation", 1, float(differences[0]), 1.0)
    result = permutation_test(
        (differences,),
        lambda d, axis: np.mean(d, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // n),
        rng=np.random.default_rng(seed),
    )
    return PairedTest("paired permutation", n, float(differences.mean()), float(result.pvalue))


# ---- statistics over prompts: several seeds of one prompt are not independent ---------------------------------------

MIN_PROMPTS = 5
"""With fewer prompts than this a bootstrap interval would look more certain than it is."""


def prompt_means(values: Sequence[float], prompts: Sequence[str | None]) -> list[float]:
    """The mean of each prompt's values, in order of first appearance.

    A value whose prompt is None forms a group of its own. Raises ``ValueError`` when the two
    sequences differ in length.
    """
    groups: dict[str | int, list[float]] = {}
    for number, (value, prompt) in enumerate(zip(values, prompts, strict=True)):
        groups.setdefault(number if prompt is None else prompt, []).append(value)
    return [group[0] if len(group) == 1 else math.fsum(group) / len(group) for group in groups.values()]


def no_interval_reason(values: Sequence[float]) -> str | None:
    """Why a bootstrap interval over these prompts would be misleading, or None where it can be
    trusted.
    """
    if len(values) < MIN_PROMPTS:
        return f"no interval: fewer than {MIN_PROMPTS} prompts"
    if max(values) - min(values) <= 1e-9 * max(map(abs, values)):
        return "no interval: every prompt has the same value"
    return None


def prompt_interval(values: Sequence[float], *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """``mean_interval`` of one value per prompt, without an interval where ``no_interval_reason``
    gives a reason.
    """
    found = mean_interval(values, resamples=resamples, seed=seed)
    return found if no_interval_reason(values) is None else Estimate(found.value, None, None, found.n)


@dataclass(frozen=True)
class PromptComparison:
    """Two measurements of the same prompts, each prompt's pairs averaged.

    ``test`` is the paired test, ``difference`` the mean of second − first. ``no_interval`` says why
    ``difference`` has no interval, where it has none.
    """

    first: tuple[float, ...]
    second: tuple[float, ...]
    test: PairedTest
    difference: Estimate
    no_interval: str | None


def compare_by_prompt(
    pairs: Sequence[tuple[float, float]],
    prompts: Sequence[str | None],
    *,
    yes_no: bool,
    resamples: int = 1000,
    seed: int = 0,
) -> PromptComparison:
    """Compare (first, second) pairs over their prompts.

    prompts: one per pair; None where it is not known (that pair forms a group of its own). yes_no:
    the measure is an outcome. Then McNemar's test is used if every value is 0 or 1 and every prompt
    has one pair. Otherwise the sign-flip permutation test over prompts is used. Raises
    ``ValueError`` when pairs and prompts differ in length.
    """
    first, second = (prompt_means([pair[side] for pair in pairs], prompts) for side in (0, 1))
    if yes_no and len(first) == len(pairs) and all(value in (0.0, 1.0) for value in (*first, *second)):
        test = mcnemar([bool(value) for value in first], [bool(value) for value in second])
    else:
        test = paired_permutation(first, second, seed=seed)
    apart = [b - a for a, b in zip(first, second, strict=True)]
    difference = prompt_interval(apart, resamples=resamples, seed=seed)
    return PromptComparison(tuple(first), tuple(second), test, difference, no_interval_reason(apart))


@dataclass(frozen=True)
class RaterAgreement:
    """Krippendorff's alpha over the units that at least two raters judged: 1 is perfect, 0 is
    chance.

    ``alpha`` is None when it is undefined, and then ``note`` gives the reason.
    """

    alpha: float | None
    units: int
    raters: int
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def krippendorff_alpha(ratings: Mapping[str, Mapping[str, Any]]) -> RaterAgreement:
    """Krippendorff's alpha for nominal ratings: ``ratings[rater][unit]`` is a category.

    Units with one rating are left out. Where all ratings are the same category, alpha is undefined.
    """
    import krippendorff

    units = sorted({unit for row in ratings.values() for unit in row})
    shared = [unit for unit in units if sum(unit in row for row in ratings.values()) >= 2]
    if len(ratings) < 2 or not shared:
        return RaterAgreement(None, len(shared), len(ratings), "agreement needs at least two raters on the same video")
    categories = sorted({row[unit] for row in ratings.values() for unit in shared if unit in row}, key=str)
    if len(categories) < 2:
        return RaterAgreement(
            None, len(shared), len(ratings), f"every rating is {categories[0]!r}: alpha is undefined without variation"
        )
    code = {category: float(number) for number, category in enumerate(categories)}
    table = [[code[row[unit]] if unit in row else math.nan for unit in shared] for row in ratings.values()]
    value = krippendorff.alpha(reliability_data=np.array(table), level_of_measurement="nominal")
    return RaterAgreement(float(value), len(shared), len(ratings))
