"""Clips that go on from a frame: with plain text-to-video checkpoints by clamping, or by image-to-video ones.

prompt, frame, frames to come, seed → ``ClampedContinuation`` | ``ImageContinuation``
    → Video that begins with the frame
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from cac_align.core.video import Video
from cac_align.generation.latent_masks import latent_grid
from cac_align.generation.repair.latent_video import decode_frames, encode_latents
from cac_align.generation.repair.resample import resample
from cac_align.generation.wan import Wan
from cac_align.generation.wan_variants import WanVariant


class Continuation(Protocol):
    """Makes clips that begin with a given frame, or freely where none is given."""

    @property
    def provenance(self) -> Mapping[str, Any]: ...

    @property
    def temporal(self) -> int:
        """The lengths that it can make are ``temporal`` · k + 1 frames."""
        ...

    @property
    def fps(self) -> float: ...

    @property
    def steps(self) -> int:
        """Denoising steps per clip."""
        ...

    def __call__(self, prompt: str, frame: UInt8[np.ndarray, "H W 3"] | None, num_frames: int, seed: int) -> Video:
        """Raises ``ValueError`` where the clip cannot be made, or is not finite."""
        ...


@dataclass(frozen=True)
class ClampedContinuation:
    """First-frame clamping for plain text-to-video Wan: the first latent frame, which holds one frame alone, is the
    given frame's, put back at its noise level before each step (masked resampling of all the others from noise).
    """

    wan: Wan

    @property
    def provenance(self) -> Mapping[str, Any]:
        provenance = {name: value for name, value in self.wan.provenance.items() if name != "num_frames"}
        return {"continuation": "first latent frame clamped", **provenance}

    @property
    def temporal(self) -> int:
        return int(self.wan.pipeline.vae_scale_factor_temporal)

    @property
    def fps(self) -> float:
        return self.wan.setting.fps

    @property
    def steps(self) -> int:
        return self.wan.setting.num_inference_steps

    def __call__(self, prompt: str, frame: UInt8[np.ndarray, "H W 3"] | None, num_frames: int, seed: int) -> Video:
        """The clip; without a frame it is the checkpoint's own from that seed."""
        import torch

        wan = self.wan.with_setting(num_frames=num_frames)
        if frame is None:
            return wan(prompt, seed)
        if frame.shape != (wan.setting.height, wan.setting.width, 3):
            expected = f"{wan.setting.height} × {wan.setting.width}"
            raise ValueError(f"expected a frame of {expected} pixels, received {frame.shape}")
        grid = latent_grid(wan)
        first = encode_latents(
            wan, Video.open(frame[None], fps=self.fps, layout="THWC", name="the frame to go on from")
        )
        latents = torch.zeros(len(first), *grid.shape)
        latents[:, :1] = first
        weights = torch.ones(grid.shape)
        weights[0] = 0
        made = resample(wan, [prompt], latents[None], weights[None], 1.0, [seed])[0]
        frames = decode_frames(wan, made)
        frames = np.concatenate([frame[None], frames[1:]])
        return Video.open(frames, fps=self.fps, layout="THWC", name=f"{prompt} (seed {seed})")


@dataclass(frozen=True)
class ImageContinuation:
    """Continuation by an image-to-video checkpoint: Wan2.1/2.2 I2V, or Wan2.2 TI2V-5B. It needs a frame."""

    model: WanVariant

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {"continuation": "image to video", **self.model.provenance}

    @property
    def temporal(self) -> int:
        return int(self.model.pipeline.vae_scale_factor_temporal)

    @property
    def fps(self) -> float:
        return self.model.setting.fps

    @property
    def steps(self) -> int:
        return self.model.setting.num_inference_steps

    def __call__(self, prompt: str, frame: UInt8[np.ndarray, "H W 3"] | None, num_frames: int, seed: int) -> Video:
        """The clip. Raises ``ValueError`` without a frame."""
        import PIL.Image
        import torch

        if frame is None:
            raise ValueError("an image-to-video checkpoint needs a frame to begin with; pass first_frame")
        setting = self.model.fitted(frame.shape[0], frame.shape[1], num_frames, self.fps)
        made = self.model.pipeline(
            image=PIL.Image.fromarray(frame),
            prompt=prompt,
            negative_prompt=setting.negative_prompt if setting.guidance_scale > 1 else None,
            height=setting.height,
            width=setting.width,
            num_frames=num_frames,
            num_inference_steps=setting.num_inference_steps,
            guidance_scale=setting.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(int(seed)),
            output_type="np",
            max_sequence_length=setting.max_sequence_length,
        ).frames[0]
        if not np.isfinite(made).all():
            raise ValueError("the model's output is not finite; use another seed or a wider dtype")
        frames = (255 * made.clip(0, 1)).round().astype(np.uint8)
        frames = np.concatenate([frame[None], frames[1:]])
        return Video.open(frames, fps=self.fps, layout="THWC", name=f"{prompt} (seed {seed})")
