"""Train the small Wan's VAE on clips of the world, rendered as they are needed.

seed → clip → a small piece around the entity (or a whole clip) → encode, noise, decode →
reconstruction loss + KL → running average of the weights → PSNR on unseen clips, mean and std of
the latents into the config → ``out/final``; ``research.build`` runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from cac_align.miniature.models.wan import MiniWan, build_vae
from research.training.optimise import Optimisation, Schedule, step_generator


@dataclass(frozen=True)
class VaeRecipe:
    """Job ``vae``. Clip seeds are first_clip, first_clip + 1, …, all inside the world's training
    range.

    frames, crop: length and side (px) of a training piece, cut at a random time and around
    something, because most of a clip is empty background; every ``long_every``-th step sees a whole
    clip instead, because the causal decoder drifts in frames it never reached in training.
    entity_weight: how much more a pixel counts that is not background. kl: weight of the KL term
    per latent value. measure: clips for PSNR and for the latents' mean and std.
    """

    job: str = "vae"
    out: str = "runs/miniature/vae"
    seed: int = 0
    first_clip: int = 0
    frames: int = 9
    crop: int = 40
    long_every: int = 8
    anomalous: float = 0.4
    entity_weight: float = 4.0
    gradient_weight: float = 0.5
    kl: float = 1e-4
    measure: int = 128
    model: MiniWan = field(default_factory=MiniWan)
    schedule: Schedule = field(default_factory=Schedule)


def training_clip(seed: int, anomalous: float, world: str = "studio") -> tuple[UInt8[np.ndarray, "T H W 3"], str]:
    """One clip of the world "studio" or "playground" and its prompt; a share ``anomalous`` of the
    seeds shows an anomaly.
    """
    from cac_align.miniature.world.settings import PLAYGROUND, STUDIO, TRAIN_SEEDS
    from cac_align.miniature.world.world import make_clip

    if seed not in TRAIN_SEEDS:
        raise ValueError(
            f"clip seed {seed} lies outside the training range {TRAIN_SEEDS}; lower first_clip, clips or schedule.steps"
        )
    clip = make_clip(seed, replace(PLAYGROUND if world == "playground" else STUDIO, anomaly_share=anomalous))
    return clip.pixels, clip.prompt


def to_signal(pixels: UInt8[np.ndarray, "*batch T H W 3"]) -> Float[Tensor, "*batch 3 T H W"]:
    """uint8 pixels as the VAE's input: floats in [−1, 1], channels before time."""
    return torch.from_numpy(pixels).movedim(-1, -4).float() / 127.5 - 1


