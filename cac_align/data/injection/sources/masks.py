"""Differences of frames and operations on bool masks, with numpy and scipy."""

from __future__ import annotations

import numpy as np


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The largest difference of the three channels at every pixel of two frames, uint8 (H, W)."""
    levels = np.maximum(one, other) - np.minimum(one, other)
    return np.maximum(np.maximum(levels[..., 0], levels[..., 1]), levels[..., 2])


def grey(frames: np.ndarray) -> np.ndarray:
    """The mean of the three channels, float32 (…, H, W)."""
    total = frames[..., 0].astype(np.float32)
    total += frames[..., 1]
    total += frames[..., 2]
    total /= 3
    return total


def dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    """The mask, (H, W) or (T, H, W), grown by ``radius`` px in x and y (a square)."""
    return _grown(mask, radius) if radius > 0 else mask


def eroded(mask: np.ndarray, radius: int) -> np.ndarray:
    """The mask, (H, W) or (T, H, W), shrunk by ``radius`` px in x and y; beyond the frame it is set."""
    return ~_grown(~mask, radius) if radius > 0 else mask


def closed(mask: np.ndarray, radius: int) -> np.ndarray:
    """The mask with gaps of up to 2 · ``radius`` px closed."""
    return eroded(dilated(mask, radius), radius)


def opened(mask: np.ndarray, radius: int) -> np.ndarray:
    """The mask without pieces narrower than 2 · ``radius`` px."""
    return dilated(eroded(mask, radius), radius)


def _grown(mask: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel or one of its neighbours at most ``radius`` away, one axis after the other."""
    for axis in (-1, -2):
        grown, reach = mask.copy(), 0
        while reach < radius:  # shifts that double: log2(radius) passes
            step = min(max(reach, 1), radius - reach)
            source = grown.copy()
            ahead, behind = [slice(None)] * mask.ndim, [slice(None)] * mask.ndim
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            np.bitwise_or(grown[tuple(ahead)], source[tuple(behind)], out=grown[tuple(ahead)])
            np.bitwise_or(grown[tuple(behind)], source[tuple(ahead)], out=grown[tuple(behind)])
            reach += step
        mask = grown
    return mask


def component_slices(labelled: np.ndarray, within: np.ndarray) -> list[tuple[slice, slice]]:
    """For each component of ``labelled`` (H, W) the rows and columns that its part of ``within``
    spans.
    """
    from scipy import ndimage

    if not within.any():
        return []
    labels = np.zeros(labelled.shape, np.int32)
    ndimage.label(labelled, np.ones((3, 3), bool), labels)
    labels[~within] = 0
    return [found for found in ndimage.find_objects(labels) if found is not None]


def soft(mask: np.ndarray, radius: int) -> np.ndarray:
    """An alpha matte, float32 in [0, 1]: the mask grown by ``radius`` px with an edge that fades
    over as many px; radius 0 keeps the mask's hard edge.
    """
    from scipy import ndimage

    if radius <= 0:
        return mask.astype(np.float32)
    return ndimage.uniform_filter(dilated(mask, radius).astype(np.float32), radius, mode="nearest")


def snug(mask: np.ndarray, radius: int) -> np.ndarray:
    """An alpha matte, float32 in [0, 1], that does not grow the mask: its edge fades over ``radius`` px
    about the mask's own.
    """
    from scipy import ndimage

    alpha = mask.astype(np.float32)
    return alpha if radius < 2 else ndimage.uniform_filter(alpha, radius, mode="nearest")
