"""Flat patches of a picture: taken out upright, put back, and followed from frame to frame.

quad → ``homography`` → ``rectified`` → an edited patch → ``put_back``; ``followed`` gives the quads of
all frames

A quad is (4, 2): x and y in px of the corners, from the upper left one on clockwise.
"""

from __future__ import annotations

import numpy as np

from cac_align.data.injection.sources.masks import grey

_ALIKE = 0.8  # correlation with the first patch below which it is no longer the same patch
_SAME = 0.995  # correlation above which a patch has not moved
_STEPS = 12


def corners(height: float, width: float) -> np.ndarray:
    """The quad of an upright patch, (4, 2)."""
    return np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], float)


def homography(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The matrix (3, 3) that takes four points to four others; both (4, 2)."""
    rows, target = [], []
    for (x, y), (u, v) in zip(before, after, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        target += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(target)), 1.0).reshape(3, 3)


def carried(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (…, 2) through a homography."""
    image = points @ matrix[:, :2].T + matrix[:, 2]
    return image[..., :2] / image[..., 2:]


def patch_shape(quad: np.ndarray) -> tuple[int, int]:
    """Height and width of the upright patch that holds a quad at its own scale."""
    sides = np.linalg.norm(np.roll(quad, -1, axis=0) - quad, axis=1)
    return max(round(float(sides[[1, 3]].mean())), 4), max(round(float(sides[[0, 2]].mean())), 4)


def rectified(frame: np.ndarray, quad: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """What a quad of the frame (H, W, C) shows, upright, float32 (*shape, C)."""
    from scipy import ndimage

    rows, columns = np.indices(shape, float)
    points = carried(homography(corners(*shape), quad), np.stack([columns, rows], axis=-1))
    places = np.stack([points[..., 1], points[..., 0]])
    planes = [
        ndimage.map_coordinates(frame[..., channel], places, np.float32, order=1, mode="nearest")
        for channel in range(frame.shape[-1])
    ]
    return np.stack(planes, axis=-1)


def put_back(frame: np.ndarray, patch: np.ndarray, quad: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The frame (H, W, 3) with a patch (h, w, 3) in its quad through a matte (h, w), uint8."""
    from scipy import ndimage

    height, width = frame.shape[:2]
    left, top = np.maximum(np.floor(quad.min(0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(quad.max(0)).astype(int) + 1, (width, height))
    if left >= right or top >= bottom:
        return frame
    rows, columns = np.mgrid[top:bottom, left:right].astype(float)
    points = carried(homography(quad, corners(*patch.shape[:2])), np.stack([columns, rows], axis=-1))
    places = np.stack([points[..., 1], points[..., 0]])
    out = frame.copy()
    area = out[top:bottom, left:right].astype(np.float32)
    matte = ndimage.map_coordinates(alpha, places, np.float32, order=1, mode="constant")[..., None]
    pasted = [
        ndimage.map_coordinates(patch[..., channel], places, np.float32, order=1, mode="nearest")
        for channel in range(3)
    ]
    area += matte * (np.stack(pasted, axis=-1) - area)
    out[top:bottom, left:right] = np.clip(area + 0.5, 0, 255).astype(np.uint8)
    return out


def quad_mask(shape: tuple[int, int], quad: np.ndarray) -> np.ndarray:
    """The pixels inside a convex quad, bool (H, W)."""
    mask = np.zeros(shape, bool)
    left, top = np.maximum(np.floor(quad.min(0)).astype(int), 0)
    right, bottom = np.ceil(quad.max(0)).astype(int) + 1
    rows, columns = np.mgrid[top : min(bottom, shape[0]), left : min(right, shape[1])]
    inside = np.ones(rows.shape, bool)
    for (x, y), (u, v) in zip(quad, np.roll(quad, -1, axis=0), strict=True):
        inside &= (u - x) * (rows - y) - (v - y) * (columns - x) >= 0
    mask[top:bottom, left:right] = inside
    return mask


# ---- following ----------------------------------------------------------------------------------------------------


def followed(pixels: np.ndarray, quad: np.ndarray, start: int) -> np.ndarray:
    """The quad on every frame, (T, 4, 2), followed forwards and backwards from the frame ``start``; NaN
    from the frame on which it no longer looks alike or leaves the picture.
    """
    shape = patch_shape(quad)
    reference = _normal(grey(rectified(pixels[start], quad, shape)))
    quads = np.full((len(pixels), 4, 2), np.nan)
    quads[start] = quad
    for way in (1, -1):
        here, before = quad, quad
        for index in range(start + way, len(pixels) if way > 0 else -1, way):
            light = grey(pixels[index])[..., None]
            found = max(
                (_registered(light, guess, reference) for guess in (here + (here - before), here)),
                key=lambda pair: pair[1],
            )
            if found[1] < _ALIKE or not _inside(found[0], pixels.shape[1:3]) or _torn(found[0], quad):
                break
            here, before = found[0], here
            quads[index] = here
    return quads


def _registered(light: np.ndarray, quad: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, float]:
    """The quad near ``quad`` in which a frame (H, W, 1) looks most like the reference patch, by
    Gauss-Newton over its corners, first coarse and then fine; and the correlation there.
    """
    from scipy import ndimage

    shape = reference.shape
    rows, columns = np.indices(shape, float)
    u, v = columns / (shape[1] - 1), rows / (shape[0] - 1)
    weights = np.stack([(1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v])
    best = (quad, _alike(light, quad, reference))
    if best[1] > _SAME:
        return best
    for blur in (max(shape[0] / 8, 1.0), 0.7):
        goal = ndimage.gaussian_filter(reference, blur)
        slope_y, slope_x = (np.gradient(goal, axis=axis) for axis in (0, 1))
        across, down = (np.linalg.norm(quad[1] - quad[0]), np.linalg.norm(quad[3] - quad[0]))
        axes = np.stack([(quad[1] - quad[0]) / across, (quad[3] - quad[0]) / down])
        slopes = slope_x[..., None] * axes[0] + slope_y[..., None] * axes[1]  # by x and y of the frame
        columns_of = (weights[..., None] * slopes[None]).transpose(1, 2, 0, 3).reshape(-1, 8)
        square = columns_of.T @ columns_of
        damped = square + 1e-3 * np.trace(square) / 8 * np.eye(8)
        here = best[0].copy()
        for _ in range(_STEPS):
            patch = ndimage.gaussian_filter(_normal(rectified(light, here, shape)[..., 0]), blur)
            step = np.linalg.solve(damped, columns_of.T @ (goal - patch).ravel()).reshape(4, 2)
            here = here + np.clip(step, -4, 4)
            if np.abs(step).max() < 0.02:
                break
        alike = _alike(light, here, reference)
        if alike > best[1]:
            best = (here, alike)
    return best


def _alike(light: np.ndarray, quad: np.ndarray, reference: np.ndarray) -> float:
    return float(np.mean(_normal(rectified(light, quad, reference.shape)[..., 0]) * reference))


def _normal(light: np.ndarray) -> np.ndarray:
    light = light - light.mean()
    return light / max(float(light.std()), 1e-3)


def _inside(quad: np.ndarray, shape: tuple[int, int]) -> bool:
    return bool(np.isfinite(quad).all() and quad.min() >= 0 and np.all(quad.max(0) <= (shape[1] - 1, shape[0] - 1)))


def _torn(quad: np.ndarray, first: np.ndarray) -> bool:
    """Whether a quad is no longer convex, or more than twice or less than half as large as the first."""
    edges = np.roll(quad, -1, axis=0) - quad
    after = np.roll(edges, -1, axis=0)
    turns = edges[:, 0] * after[:, 1] - edges[:, 1] * after[:, 0]
    return bool((turns <= 0).any() or not 0.5 < _area(quad) / _area(first) < 2.0)


def _area(quad: np.ndarray) -> float:
    x, y = quad.T
    return 0.5 * abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))))
