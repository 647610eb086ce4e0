"""Group-relative advantages: how much better each video scored than the other videos of its prompt.

scores (P groups, G videos) → quantise → (x − mean of the group) / std of the group or of the batch → clip

    sum         one advantage from the combined score
    decoupled   every component is normalised within its group first; the results are summed by weight and then
                scaled over the whole batch, so that a component with a small range still counts (GDPO,
                arXiv 2601.05242)

By default each group is divided by its own standard deviation, so every group has the same weight
in the loss, also one whose videos differ only by the judge's noise. With ``global_std`` (the name
in public Flow-GRPO trainers) the standard deviation is that of the whole batch, and a group counts
as much as its scores differ.

A video without a score gets advantage 0 and does not enter the statistics. A group whose standard
deviation is zero gets advantage 0 and is counted as a zero-std group. The least standard deviation
that counts is ``min_group_std``, in units of the combined score: below it the scores differ by
rounding in the judge's batches, which the division would turn into full-size advantages. Scores are
quantised first, so that equal scores stay equal. Source: GRPO's group-relative advantage, CaC
(arXiv 2605.11723) Appendix C.1; group size 16, Sec. 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from cac_align.rewards.normalise import QUANTUM, quantise

AGGREGATIONS = ("sum", "decoupled")


@dataclass(frozen=True)
class Advantages:
    """The advantages of P groups of G videos.

    values: 0 where a video has no advantage. zero_std: groups whose scored videos do not differ.
    unscored: videos without a score.
    """

    values: Float[np.ndarray, "P G"]
    zero_std: Bool[np.ndarray, " P"]
    unscored: Bool[np.ndarray, "P G"]

    @property
    def trained(self) -> Bool[np.ndarray, "P G"]:
        """The videos that enter the loss: scored, and in a group whose scores differ."""
        return ~self.unscored & ~self.zero_std[:, None]


def has_zero_std(scores: Float[np.ndarray, " G"], min_group_std: float = 0.0) -> bool:
    """Whether a group's scores do not differ: fewer than two, all equal, or a std below
    ``min_group_std``. NaN: no score.
    """
    values = np.array([quantise(score) for score in scores if not np.isnan(score)])
    return len(values) < 2 or values.max() - values.min() < QUANTUM / 2 or bool(values.std() < min_group_std)


def normalise_in_group(
    scores: Float[np.ndarray, " G"], std: float | None = None, *, min_group_std: float = 0.0
) -> tuple[Float[np.ndarray, " G"], bool]:
    """(deviations from the group's mean in units of ``std``, whether the group has zero std). NaN
    scores get 0.

    std: None takes the (population) standard deviation of the group's scored videos.
    """
    values = np.array([quantise(score) for score in scores])
    scored = ~np.isnan(values)
    found = np.zeros(len(values))
    if has_zero_std(values, min_group_std):
        return found, True
    found[scored] = (values[scored] - values[scored].mean()) / (values[scored].std() if std is None else std)
    return found, False


def summed_advantages(
    totals: Float[np.ndarray, "P G"], clip: float, *, global_std: bool = False, min_group_std: float = 0.0
) -> Advantages:
    """Advantages of the combined score, clipped to [−clip, clip]. global_std: divide by the std of
    all scores given.
    """
    std = (
        float(np.nanstd([quantise(score) for score in totals.flat]))
        if global_std and not np.isnan(totals).all()
        else None
    )
    rows = [normalise_in_group(row, std, min_group_std=min_group_std) for row in totals]
    values = np.clip(np.stack([row for row, _ in rows]), -clip, clip)
    return Advantages(values, np.array([zero_std for _, zero_std in rows]), np.isnan(totals))


def decoupled_advantages(
    components: Float[np.ndarray, "K P G"],
    weights: Float[np.ndarray, " K"],
    totals: Float[np.ndarray, "P G"],
    clip: float,
    *,
    normalised: Float[np.ndarray, "K P G"] | None = None,
    min_group_std: float = 0.0,
) -> Advantages:
    """Advantages of K components, each normalised by itself. A video whose total is NaN has none.

    normalised: the components in units of the combined score, in which ``min_group_std`` means the
    same for all of them; None when ``components`` are in these units already.
    """
    unscored = np.isnan(totals)
    mixed = np.zeros(totals.shape)
    zero_std = np.ones(len(totals), bool)
    for weight, column, measured in zip(
        weights, components, components if normalised is None else normalised, strict=True
    ):
        for group in range(len(totals)):
            scored = ~unscored[group]
            if has_zero_std(measured[group][scored], min_group_std):
                continue
            found, tied = normalise_in_group(np.where(scored, column[group], np.nan))
            mixed[group] += weight * found
            zero_std[group] &= tied
    trained = ~unscored & ~zero_std[:, None]
    if trained.any() and (std := mixed[trained].std()) > QUANTUM:
        mixed[trained] = (mixed[trained] - mixed[trained].mean()) / std
    mixed[~trained] = 0.0
    return Advantages(np.clip(mixed, -clip, clip), zero_std, unscored)
