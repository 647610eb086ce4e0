"""The advantages of a step's groups, as the loss needs them, and the numbers to log about them.

reward samples of all processes, by chunk → sum | decoupled | local → ``GroupAdvantages`` → ``summarise``

The samples of a chunk come in the order of its videos: group by group, ``group_size`` each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cac_align.align.advantages.local import local_advantages
from cac_align.align.advantages.uniform import Advantages, decoupled_advantages, normalise_in_group, summed_advantages
from cac_align.align.async_reward import RewardSample
from cac_align.align.losses.grpo_loss import split_by_position
from cac_align.align.losses.nft_loss import good_share, shares_by_position
from cac_align.align.recipe import AlignRecipe
from cac_align.rewards.normalise import variance_shares


@dataclass(frozen=True, eq=False)
class GroupAdvantages:
    """The advantages of a chunk: N videos in P groups.

    base: what the loss weighs a video with: its advantage (grpo), or its share r in [0, 1] (nft).
    deviation: what is added to the base at each latent position; local advantages only. trained:
    the videos that enter the loss. advantage: one number per video for the ledger, with local
    advantages the mean over positions. zero_std: groups whose scores do not differ.
    """

    base: Float[Tensor, " N"]
    deviation: Float[Tensor, "N t h w"] | None
    trained: Bool[Tensor, " N"]
    advantage: Float[np.ndarray, " N"]
    zero_std: Bool[np.ndarray, " P"]
    samples: tuple[RewardSample, ...]

    @property
    def group_size(self) -> int:
        return len(self.samples) // len(self.zero_std)


def group_advantages(
    chunks: Sequence[Sequence[RewardSample]], recipe: AlignRecipe, weights: Mapping[str, float]
) -> list[GroupAdvantages]:
    """The advantages of each chunk. weights: of the reward's components.

    Where ``needs_whole_step`` is true the chunks must be all those of the step, else any of them.
    """
    rows = [list(chunk) for chunk in chunks]
    if recipe.advantages == "local":
        return [_local(chunk, recipe, weights) for chunk in rows]
    if needs_whole_step(recipe):
        found = _advantages([row for chunk in rows for row in chunk], recipe, weights)
        ends = np.cumsum([len(chunk) // recipe.group_size for chunk in rows])[:-1]
        parts = zip(*(np.split(part, ends) for part in (found.values, found.zero_std, found.unscored)), strict=True)
        each = [Advantages(*part) for part in parts]
    else:
        each = [_advantages(chunk, recipe, weights) for chunk in rows]
    return [_uniform(one, chunk, recipe) for one, chunk in zip(each, rows, strict=True)]


def needs_whole_step(recipe: AlignRecipe) -> bool:
    """Whether a group's advantages depend on the other groups of the step, so that all must be
    scored before the loss.
    """
    return recipe.aggregation == "decoupled" or recipe.global_std


def _advantages(rows: Sequence[RewardSample], recipe: AlignRecipe, weights: Mapping[str, float]) -> Advantages:
    totals = np.array([row.value for row in rows]).reshape(-1, recipe.group_size)
    if recipe.aggregation == "sum":
        return summed_advantages(
            totals, recipe.advantage_clip, global_std=recipe.global_std, min_group_std=recipe.min_group_std
        )
    raw, normalised = (
        np.array([[_component(row, kind + name, weights) for row in rows] for name in weights]).reshape(
            -1, *totals.shape
        )
        for kind in ("", "normalised/")
    )
    shares = np.array(list(weights.values()))
    return decoupled_advantages(
        raw, shares, totals, recipe.advantage_clip, normalised=normalised, min_group_std=recipe.min_group_std
    )


def _component(row: RewardSample, name: str, weights: Mapping[str, float]) -> float:
    """A component's raw value, or its normalised one as "normalised/NAME"; NaN where the video has
    no score.
    """
    if math.isnan(row.value) or len(weights) == 1:
        return row.value
    return row.parts.get(name, math.nan)


def _uniform(found: Advantages, rows: Sequence[RewardSample], recipe: AlignRecipe) -> GroupAdvantages:
    advantage = found.values.reshape(-1)
    base = torch.from_numpy(advantage).float()
    if recipe.objective == "nft":
        base = good_share(base, recipe.advantage_clip)
    trained = torch.from_numpy(found.trained.reshape(-1).copy())
    return GroupAdvantages(base, None, trained, advantage, found.zero_std, tuple(rows))


def _local(rows: Sequence[RewardSample], recipe: AlignRecipe, weights: Mapping[str, float]) -> GroupAdvantages:
    size, local = recipe.group_size, recipe.local_component
    other_weights = {name: weight for name, weight in weights.items() if name != local}
    maps, flags = [], []
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        scores = np.array([_component(row, local, weights) for row in group])
        others = None
        if other_weights:
            mixed = [
                math.fsum(
                    weight * row.parts.get(f"normalised/{name}", math.nan) for name, weight in other_weights.items()
                )
                for row in group
            ]
            others, _ = normalise_in_group(np.array(mixed), min_group_std=recipe.min_group_std)
        masks = np.stack([row.mask for row in group if row.mask is not None])
        found, zero_std = local_advantages(
            scores,
            masks,
            others,
            others_weight=recipe.local_others_weight,
            clip=recipe.advantage_clip,
            min_group_std=recipe.min_group_std,
        )
        maps.append(found)
        flags.append(zero_std)
    by_position = torch.from_numpy(np.concatenate(maps))
    zero_std = np.array(flags)
    unscored = np.array([math.isnan(row.value) for row in rows])
    if recipe.objective == "grpo":
        base, deviation = split_by_position(by_position)
    else:
        base, deviation = shares_by_position(by_position, recipe.advantage_clip)
    trained = torch.from_numpy(~unscored & ~np.repeat(zero_std, size))
    advantage = by_position.flatten(1).mean(1).numpy()
    return GroupAdvantages(base, deviation, trained, advantage, zero_std, tuple(rows))


def summarise(chunks: Sequence[GroupAdvantages], weights: Mapping[str, float]) -> dict[str, Any]:
    """The numbers of a step's groups for the log; what could not be measured is left out. weights:
    of the components.
    """
    rows = [row for chunk in chunks for row in chunk.samples]
    if not rows:
        return {}
    scored = [row for row in rows if not math.isnan(row.value)]
    found: dict[str, Any] = {
        "videos": len(rows),
        "unscored": len(rows) - len(scored),
        "zero_std_groups": int(sum(chunk.zero_std.sum() for chunk in chunks)),
        "normal_flow_speed": float(np.nanmean([row.normal_flow_speed for row in rows])),
    }
    if len(scored) < len(rows):
        found["errors"] = list(dict.fromkeys(row.error or "" for row in rows if math.isnan(row.value)))[:3]
    if not scored:
        return found
    found["score"] = math.fsum(row.value for row in scored) / len(scored)
    found["score_std"] = float(np.std([row.value for row in scored]))
    if len(weights) > 1:
        found["components"] = {name: math.fsum(row.parts[name] for row in scored) / len(scored) for name in weights}
        found["variance_shares"] = _mean_variance_shares(chunks, weights)
    return found


def _mean_variance_shares(chunks: Sequence[GroupAdvantages], weights: Mapping[str, float]) -> dict[str, float]:
    """Each component's share of the combined score's variance within a group: the mean over groups
    that differ.
    """
    columns = []
    for chunk in chunks:
        size = chunk.group_size
        for start in range(0, len(chunk.samples), size):
            group = [row for row in chunk.samples[start : start + size] if not math.isnan(row.value)]
            if len(group) > 1 and not chunk.zero_std[start // size]:
                terms = [
                    [weight * row.parts[f"normalised/{name}"] for row in group] for name, weight in weights.items()
                ]
                columns.append(variance_shares(np.array(terms)))
    columns = [column for column in columns if not np.isnan(column).any()]
    return dict(zip(weights, np.mean(columns, axis=0).tolist(), strict=True)) if columns else {}


def clips_to_keep(chunks: Sequence[GroupAdvantages], count: int) -> set[tuple[int, int]]:
    """(group, sample) of the videos to keep as files: one without a score, then lowest and highest
    advantage in turn.
    """
    places, group = [], 0
    for chunk in chunks:
        size = chunk.group_size
        for number, row in enumerate(chunk.samples):
            if not math.isnan(row.normal_flow_speed):  # there is a video
                place = (group + number // size, number % size)
                places.append((math.isnan(row.value), float(chunk.advantage[number]), place))
        group += len(chunk.zero_std)
    unscored = [place for missing, _, place in places if missing][:1]
    ranked = [place for _, _, place in sorted(item for item in places if not item[0])]
    ends = [ranked[n // 2] if n % 2 == 0 else ranked[-1 - n // 2] for n in range(len(ranked))]
    return set([*unscored, *ends][:count])
