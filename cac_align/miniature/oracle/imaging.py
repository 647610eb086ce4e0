"""Pixel measurements of the oracle: the backdrop, the entity's matte, its centre, and how far two
pictures differ.

The matte of a pixel p over the backdrop b is its projection ⟨p - b, c - b⟩ / |c - b|² on the
entity's colour c. It is linear and so survives blur. Shape letters: T frames of the clip, F some of
them, H × W frame.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from cac_align.miniature.world.draw import Entity, blend, layers
from cac_align.miniature.world.grammar import COLOURS, Spec
from cac_align.miniature.world.render import paint_backdrop
from cac_align.miniature.world.scene import Backdrop, Scene
from cac_align.miniature.world.settings import STUDIO


def fit_backdrop(spec: Spec, pixels: Float[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "H W 3"]:
    """The place's backdrop, with each row shifted by the median difference of those pixels that
    resemble it (the tint).
    """
    count, height, width = pixels.shape[:3]
    scene = Scene(spec, height, width, count, 16.0, (), Backdrop(spec.place, 0), np.zeros((count, 2)), {})
    sheet = paint_backdrop(scene, np.arange(1))[0]
    off = pixels[:: max(count // 9, 1)] - sheet
    near = (_max_channel(off) < 42).transpose(1, 0, 2).reshape(height, -1)
    rows = off.transpose(1, 0, 2, 3).reshape(height, -1, 3)
    tint = np.full((height, 3), np.nan, np.float32)
    for row in range(height):
        if near[row].mean() > 0.08:
            tint[row] = np.median(rows[row][near[row]], 0)
    known = np.flatnonzero(~np.isnan(tint[:, 0]))
    if len(known) == 0:
        return sheet
    for channel in range(3):
        tint[:, channel] = np.interp(np.arange(height), known, tint[known, channel])
    return sheet + tint[:, None]


def matte(pixels: np.ndarray, backdrop: np.ndarray, colour: np.ndarray) -> Float[np.ndarray, "T H W"]:
    """The share of the entity's colour in each pixel, about 0 to 1; faint shares (noise, tint)
    count as 0.
    """
    axis = colour - backdrop
    axis = axis / (axis * axis).sum(-1, keepdims=True)
    off = (pixels - backdrop) * axis
    share = off[..., 0] + off[..., 1] + off[..., 2]
    return np.where(share > 0.12, np.minimum(share, 1.1), 0)


def dominant_colour(pixels: np.ndarray, backdrop: np.ndarray) -> str | None:
    """The Studio's colour that covers most pixels; None when none covers more than 8 px per frame."""
    pixels = pixels[:: max(len(pixels) // 11, 1)]
    seen = pixels[_max_channel(pixels - backdrop) > 36]
    if len(seen) == 0:
        return None
    names = STUDIO.colours
    palette = np.asarray([COLOURS[name] for name in names], np.float32)
    far = _max_channel(seen[:, None] - palette)
    nearest = far.argmin(1)
    votes = {
        name: float(((nearest == index) & (far[:, index] < 56)).sum() / len(pixels)) for index, name in enumerate(names)
    }
    best = max(votes, key=lambda name: votes[name])
    return best if votes[best] > 8 else None


def centroid(share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mass in px² and centre of mass (x, y) in px on each frame; the centre is NaN where there is
    no mass.
    """
    mass = share.sum((1, 2))
    safe = np.where(mass > 1e-6, mass, np.nan)
    x = (share.sum(1) * (np.arange(share.shape[2]) + 0.5)).sum(1) / safe
    y = (share.sum(2) * (np.arange(share.shape[1]) + 0.5)).sum(1) / safe
    return mass, x, y


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian blur of ``sigma`` px in both directions of the frames."""
    if sigma == 0:
        return pixels
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(gaussian_filter1d(pixels, sigma, axis=-3, truncate=2.5), sigma, axis=-2, truncate=2.5)


def draw_entity(entity: Entity, backdrop: np.ndarray, frames: np.ndarray, sigma: float) -> Float[np.ndarray, "F H W 3"]:
    """The entity on the backdrop, blurred by ``sigma`` px."""
    canvas = np.repeat(backdrop[None].astype(np.float32), len(frames), 0)
    if len(frames):
        for layer in layers(entity, frames):
            blend(canvas, layer)
    return blur(canvas, sigma)


def _max_channel(difference: np.ndarray) -> np.ndarray:
    """The largest absolute value over the three channels (numpy reduces short last axes slowly)."""
    size = np.abs(difference)
    return np.maximum(np.maximum(size[..., 0], size[..., 1]), size[..., 2])


def local_residual(difference: np.ndarray) -> np.ndarray:
    """The largest 5 × 5 mean of the strongest channel's absolute difference on each frame, in grey
    levels.
    """
    strongest = _max_channel(difference)
    total = np.pad(strongest, ((0, 0), (1, 0), (1, 0))).cumsum(1).cumsum(2)
    size = 5
    window = total[:, size:, size:] - total[:, :-size, size:] - total[:, size:, :-size] + total[:, :-size, :-size]
    return window.max((1, 2)) / size**2


def measure_shade(pixels: np.ndarray, backdrop: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """The colour as this clip shows it: the median of its most solid pixels, at most 40 levels per
    channel off.
    """
    some = pixels[:: max(len(pixels) // 11, 1)]
    solid = some[(matte(some, backdrop, colour) > 0.7) & (_max_channel(some - colour) < 60)]
    if len(solid) < 40:
        return colour
    return colour + np.clip(np.median(solid, 0) - colour, -40, 40).astype(np.float32)


def measure_solidity(share: np.ndarray) -> np.ndarray:
    """How solid the most solid part is on each frame: the highest 3 × 3 mean of the matte."""
    total = np.pad(share, ((0, 0), (1, 0), (1, 0))).cumsum(1).cumsum(2)
    window = total[:, 3:, 3:] - total[:, :-3, 3:] - total[:, 3:, :-3] + total[:, :-3, :-3]
    return window.max((1, 2)) / 9
