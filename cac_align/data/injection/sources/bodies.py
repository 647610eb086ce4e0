"""Bodies, hands and faces in a clip, found by small models and followed from frame to frame.

SourceClip → ``bodies`` → Body: landmarks on every frame on which it is seen
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np

from cac_align.data.injection.injector import SourceClip
from cac_align.data.injection.sources.body_models import Kind, Landmarks, Place, detections, landmarks, next_place

MIN_BODY_FRAMES = 8
"""Frames on which a body, hand or face must be seen to be of use."""

_LEAST_PX = {"pose": 60, "hand": 40, "face": 32}  # longest side of what the landmarks span
_JUMP = 0.35  # how far the landmarks may go from one frame to the next, as a share of what they span


@dataclass(frozen=True, eq=False)
class Body:
    """A person, a hand or a face. points: (T, N, 2) in px, NaN where it is not seen. seen: (T, N), how
    surely each point is seen. mask: bool (T, H, W), the person of a pose; None for hands and faces.
    """

    kind: Kind
    points: np.ndarray
    seen: np.ndarray
    mask: np.ndarray | None = None

    @cached_property
    def frames(self) -> np.ndarray:
        """Indices of the frames on which it is seen."""
        return np.flatnonzero(np.isfinite(self.points).all((1, 2)))


_found: WeakKeyDictionary[SourceClip, dict[Kind, tuple[Body, ...]]] = WeakKeyDictionary()


def bodies(source: SourceClip, kind: Kind) -> tuple[Body, ...]:
    """The people, hands or faces of a clip that are seen on enough frames, the surest first; looked for
    on its middle frame, then nearer its ends. People are looked for in the moving objects as well,
    where they may be small.
    """
    kinds = _found.setdefault(source, {})
    if kind not in kinds:
        kinds[kind] = _bodies(source, kind)
    return kinds[kind]


def _bodies(source: SourceClip, kind: Kind) -> tuple[Body, ...]:
    count = len(source.pixels)
    for start in (count // 2, count // 4, 3 * count // 4):
        frame = source.pixels[start]
        places = detections(source.body_models, kind, frame)
        if kind == "pose":
            for within in _object_places(source, start):
                places += detections(source.body_models, kind, frame, within)[:1]
        found: list[Body] = []
        for place in places:
            body = _followed(source, kind, place, start)
            if body is not None and all(_apart(body, other, start) for other in found):
                found.append(body)
        if found:
            return tuple(found)
    return ()


def _object_places(source: SourceClip, frame: int) -> list[Place]:
    places = []
    for thing in source.objects:
        left, top, right, bottom = thing.boxes[frame]
        if np.isfinite(left) and bottom - top > 0.8 * (right - left):
            places.append(Place((left + right) / 2, (top + bottom) / 2, 1.4 * (bottom - top)))
    return places


def _apart(one: Body, other: Body, frame: int) -> bool:
    """Whether two bodies stand in different places."""
    reach = float(np.ptp(other.points[frame], axis=0).max())
    return float(np.linalg.norm(one.points[frame].mean(0) - other.points[frame].mean(0))) > 0.3 * reach


def _followed(source: SourceClip, kind: Kind, place: Place, start: int) -> Body | None:
    """A body that is in this place of the frame ``start``; None where it is too small or is seen too briefly."""
    count, (_, height, width) = len(source.pixels), source.shape
    found: dict[int, Landmarks] = {}
    for way in (1, -1):
        where = place
        for index in range(start, count if way > 0 else -1, way):
            marks = found.get(index) or landmarks(source.body_models, kind, source.pixels[index], where)
            if marks is None or (index != start and _jumped(found[index - way].points, marks.points)):
                break
            found[index] = marks
            where = next_place(kind, marks.points)
    if len(found) < MIN_BODY_FRAMES or np.ptp(found[start].points, axis=0).max() < _LEAST_PX[kind]:
        return None
    size = len(found[start].points)
    points, seen = np.full((count, size, 2), np.nan), np.zeros((count, size))
    mask = np.zeros((count, height, width), bool) if kind == "pose" else None
    for index, marks in found.items():
        points[index], seen[index] = marks.points, marks.seen
        if mask is not None and marks.mask is not None:
            mask[index] = marks.mask
    return Body(kind, _calm(points), seen, mask)


def _jumped(before: np.ndarray, after: np.ndarray) -> bool:
    return float(np.abs(after - before).max()) > _JUMP * float(np.ptp(before, axis=0).max())


def _calm(points: np.ndarray) -> np.ndarray:
    """Points (T, N, 2) without the trembling of the models, over their one run of frames."""
    from scipy import ndimage

    frames = np.flatnonzero(np.isfinite(points).all((1, 2)))
    calm = points.copy()
    calm[frames] = ndimage.gaussian_filter1d(points[frames], 1.0, axis=0, mode="nearest")
    return calm