def decode_unclamped(vae: nn.Module, latents: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
    """``vae.decode`` without its clamp to [−1, 1], whose gradient is zero outside: a saturated
    pixel could never come back.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    vae.clear_cache()
    hidden = vae.post_quant_conv(latents)
    pieces = []
    for index in range(hidden.shape[2]):
        vae._conv_idx = [0]
        piece = hidden[:, :, index : index + 1]
        pieces.append(vae.decoder(piece, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0))
    vae.clear_cache()
    return unpatchify(torch.cat(pieces, 2), patch_size=vae.config.patch_size)


def reconstruction_loss(
    made: Float[Tensor, "B 3 T H W"],
    target: Float[Tensor, "B 3 T H W"],
    weight: Float[Tensor, "B 1 T H W"],
    gradient_weight: float,
) -> Tensor:
    """Weighted mean of |e| + 2e², and of |difference of e| between neighbours in space and time; e
    in brightness and two colour axes.

    By |e| alone the best colour of something small is the grey around it, hence the square; and
    brightness, which varies most, would be learnt long before colour, hence the axes: e = (mean of
    R, G, B; R − G; (R + G) / 2 − B).
    """
    weight = weight / weight.mean()
    red, green, blue = (made - target).unbind(1)
    error = torch.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue], 1)
    loss = (weight * (error.abs() + 2 * error**2)).mean()
    if gradient_weight:
        edges = (error.diff(dim=-1).abs() * weight[..., 1:]).mean() + (
            error.diff(dim=-2).abs() * weight[..., 1:, :]
        ).mean()
        loss = loss + gradient_weight * edges
        if error.shape[2] > 1:
            loss = loss + gradient_weight * (error.diff(dim=2).abs() * weight[:, :, 1:]).mean()
    return loss


def salience(clip: UInt8[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "T H W"]:
    """0 for background, 1 for what stands out: 4 · |pixel − median of its row over the clip| of the
    signal, at most 1.
    """
    backdrop = np.median(clip[::4], axis=(0, 2), keepdims=True)
    return np.minimum(1, np.abs(clip - backdrop).max(-1) * (4 / 127.5)).astype(np.float32)


def vae_batch(recipe: VaeRecipe, step: int) -> tuple[Float[Tensor, "B 3 T H W"], Float[Tensor, "B 1 T H W"]]:
    """What step ``step`` of job ``vae`` sees, as a signal in [−1, 1], and how much each pixel
    weighs.
    """
    generator = step_generator(recipe.seed, step)
    seed = recipe.first_clip + step * recipe.schedule.batch
    whole = recipe.long_every > 0 and step % recipe.long_every == recipe.long_every - 1
    clips = [training_clip(n, recipe.anomalous)[0] for n in range(seed, seed + (1 if whole else recipe.schedule.batch))]
    weights = [1 + recipe.entity_weight * salience(clip) for clip in clips]
    if whole:
        pieces = [(slice(None), slice(None), slice(None))]
    else:
        pieces = [cut(weight, recipe.frames, recipe.crop, generator) for weight in weights]
    target = to_signal(np.stack([clip[piece] for clip, piece in zip(clips, pieces, strict=True)]))
    return target, torch.from_numpy(np.stack([weight[piece] for weight, piece in zip(weights, pieces, strict=True)]))[
        :, None
    ]


def cut(
    weight: Float[np.ndarray, "T H W"], frames: int, side: int, generator: torch.Generator
) -> tuple[slice, slice, slice]:
    """A piece of a clip: ``frames`` at a random time, and a square that holds a random pixel of the
    weightiest tenth of their first frame.
    """
    start, where, dx, dy = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    count, height, width = weight.shape
    first = int(start * (count - frames + 1))
    order = np.argsort(weight[first], axis=None, kind="stable")
    y, x = np.unravel_index(order[-1 - int(where * 0.1 * (len(order) - 1))], (height, width))
    top = int(np.clip(y - dy * side, 0, height - side))
    left = int(np.clip(x - dx * side, 0, width - side))
    return slice(first, first + frames), slice(top, top + side), slice(left, left + side)


def train_vae(recipe: VaeRecipe, *, stop_at: int | None = None) -> Path | None:
    """Run job ``vae``; returns the folder of the finished VAE, or None when stopped before the end."""

    torch.set_num_threads(recipe.schedule.threads)
    out = Path(recipe.out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        vae = build_vae(recipe.model).train()
    with (
        torch.no_grad()
    ):  # almost no noise at first (standard deviation 0.05): with the default of 1 the first signal drowns
        vae.quant_conv.bias[recipe.model.latent_channels :] = -6.0
    optimisation = Optimisation(out, {"vae": vae}, recipe.schedule, recipe)

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        target, weight = vae_batch(recipe, step)
        generator = step_generator(recipe.seed + 1, step)
        posterior = vae.encode(target).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        made = decode_unclamped(vae, posterior.mean + posterior.std * noise)
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        loss = reconstruction_loss(made, target, weight, recipe.gradient_weight)
        numbers = {"psnr": psnr(made.detach(), target), "kl": kl.item(), "std": posterior.std.mean().item()}
        return loss + recipe.kl * kl, numbers

    if not optimisation.run(loss_at, stop_at=stop_at):
        return None
    with optimisation.averaged():
        return finish_vae(vae.eval(), recipe, optimisation)


def psnr(made: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of signals in [−1, 1], the made one clamped as
    ``vae.decode`` does.
    """
    return float(10 * torch.log10(4 / ((made.clamp(-1, 1) - target) ** 2).mean()))


@torch.no_grad()
def finish_vae(vae: nn.Module, recipe: VaeRecipe, optimisation: Optimisation) -> Path:
    """Measure PSNR and the latents' mean and std on unseen clips, write them into the config, save
    the folder ``out/final``.
    """
    first = recipe.first_clip + recipe.schedule.steps * recipe.schedule.batch
    latents, values, standing_out = [], [], []
    for seed in range(first, first + recipe.measure):
        clip, _ = training_clip(seed, recipe.anomalous)
        target = to_signal(clip)[None]
        mode = vae.encode(target).latent_dist.mode()
        made = vae.decode(mode).sample
        latents.append(mode)
        values.append(psnr(made, target))
        entity = torch.from_numpy(salience(clip) > 0.9).expand_as(target)
        if entity.any():
            standing_out.append(psnr(made[entity], target[entity]))
    joined = torch.cat(latents)
    mean, std = joined.mean(dim=(0, 2, 3, 4)), joined.std(dim=(0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    vae.save_pretrained(Path(recipe.out) / "final")
    optimisation.log(
        {
            "psnr_held_out": float(np.mean(values)),
            "psnr_entity": float(np.mean(standing_out)),
            "latent_std": std.mean().item(),
        }
    )
    return Path(recipe.out) / "final"
