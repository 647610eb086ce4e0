"""Which frames the judges of this folder are shown."""

from __future__ import annotations

import numpy as np

from cac_align.core.video import Frames


def even_indices(num_frames: int, count: int) -> tuple[int, ...]:
    """``linspace(0, N − 1, count)`` as integers, each once."""
    return tuple(sorted({int(value) for value in np.linspace(0, num_frames - 1, count)}))


def joined_frames(first: Frames, second: Frames) -> Frames:
    """The frames of two videos as one row of images: those of the first, then of the second.

    Raises ``ValueError`` when the videos differ in height or width.
    """
    if first.shape[1:] != second.shape[1:]:
        sizes = " and ".join(f"{frames.shape[2]}×{frames.shape[1]}" for frames in (first, second))
        raise ValueError(f"the two videos have the sizes {sizes}; a pair needs one size")
    pixels = np.concatenate([first.pixels, second.pixels])
    count = len(pixels)
    return Frames(pixels, tuple(range(count)), tuple(float(n) for n in range(count)), 1.0, count)


def rate_indices(num_frames: int, source_fps: float, fps: float, *, least: int = 4, most: int = 768) -> tuple[int, ...]:
    """Qwen3-VL's own sampling at ``fps`` frames per second: ``int(N / source_fps * fps)`` frames, ``least`` to
    ``most`` and not more than there are, at ``linspace(0, N - 1)`` rounded.
    """
    count = min(max(int(num_frames / source_fps * fps), least), most, num_frames)
    return tuple(sorted({int(value) for value in np.linspace(0, num_frames - 1, count).round()}))
