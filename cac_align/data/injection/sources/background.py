"""What is behind the moving things of a clip, and where each frame differs from it.

frames → median over time, without what stood still at first and left → background → masks of what
moves

The light may change: on every frame the background is brightened or darkened by the median ratio
per colour.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cac_align.data.injection.sources.masks import closed, difference, dilated, eroded, grey, opened

MEDIAN_FRAMES = 15
"""How many frames, evenly spaced, the median is taken of."""


def median_frame(frames: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """The median over time of frames (T, H, W, 3) uint8; of at most MEDIAN_FRAMES of them."""
    stack = [frames[index].copy() for index in median_indices(len(frames))]
    count = len(stack)
    spare = np.empty_like(stack[0])
    for top in range(count - 1, count // 2 - 1, -1):  # carry the largest of those left to the end, up to the middle one
        for index in range(top):
            np.minimum(stack[index], stack[index + 1], out=spare)
            np.maximum(stack[index], stack[index + 1], out=stack[index + 1])
            stack[index], spare = spare, stack[index]
    return stack[count // 2]


def median_indices(count: int) -> np.ndarray:
    """The frames that the median of ``count`` frames is taken of: an odd number, evenly spaced."""
    used = min(count, MEDIAN_FRAMES)
    used -= 1 - used % 2 if used > 1 else 0
    return np.linspace(0, count - 1, used).round().astype(int)


def relit(background: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """The background (H, W, 3) in the light of a frame: every colour times the median ratio.

    What is within 1 % is left as it is.
    """
    thin = slice(None, None, 4)
    ratios = (frame[thin, thin].astype(np.float32) + 1) / (background[thin, thin].astype(np.float32) + 1)
    gains = np.median(ratios.reshape(-1, 3), axis=0)
    if np.abs(gains - 1).max() < 0.01 or not (gains.min() > 0.3 and gains.max() < 3):
        return background
    levels = np.clip(np.arange(256)[:, None] * gains + 0.5, 0, 255).astype(np.uint8)
    return np.stack([levels[background[..., channel], channel] for channel in range(3)], axis=-1)


def grain_of(pixels: np.ndarray) -> float:
    """Standard deviation of the sensor noise in grey levels, from neighbouring frames: most of a
    frame does not move.
    """
    thin = pixels[:: max(len(pixels) // 6, 1), ::2, ::2, 1].astype(np.int16)
    steps = np.abs(np.diff(thin, axis=0)) if len(thin) > 1 else np.zeros((1,))
    pairs = np.abs(pixels[1::4, ::2, ::2, 1].astype(np.int16) - pixels[:-1:4, ::2, ::2, 1][: len(pixels[1::4])])
    return float(1.4826 * min(np.mean(np.minimum(pairs, 6)), np.mean(np.minimum(steps, 6))) / 2**0.5 / 1.18)


def moving_masks(pixels: np.ndarray, backgrounds: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Where each frame differs from its background, bool (T, H, W), cleaned of noise and specks."""
    short = min(pixels.shape[1:3])
    step = 2 if short >= 360 else 1
    small = short / step
    speck, gap = round(small / 240), max(round(small / 80), 1)
    masks = []
    for frame, background in zip(pixels, backgrounds, strict=True):
        frame, background = frame[::step, ::step], background[::step, ::step]
        levels = difference(frame, background)
        usual = float(np.median(levels))
        low = max(10.0, 6.0 * usual)
        mask = closed(opened(levels > low, speck), gap)
        mask = _with_core(mask, levels > max(22.0, 2 * low), least=max(20, int(0.0015 * mask.size)))
        masks.append(mask if step == 1 else np.repeat(np.repeat(mask, step, 0), step, 1))
    height, width = pixels.shape[1:3]
    return np.stack([mask[:height, :width] for mask in masks])


def _with_core(mask: np.ndarray, core: np.ndarray, least: int) -> np.ndarray:
    """The components of at least ``least`` px of which a tenth or more is ``core``, with their holes
    filled.
    """
    from scipy import ndimage

    labels = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, np.ones((3, 3), bool), labels)
    areas = np.bincount(labels.ravel())
    hard = np.bincount(labels.ravel(), weights=core.ravel(), minlength=len(areas))
    keep = (areas >= least) & (hard >= 0.1 * areas)
    keep[0] = False
    kept = keep[labels]
    return np.asarray(ndimage.binary_fill_holes(kept)) if kept.any() else kept


def outline_edges(mask: np.ndarray, frame: np.ndarray, background: np.ndarray) -> tuple[float, float]:
    """How the edges along the mask's outline differ between the frame and the background.

    First, how much stronger those of the frame are on average, in grey levels per px: negative for a
    ghost, a thing that is in the background by mistake and absent from the frame. Second, the share
    of the outline along which the background's are clearly stronger: high for a sliver, the leading
    edge of a thing that moves so little that the rest of it is in the background.
    """
    ring = dilated(mask, 2) & ~eroded(mask, 2)
    rows, columns = np.flatnonzero(np.any(ring, axis=1)), np.flatnonzero(np.any(ring, axis=0))
    if not len(rows):
        return 0.0, 0.0
    area = tuple(slice(max(span[0] - 8, 0), span[-1] + 9) for span in (rows, columns))
    own, behind = (_edges(image[area]) for image in (frame, background))
    inside, around = ring[area], ~dilated(mask, 2)[area]
    gain = own[inside] - behind[inside]
    # On a textured ground the background has edges everywhere; those of a thing stand out from them.
    usual = float(np.quantile(behind[around], 0.9)) if around.any() else 0.0
    lost = (gain < -8) & (behind[inside] > usual)
    strong = lost | (gain > 8)
    return float(gain.mean()), float(lost.sum() / strong.sum()) if strong.any() else 0.0


def _edges(image: np.ndarray) -> np.ndarray:
    light = grey(image)
    edges = np.zeros_like(light)
    edges[:, 1:] += np.abs(np.diff(light, axis=1))
    edges[1:] += np.abs(np.diff(light, axis=0))
    return edges
