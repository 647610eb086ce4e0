"""Where a judge saw a defect, on Wan's latent grid: one mapping for repair and for local advantages.

judgement (windows, boxes by source frame) → ``marked_cells`` → mask (t, h, w) of booleans
mask → ``grow_and_soften`` → weights in [0, 1]; weights → ``pixel_mask`` → mask (T, H, W) of the video

The latent grid: Wan's causal VAE keeps frame 0 alone and folds every ``temporal`` frames after it:
frame f lies in latent frame 0 if f = 0, else (f − 1) // temporal + 1. A box covers every latent
cell that it touches. Source: Wan (arXiv 2503.20314) Sec. 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from cac_align.core.judgement import Anomaly, Box, Judgement, shown_frames
from cac_align.core.video import Video

if TYPE_CHECKING:
    from cac_align.generation.wan import Wan


@dataclass(frozen=True)
class LatentGrid:
    """The latent grid of a video.

    num_frames, height_px, width_px: of the video. temporal, spatial: the VAE's strides (Wan: 4
    frames and 8 pixels).
    """

    num_frames: int
    height_px: int
    width_px: int
    temporal: int = 4
    spatial: int = 8

    @property
    def shape(self) -> tuple[int, int, int]:
        """(t, h, w): latent frames, rows and columns."""
        return (
            (self.num_frames - 1) // self.temporal + 1,
            self.height_px // self.spatial,
            self.width_px // self.spatial,
        )

    def latent_frame(self, frame: int) -> int:
        """The latent frame that holds source frame ``frame``."""
        return 0 if frame == 0 else (frame - 1) // self.temporal + 1

    def cells(self, box: Box) -> tuple[slice, slice]:
        """(rows, columns) of the latent cells that a box touches."""
        left, top, right, bottom = (edge / self.spatial for edge in box.to_pixels(self.width_px, self.height_px))
        return _touched_cells(top, bottom), _touched_cells(left, right)


def latent_grid(wan: Wan) -> LatentGrid:
    """The latent grid of the videos that this Wan makes."""
    pipeline, setting = wan.pipeline, wan.setting
    strides = int(pipeline.vae_scale_factor_temporal), int(pipeline.vae_scale_factor_spatial)
    return LatentGrid(setting.num_frames, setting.height, setting.width, *strides)


def _touched_cells(first: float, last: float) -> slice:
    return slice(math.floor(first + 1e-9), math.ceil(last - 1e-9))


def marked_cells(anomalies: Sequence[Anomaly], video: Video, grid: LatentGrid) -> Bool[np.ndarray, "t h w"]:
    """The latent positions that these anomalies cover; none where they name no place.

    A frame of an anomaly's window without boxes takes the boxes of the nearest frame that has some.
    A window without any box covers whole frames. Boxes without a window cover their own frames.
    Boxes on frames that the video does not have are ignored.
    """
    mask = np.zeros(grid.shape, bool)
    for anomaly in anomalies:
        _cover_anomaly(mask, anomaly, video, grid)
    return mask


def anomaly_mask(judgement: Judgement | None, video: Video, grid: LatentGrid) -> Bool[np.ndarray, "t h w"]:
    """The latent positions that the judgement calls anomalous; all of them when it names no place
    or is normal.
    """
    anomalies = judgement.anomalies if judgement is not None and judgement.status == "abnormal" else ()
    mask = marked_cells(anomalies, video, grid)
    return mask if mask.any() else np.ones(grid.shape, bool)


def _cover_anomaly(mask: Bool[np.ndarray, "t h w"], anomaly: Anomaly, video: Video, grid: LatentGrid) -> None:
    boxed = sorted(frame for frame, boxes in anomaly.boxes.items() if boxes and frame < grid.num_frames)
    inside = list(shown_frames(anomaly.window, video.times_s)) if anomaly.window is not None else []
    for frame in sorted({*inside, *boxed}):
        time = grid.latent_frame(frame)
        if not boxed:
            mask[time] = True
            continue
        nearest = min(boxed, key=lambda other: abs(other - frame))
        for box in anomaly.boxes[nearest]:
            rows, columns = grid.cells(box)
            mask[time, rows, columns] = True


def grow_and_soften(mask: Bool[np.ndarray, "t h w"], *, grow: int = 1, border: int = 1) -> Float[np.ndarray, "t h w"]:
    """Weights in [0, 1]: 1 on the mask and ``grow`` cells around it, in space and in time, then
    falling linearly to 0 over ``border`` cells more (0: a hard edge).

    Distance counts diagonal steps as one. Raises ``ValueError`` for a negative number of cells.
    """
    if grow < 0 or border < 0:
        raise ValueError(f"grow and border are numbers of latent cells, 0 or more; received {grow} and {border}")
    covered = mask.astype(bool)
    for _ in range(grow):
        covered = _dilated(covered)
    weights = covered.astype(np.float32)
    for step in range(1, border + 1):
        wider = _dilated(covered)
        weights[wider & ~covered] = 1 - step / (border + 1)
        covered = wider
    return weights


def _dilated(mask: Bool[np.ndarray, "t h w"]) -> Bool[np.ndarray, "t h w"]:
    """The mask with all neighbours of its cells, diagonal ones included."""
    for axis in range(mask.ndim):
        padded = np.pad(mask, [(1, 1) if each == axis else (0, 0) for each in range(mask.ndim)])
        size = mask.shape[axis]
        mask = np.logical_or.reduce([padded.take(range(start, start + size), axis) for start in range(3)])
    return mask


def pixel_mask(weights: Float[np.ndarray, "t h w"], grid: LatentGrid) -> Bool[np.ndarray, "T H W"]:
    """The pixels of the cells whose weight is above 0, frame by frame."""
    cells = np.asarray(weights) > 0
    frames = cells[[grid.latent_frame(frame) for frame in range(grid.num_frames)]]
    return frames.repeat(grid.spatial, 1).repeat(grid.spatial, 2)
