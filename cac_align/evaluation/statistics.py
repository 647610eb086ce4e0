"""Intervals, paired tests and agreement: thin, named doors to scipy, statsmodels and krippendorff, so that every report counts the same way.

share, vote_share (Wilson) · mean_interval, prompt_interval, counts_interval (bootstrap) · mcnemar, paired_permutation, paired_by_prompt
· alpha (Krippendorff)

Nothing here invents a number: an estimate over nothing is None, never 0 and never NaN.
Sources: Wilson 1927; Efron 1979 (percentile bootstrap); McNemar 1947, exact form; Krippendorff 2011 (alpha).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A number, the interval around it, and how many cases it rests on. ``value`` is None when there were none."""

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


NOTHING = Estimate(None, None, None, 0)


def share(hits: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """hits / n with its Wilson score interval (which never leaves [0, 1] and does not collapse at 0 of n).

    Raises ``ValueError`` unless 0 ≤ hits ≤ n.
    """
    from scipy.stats import binomtest

    if not 0 <= hits <= n:
        raise ValueError(f"share needs 0 <= hits <= n, received hits={hits}, n={n}")
    if n == 0:
        return NOTHING
    interval = binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return Estimate(hits / n, float(interval.low), float(interval.high), n)


def vote_share(votes: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Mean of values in [0, 1], one per video (0, 1, or the share of its raters), with a Wilson interval where n is the videos.

    For votes of 0 and 1 this is ``share``. Split votes vary less than a coin of the same mean, so the interval errs on the wide side.
    Raises ``ValueError`` for a vote outside [0, 1].
    """
    if not all(0 <= vote <= 1 for vote in votes):
        raise ValueError(f"votes must lie in [0, 1], received {[vote for vote in votes if not 0 <= vote <= 1][:3]}")
    if all(vote in (0, 1) for vote in votes):
        return share(int(sum(votes)), len(votes), confidence=confidence)
    from statsmodels.stats.proportion import proportion_confint  # takes a fractional count, which scipy's does not

    total = float(sum(votes))
    low, high = proportion_confint(total, len(votes), alpha=1 - confidence, method="wilson")
    return Estimate(total / len(votes), max(0.0, float(low)), min(1.0, float(high)), len(votes))


def mean_interval(
    values: Sequence[float], *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """The mean with its percentile bootstrap interval (scipy). One value, or equal ones, give an interval of zero width.

    Raises ``ValueError`` for a value that is not finite: a missing score must be left out, and counted, by the caller.
    """
    from scipy.stats import bootstrap

    sample = np.asarray(values, dtype=float)
    if sample.ndim != 1:
        raise ValueError(f"mean_interval needs a flat list of numbers, received shape {sample.shape}")
    if not np.isfinite(sample).all():
        raise ValueError("mean_interval received a value that is not finite; leave unscored videos out and count them")
    if sample.size == 0:
        return NOTHING
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
    """Percentile bootstrap interval of a statistic that depends on the videos only through counts of hits per group.

    groups: (hits, n) per group; resampling the n videos of a group with replacement is drawing hits* ~ Binomial(n, hits / n), so
    the draw is exact and costs nothing. Groups are resampled apart because a benchmark fixes its class sizes by design.
    statistic: receives one array of hits* per group, shape (resamples,), returns shape (resamples,). Undefined draws (NaN, e.g. a
    precision without a prediction) are left out; None when most draws are undefined.
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
    """Two things measured on the same cases. ``only_first``/``only_second``: cases that only one of them got.

    ``difference`` is second − first, in the unit of the measure; ``p_value`` is two-sided.
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
    """McNemar's exact test on paired yes/no outcomes: do the discordant pairs fall to one side more than a coin would?

    Raises ``ValueError`` when the two differ in length.
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
    """Sign-flip permutation test on the mean paired difference, second − first (scipy; exact where 2^n ≤ ``resamples``).

    Raises ``ValueError`` when the two differ in length or hold a value that is not finite.
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


# ---- the prompt is the unit: several seeds of one prompt are not independent -------------------------------------------

FEWEST_PROMPTS = 5
"""Below this many prompts a bootstrap has too few values to draw from, and its interval would look certain."""


def by_prompt(values: Sequence[float], prompts: Sequence[str | None]) -> list[float]:
    """The mean of each prompt's values, in order of first appearance. A value whose prompt is None stands alone.

    Raises ``ValueError`` when the two differ in length.
    """
    groups: dict[str | int, list[float]] = {}
    for number, (value, prompt) in enumerate(zip(values, prompts, strict=True)):
        groups.setdefault(number if prompt is None else prompt, []).append(value)
    return [group[0] if len(group) == 1 else math.fsum(group) / len(group) for group in groups.values()]


def no_interval_because(values: Sequence[float]) -> str | None:
    """Why a bootstrap over these prompts' values would claim a certainty that is not there; None where it can be trusted."""
    if len(values) < FEWEST_PROMPTS:
        return f"no interval: fewer than {FEWEST_PROMPTS} prompts"
    if max(values) - min(values) <= 1e-9 * max(map(abs, values)):
        return "no interval: every prompt has the same value"
    return None


def prompt_interval(values: Sequence[float], *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """``mean_interval`` of one value per prompt, without low and high where ``no_interval_because`` gives a reason."""
    found = mean_interval(values, resamples=resamples, seed=seed)
    return found if no_interval_because(values) is None else Estimate(found.value, None, None, found.n)


@dataclass(frozen=True)
class ByPrompt:
    """Two things measured on the same prompts: the mean of each prompt's pairs, the paired test and the mean of second − first."""

    first: tuple[float, ...]
    second: tuple[float, ...]
    test: PairedTest
    difference: Estimate
    no_interval: str | None


def paired_by_prompt(
    pairs: Sequence[tuple[float, float]],
    prompts: Sequence[str | None],
    *,
    yes_no: bool,
    resamples: int = 1000,
    seed: int = 0,
) -> ByPrompt:
    """Compare (first, second) pairs over their prompts. prompts: one per pair; None where it is not known (that pair stands alone).

    yes_no: the measure is an outcome, so that McNemar's test fits where every value is 0 or 1 and every prompt has one pair; else the
    sign-flip permutation test over prompts. Raises ``ValueError`` when pairs and prompts differ in length.
    """
    first, second = (by_prompt([pair[side] for pair in pairs], prompts) for side in (0, 1))
    if yes_no and len(first) == len(pairs) and all(value in (0.0, 1.0) for value in (*first, *second)):
        test = mcnemar([bool(value) for value in first], [bool(value) for value in second])
    else:
        test = paired_permutation(first, second, seed=seed)
    apart = [b - a for a, b in zip(first, second, strict=True)]
    difference = prompt_interval(apart, resamples=resamples, seed=seed)
    return ByPrompt(tuple(first), tuple(second), test, difference, no_interval_because(apart))


@dataclass(frozen=True)
class Agreement:
    """Krippendorff's alpha over units judged by at least two raters: 1 perfect, 0 chance. None with the reason in ``note``."""

    alpha: float | None
    units: int
    raters: int
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def alpha(ratings: Mapping[str, Mapping[str, Any]]) -> Agreement:
    """Krippendorff's alpha for nominal ratings, ``ratings[rater][unit] = category``; units rated once are left out.

    Where every rating is the same category, alpha is undefined (nothing could have disagreed): None, and the note says so.
    """
    import krippendorff

    units = sorted({unit for row in ratings.values() for unit in row})
    shared = [unit for unit in units if sum(unit in row for row in ratings.values()) >= 2]
    if len(ratings) < 2 or not shared:
        return Agreement(None, len(shared), len(ratings), "agreement needs at least two raters on the same video")
    categories = sorted({row[unit] for row in ratings.values() for unit in shared if unit in row}, key=str)
    if len(categories) < 2:
        return Agreement(
            None, len(shared), len(ratings), f"every rating is {categories[0]!r}: alpha is undefined without variation"
        )
    code = {category: float(number) for number, category in enumerate(categories)}
    table = [[code[row[unit]] if unit in row else math.nan for unit in shared] for row in ratings.values()]
    value = krippendorff.alpha(reliability_data=np.array(table), level_of_measurement="nominal")
    return Agreement(float(value), len(shared), len(ratings))
