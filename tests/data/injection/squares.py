"""A hand-made source: grey squares on a plain ground, whose masks and background are known exactly."""

import numpy as np

from cac_align.data.injection.injector import MovingObject, SourceClip

GROUND, HEIGHT, WIDTH = 100, 120, 160


def square_clip(
    *, frames: int = 32, fps: float = 16.0, starts=((10, 70),), steps=((3, 0),), side: int = 24
) -> SourceClip:
    """Squares of ``side`` px; the left upper corner of each starts at ``starts`` (x, y) and moves by ``steps`` per frame."""
    pixels = np.full((frames, HEIGHT, WIDTH, 3), GROUND, np.uint8)
    objects = []
    for index, ((x, y), (dx, dy)) in enumerate(zip(starts, steps, strict=True)):
        masks = np.zeros((frames, HEIGHT, WIDTH), bool)
        for t in range(frames):
            left, top = x + dx * t, y + dy * t
            masks[t, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = True
        pixels[masks] = (200 - 40 * index, 60 + 90 * index, 40)
        ramp = np.linspace(-25, 25, side)  # inside structure, so that a warp can be seen
        for t in range(frames):
            left, top = x + dx * t, y + dy * t
            if left >= 0 and left + side <= WIDTH and top >= 0 and top + side <= HEIGHT:
                pixels[t, top : top + side, left : left + side, 1] += ramp.astype(np.int8).astype(np.uint8)[:, None]
        objects.append(MovingObject(masks, f"square {index}"))
    background = np.broadcast_to(np.uint8(GROUND), pixels.shape)
    return SourceClip(pixels, fps, tuple(objects), background, np.ones(pixels.shape[:3], bool))
