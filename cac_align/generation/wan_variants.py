"""Wan checkpoints of other kinds than text-to-video: VACE, which repairs, and image-to-video, which continues.

folder or hub id, kind → ``load_variant`` → diffusers' pipeline, Setting, folder
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cac_align.generation.wan import (
    Setting,
    check_complete,
    check_setting,
    checkpoint_folder,
    hash_checkpoint,
    read_setting,
)
from cac_align.runs.device import pick_device

VariantKind = Literal["WanVACEPipeline", "WanImageToVideoPipeline"]


@dataclass(frozen=True)
class WanVariant:
    """A loaded pipeline that is no plain text-to-video one."""

    pipeline: Any
    setting: Setting
    folder: Path

    @property
    def provenance(self) -> dict[str, str]:
        """What identifies what it makes, besides prompt, video and seed."""
        setting = {name: str(value) for name, value in self.setting.__dict__.items()}
        weights = {"generator": self.folder.name, "weights_sha256": hash_checkpoint(self.folder)}
        return {**weights, "pipeline": type(self.pipeline).__name__, **setting}

    def fitted(self, height: int, width: int, num_frames: int, fps: float) -> Setting:
        """Its setting for videos of this form. Raises ``ValueError`` with the nearest allowed values."""
        setting = replace(self.setting, height=height, width=width, num_frames=num_frames, fps=fps)
        check_setting(self.pipeline, setting)
        return setting


def load_variant(
    path_or_id: str | os.PathLike[str],
    kind: VariantKind,
    *,
    device: str | None = None,
    dtype: str | None = None,
    **settings: Any,
) -> WanVariant:
    """Load a checkpoint of this kind. settings: fields of ``Setting``; None leaves the checkpoint's own.

    The VAE runs in float32, the rest by default in bfloat16 on CUDA and float32 elsewhere. Raises
    ``ValueError`` for a checkpoint that is missing, incomplete or of another kind.
    """
    import diffusers
    import torch

    folder = checkpoint_folder(path_or_id, kind)
    setting = replace(read_setting(folder), **{name: value for name, value in settings.items() if value is not None})
    place = pick_device(device)
    chosen = getattr(torch, dtype) if dtype else torch.bfloat16 if place.type == "cuda" else torch.float32
    try:
        pipeline = getattr(diffusers, kind).from_pretrained(folder, dtype={"default": chosen, "vae": torch.float32})
    except OSError as error:
        raise ValueError(
            f"{path_or_id}: the checkpoint is incomplete or unreadable; fetch it again ({error})"
        ) from error
    check_complete(pipeline, path_or_id)
    pipeline.set_progress_bar_config(disable=True)
    check_setting(pipeline, setting)
    return WanVariant(pipeline.to(place), setting, folder)
