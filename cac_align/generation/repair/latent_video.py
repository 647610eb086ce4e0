"""Videos to Wan's latents and back, in the normalised form that its DiT sees.

Video → ``encode_latents`` → latents (C, t, h, w) → ``decode_frames`` → frames (T, H, W, 3), uint8

The encoder gives the mean of its distribution, so the same video gives the same latents. Decoding
is that of ``WanPipeline``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cac_align.core.video import Video
from cac_align.generation.wan import Wan, check_setting

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from torch import Tensor


def fit_to_video(wan: Wan, video: Video) -> Wan:
    """The same Wan, set to this video's size, length and frame rate.

    Raises ``ValueError``, with the nearest allowed values, where this checkpoint cannot make such
    a video.
    """
    setting = replace(wan.setting, height=video.height, width=video.width, num_frames=len(video), fps=video.fps)
    try:
        check_setting(wan.pipeline, setting)
    except ValueError as error:
        raise ValueError(f"{video.name}: this checkpoint cannot make a video of that form: {error}") from error
    return wan.with_setting(height=setting.height, width=setting.width, num_frames=setting.num_frames, fps=setting.fps)


def encode_latents(wan: Wan, video: Video) -> Float[Tensor, "C t h w"]:
    """The latents of a video, on the CPU in float32.

    Raises ``ValueError`` where the checkpoint cannot make a video of this form.
    """
    import torch

    fit_to_video(wan, video)
    vae: Any = wan.pipeline.vae
    pixels = torch.from_numpy(np.ascontiguousarray(video.frames(range(len(video))).pixels))
    scaled = (pixels.permute(3, 0, 1, 2)[None].to(vae.device, vae.dtype) / 127.5) - 1
    with torch.no_grad():
        latents = vae.encode(scaled).latent_dist.mode().float()
    mean, std = _statistics(vae, latents)
    return ((latents - mean) / std)[0].cpu()


def decode_frames(wan: Wan, latents: Float[Tensor, "C t h w"]) -> UInt8[np.ndarray, "T H W 3"]:
    """The frames of some latents, decoded alone, so that equal latents give equal frames.

    Raises ``ValueError`` for latents or pixels that are not finite.
    """
    import torch

    vae: Any = wan.pipeline.vae
    batch = latents[None].to(vae.device, torch.float32)
    mean, std = _statistics(vae, batch)
    with torch.no_grad():
        decoded = vae.decode((batch * std + mean).to(vae.dtype), return_dict=False)[0]
    frames = wan.pipeline.video_processor.postprocess_video(decoded, output_type="np")[0]
    if not (torch.isfinite(latents).all() and np.isfinite(frames).all()):
        raise ValueError("the model's output is not finite; use another seed or a wider dtype")
    return Video.open(frames, fps=wan.setting.fps, layout="THWC").frames(range(len(frames))).pixels


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the VAE's latents by channel."""
    import torch

    mean, std = (
        torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std
