"""Scores of one prompt's videos → advantages: who was better than the group, with ties, failures and dead groups told apart.

scores (P, G) → quantise → (x − the group's mean) / std of the group, or of the whole batch → clip

    sum         one advantage from the combined score
    decoupled   every component is normalised within its group first, then summed by weight, then scaled over the whole batch:
                a component that moves less is not drowned (GDPO, arXiv 2601.05242)

With the group's own standard deviation (the default) every group speaks equally loud, also one whose videos a judge finds all sound and
tells apart by its noise; with that of the batch (``global_std``, as the public Flow-GRPO trainers call it) a group says as much as its
scores differ.

A video without a score gets 0 and does not enter the statistics. A group without spread is dead: it gets 0, and is skipped and counted.
Scores are quantised, because a floor on the standard deviation would turn rounding of 1e-5 into a full advantage.
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


def within_group(scores: Float[np.ndarray, " G"], std: float | None = None) -> tuple[Float[np.ndarray, " G"], bool]:
    """(deviations from the group's mean in units of std, whether the group is dead). NaN scores get 0.

    std: None takes the scored videos' own (the population's).
    """
    values = np.array([quantise(score) for score in scores])
    scored = ~np.isnan(values)
    found = np.zeros(len(values))
    if scored.sum() < 2 or values[scored].max() - values[scored].min() < QUANTUM / 2:
        return found, True
    found[scored] = (values[scored] - values[scored].mean()) / (values[scored].std() if std is None else std)
    return found, False


def summed(totals: Float[np.ndarray, "P G"], clip: float, *, global_std: bool = False) -> Advantages:
    """Advantages of the combined score. clip: bound on their size. global_std: in units of the spread of all scores given."""
    std = float(np.nanstd([quantise(score) for score in totals.flat])) if global_std and not np.isnan(totals).all() else None
    rows = [within_group(row, std) for row in totals]
    values = np.clip(np.stack([row for row, _ in rows]), -clip, clip)
    return Advantages(values, np.array([dead for _, dead in rows]), np.isnan(totals))


def decoupled(
    components: Float[np.ndarray, "K P G"], weights: Float[np.ndarray, " K"], totals: Float[np.ndarray, "P G"], clip: float
) -> Advantages:
    """Advantages of K components, normalised each for itself. A video whose total is NaN has none, whatever its components say."""
    unscored = np.isnan(totals)
    mixed = np.zeros(totals.shape)
    dead = np.ones(len(totals), bool)
    for weight, column in zip(weights, components, strict=True):
        for group, row in enumerate(np.where(unscored, np.nan, column)):
            found, still = within_group(row)
            mixed[group] += weight * found
            dead[group] &= still
    live = ~unscored & ~dead[:, None]
    if live.any() and (spread := mixed[live].std()) > QUANTUM:
        mixed[live] = (mixed[live] - mixed[live].mean()) / spread
    mixed[~live] = 0.0
    return Advantages(np.clip(mixed, -clip, clip), dead, unscored)
