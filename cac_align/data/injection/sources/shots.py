"""Cuts, slides, black bars and burnt-in text: what must not be in a source clip.

frames (T, H, W, 3) → ``cuts``, ``is_slide``, ``picture_area``
"""

from __future__ import annotations

import numpy as np

_JUMP = 14.0  # grey levels between thumbnails whose mean brightness is removed
_AGAINST_NEIGHBOURS = 3.5
_STILL = 1.5  # grey levels
_BAR = 24  # no pixel of a black bar is brighter
_STROKES = 14  # bright strokes with dark outlines in one row of burnt-in text


def cuts(pixels: np.ndarray) -> list[int]:
    """Frames that begin a new shot: they differ from the one before far more than their neighbours
    do from each other. Slow dissolves are not found.
    """
    thumbs = _thumbnails(pixels)
    thumbs = thumbs - thumbs.mean((1, 2), keepdims=True)
    jumps = np.abs(np.diff(thumbs, axis=0)).mean((1, 2, 3))
    found = []
    for index, jump in enumerate(jumps):
        near = np.delete(jumps[max(index - 6, 0) : index + 7], min(index, 6))
        if jump > _JUMP and jump > _AGAINST_NEIGHBOURS * (np.median(near) if len(near) else 0.0) + 2:
            found.append(index + 1)
    return found


def is_slide(pixels: np.ndarray) -> bool:
    """Whether nothing moves: no frame differs from the first one by more than the noise of coding."""
    step = max(min(pixels.shape[1:3]) // 96, 1)
    thin = pixels[:: max(len(pixels) // 8, 1), ::step, ::step].astype(np.int16)
    change = np.abs(thin - thin[0]).mean(-1)
    return bool(np.quantile(change, 0.999) <= 4 * _STILL and change.mean() <= _STILL)


def _thumbnails(pixels: np.ndarray) -> np.ndarray:
    """Frames averaged to about 32 × 32, float32."""
    height, width = (size // max(size // 32, 1) * max(size // 32, 1) for size in pixels.shape[1:3])
    tall, wide = max(pixels.shape[1] // 32, 1), max(pixels.shape[2] // 32, 1)
    cut = pixels[:, :height, :width]
    return cut.reshape(len(cut), height // tall, tall, width // wide, wide, 3).mean((2, 4), dtype=np.float32)


def picture_area(pixels: np.ndarray) -> tuple[slice, slice, str]:
    """Rows and columns without black bars and burnt-in subtitles, and in words what was cropped ("":
    nothing).

    Subtitles are told by rows of bright strokes with dark outlines in the lowest 30 % of the picture.
    """
    thin = pixels[:: max(len(pixels) // 6, 1)]
    bright = thin.max((0, 3))
    rows, columns = (np.flatnonzero(bright.max(axis) > _BAR) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return slice(0, pixels.shape[1]), slice(0, pixels.shape[2]), ""
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    said = []
    if bottom - top < 0.97 * pixels.shape[1] or right - left < 0.97 * pixels.shape[2]:
        said.append("black bars")
    else:
        top, bottom, left, right = 0, pixels.shape[1], 0, pixels.shape[2]
    floor = top + round(0.7 * (bottom - top))
    text_rows = _text_rows(thin[:, floor:bottom, left:right])
    if text_rows is not None:
        bottom = max(floor + text_rows - 4, floor)
        said.append("subtitles")
    return slice(top, bottom), slice(left, right), " and ".join(said)


def _text_rows(band: np.ndarray) -> int | None:
    """The first row of burnt-in text in a band of frames, or None."""
    grey = band.mean(-1, dtype=np.float32)
    # A stroke: nearly white, with nearly black within 4 px to its left.
    dark = grey < 70
    near = np.zeros_like(dark)
    for reach in range(1, 5):
        near[:, :, reach:] |= dark[:, :, :-reach]
    strokes = (grey > 215) & near
    begins = (strokes[:, :, 1:] & ~strokes[:, :, :-1]).sum(2)  # (T, rows)
    full = begins >= _STROKES
    least = max(round(0.02 * band.shape[1] / 0.3), 3)
    for frame in full[np.argsort(-full.sum(1), kind="stable")][:2]:
        if frame.sum() >= least:
            return int(np.flatnonzero(frame)[0])
    return None
