"""From the gathered scores of whole groups to what the loss needs: advantages, or maps of them, who counts, and the numbers to log.

verdicts of all processes, by chunk → sum | decoupled | local → Credit (base, deviation, live) → summary of the step

A chunk's verdicts come in the order of its videos: group by group, ``group_size`` each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cac_align.align.advantages import Advantages, decoupled, summed, within_group
from cac_align.align.async_reward import Judging, Verdict
from cac_align.align.grpo_loss import split
from cac_align.align.local_advantages import local_advantages
from cac_align.align.nft_loss import good_share, shares_by_position
from cac_align.align.recipe import FlowGrpoRecipe
from cac_align.rewards.normalise import variance_shares


@dataclass(frozen=True, eq=False)
class Credit:
    """What a chunk's N videos are told. base: the loss's advantage (for nft: r in [0, 1]). deviation: by latent position, local only.
    live: who takes part. advantage: one number per video for the ledger (the mean, where there is a map)."""

    base: Float[Tensor, " N"]
    deviation: Float[Tensor, "N t h w"] | None
    live: Bool[Tensor, " N"]
    advantage: Float[np.ndarray, " N"]
    dead: Bool[np.ndarray, " P"]
    verdicts: tuple[Verdict, ...]


def credit(chunks: Sequence[Sequence[Verdict]], recipe: FlowGrpoRecipe, judging: Judging) -> list[Credit]:
    """One Credit per chunk. With ``needs_all`` the chunks given are looked at together, else each for itself."""
    size = recipe.group_size
    rows = [list(chunk) for chunk in chunks]
    if recipe.credit == "local":
        return [_local(chunk, recipe, judging) for chunk in rows]
    if needs_all(recipe):
        found = _advantages([row for chunk in rows for row in chunk], recipe, judging)
        ends = np.cumsum([len(chunk) // size for chunk in rows])[:-1]
        parts = zip(*(np.split(part, ends) for part in (found.values, found.dead, found.live)), rows, strict=True)
        return [_uniform(values, dead, live, chunk, recipe) for values, dead, live, chunk in parts]
    told = [_advantages(chunk, recipe, judging) for chunk in rows]
    return [_uniform(one.values, one.dead, one.live, chunk, recipe) for one, chunk in zip(told, rows, strict=True)]


def needs_all(recipe: FlowGrpoRecipe) -> bool:
    """Whether a group's advantages hang on the other groups of the step, so that learning begins when all are judged."""
    return recipe.aggregation == "decoupled" or recipe.global_std


def _advantages(rows: Sequence[Verdict], recipe: FlowGrpoRecipe, judging: Judging) -> Advantages:
    totals = np.array([row.value for row in rows]).reshape(-1, recipe.group_size)
    if recipe.aggregation == "sum":
        return summed(totals, recipe.advantage_clip, global_std=recipe.global_std, min_spread=recipe.min_spread)
    weights = judging.components
    shares = np.array(list(weights.values()))
    raw, normalised = (
        np.array([[component(row, kind + name, judging) for row in rows] for name in weights]).reshape(
            -1, *totals.shape
        )
        for kind in ("", "normalised/")
    )
    return decoupled(raw, shares, totals, recipe.advantage_clip, normalised=normalised, min_spread=recipe.min_spread)


def component(row: Verdict, name: str, judging: Judging) -> float:
    """A component's raw value, or its normalised one as "normalised/NAME"; NaN where the video has no score."""
    if math.isnan(row.value) or len(judging.components) == 1:
        return row.value
    return row.parts.get(name, math.nan)


def _uniform(
    values: Float[np.ndarray, "P G"],
    dead: Bool[np.ndarray, " P"],
    live: Bool[np.ndarray, "P G"],
    rows: Sequence[Verdict],
    recipe: FlowGrpoRecipe,
) -> Credit:
    advantage = values.reshape(-1)
    base = torch.from_numpy(advantage).float()
    if recipe.objective == "nft":
        base = good_share(base, recipe.advantage_clip)
    return Credit(base, None, torch.from_numpy(live.reshape(-1).copy()), advantage, dead, tuple(rows))


