"""Masked resampling: part of a video is denoised anew by the Wan that could have made it.

latents, weights in [0, 1] → noise to ``strength`` → the checkpoint's own sampler; before each step the
cells outside hold the original's latents at that step's noise level → latents → VAE; outside the cells
the original's pixels → frames

It works with every Wan text-to-video checkpoint, as ``WanPipeline`` itself takes the steps: on a
schedule that begins at the noise level ``strength``, with a callback after each step. A cell of
weight 1 is free from the first step; one of weight m is held for the share 1 − m of the steps and
free afterwards, so it stays nearer to the original (as in Differential Diffusion, arXiv
2306.00950); a cell of weight 0 is always held and ends as the original's latent, to the last bit.
The decoder mixes neighbours, so pixels outside the cells are taken from the decoded original.
Source: RePaint (arXiv 2201.09865) for the re-insertion.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cac_align.core.video import Video
from cac_align.generation.latent_masks import LatentGrid, latent_grid, pixel_mask
from cac_align.generation.repair.latent_video import decode_frames, encode_latents, fit_to_video
from cac_align.generation.wan import Wan

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class RepairRequest:
    """A repair that is asked for.

    weights: per latent cell, in [0, 1]; 0 keeps the cell (``latent_masks.grow_and_soften``).
    strength: the noise level σ to begin at, in (0, 1]; 1 makes the cells from noise alone. seed: of
    the noise. latents: those of the video, where they are known; else it is encoded.
    """

    prompt: str
    video: Video
    weights: Float[np.ndarray, "t h w"]
    strength: float
    seed: int
    latents: Tensor | None = None


@dataclass(frozen=True, eq=False)
class RepairedClip:
    """A repaired video. latents: its own, None where the backend has none. steps: denoising steps
    taken. original: what the repair saw of the original (after the VAE's round trip).
    """

    video: Video
    latents: Tensor | None
    steps: int
    original: Video


@dataclass(frozen=True)
class MaskedResampling:
    """The repair backend for plain Wan text-to-video checkpoints."""

    wan: Wan

    @property
    def provenance(self) -> Mapping[str, str]:
        """What identifies a repaired video, besides the request."""
        form = ("height", "width", "num_frames", "fps")  # the video's own
        return {
            "repair": "masked resampling",
            **{key: value for key, value in self.wan.provenance.items() if key not in form},
        }

    def grid(self, video: Video) -> LatentGrid:
        """The latent grid of a video. Raises ``ValueError`` where the checkpoint cannot make such a one."""
        return latent_grid(fit_to_video(self.wan, video))

    def steps(self, strength: float) -> int:
        """How many denoising steps a repair of this strength takes."""
        return len(tail_schedule(self.wan, strength).timesteps)

    def __call__(self, request: RepairRequest) -> RepairedClip:
        """Raises ``ValueError`` for a video or weights that do not fit the checkpoint, and for
        output that is not finite.
        """
        import torch

        wan = fit_to_video(self.wan, request.video)
        grid = latent_grid(wan)
        if request.weights.shape != grid.shape:
            raise ValueError(
                f"expected weights of shape {grid.shape} (t, h, w) for {request.video.name}, "
                f"received {request.weights.shape}"
            )
        before = encode_latents(wan, request.video) if request.latents is None else request.latents
        weights = torch.from_numpy(np.asarray(request.weights, np.float32))
        after = resample(wan, [request.prompt], before[None], weights[None], request.strength, [request.seed])[0]
        kept = decode_frames(wan, before)
        frames = np.where(pixel_mask(request.weights, grid)[..., None], decode_frames(wan, after), kept)
        name = f"{request.video.name} (repaired, seed {request.seed})"
        return RepairedClip(
            Video.open(frames, fps=request.video.fps, layout="THWC", name=name),
            after,
            self.steps(request.strength),
            Video.open(kept, fps=request.video.fps, layout="THWC", name=request.video.name),
        )


def tail_schedule(wan: Wan, strength: float) -> Any:
    """A copy of the checkpoint's scheduler whose schedule is the last part of its own: from the
    noise level nearest to ``strength`` on.

    Its timesteps and sigmas are set; setting them anew gives the same. Raises ``ValueError`` for a
    strength outside (0, 1].
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength is a noise level in (0, 1], received {strength}")
    scheduler = copy.deepcopy(wan.pipeline.scheduler)
    whole = scheduler.set_timesteps

    def set_timesteps(num_inference_steps: int, device: Any = None) -> None:
        whole(num_inference_steps, device=device)
        sigmas = [float(sigma) for sigma in scheduler.sigmas[:-1]]
        start = min(range(len(sigmas)), key=lambda index: abs(sigmas[index] - strength))
        scheduler.timesteps, scheduler.sigmas = scheduler.timesteps[start:], scheduler.sigmas[start:]
        scheduler.num_inference_steps = len(scheduler.timesteps)

    scheduler.set_timesteps = set_timesteps
    scheduler.set_timesteps(wan.setting.num_inference_steps)
    return scheduler


def resample(
    wan: Wan,
    prompts: Sequence[str],
    latents: Float[Tensor, "B C t h w"],
    weights: Float[Tensor, "B t h w"],
    strength: float,
    seeds: Sequence[int],
) -> Float[Tensor, "B C t h w"]:
    """Denoise the cells with a weight above 0 anew, from the noise level ``strength`` on; on the CPU.

    One prompt and seed per video. With weights of 1 everywhere and strength 1 it is plain sampling.
    Raises ``ValueError`` for weights outside [0, 1].
    """
    import torch

    if not bool(((weights >= 0) & (weights <= 1)).all()):
        raise ValueError("weights of latent cells lie in [0, 1]; 0 keeps the cell")
    setting = wan.setting
    scheduler = tail_schedule(wan, strength)
    pipeline: Any = copy.copy(wan.pipeline)
    pipeline.scheduler = scheduler
    device = wan.pipeline.transformer.device
    original, weights = latents.to(device, torch.float32), weights[:, None].to(device)
    noise = torch.stack(
        [torch.randn(one.shape, generator=torch.Generator("cpu").manual_seed(int(seed))) for one, seed in zip(
            original, seeds, strict=True)]
    ).to(device)  # fmt: skip
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    count = len(sigmas) - 1

    def at_level(index: int) -> Tensor:
        return (1 - sigmas[index]) * original + sigmas[index] * noise

    def hold(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        last = index + 1 == count
        free = weights > (0 if last else 1 - (index + 1) / count + 1e-6)
        kept = original if last else at_level(index + 1)
        return {"latents": torch.where(free, tensors["latents"], kept)}

    guided = setting.guidance_scale > 1
    with torch.no_grad():
        result = pipeline(
            prompt=list(prompts),
            negative_prompt=[setting.negative_prompt] * len(prompts) if guided else None,
            height=setting.height,
            width=setting.width,
            num_frames=setting.num_frames,
            num_inference_steps=setting.num_inference_steps,
            guidance_scale=setting.guidance_scale,
            latents=at_level(0),
            output_type="latent",
            max_sequence_length=setting.max_sequence_length,
            callback_on_step_end=hold,
        ).frames
    if not all(math.isfinite(float(one.abs().sum())) for one in result):
        raise ValueError("the model's output is not finite; use another seed or a wider dtype")
    return result.float().cpu()
