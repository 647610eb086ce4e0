"""The DiffusionNFT loss: moves the flow towards good videos and away from bad ones, without
log-probabilities.

sampled latents z, advantage → x = (1 − σ)z + σε at a few σ → v (LoRA), v_old (old policy)
    → one loss per sample

    r     = clip(A / 2A_max + ½, 0, 1)
    v+    = βv + (1 − β)v_old                    v− = (1 + β)v_old − βv
    loss  = r·‖x̂0(v+) − z‖² / w+  +  (1 − r)·‖x̂0(v−) − z‖² / w−
    x̂0(v) = x − σv,  w = mean|x̂0 − z|, without gradient

The old policy is a moving average of the LoRA. Any sampler may have made z. Local advantages: r may
differ by latent position, r(p) = r̄ + d(p) with mean_p d = 0. The loss is linear in r, so mean_p
r(p)·plus(p) + (1 − r(p))·minus(p) is the loss at r̄ plus mean_p d(p)·(plus(p) − minus(p)), and a
uniform r gives exactly the plain loss. Source: DiffusionNFT (arXiv 2509.16117).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def good_share(advantage: Tensor, advantage_max: float) -> Tensor:
    """r of each advantage, in [0, 1]; an advantage of 0 gives ½."""
    return (advantage / (2 * advantage_max) + 0.5).clamp(0, 1)


def add_noise(
    z: Float[Tensor, "B C t h w"], noise: Float[Tensor, "B C t h w"], sigma: Float[Tensor, " B"]
) -> Float[Tensor, "B C t h w"]:
    """The latents z with noise, each video's at its own level ``sigma`` in [0, 1]."""
    level = sigma[:, None, None, None, None]
    return (1 - level) * z + level * noise


def nft_loss(
    v: Float[Tensor, "B C t h w"],
    v_old: Float[Tensor, "B C t h w"],
    x: Float[Tensor, "B C t h w"],
    z: Float[Tensor, "B C t h w"],
    sigma: Float[Tensor, " B"],
    share: Float[Tensor, " B"],
    *,
    beta: float = 1.0,
    deviation: Float[Tensor, "B t h w"] | None = None,
) -> Float[Tensor, " B"]:
    """The loss of B samples, each at its own σ. share: r (or r̄) in [0, 1]. deviation: d(p) of
    local advantages.
    """
    plus = _weighted_error(beta * v + (1 - beta) * v_old, x, z, sigma)
    minus = _weighted_error((1 + beta) * v_old - beta * v, x, z, sigma)
    loss = share * plus.flatten(1).mean(1) + (1 - share) * minus.flatten(1).mean(1)
    if deviation is not None:
        loss = loss + (deviation * (plus - minus)).flatten(1).mean(1)
    return loss


def _weighted_error(v: Tensor, x: Tensor, z: Tensor, sigma: Float[Tensor, " B"]) -> Float[Tensor, "B t h w"]:
    """(x̂0 − z)² / w at each latent position, a mean over channels."""
    error = x - sigma[:, None, None, None, None] * v - z
    width = error.detach().abs().flatten(1).mean(1).clamp_min(1e-5)
    return (error**2).mean(1) / width[:, None, None, None]


def shares_by_position(
    advantage: Float[Tensor, "B t h w"], advantage_max: float
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B t h w"]]:
    """(mean r̄, deviation d) of advantages by latent position."""
    share = good_share(advantage.to(torch.float32), advantage_max).to(torch.float64)
    base = share.flatten(1).mean(1)
    return base.to(torch.float32), (share - base[:, None, None, None]).to(torch.float32)
