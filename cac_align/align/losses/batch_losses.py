"""The losses of one micro-batch, one noise level at a time: Flow-GRPO's over SDE steps,
DiffusionNFT's over drawn σ.

Each loss is a forward pass of its own and is to be followed by its backward pass before the next
one is asked for, so that memory does not grow with the number of noise levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cac_align.align.lora import Weights, swapped, zero_lora
from cac_align.align.losses.grpo_loss import grpo_loss
from cac_align.align.losses.nft_loss import add_noise, nft_loss
from cac_align.align.recipe import AlignRecipe
from cac_align.align.sampling.rollout import Flow, RolloutBatch, SdeStep, guided_velocity, sample_seed
from cac_align.align.sampling.sde import transition


@dataclass(frozen=True, eq=False)
class BatchLoss:
    """The loss of each video at one of ``num_levels`` noise levels, and what to log of it."""

    per_sample: Float[Tensor, " B"]
    num_levels: int
    metrics: Mapping[str, Float[Tensor, " B"]]


def grpo_batch_losses(
    flow: Flow,
    recipe: AlignRecipe,
    rollout: RolloutBatch,
    base: Float[Tensor, " B"],
    deviation: Float[Tensor, "B t h w"] | None,
    lora: Mapping[str, Tensor],
) -> Iterator[BatchLoss]:
    """The Flow-GRPO loss at each stochastic step of the micro-batch. base, deviation: see
    ``GroupAdvantages``.
    """
    device = flow.device
    for taken in rollout.steps:
        x = taken.x.to(device)
        reference = None
        if recipe.kl_beta > 0:
            with swapped(lora, zero_lora(lora)), torch.no_grad():
                reference = _sde_mean(flow, recipe, rollout, taken, x)
        loss = grpo_loss(
            _sde_mean(flow, recipe, rollout, taken, x),
            taken.mean.to(device),
            taken.x_next.to(device),
            taken.std,
            taken.dt,
            base,
            clip=recipe.clip_range,
            deviation=deviation,
            mean_ref=reference,
            kl_beta=recipe.kl_beta,
            normalise_ratio=recipe.normalise_ratio,
        )
        metrics = {"ratio": loss.ratio, "kl": loss.kl, "clipped": loss.clipped, "loss": loss.per_sample.detach()}
        yield BatchLoss(loss.per_sample, len(rollout.steps), metrics)


def _sde_mean(flow: Flow, recipe: AlignRecipe, rollout: RolloutBatch, taken: SdeStep, x: Tensor) -> Tensor:
    """The mean μ of a stochastic step under the present weights."""
    v = guided_velocity(flow, x, taken.index, rollout.embeds)
    return transition(recipe.dynamics, x, v, flow.schedule.sigmas, taken.index, recipe.noise_level).mean


def nft_batch_losses(
    flow: Flow,
    recipe: AlignRecipe,
    rollout: RolloutBatch,
    base: Float[Tensor, " B"],
    deviation: Float[Tensor, "B t h w"] | None,
    lora: Mapping[str, Tensor],
    old_policy: Weights,
) -> Iterator[BatchLoss]:
    """The DiffusionNFT loss at ``recipe.nft_timesteps`` noise levels, which every video draws by
    itself from the schedule, without repetition until all have been drawn.

    A step over N videos thus covers the schedule, whatever ``nft_timesteps`` is. The levels depend
    on the video's seed alone, not on its batch or process.
    """
    z = rollout.latents.to(flow.device)
    orders = [np.random.default_rng(sample_seed(seed, 4)).permutation(len(flow.schedule)) for seed in rollout.seeds]
    sigmas = torch.tensor(flow.schedule.sigmas, dtype=z.dtype, device=flow.device)
    generators = [torch.Generator().manual_seed(sample_seed(seed, 5)) for seed in rollout.seeds]
    for number in range(recipe.nft_timesteps):
        index = torch.tensor([int(order[number % len(order)]) for order in orders], device=flow.device)
        noise = torch.stack([torch.randn(z.shape[1:], generator=generator) for generator in generators]).to(flow.device)
        sigma = sigmas[index]
        x = add_noise(z, noise, sigma)
        with swapped(lora, old_policy), torch.no_grad():
            v_old = guided_velocity(flow, x, index, rollout.embeds)
        v = guided_velocity(flow, x, index, rollout.embeds)
        loss = nft_loss(v, v_old, x, z, sigma, base, beta=recipe.nft_beta, deviation=deviation)
        yield BatchLoss(loss, recipe.nft_timesteps, {"loss": loss.detach()})
