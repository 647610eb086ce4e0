"""How the camera moved: the frames on one common ground, and back.

frames → ``camera_motion`` → 3 × 3 matrices from frame to reference → ``onto_reference``,
``from_reference``

Without OpenCV only a camera that stands or shifts is understood (phase correlation); with it, dense
flow (DIS) and a homography per frame.
"""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise

import numpy as np

from cac_align.data.injection.sources.masks import grey

STILL_PX = 0.35
"""A camera that moves less than this, in px at the size of the frames, is taken to stand."""


def camera_motion(pixels: np.ndarray) -> np.ndarray | None:
    """For every frame the matrix (3, 3) that takes its coordinates to those of the middle frame,
    (T, 3, 3); None where the camera stands.

    Raises ``ValueError`` where the frames do not fit one another: a zoom, a turn or parallax that
    cannot be undone.
    """
    middle = len(pixels) // 2
    if stands(pixels, middle):
        return None
    shifts = _shifts(pixels, middle)
    if np.abs(shifts).max() <= STILL_PX:
        return None
    if find_spec("cv2") is not None:
        return _homographies(pixels, middle)
    matrices = np.tile(np.eye(3), (len(pixels), 1, 1))
    matrices[:, :2, 2] = shifts
    return matrices


def stands(pixels: np.ndarray, middle: int) -> bool:
    """Whether most of the sharpest edges of the middle frame are where they were on most frames."""
    step = max(min(pixels.shape[1:3]) // 240, 1)
    light = grey(pixels[:: max(len(pixels) // 24, 1), ::step, ::step])
    light -= light.mean((1, 2), keepdims=True)
    reference = grey(pixels[middle, ::step, ::step])
    reference -= reference.mean()
    edges = np.abs(np.diff(reference, axis=1, prepend=reference[:, :1])) + np.abs(
        np.diff(reference, axis=0, prepend=reference[:1])
    )
    sharp = edges >= max(float(np.quantile(edges, 0.9)), 1.0)
    if not sharp.any():
        return True
    levels = np.maximum(0.5 * edges[sharp], 6.0)  # a shift of half a pixel changes an edge by half its height
    kept = (np.abs(light[:, sharp] - reference[sharp]) <= levels).mean(1)
    return bool(np.quantile(kept, 0.2) >= 0.5)


def _shifts(pixels: np.ndarray, middle: int) -> np.ndarray:
    """How far each frame must move in x and y to lie on the middle one, (T, 2) in px, by phase
    correlation.
    """
    step = max(min(pixels.shape[1:3]) // 128, 1)
    light = grey(pixels[:, ::step, ::step])
    height, width = light.shape[1:]
    window = np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)
    spectra = np.fft.rfft2((light - light.mean((1, 2), keepdims=True)) * window)
    cross = spectra[middle] * np.conj(spectra)
    surface = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-6), s=(height, width))
    shifts = np.zeros((len(light), 2))
    for index, plane in enumerate(surface):
        y, x = np.unravel_index(int(plane.argmax()), plane.shape)
        for axis, (place, size) in enumerate(((int(x), width), (int(y), height))):
            line = plane[y] if axis == 0 else plane[:, x]
            left, here, right = (float(line[(place + k) % size]) for k in (-1, 0, 1))
            curve = left - 2 * here + right
            offset = 0.5 * (left - right) / curve if curve < 0 else 0.0
            shifts[index, axis] = ((place + size // 2) % size - size // 2 + offset) * step
    return shifts


def _homographies(pixels: np.ndarray, middle: int) -> np.ndarray:
    """By DIS flow between neighbouring frames, RANSAC over a grid of points, chained to the middle
    frame and set right against it.
    """
    import cv2

    short = min(pixels.shape[1:3])
    scale = min(240 / short, 1.0)
    size = (round(pixels.shape[2] * scale), round(pixels.shape[1] * scale))
    small = [
        cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA) for frame in pixels
    ]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    y, x = np.mgrid[4 : size[1] - 4 : 8, 4 : size[0] - 4 : 8]
    points = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)

    def fitted(before: np.ndarray, after: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """The homography that takes ``before`` to ``after``, from the points that both show."""
        field = flow.calc(before, after, np.zeros((*before.shape, 2), np.float32))
        shown = seen[y.ravel(), x.ravel()]
        if shown.sum() < 24:
            raise ValueError("the camera's motion cannot be undone: it shows another place by the end")
        start = points[shown]
        matrix, inliers = cv2.findHomography(start, start + field[y.ravel(), x.ravel()][shown], cv2.RANSAC, 0.8)
        if matrix is None or inliers is None or inliers.mean() < 0.5:
            raise ValueError("the camera's motion cannot be undone: less than half of the picture moves as one plane")
        return matrix

    cv2.setRNGSeed(7)
    everywhere = np.ones(small[0].shape, bool)
    steps = [fitted(before, after, everywhere) for before, after in pairwise(small)]
    matrices = np.tile(np.eye(3), (len(pixels), 1, 1))
    order = [*range(middle - 1, -1, -1), *range(middle + 1, len(pixels))]
    for index in order:
        near = index + 1 if index < middle else index - 1
        step = steps[index] if index < middle else np.linalg.inv(steps[index - 1])
        chained = matrices[near] @ step
        # Small errors add up along the chain: what is left against the middle frame itself is taken away.
        image = cv2.warpPerspective(small[index], chained, size, flags=cv2.INTER_LINEAR)
        seen = cv2.warpPerspective(np.ones_like(small[index]), chained, size, flags=cv2.INTER_NEAREST)
        matrices[index] = fitted(image, small[middle], seen.astype(bool)) @ chained
    grow, shrink = np.diag([1 / scale, 1 / scale, 1.0]), np.diag([scale, scale, 1.0])
    matrices = grow @ matrices @ shrink
    return matrices / matrices[:, 2:, 2:]


def warped(frame: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The frame (H, W, 3) as seen through ``matrix`` (from its coordinates to the new ones), and
    where it was defined, bool (H, W).
    """
    height, width = frame.shape[:2]
    if find_spec("cv2") is not None:
        import cv2

        image = cv2.warpPerspective(frame, matrix, (width, height), flags=cv2.INTER_LINEAR)
        seen = cv2.warpPerspective(np.ones((height, width), np.uint8), matrix, (width, height), flags=cv2.INTER_NEAREST)
        return image, seen.astype(bool)
    from scipy import ndimage

    shift = (matrix[1, 2], matrix[0, 2])
    image = np.stack([ndimage.shift(frame[..., channel], shift, order=1) for channel in range(3)], axis=-1)
    return image, ndimage.shift(np.ones((height, width), np.uint8), shift, order=0).astype(bool)
