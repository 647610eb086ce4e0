"""Localised credit: where the judge saw the defect, on Wan's latent grid, turned into an advantage for every latent position.

judgement (windows, boxes by source frame) → mask (t, h, w) in {0, 1} → reward map → group-normalised position by position → advantage map

The paper names this as future work. A CaC score R in [0, 1] says how normal a video is, its boxes where it is not. The reward of video i
at latent position p is what is left after the loss 1 − R is charged to the places that caused it:

    r_i(p) = 1 − m_i(p)·(1 − R_i)         m_i: the judge's mask; 1 everywhere when the judge named no place
    A_i(p) = (r_i(p) − mean_j r_j(p)) / s + c·B_i          s² = mean_{j,p} (r_j(p) − mean_k r_k(p))²

The mean is over the group at that position: a video is blamed for a defect at p only as far as the others have none there. One common
scale s keeps "how much" comparable between positions; one per position would blow up places where hardly anything happened. B is the
group advantage of the other rewards, added everywhere with c = ½ (on a tiny Wan with an exact oracle this form beat uniform credit in
both seeds tried; weighing one scalar advantage by the mask did not). Masks that are 1 everywhere give r_i(p) = R_i, s = std of R, and
A_i(p) = the plain advantage of R. The objective takes A(p) apart into a base and a deviation (``objective``, ``nft``).

The grid: Wan's causal VAE keeps frame 0 alone and folds every ``temporal`` frames after it: frame f → 0 if f = 0, else (f − 1) // temporal + 1.
A box covers every latent cell it touches. Source: CaC (arXiv 2605.11723), conclusion; Wan (arXiv 2503.20314) Sec. 4.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from cac_align.align.advantages import within_group
from cac_align.core.judgement import Anomaly, Box, Judgement, shown_frames
from cac_align.core.video import Video
from cac_align.rewards.normalise import QUANTUM


@dataclass(frozen=True)
class Grid:
    """The latent grid of a video: num_frames frames of height_px × width_px folded by the VAE's strides (Wan: 4 and 8)."""

    num_frames: int
    height_px: int
    width_px: int
    temporal: int = 4
    spatial: int = 8

    @property
    def shape(self) -> tuple[int, int, int]:
        """(t, h, w)."""
        return (
            (self.num_frames - 1) // self.temporal + 1,
            self.height_px // self.spatial,
            self.width_px // self.spatial,
        )

    def time_of(self, frame: int) -> int:
        """The latent time that holds source frame ``frame``."""
        return 0 if frame == 0 else (frame - 1) // self.temporal + 1

    def cells(self, box: Box) -> tuple[slice, slice]:
        """(rows, columns) of the latent cells that a box touches."""
        left, top, right, bottom = (edge / self.spatial for edge in box.to_pixels(self.width_px, self.height_px))
        return _touched(top, bottom), _touched(left, right)


def _touched(first: float, last: float) -> slice:
    return slice(math.floor(first + 1e-9), math.ceil(last - 1e-9))


def mask_of(judgement: Judgement | None, video: Video, grid: Grid) -> Bool[np.ndarray, "t h w"]:
    """Where the judge saw something wrong. Everywhere, when it names no place: a normal verdict, or none.

    A frame of an anomaly's window without boxes of its own takes those of the nearest frame that has some; a window without any box
    means whole frames, boxes without a window mean their own frames.
    """
    mask = np.zeros(grid.shape, bool)
    if judgement is not None and judgement.status == "abnormal":
        for anomaly in judgement.anomalies:
            _mark(mask, anomaly, video, grid)
    return mask if mask.any() else np.ones(grid.shape, bool)


def _mark(mask: Bool[np.ndarray, "t h w"], anomaly: Anomaly, video: Video, grid: Grid) -> None:
    boxed = sorted(frame for frame, boxes in anomaly.boxes.items() if boxes and frame < grid.num_frames)
    inside = list(shown_frames(anomaly.window, video.times_s)) if anomaly.window is not None else []
    for frame in sorted({*inside, *boxed}):
        time = grid.time_of(frame)
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
    partner: Float[np.ndarray, " G"] | None = None,
    *,
    partner_share: float = 0.5,
    clip: float = 5.0,
    min_spread: float = 0.0,
) -> tuple[Float[np.ndarray, "G t h w"], bool]:
    """(advantage of every video at every latent position, whether the group is dead) for one prompt's group.

    scores: R in [0, 1], NaN without one: such a video gets 0 everywhere. partner: the other rewards' group advantage.
    min_spread: the least standard deviation of r over the group, where it is largest, that counts as spread. With masks that are
    1 everywhere that is the one of R, so a judge's noise is nothing here either, and a defect in a small box still counts.
    """
    scored = ~np.isnan(scores)
    found = np.zeros(masks.shape)
    dead = True
    if scored.sum() >= 2:
        if masks[scored].all():  # the plain advantage, by the same arithmetic
            plain, dead = within_group(scores, min_spread=min_spread)
            found[:] = plain[:, None, None, None]
        else:
            rewards = 1 - masks[scored] * (1 - scores[scored])[:, None, None, None]
            centred = rewards - rewards.mean(0)
            scale = math.sqrt((centred**2).mean())
            if scale > QUANTUM and math.sqrt((centred**2).mean(0).max()) >= min_spread:
                found[scored], dead = centred / scale, False
    if partner is not None and np.abs(partner[scored]).max(initial=0.0) > 0:
        found[scored] += partner_share * partner[scored][:, None, None, None]
        dead = False
    return np.clip(found, -clip, clip), dead
