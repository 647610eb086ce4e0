"""A clip of a disc that moves at a known speed."""

import numpy as np

from cac_align.core.video import Video


def moving(speed_px, contrast=1.0, frames=24, size=64, flash=None):
    """A soft disc on a textured ground, moving to the right by ``speed_px`` per frame."""
    rng = np.random.default_rng(0)
    ground = 0.3 + 0.05 * np.kron(rng.random((8, 8)), np.ones((8, 8)))
    y, x = np.mgrid[:size, :size]
    clip = []
    for frame in range(frames):
        disc = 1 / (1 + np.exp(np.hypot(x - 12 - speed_px * frame, y - 32) - 8))
        clip.append(ground + (0.0 if frame == flash else 0.5 * contrast * disc))
    pixels = np.rint(np.clip(np.stack(clip), 0, 1) * 255).astype(np.uint8)
    return Video.open(np.repeat(pixels[..., None], 3, axis=-1), fps=16)
