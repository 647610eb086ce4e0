"""How much a picture changes over time: the luminance change.

The luminance change is the mean absolute difference of luminance between samples 1/8 s apart, as a
share of the full range. It is computed on frames of at most 64 pixels a side, which averages noise
and compression away. It is 0 for a still and counts camera motion too, so it compares two versions
of one prompt, not two prompts.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from cac_align.core.video import Video
from cac_align.evaluation.pages.player import PREVIEW_PX, shrink_frames

LUMINANCE_FPS = 8.0


LUMINANCE_SIDE_PX = 64


def luminance_change(video: Video, pixels: UInt8[np.ndarray, "T H W 3"] | None = None) -> float | None:
    """Mean absolute luminance difference between samples 1/8 s apart, in [0, 1]; None for a video
    of one frame.

    pixels: all frames as ``shrink_frames(video, PREVIEW_PX)`` returns them, where they exist
    already. Raises ``ValueError`` when the video cannot be decoded.
    """
    if len(video) < 2:
        return None
    indices = list(video.indices_at(LUMINANCE_FPS))
    # Frames always pass through the preview's size, so that the result is the same with and without ``pixels``.
    frames = _shrink_pixels(shrink_frames(video, PREVIEW_PX, indices) if pixels is None else pixels[indices])
    luminance = frames.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return float(np.abs(np.diff(luminance, axis=0)).mean() / 255)


def _shrink_pixels(pixels: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "T H W 3"]:
    height, width = pixels.shape[1:3]
    return (
        shrink_frames(Video.open(pixels, fps=1.0), LUMINANCE_SIDE_PX)
        if max(height, width) > LUMINANCE_SIDE_PX
        else pixels
    )
