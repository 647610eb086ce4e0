"""Local advantages: an advantage for every latent position, from where the judge saw the anomaly.

judgement (windows, boxes by source frame) → mask (t, h, w) → reward per position → normalised over the group

The paper names this as future work. A CaC score R in [0, 1] says how normal a video is, and the
judgement's boxes say where it is not. Every video i of a group gets a reward for each latent
position p:

    r_i(p) = 1 − m_i(p)·(1 − R_i)         m_i: the judgement's mask; 1 everywhere when it names no place
    A_i(p) = (r_i(p) − mean_j r_j(p)) / s + c·B_i          s² = mean_{j,p} (r_j(p) − mean_k r_k(p))²

The mean is taken over the group at that position, so an anomaly at p counts as far as the other
videos have none there. One scale s for all positions keeps them comparable; a scale per position
would enlarge places where the videos hardly differ. B is the group advantage of the other rewards,
added everywhere with c = ½. On a tiny Wan with an exact oracle this form did better than uniform
advantages with both seeds tried; multiplying one advantage by the mask did not. With masks of 1
everywhere r_i(p) = R_i, s is the std of R, and A_i(p) is the plain advantage of R. The losses split
A(p) into a mean and a deviation (``grpo_loss``, ``nft_loss``).

The latent grid: Wan's causal VAE keeps frame 0 alone and folds every ``temporal`` frames after it:
frame f lies in latent frame 0 if f = 0, else (f − 1) // temporal + 1. A box covers every latent
cell that it touches. Source: CaC (arXiv 2605.11723), conclusion; Wan (arXiv 2503.20314) Sec. 4.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from cac_align.align.advantages.uniform import normalise_in_group
from cac_align.core.judgement import Anomaly, Box, Judgement, shown_frames
from cac_align.core.video import Video
from cac_align.rewards.normalise import QUANTUM


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


def _touched_cells(first: float, last: float) -> slice:
    return slice(math.floor(first + 1e-9), math.ceil(last - 1e-9))


def anomaly_mask(judgement: Judgement | None, video: Video, grid: LatentGrid) -> Bool[np.ndarray, "t h w"]:
    """The latent positions that the judgement calls anomalous; all of them when it names no place
    or is normal.

    A frame of an anomaly's window without boxes takes the boxes of the nearest frame that has some.
    A window without any box covers whole frames. Boxes without a window cover their own frames.
    """
    mask = np.zeros(grid.shape, bool)
    if judgement is not None and judgement.status == "abnormal":
        for anomaly in judgement.anomalies:
            _cover_anomaly(mask, anomaly, video, grid)
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


def local_advantages(
    scores: Float[np.ndarray, " G"],
    masks: Bool[np.ndarray, "G t h w"],
    others: Float[np.ndarray, " G"] | None = None,
    *,
    others_weight: float = 0.5,
    clip: float = 5.0,
    min_group_std: float = 0.0,
) -> tuple[Float[np.ndarray, "G t h w"], bool]:
    """(advantage of each video of one group at each latent position, whether the group has zero
    std).

    scores: R in [0, 1]; NaN where there is no score, and the advantage is then 0 everywhere.
    others: the group advantage of the other rewards (B above), added with ``others_weight``. clip:
    bound on the result. min_group_std: the least standard deviation of r over the group, at the
    position where it is largest, that counts. With masks of 1 everywhere this is the standard
    deviation of R, so a judge's noise gives no advantage here either, while an anomaly in a small
    box still counts.
    """
    scored = ~np.isnan(scores)
    found = np.zeros(masks.shape)
    zero_std = True
    if scored.sum() >= 2:
        if masks[scored].all():  # the plain advantage, by the same arithmetic
            plain, zero_std = normalise_in_group(scores, min_group_std=min_group_std)
            found[:] = plain[:, None, None, None]
        else:
            rewards = 1 - masks[scored] * (1 - scores[scored])[:, None, None, None]
            centred = rewards - rewards.mean(0)
            scale = math.sqrt((centred**2).mean())
            if scale > QUANTUM and math.sqrt((centred**2).mean(0).max()) >= min_group_std:
                found[scored], zero_std = centred / scale, False
    if others is not None and np.abs(others[scored]).max(initial=0.0) > 0:
        found[scored] += others_weight * others[scored][:, None, None, None]
        zero_std = False
    return np.clip(found, -clip, clip), zero_std
