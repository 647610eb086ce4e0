"""Cut an object out, fill its place, put it back somewhere: the operation that most injectors share.

SourceClip + object → Cutout → pasted(offsets) → frames; offsets of 0 give the sham

Every frame on which the object is seen goes through the operation, in both twins, so that neither
the seam nor the fill tells when or whether something was done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cac_align.data.injection.injector import MovingObject, NotApplicable, SourceClip
from cac_align.data.injection.sources.masks import dilated, snug, soft

MIN_FRAMES = 8
"""An object must be seen on at least this many frames."""


@dataclass(frozen=True, eq=False)
class Placement:
    """How a cut-out is put back on one frame.

    ``dx`` and ``dy`` in px; ``source`` is the frame whose pixels are pasted (None: the same one);
    ``opacity`` 0 leaves it away. ``keep``: (H, W), how much of the paste is kept at every pixel of the
    frame, in [0, 1].
    """

    dx: int = 0
    dy: int = 0
    source: int | None = None
    opacity: float = 1.0
    keep: np.ndarray | None = None


IDENTITY = Placement()
"""Back to where it was: what a sham gets."""


def radius_of(source: SourceClip) -> int:
    """Width of a seam in px: 3 at 480 rows, 0 below 81."""
    return round(min(source.shape[1:]) / 160)


def choose_object(
    source: SourceClip,
    rng: np.random.Generator,
    *,
    fits: Callable[[MovingObject], bool] = lambda thing: True,
    missing: str = "no moving object that fits",
) -> MovingObject:
    """One of the moving objects that are seen long enough and ``fits``. Raises ``NotApplicable``."""
    able = [thing for thing in source.objects if len(thing.frames) >= MIN_FRAMES and fits(thing)]
    if not able:
        raise NotApplicable(missing if source.objects else "no moving object")
    return able[int(rng.integers(len(able)))]


def choose_span(rng: np.random.Generator, frames: Sequence[int] | np.ndarray, least: int, most: int) -> tuple[int, int]:
    """First and last frame of an event of ``least`` to ``most`` frames inside a run of consecutive
    ``frames``, with a frame free on either side where there is room.

    Raises ``NotApplicable`` where no run is long enough.
    """
    frames = np.asarray(frames)
    runs = [run for run in np.split(frames, np.flatnonzero(np.diff(frames) != 1) + 1) if len(run) >= least + 2]
    if not runs:
        raise NotApplicable(f"no moving object is seen on {least + 2} frames in a row")
    run = max(runs, key=len)
    length = int(rng.integers(least, min(most, len(run) - 2) + 1))
    first = int(run[1]) + int(rng.integers(len(run) - 1 - length))
    return first, first + length - 1


def clear_of_border(thing: MovingObject, first: int, last: int) -> bool:
    """Whether the whole object is in the picture on these frames, so that it can be put elsewhere."""
    _, height, width = thing.masks.shape
    boxes = thing.boxes[first : last + 1]
    return bool(np.nanmin(boxes[:, :2]) >= 2 and np.all(np.nanmax(boxes[:, 2:], axis=0) <= (width - 2, height - 2)))


def choose_offset(
    source: SourceClip, thing: MovingObject, rng: np.random.Generator, distance: float, first: int, last: int
) -> tuple[int, int]:
    """A direction in which the object, moved by ``distance`` px, stays in the picture on these frames
    and meets no other one; dx and dy in whole px.

    Raises ``NotApplicable`` where there is none.
    """
    _, height, width = source.shape
    others = [other.masks[first : last + 1] for other in source.objects if other is not thing]
    boxes = thing.boxes[first : last + 1]
    for angle in rng.uniform(0, 2 * np.pi, 12):
        dx, dy = round(distance * float(np.cos(angle))), round(distance * float(np.sin(angle)))
        edges = np.nanmin(boxes[:, :2], axis=0) + (dx, dy), np.nanmax(boxes[:, 2:], axis=0) + (dx, dy)
        if min(edges[0]) < 0 or edges[1][0] > width or edges[1][1] > height:
            continue
        middle = thing.masks[(first + last) // 2]
        if all(not (moved(middle, dx, dy) & other[len(other) // 2]).any() for other in others):
            return dx, dy
    raise NotApplicable("there is no room around the object to put it elsewhere")


@dataclass(frozen=True, eq=False)
class Cutout:
    """An object's cut-out on every frame, and what fills its place. ``part``: the mask is a part of a
    larger thing, which the cut must not bite.
    """

    source: SourceClip
    mask: np.ndarray
    seed: int
    part: bool = False

    @classmethod
    def of(cls, source: SourceClip, thing: MovingObject, rng: np.random.Generator, least_known: float = 0.97) -> Cutout:
        """The cut-out of an object whose background was seen. Raises ``NotApplicable`` where it was not."""
        if source.background is None or source.background_known is None:
            raise NotApplicable("the background behind the moving objects is not known")
        known = np.mean([source.background_known[frame][thing.masks[frame]].mean() for frame in thing.frames])
        if known < least_known:
            raise NotApplicable(f"the background behind the object is not known: {known:.0%} of it was seen")
        return cls(source, thing.masks, int(rng.integers(2**31)))

    def filled(self, frame: int) -> np.ndarray:
        """The background of a frame with fresh grain, float32 (H, W, 3)."""
        assert self.source.background is not None
        plate = self.source.background[frame].astype(np.float32)
        if self.source.grain > 0.3:
            grain = np.random.default_rng((self.seed, frame)).standard_normal(plate.shape[:2], np.float32)
            plate += self.source.grain * grain[..., None]
        return plate

    def pasted(self, placements: Callable[[int], Sequence[Placement]]) -> np.ndarray:
        """All frames, uint8 (T, H, W, 3): the object is cut out, its place filled, and put back as
        ``placements(frame)`` says, one after another.
        """
        radius, pixels = radius_of(self.source), self.source.pixels
        out = pixels.copy()
        for frame in range(len(pixels)):
            # A frame without the object is left alone unless another frame's pixels are pasted into it.
            wanted = [place for place in placements(frame) if self.mask[_from(place, frame)].any()]
            if not self.mask[frame].any() and not any(place.source is not None for place in wanted):
                continue
            canvas = pixels[frame].astype(np.float32)
            alpha = (snug if self.part else soft)(self.mask[frame], radius)[..., None]
            canvas += alpha * (self.filled(frame) - canvas)
            for place in wanted:
                origin = _from(place, frame)
                alpha = place.opacity * moved(snug(self.mask[origin], radius), place.dx, place.dy)
                if place.keep is not None:
                    alpha = alpha * place.keep
                canvas += alpha[..., None] * (moved(pixels[origin], place.dx, place.dy) - canvas)
            out[frame] = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
        return out

    def sham(self) -> np.ndarray:
        """The twin: cut out, filled and put back where it was, on every frame."""
        return self.pasted(lambda frame: (IDENTITY,))

    def subject(self, placements: Callable[[int], Sequence[Placement]], first: int, last: int) -> np.ndarray:
        """Where the object is put on the frames ``first`` to ``last``, bool (T, H, W)."""
        found = np.zeros_like(self.mask)
        for frame in range(first, last + 1):
            for place in placements(frame):
                part = moved(self.mask[_from(place, frame)], place.dx, place.dy)
                found[frame] |= part if place.keep is None else part & (place.keep > 0)
        return found

    def vacated(self, first: int, last: int) -> np.ndarray:
        """Where the object was on these frames, bool (T, H, W), with the seam."""
        found = np.zeros_like(self.mask)
        found[first : last + 1] = dilated(self.mask[first : last + 1], 2 * radius_of(self.source))
        return found


def during(masks: np.ndarray, first: int, last: int) -> np.ndarray:
    """Masks (T, H, W) on the frames ``first`` to ``last``; empty on all others."""
    found = np.zeros_like(masks)
    found[first : last + 1] = masks[first : last + 1]
    return found


def _from(place: Placement, frame: int) -> int:
    return frame if place.source is None else place.source


def moved(image: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """An image (H, W) or (H, W, C) moved by whole pixels; what comes in is 0."""
    if dx == 0 and dy == 0:
        return image
    out = np.zeros_like(image)
    height, width = image.shape[:2]
    if abs(dx) >= width or abs(dy) >= height:
        return out
    out[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = image[
        max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
    ]
    return out


def resampled(piece: np.ndarray, field: np.ndarray) -> np.ndarray:
    """An image (h, w, 3) that shows at every pixel what lies ``field`` px away from it: (2, h, w), down
    and right. float32.
    """
    from scipy import ndimage

    rows, columns = np.indices(field.shape[1:], np.float32)
    places = np.stack([rows + field[0], columns + field[1]])
    channels = [ndimage.map_coordinates(piece[..., channel], places, order=1, mode="nearest") for channel in range(3)]
    return np.stack(channels, axis=-1)


def undoing(field: np.ndarray) -> np.ndarray:
    """The displacement (2, h, w) that undoes another one: what it moves to p + field(p) comes back to p."""
    from scipy import ndimage

    places = np.indices(field.shape[1:], np.float32)
    back = -field
    for _ in range(8):
        there = places + back
        back = -np.stack([ndimage.map_coordinates(plane, there, order=1, mode="nearest") for plane in field])
    return back
