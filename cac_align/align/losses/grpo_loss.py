"""The Flow-GRPO loss of one SDE step: clipped probability ratio, KL penalty, ratio normalisation,
local advantages.

μ (with gradient), μ_old, x', std, dt, advantage → log-ratio → clipped surrogate + β·KL → one loss per sample

    δ      = log p(x'; μ) − log p(x'; μ_old)                                            mean over elements
    ratio  = exp(δ),  or with ratio normalisation  exp((δ + ‖μ − μ_old‖² / 2std²)·std)
    loss   = max(−A·ratio, −A·clip(ratio, 1 − c, 1 + c)) + β·(μ − μ_ref)² / 2std²

Ratio normalisation (GRPO-Guard): E[δ] is −‖μ − μ_old‖² / 2std². Without the correction the mean of
the ratio lies below 1 and differs between steps, so the clip acts on one side only. The loss is
also divided by −dt, so that all steps have the same weight.

Local advantages: A may differ by latent position, A(p) = Ā + D(p) with mean_p D = 0. The mean Ā
weighs the sample's ratio as above. The deviation D(p) weighs the ratio of its position, ratio(p) =
exp(δ(p)), where δ(p) is a mean over channels. At ratio 1, where every update begins, the gradient
is mean_p A(p)·∇log p(p), so each position gets its own advantage. With a uniform A(p) the deviation
is 0 and the loss is the plain one to the last bit. δ is the mean of n = t·h·w values δ(p), so δ(p)
is about √n times as wide, and its clip range is c·√n. Source: CaC (arXiv 2605.11723) Eq. 8-12 for
the clipped form; Flow-GRPO (arXiv 2505.05470).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cac_align.align.sampling.sde import log_prob_by_location


@dataclass(frozen=True)
class GrpoLoss:
    """The loss of B samples and what it is made of.

    per_sample: the loss, with gradient. ratio, kl: without gradient. clipped: 1 where the clip was
    active, else 0.
    """

    per_sample: Float[Tensor, " B"]
    ratio: Float[Tensor, " B"]
    kl: Float[Tensor, " B"]
    clipped: Float[Tensor, " B"]


def split_by_position(advantage: Float[Tensor, "B t h w"]) -> tuple[Float[Tensor, " B"], Float[Tensor, "B t h w"]]:
    """(mean Ā, deviation D) of advantages by position.

    Computed in float64, in which the mean of equal float32 numbers is exactly that number.
    """
    wide = advantage.to(torch.float32).to(torch.float64)
    base = wide.flatten(1).mean(1)
    return base.to(torch.float32), (wide - base[:, None, None, None]).to(torch.float32)


def grpo_loss(
    mean: Float[Tensor, "B C t h w"],
    mean_old: Float[Tensor, "B C t h w"],
    x_next: Float[Tensor, "B C t h w"],
    std: float,
    dt: float,
    advantage: Float[Tensor, " B"],
    *,
    clip: float,
    deviation: Float[Tensor, "B t h w"] | None = None,
    mean_ref: Float[Tensor, "B C t h w"] | None = None,
    kl_beta: float = 0.0,
    normalise_ratio: bool = False,
) -> GrpoLoss:
    """The loss of one SDE step for each of B samples.

    mean, mean_old: μ of the current weights and of those that sampled. x_next: the sampled x'. std,
    dt: of the step. clip: c. deviation: D(p) of local advantages. mean_ref: μ of the model without
    LoRA, which the KL penalty with weight ``kl_beta`` needs. normalise_ratio: see above.
    """
    change = log_prob_by_location(x_next, mean, std) - log_prob_by_location(x_next, mean_old, std)
    moved = ((mean - mean_old) ** 2).mean(1) / (2 * std * std)
    if normalise_ratio:
        change = (change + moved) * std
    ratio = change.flatten(1).mean(1).exp()
    loss, clipped = _clipped(ratio, advantage, clip)
    if deviation is not None:
        own, _ = _clipped(change.exp(), deviation, clip * math.sqrt(change[0].numel()))
        loss = loss + own.flatten(1).mean(1)
    if normalise_ratio:
        loss = loss / -dt
    kl = torch.zeros_like(ratio)
    if mean_ref is not None:
        kl = ((mean - mean_ref) ** 2).flatten(1).mean(1) / (2 * std * std)
        loss = loss + kl_beta * kl
    return GrpoLoss(loss, ratio.detach(), kl.detach(), clipped)


def _clipped(ratio: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """(the larger of the two losses, 1.0 where that is the clipped one, which has no gradient),
    element by element.
    """
    free, bound = -advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(free, bound), (bound > free).float().detach()
