"""Window and boxes of an injected defect, measured on the difference of the two twins.

Edit → where the twins differ by more than THRESHOLD → window (frames), boxes by frame (px) → Anomaly

Nominal parameters say nothing here: a blend may be invisible, and an edit in latent space leaks. A
box is the hull of one component of the difference, united with the anomalous thing's own mask
(``Edit.subject``), because what a viewer must recognise is the whole part. What something merely
left behind (``Edit.vacated``) has no box. An absence is boxed on the visible frames before and
after it (CaC, arXiv 2605.11723, Appendix B.1.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cac_align.core.judgement import Anomaly, Box, Window
from cac_align.data.injection.injector import Edit
from cac_align.data.injection.sources.masks import component_slices, difference, dilated

THRESHOLD = 8
"""Levels of 255 above which a pixel of the twins counts as different."""

SALIENT = 0.3
"""Defects of at least this ``conspicuousness`` are "salient"."""

_HOLE = 2  # frames without a difference that do not end a window
_SPECK = 4  # pixels: smaller differences away from the subject are left out

PixelHull = tuple[int, int, int, int]
"""Left, top, right, bottom in px; right and bottom exclusive."""


@dataclass(frozen=True, eq=False)
class Truth:
    """What the difference of two twins shows.

    ``first`` and ``last`` frame of the window, ends included. ``changed``: bool (T, H, W), where the
    twins differ. ``contrast``: mean difference of those pixels in grey levels.
    """

    first: int
    last: int
    boxes: Mapping[int, tuple[PixelHull, ...]]
    changed: np.ndarray
    contrast: float

    @property
    def area_share(self) -> float:
        """Mean share of the frame's area that the boxes cover."""
        _, height, width = self.changed.shape
        areas = [sum((r - l) * (b - t) for l, t, r, b in found) for found in self.boxes.values()]
        return float(np.mean(areas)) / (height * width) if areas else 0.0


def twin_difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The largest difference of the three channels at every pixel of two videos, uint8 (T, H, W)."""
    return np.stack([difference(a, b) for a, b in zip(one, other, strict=True)])


def measure(edit: Edit, threshold: int = THRESHOLD) -> Truth | None:
    """The truth of an edit, or None where the twins do not differ."""
    levels = twin_difference(edit.anomalous, edit.sham)
    changed = levels > threshold
    radius = round(changed.shape[1] / 160)
    if edit.vacated is not None:
        evident = changed & ~dilated(edit.vacated & ~edit.subject, radius + 1)
    else:
        evident = changed
    active = _window(changed.sum((1, 2)) >= min(_SPECK, max(int(changed.sum((1, 2)).max()), 1)))
    if active is None:
        return None
    first, last = active
    contrast = float(levels[changed].mean())
    count = len(changed)
    if edit.absence:
        boundary = [frame for frame in (first - 1, last + 1) if 0 <= frame < count and edit.subject[frame].any()]
        if not boundary:
            return None
        boxes = {frame: _hulls(edit.subject[frame], edit.subject[frame], radius) for frame in boundary}
        return Truth(max(first - 1, 0), min(last + 1, count - 1), boxes, changed, contrast)
    boxes = {}
    for frame in range(first, last + 1):
        found = _hulls(evident[frame] | edit.subject[frame], edit.subject[frame], radius)
        if found:
            boxes[frame] = found
    return Truth(first, last, boxes, changed, contrast) if boxes else None


def _window(differs: np.ndarray) -> tuple[int, int] | None:
    """First and last frame of what differs. A lone frame beside longer runs is left out; holes do
    not end a run.
    """
    frames = np.flatnonzero(differs)
    if len(frames) == 0:
        return None
    runs = np.split(frames, np.flatnonzero(np.diff(frames) > _HOLE + 1) + 1)
    long = [run for run in runs if run[-1] > run[0]] or runs
    return int(long[0][0]), int(long[-1][-1])


def _hulls(mask: np.ndarray, subject: np.ndarray, radius: int) -> tuple[PixelHull, ...]:
    """Hulls of the mask's components, those nearer than ``radius`` px joined, each widened by 1 px per
    240 rows.
    """
    height, width = mask.shape
    margin = height // 240
    hulls: list[PixelHull] = []
    for rows, columns in component_slices(dilated(mask, radius), mask):
        inside = mask[rows, columns]
        if inside.sum() < _SPECK and not subject[rows, columns].any():
            continue
        hulls.append(
            (
                max(columns.start - margin, 0),
                max(rows.start - margin, 0),
                min(columns.stop + margin, width),
                min(rows.stop + margin, height),
            )
        )
    return _joined(hulls)


def _joined(hulls: list[PixelHull]) -> tuple[PixelHull, ...]:
    """Hulls of which none overlaps another: overlapping ones become their common hull."""
    hulls = sorted(hulls)
    merged = True
    while merged:
        merged = False
        for index, one in enumerate(hulls):
            for position in range(len(hulls) - 1, index, -1):
                other = hulls[position]
                if one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]:
                    one = (min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3]))
                    hulls[index] = one
                    del hulls[position]
                    merged = True
    return tuple(hulls)


def conspicuousness(truth: Truth, fps: float) -> float:
    """How much a defect stands out, in [0, 1]: the geometric mean of contrast / 64 levels, √area
    share and √(duration / 1 s), each at most 1.
    """
    duration_s = (truth.last - truth.first + 1) / fps
    contrast, area = min(truth.contrast / 64, 1.0), min(truth.area_share, 1.0)
    return float((contrast * area**0.5 * min(duration_s, 1.0) ** 0.5) ** (1 / 3))


def anomaly_of(edit: Edit, truth: Truth, fps: float) -> Anomaly:
    """The annotation of an injected defect: seconds on the clip's clock, boxes in [0, 1000]."""
    _, height, width = truth.changed.shape
    return Anomaly(
        type=edit.type,
        window=Window(truth.first / fps, truth.last / fps),
        reason=edit.reason,
        region=edit.region,
        boxes={
            frame: tuple(Box.from_pixels(*hull, width, height) for hull in hulls)
            for frame, hulls in truth.boxes.items()
        },
        saliency="salient" if conspicuousness(truth, fps) >= SALIENT else "non-salient",
    )
