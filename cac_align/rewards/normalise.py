"""Normalisers and variance shares for combined rewards: small pure functions over the scores of one
group.

raw values of one component (N) → range | reference | group | rank
    → comparable values (N); weighted sums (K, N) → shares (K)

Letters: N scored videos of one group (equal prompts within one call), K components. There is no NaN
here, because callers leave out videos without score. Values are quantised to ``QUANTUM`` first, so
that near ties become exact ties.

    range       z = (x − low) / (high − low)              needs the component's bounds; works for
    one video reference   z = (x − mean) / std                       frozen statistics from a named
    file; works for one video group       z = (x − mean_N) / std_N                   population std;
    0 for all when the component has no spread rank        z = (average rank − 1) / (N − 1)
    in [0, 1], ties share their average rank

The paper (CaC, Sec. 4.2) says only "average of normalized scores"; UnifiedReward's (x − 1) / 4 is
``range`` on its 1–5 axes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cac_align.core.shapes import Float

Normaliser = Literal["range", "reference", "group", "rank"]
NORMALISERS: tuple[Normaliser, ...] = ("range", "reference", "group", "rank")
# Normalisers that compare videos with each other, so that a single video has no value.
NEEDS_GROUP = frozenset({"group", "rank"})

# Scores closer than the quantum are one score: smaller differences are rounding of the model's arithmetic.
DECIMALS = 6
QUANTUM = 10.0**-DECIMALS
# A lead below this is a tie where people read it (our choice): no judge's score is known to the third decimal.
TIE = 1e-3


def quantise(value: float) -> float:
    """``value`` rounded to ``QUANTUM``; -0.0 becomes 0.0, NaN stays NaN."""
    return round(float(value), DECIMALS) + 0.0


@dataclass(frozen=True)
class Statistics:
    """Frozen statistics of a component: ``mean`` and ``std`` of its raw value over ``n`` videos of
    ``source``.
    """

    mean: float
    std: float
    n: int
    source: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(
                f"Statistics need a finite mean and a positive std, received mean={self.mean}, std={self.std}"
            )
        if self.n < 2:
            raise ValueError(f"Statistics need n >= 2 videos, received n={self.n}")


def read_statistics(path: Path, names: Sequence[str]) -> dict[str, Statistics]:
    """The frozen statistics of these components from a JSON file ``{component: {mean, std, n,
    source}}``.

    Raises ``ValueError`` when the file cannot be read, lacks a component or a field, or holds a
    spread of zero.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a JSON file {{component: {{mean, std, n, source}}}}, received: {error}"
        ) from error
    missing = sorted(set(names) - set(rows)) if isinstance(rows, dict) else list(names)
    if missing:
        raise ValueError(
            f"{path}: no statistics for {', '.join(missing)}; measure them with measure_statistics and add them"
        )
    found = {}
    for name in names:
        try:
            row = rows[name]
            found[name] = Statistics(float(row["mean"]), float(row["std"]), int(row["n"]), str(row["source"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: statistics of {name!r} need mean, std, n and source: {error!r}") from error
    return found


def measure_statistics(values: Mapping[str, Sequence[float]], source: str) -> dict[str, dict[str, float | int | str]]:
    """The content of a statistics file: mean and population std per component over a reference set
    of raw values.

    NaN values (videos without a score) are left out; ``n`` counts the rest. Raises ``ValueError``
    when a component has no spread.
    """
    measured = {}
    for name, column in values.items():
        scored = np.asarray([value for value in column if not math.isnan(value)], dtype=np.float64)
        if len(scored) < 2 or scored.max() - scored.min() < QUANTUM:
            raise ValueError(
                f"{name}: {len(scored)} scored videos without spread cannot be a reference; use a more varied set"
            )
        row = Statistics(float(scored.mean()), float(scored.std()), len(scored), source)
        measured[name] = {"mean": row.mean, "std": row.std, "n": row.n, "source": row.source}
    return measured


def by_range(values: Float[np.ndarray, " N"], bounds: tuple[float, float]) -> Float[np.ndarray, " N"]:
    """Known bounds to [0, 1]."""
    low, high = bounds
    return (values - low) / (high - low)


def by_reference(values: Float[np.ndarray, " N"], statistics: Statistics) -> Float[np.ndarray, " N"]:
    """z-score with frozen statistics; unbounded, may be negative."""
    return (values - statistics.mean) / statistics.std


def by_group(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """z-score within the group with the population's std; all zeros when the group has no spread."""
    if values.max() - values.min() < QUANTUM / 2:
        return np.zeros_like(values)  # dividing by std would leave 1e-17 / 1e-17 from rounding
    return (values - values.mean()) / values.std()


def by_rank(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Average ranks on [0, 1]; 0.5 for all when all are tied. Needs N >= 2."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # 1-based average rank of each distinct value
    return (ranks[place] - 1) / (len(values) - 1)


def variance_shares(terms: Float[np.ndarray, "K N"]) -> Float[np.ndarray, " K"]:
    """Each term's share of the variance of their sum within a group: cov(term_k, total) /
    var(total).

    ``terms[k]`` is w_k z_k, total = Σ_k terms[k]. By linearity of the covariance the shares sum to
    1; a share below 0 means that the component opposes the total. NaN for every component when the
    total has no spread (or N = 1).
    """
    total = terms.sum(axis=0)
    if terms.shape[1] < 2 or total.max() - total.min() < QUANTUM:
        return np.full(len(terms), math.nan)
    centred = total - total.mean()
    return (terms - terms.mean(axis=1, keepdims=True)) @ centred / (centred @ centred)
