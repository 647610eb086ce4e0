"""A tube in space and time around a moving object: a closed curve that travels with it.

object + random stream → closed Bézier curve, carried by the object's boxes, swelling and fading → mask (T, H, W)

Source: LocalDPO (arXiv 2601.04068), which redraws inside such tubes; its curves lie anywhere, ours on
an object.
"""

from __future__ import annotations

import numpy as np

from cac_align.data.injection.injector import MovingObject

_ANCHORS = 6
_SAMPLES = 8  # points of the polygon per anchor


def bezier_outline(rng: np.random.Generator) -> np.ndarray:
    """A smooth closed curve around the origin as a polygon, x and y, (N, 2); about 1 from the centre."""
    angles = 2 * np.pi * (np.arange(_ANCHORS) + rng.uniform(-0.25, 0.25, _ANCHORS)) / _ANCHORS
    anchors = rng.uniform(0.7, 1.1, _ANCHORS)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # The handles of a cubic Bézier curve that leaves every anchor in the direction in which it came.
    tangent = (np.roll(anchors, -1, 0) - np.roll(anchors, 1, 0)) / 6
    ends = np.roll(anchors, -1, 0)
    handles = anchors + tangent, ends - np.roll(tangent, -1, 0)
    t = (np.arange(_SAMPLES) / _SAMPLES)[None, :, None]
    curve = (
        (1 - t) ** 3 * anchors[:, None]
        + 3 * (1 - t) ** 2 * t * handles[0][:, None]
        + 3 * (1 - t) * t**2 * handles[1][:, None]
        + t**3 * ends[:, None]
    )
    return curve.reshape(-1, 2)


def bezier_tube(thing: MovingObject, rng: np.random.Generator, first: int, last: int, share: float) -> np.ndarray:
    """The tube on the frames ``first`` to ``last``, bool (T, H, W).

    share: its widest diameter as a share of the object's box. Its middle lies off the object's by up
    to a fifth of the box.
    """
    import PIL.Image
    import PIL.ImageDraw

    outline, offset = bezier_outline(rng), rng.uniform(-0.2, 0.2, 2)
    count, height, width = thing.masks.shape
    tube = np.zeros((count, height, width), bool)
    for frame in range(first, last + 1):
        left, top, right, bottom = thing.boxes[frame]
        size = np.array([right - left, bottom - top])
        swell = np.sin(np.pi * (frame - first + 0.5) / (last - first + 1)) ** 0.5
        points = thing.centres[frame] + offset * size + 0.5 * share * swell * size * outline
        image = PIL.Image.new("1", (width, height))
        PIL.ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in points], fill=1)
        tube[frame] = np.asarray(image)
    return tube