def _local(rows: Sequence[Verdict], recipe: FlowGrpoRecipe, judging: Judging) -> Credit:
    size, where = recipe.group_size, recipe.credit_component
    weights = judging.components
    others = {name: weight for name, weight in weights.items() if name != where}
    maps, deads = [], []
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        scores = np.array([component(row, where, judging) for row in group])
        partner = None
        if others:
            mixed = [
                math.fsum(weight * row.parts.get(f"normalised/{name}", math.nan) for name, weight in others.items())
                for row in group
            ]
            partner, _ = within_group(np.array(mixed), min_spread=recipe.min_spread)
        masks = np.stack([row.mask for row in group])
        bounds = {"partner_share": recipe.partner_share, "clip": recipe.advantage_clip, "min_spread": recipe.min_spread}
        found, dead = local_advantages(scores, masks, partner, **bounds)
        maps.append(found)
        deads.append(dead)
    whole = torch.from_numpy(np.concatenate(maps))
    dead = np.array(deads)
    unscored = np.array([math.isnan(row.value) for row in rows])
    base, deviation = split(whole) if recipe.objective == "grpo" else shares_by_position(whole, recipe.advantage_clip)
    live = torch.from_numpy(~unscored & ~np.repeat(dead, size))
    return Credit(base, deviation, live, whole.flatten(1).mean(1).numpy(), dead, tuple(rows))


def summary(credits: Sequence[Credit], weights: Mapping[str, float]) -> dict[str, object]:
    """The numbers of a step's groups. What nobody could measure is left out."""
    rows = [row for credit in credits for row in credit.verdicts]
    if not rows:
        return {}
    scored = [row for row in rows if not math.isnan(row.value)]
    found: dict[str, object] = {
        "videos": len(rows),
        "unscored": len(rows) - len(scored),
        "zero_std_groups": int(sum(credit.dead.sum() for credit in credits)),
        "motion": float(np.nanmean([row.motion for row in rows])),
    }
    if len(scored) < len(rows):
        found["errors"] = list(dict.fromkeys(row.error or "" for row in rows if math.isnan(row.value)))[:3]
    if not scored:
        return found
    found["score"] = math.fsum(row.value for row in scored) / len(scored)
    found["score_std"] = float(np.std([row.value for row in scored]))
    for name in weights if len(weights) > 1 else ():
        found.setdefault("components", {})[name] = math.fsum(row.parts[name] for row in scored) / len(scored)
    if len(weights) > 1:
        found["shares"] = _shares(credits, weights)
    return found


def _shares(credits: Sequence[Credit], weights: Mapping[str, float]) -> dict[str, float]:
    """Each component's share of the within-group variance of the combined score, a mean over the groups that have spread."""
    columns = []
    for one in credits:
        size = len(one.verdicts) // len(one.dead)
        for start in range(0, len(one.verdicts), size):
            group = [row for row in one.verdicts[start : start + size] if not math.isnan(row.value)]
            if len(group) > 1 and not one.dead[start // size]:
                terms = [
                    [weight * row.parts[f"normalised/{name}"] for row in group] for name, weight in weights.items()
                ]
                columns.append(variance_shares(np.array(terms)))
    columns = [column for column in columns if not np.isnan(column).any()]
    return dict(zip(weights, np.mean(columns, axis=0).tolist(), strict=True)) if columns else {}


def means(seen: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every name over the rows that have it; of ``ratio_off`` the largest."""
    names = dict.fromkeys(name for row in seen for name in row)
    found = {name: [row[name] for row in seen if name in row] for name in names}
    return {
        name: max(values) if name == "ratio_off" else math.fsum(values) / len(values) for name, values in found.items()
    }


def telling(credits: Sequence[Credit], count: int) -> set[tuple[int, int]]:
    """(group, sample) of the videos to keep as files: those without a score first, then lowest and highest advantage in turn."""
    places, group = [], 0
    for one in credits:
        size = len(one.verdicts) // len(one.dead)
        for number, row in enumerate(one.verdicts):
            if not math.isnan(row.motion):  # there is a video
                place = (group + number // size, number % size)
                places.append((math.isnan(row.value), float(one.advantage[number]), place))
        group += len(one.dead)
    unscored = [place for missing, _, place in places if missing][:1]
    ranked = [place for _, _, place in sorted(item for item in places if not item[0])]
    ends = [ranked[n // 2] if n % 2 == 0 else ranked[-1 - n // 2] for n in range(len(ranked))]
    return set([*unscored, *ends][:count])
