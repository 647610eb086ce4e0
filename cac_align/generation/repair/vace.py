"""Repair by Wan-VACE (Wan2.1-VACE-1.3B and 14B), which was trained to fill masked parts of a video.

video, weights → mask of pixels (white: made anew) → ``WanVACEPipeline``
    → pixels of the mask, the original's elsewhere

VACE takes one video at a time, sees the rest of the video as a condition, and always starts from
noise: the strength says nothing to it. Source: VACE (arXiv 2503.07598), diffusers 0.42.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cac_align.core.video import Video
from cac_align.generation.latent_masks import LatentGrid, pixel_mask
from cac_align.generation.repair.resample import RepairedClip, RepairRequest
from cac_align.generation.wan_variants import WanVariant


@dataclass(frozen=True)
class VaceRepair:
    """The repair backend for VACE checkpoints."""

    vace: WanVariant

    @property
    def provenance(self) -> Mapping[str, str]:
        return {"repair": "VACE", **self.vace.provenance}

    def grid(self, video: Video) -> LatentGrid:
        """The latent grid of a video. Raises ``ValueError`` where the checkpoint cannot make such a one."""
        try:
            setting = self.vace.fitted(video.height, video.width, len(video), video.fps)
        except ValueError as error:
            raise ValueError(f"{video.name}: this checkpoint cannot make a video of that form: {error}") from error
        pipeline = self.vace.pipeline
        strides = int(pipeline.vae_scale_factor_temporal), int(pipeline.vae_scale_factor_spatial)
        return LatentGrid(setting.num_frames, setting.height, setting.width, *strides)

    def steps(self, strength: float) -> int:
        """All steps of the checkpoint's schedule, whatever the strength."""
        return self.vace.setting.num_inference_steps

    def __call__(self, request: RepairRequest) -> RepairedClip:
        """Raises ``ValueError`` for a video or weights that do not fit, and for output that is not finite."""
        import PIL.Image
        import torch

        video, grid, setting = request.video, self.grid(request.video), self.vace.setting
        if request.weights.shape != grid.shape:
            raise ValueError(f"expected weights of shape {grid.shape} (t, h, w), received {request.weights.shape}")
        pixels, inside = video.frames(range(len(video))).pixels, pixel_mask(request.weights, grid)
        made = self.vace.pipeline(
            prompt=request.prompt,
            negative_prompt=setting.negative_prompt if setting.guidance_scale > 1 else None,
            video=[PIL.Image.fromarray(frame) for frame in pixels],
            mask=[PIL.Image.fromarray(255 * frame.astype(np.uint8)) for frame in inside],
            height=video.height,
            width=video.width,
            num_frames=len(video),
            num_inference_steps=setting.num_inference_steps,
            guidance_scale=setting.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(int(request.seed)),
            output_type="np",
            max_sequence_length=setting.max_sequence_length,
        ).frames[0]
        if not np.isfinite(made).all():
            raise ValueError("the model's output is not finite; use another seed or a wider dtype")
        frames = np.where(inside[..., None], (255 * made.clip(0, 1)).round().astype(np.uint8), pixels)
        name = f"{video.name} (repaired, seed {request.seed})"
        repaired = Video.open(frames, fps=video.fps, layout="THWC", name=name)
        return RepairedClip(repaired, None, setting.num_inference_steps, video)
