"""A Wan as the injection of defects uses it: frames to latents and back, and masked resampling on
numpy arrays.

name of a checkpoint → ``WanRedrawer`` → encode, redraw within weights, decode
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from cac_align.core.video import Video
from cac_align.generation.build import GeneratorRecipe, load_generator
from cac_align.generation.latent_masks import latent_grid
from cac_align.generation.repair.latent_video import decode_frames, encode_latents
from cac_align.generation.repair.resample import resample, tail_schedule
from cac_align.generation.wan import Wan

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

LOWEST_LEVEL = 0.15
"""The schedule has enough steps that its last noise level is at most this."""
_MOST_STEPS = 1000


@dataclass(frozen=True)
class WanRedrawer:
    """A Wan text-to-video checkpoint that draws a part of a clip anew.

    model: "miniature", a diffusers folder or a hub id. device: as for ``pick_device``. It is a name
    only, and each process loads the weights on first use. So it can be given to worker processes.
    """

    model: str
    device: str | None = None

    @property
    def wan(self) -> Wan:
        """The loaded checkpoint. Raises ``ValueError`` where it is missing, incomplete or no Wan."""
        return _loaded(self.model, self.device)

    @property
    def provenance(self) -> Mapping[str, str]:
        """What identifies what it draws; size, length and rate are each clip's own."""
        form = ("height", "width", "num_frames", "fps")
        return {name: value for name, value in self.wan.provenance.items() if name not in form}

    @property
    def strides(self) -> tuple[int, int]:
        """Frames and px per latent cell."""
        grid = latent_grid(self.wan)
        return grid.temporal, grid.spatial

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """The noise levels of the checkpoint's schedule, falling."""
        return _levels(self.wan)

    def form(self, count: int, height: int, width: int) -> tuple[int, int, int]:
        """The smallest form that this checkpoint can make and that holds these frames, rows and columns."""
        temporal, spatial = self.strides
        patches = self.wan.pipeline.transformer.config.patch_size[1:]
        rows, columns = (math.lcm(16, spatial * patch) for patch in patches)
        return count + -(count - 1) % temporal, height + -height % rows, width + -width % columns

    def encode(self, pixels: UInt8[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "C t h w"]:
        """The latents of frames of such a form; their mean, nothing is drawn."""
        clip = Video.open(pixels, fps=self.wan.setting.fps, layout="THWC")
        return encode_latents(self.wan, clip).numpy()

    def decode(self, latents: Float[np.ndarray, "C t h w"]) -> UInt8[np.ndarray, "T H W 3"]:
        """The frames of some latents. Raises ``ValueError`` where they are not finite."""
        import torch

        return decode_frames(self.wan, torch.from_numpy(latents))

    def redraw(
        self,
        latents: Float[np.ndarray, "C t h w"],
        weights: Float[np.ndarray, "t h w"],
        noise_level: float,
        seed: int,
        prompt: str,
    ) -> Float[np.ndarray, "C t h w"]:
        """The latents with the cells of a weight above 0 denoised anew, from ``noise_level`` on."""
        import torch

        temporal, spatial = self.strides
        frames, rows, columns = weights.shape
        wan = self.wan.with_setting(
            num_inference_steps=len(self.noise_levels),
            num_frames=(frames - 1) * temporal + 1,
            height=rows * spatial,
            width=columns * spatial,
        )
        cells = torch.from_numpy(np.asarray(weights, np.float32))[None]
        return resample(wan, [prompt], torch.from_numpy(latents)[None], cells, noise_level, [seed])[0].numpy()


@lru_cache(maxsize=1)
def _loaded(model: str, device: str | None) -> Wan:
    wan = load_generator(GeneratorRecipe(model=model, device=device))
    if not isinstance(wan, Wan):
        raise ValueError(f"a redraw needs a Wan checkpoint, received {model}")
    return wan


@lru_cache(maxsize=4)
def _levels(wan: Wan) -> tuple[float, ...]:
    """The noise levels of the checkpoint's schedule, with more steps than its own where its last level
    is above ``LOWEST_LEVEL``.
    """
    steps = wan.setting.num_inference_steps
    while steps <= _MOST_STEPS:
        sigmas = tail_schedule(wan.with_setting(num_inference_steps=steps), 1.0).sigmas
        levels = tuple(float(sigma) for sigma in sigmas if float(sigma) > 0)
        if levels[-1] <= LOWEST_LEVEL:
            return levels
        steps += max(steps // 4, 1)
    raise ValueError(f"{wan.folder}: its schedule has no noise level of at most {LOWEST_LEVEL}, so there is no sham")
