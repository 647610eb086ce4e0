"""Frames through the encoder and decoder of an ``AutoencoderKLWan`` alone: a hard normal.

frames → ``vae_round_trip`` → frames of the same form
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cac_align.data.injection.models import padded


def vae_round_trip(pixels: np.ndarray, folder: str) -> np.ndarray:
    """Frames after the encoder and decoder of an ``AutoencoderKLWan``; its latent is the mean, nothing
    is drawn. The last frame is held so that the number of frames fits, and cut off again.
    """
    import torch

    vae, device = _loaded_vae(folder)
    count, height, width = pixels.shape[:3]
    spatial = vae.config.scale_factor_spatial
    # The encoder takes one frame and then four at a time; what is left over is lost.
    frames = padded(pixels, (count + -(count - 1) % 4, height + -height % spatial, width + -width % spatial))
    with torch.inference_mode():
        video = torch.from_numpy(frames).to(device).permute(3, 0, 1, 2)[None].to(vae.dtype) / 127.5 - 1
        decoded = vae.decode(vae.encode(video).latent_dist.mode()).sample[0]
    out = ((decoded.float().clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
    return np.ascontiguousarray(out[:count, :height, :width])


@lru_cache(maxsize=1)
def _loaded_vae(folder: str) -> tuple[Any, str]:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    device = "cuda" if torch.cuda.is_available() else "cpu"
    inside = "vae" if (Path(folder) / "vae").is_dir() else None
    loaded: Any = AutoencoderKLWan.from_pretrained(folder, subfolder=inside)
    return loaded.to(device).eval(), device
