"""Scores of one prompt's videos → advantages: who was better than the group, with ties, failures and dead groups told apart.

scores (P, G) → quantise → (x − the group's mean) / std of the group, or of the whole batch → clip

    sum         one advantage from the combined score
    decoupled   every component is normalised within its group first, then summed by weight, then scaled over the whole batch:
                a component that moves less is not drowned (GDPO, arXiv 2601.05242)

With the group's own standard deviation (the default) every group speaks equally loud, also one whose videos a judge finds all sound and
tells apart by its noise; with that of the batch (``global_std``, as the public Flow-GRPO trainers call it) a group says as much as its
scores differ.

A video without a score gets 0 and does not enter the statistics. A group without spread is dead: it gets 0, and is skipped and counted.
Spread is a standard deviation of at least ``min_spread``, in units of the combined score: below it the scores differ by the
judge's own noise (its batches round differently), which dividing by the standard deviation would make a full advantage. Besides,
scores are quantised, so that ties stay ties.
Source: GRPO's group-relative advantage, CaC (arXiv 2605.11723) Appendix C.1; group size 16, Sec. 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from cac_align.rewards.normalise import QUANTUM, quantise

AGGREGATIONS = ("sum", "decoupled")


@dataclass(frozen=True)
class Advantages:
    """values: 0 where there is none. dead: groups without spread among their scored videos. unscored: videos without a score."""

    values: Float[np.ndarray, "P G"]
    dead: Bool[np.ndarray, " P"]
    unscored: Bool[np.ndarray, "P G"]

    @property
    def live(self) -> Bool[np.ndarray, "P G"]:
        """Videos that have something to teach: scored, in a group with spread."""
        return ~self.unscored & ~self.dead[:, None]


def still(scores: Float[np.ndarray, " G"], min_spread: float = 0.0) -> bool:
    """Whether a group has no spread: fewer than two scores, all tied, or a standard deviation below ``min_spread``."""
    values = np.array([quantise(score) for score in scores if not np.isnan(score)])
    return len(values) < 2 or values.max() - values.min() < QUANTUM / 2 or bool(values.std() < min_spread)


def within_group(
    scores: Float[np.ndarray, " G"], std: float | None = None, *, min_spread: float = 0.0
) -> tuple[Float[np.ndarray, " G"], bool]:
    """(deviations from the group's mean in units of std, whether the group is dead). NaN scores get 0.

    std: None takes the scored videos' own (the population's). min_spread: as in ``still``.
    """
    values = np.array([quantise(score) for score in scores])
    scored = ~np.isnan(values)
    found = np.zeros(len(values))
    if still(values, min_spread):
        return found, True
    found[scored] = (values[scored] - values[scored].mean()) / (values[scored].std() if std is None else std)
    return found, False


def summed(
    totals: Float[np.ndarray, "P G"], clip: float, *, global_std: bool = False, min_spread: float = 0.0
) -> Advantages:
    """Advantages of the combined score. clip: bound on their size. global_std: in units of the spread of all scores given."""
    std = (
        float(np.nanstd([quantise(score) for score in totals.flat]))
        if global_std and not np.isnan(totals).all()
        else None
    )
    rows = [within_group(row, std, min_spread=min_spread) for row in totals]
    values = np.clip(np.stack([row for row, _ in rows]), -clip, clip)
    return Advantages(values, np.array([dead for _, dead in rows]), np.isnan(totals))


def decoupled(
    components: Float[np.ndarray, "K P G"],
    weights: Float[np.ndarray, " K"],
    totals: Float[np.ndarray, "P G"],
    clip: float,
    *,
    normalised: Float[np.ndarray, "K P G"] | None = None,
    min_spread: float = 0.0,
) -> Advantages:
    """Advantages of K components, normalised each for itself. A video whose total is NaN has none, whatever its components say.

    normalised: the components in units of the combined score, in which ``min_spread`` is one measure for all (None: they are).
    """
    unscored = np.isnan(totals)
    mixed = np.zeros(totals.shape)
    dead = np.ones(len(totals), bool)
    for weight, column, measured in zip(
        weights, components, components if normalised is None else normalised, strict=True
    ):
        for group in range(len(totals)):
            there = ~unscored[group]
            if still(measured[group][there], min_spread):
                continue
            found, tied = within_group(np.where(there, column[group], np.nan))
            mixed[group] += weight * found
            dead[group] &= tied
    live = ~unscored & ~dead[:, None]
    if live.any() and (spread := mixed[live].std()) > QUANTUM:
        mixed[live] = (mixed[live] - mixed[live].mean()) / spread
    mixed[~live] = 0.0
    return Advantages(np.clip(mixed, -clip, clip), dead, unscored)
