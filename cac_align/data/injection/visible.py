"""Whether a judge can see an injected defect at its own sampling and size, and whether it is not
absurd.

Edit + Truth + recipe → why_rejected → None, or the reason
"""

from __future__ import annotations

import numpy as np

from cac_align.core.judgement import SINGLE_FRAME_TYPES
from cac_align.core.video import Video
from cac_align.data.injection.injector import Edit
from cac_align.data.injection.settings import Injection
from cac_align.data.injection.truth import THRESHOLD, Truth, twin_difference

_BLOCKS = 16  # blocks along the shorter side
_SHAM_LEVELS = 32  # grey levels by which a block of a sham may differ from the source
_SHAM_SHARE = 0.06  # share of the blocks of a frame that may differ more


def why_rejected(edit: Edit, truth: Truth | None, fps: float, settings: Injection) -> str | None:
    """Why a defect is not kept: "invisible: …" or "absurd: …"; None where it is kept."""
    if truth is None:
        return "invisible: the twins do not differ"
    count = len(edit.anomalous)
    clock = Video(fps, tuple(index / fps for index in range(count)), 1, 1, "clip", np.empty((count, 1, 1, 3), np.uint8))
    in_window = {
        rate: [frame for frame in clock.indices_at(rate) if truth.first <= frame <= truth.last]
        for rate in (settings.scan_fps, settings.look_fps)
    }
    seen = in_window[settings.scan_fps]
    if not seen:
        return f"invisible: no frame of its window is sampled at {settings.scan_fps:g} fps"
    if edit.type not in SINGLE_FRAME_TYPES and len(in_window[settings.look_fps]) < 2:
        return f"invisible: fewer than two frames of its window are sampled at {settings.look_fps:g} fps"
    step = max(min(edit.anomalous.shape[1:3]) // settings.judge_short_side, 1)
    small = twin_difference(*(_shrunk(twin[seen], step) for twin in (edit.anomalous, edit.sham)))
    clear = small > THRESHOLD
    area = clear.mean((1, 2))
    if area.max() < max(settings.min_area, 6 / small[0].size):
        return f"invisible: it changes {area.max():.2%} of a frame at the judge's size"
    contrast = float(small[clear].mean())
    if contrast < settings.min_contrast:
        return f"invisible: {contrast:.0f} grey levels at the judge's size"
    if np.median(area[area > 0]) > settings.max_area:
        return f"absurd: it changes {np.median(area[area > 0]):.0%} of the frame"
    return None


def why_sham_rejected(edit: Edit, source: np.ndarray, settings: Injection) -> str | None:
    """Why a sham is not kept: the operation alone changed how the clip looks; None where it is kept.

    source: the clip's own frames (T, H, W, 3). Compared are means over blocks, a 16th of the shorter
    side wide: a VAE takes fine structure away, and that is no defect.
    """
    step = max(min(source.shape[1:3]) // _BLOCKS, 1)
    levels = twin_difference(_shrunk(edit.sham, step), _shrunk(source, step))
    share = float((levels > _SHAM_LEVELS).mean((1, 2)).max())
    if share > _SHAM_SHARE:
        return f"the sham shows: {share:.1%} of a frame's blocks differ from the source"
    return None


def _shrunk(frames: np.ndarray, step: int) -> np.ndarray:
    """Frames (T, H, W, 3) averaged over squares of ``step`` px, uint8."""
    if step == 1:
        return frames
    count, height, width = (size - size % step if axis else size for axis, size in enumerate(frames.shape[:3]))
    parts = frames[:, :height, :width].reshape(count, height // step, step, width // step, step, 3)
    return parts.mean((2, 4), dtype=np.float32).astype(np.uint8)
