"""Two things that cross, drawn in the wrong order: Physical Violations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cac_align.data.injection.injector import Edit, Injector, MovingObject, NotApplicable, SourceClip
from cac_align.data.injection.injectors.compositing import moved, radius_of
from cac_align.data.injection.sources.masks import closed, difference, dilated, snug, soft

_BEFORE, _LONGEST, _SHORTEST = 4, 10, 4  # frames: seen apart before they meet; of the crossing
_UNSURE = 1.25  # the wrong order must fit the picture this many times worse than the right one


@dataclass(frozen=True, eq=False)
class _Crossing:
    """Two things on the last frame on which they are apart, and how far each moves per frame."""

    things: tuple[MovingObject, MovingObject]
    apart: int
    speeds: tuple[np.ndarray, np.ndarray]

    def shift(self, which: int, frame: int) -> tuple[int, int]:
        dx, dy = np.rint(self.speeds[which] * (frame - self.apart)).astype(int)
        return int(dx), int(dy)

    def mask(self, which: int, frame: int) -> np.ndarray:
        return moved(self.things[which].masks[self.apart], *self.shift(which, frame))


def flip_occlusion(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """While two things cross, the one behind is drawn over the one in front.

    Both twins hold the shapes that the things had when they were last apart, and carry them on at
    their speeds; only the order differs. Which of them is in front is told by the picture itself.
    """
    if source.background is None or source.background_known is None:
        raise NotApplicable("the background behind the moving objects is not known")
    meetings = list(_meetings(source))
    if not meetings:
        raise NotApplicable("no two moving objects are seen to cross")
    crossing, first, last = meetings[int(rng.integers(len(meetings)))]
    last = min(last, first + max(_SHORTEST, round(_LONGEST * severity)) - 1)
    canvas = {frame: _cleared(source, crossing, frame) for frame in range(first, last + 1)}
    misfits = [
        np.mean(
            [
                difference(_drawn(source, crossing, frame, canvas[frame], order), source.pixels[frame])[
                    crossing.mask(0, frame) & crossing.mask(1, frame)
                ].mean()
                for frame in canvas
                if (crossing.mask(0, frame) & crossing.mask(1, frame)).any()
            ]
        )
        for order in ((0, 1), (1, 0))
    ]
    if max(misfits) < _UNSURE * min(misfits) + 2:
        raise NotApplicable("which of the crossing objects is in front cannot be told")
    right = ((0, 1), (1, 0))[int(np.argmin(misfits))]

    def drawn(order: tuple[int, int]) -> np.ndarray:
        out = source.pixels.copy()
        for frame, cleared in canvas.items():
            out[frame] = _drawn(source, crossing, frame, cleared, order)
        return out

    subject = np.zeros(source.shape, bool)
    for frame in canvas:
        subject[frame] = crossing.mask(right[0], frame)
    noun = crossing.things[right[0]].noun
    return Edit(
        drawn((right[1], right[0])),
        drawn(right),
        "Physical Violations",
        "occlusion flip",
        f"the {noun} behind passes through and over the one in front of it",
        noun,
        subject,
        numbers={"first": first, "last": last},
    )


def _meetings(source: SourceClip) -> list[tuple[_Crossing, int, int]]:
    """Crossings with the first and last frame on which the two shapes, carried on, lie over each other."""
    found = []
    for index, one in enumerate(source.objects):
        for other in source.objects[index + 1 :]:
            common = np.intersect1d(one.frames, other.frames)
            apart = [t for t in common if not (dilated(one.masks[t], 2) & other.masks[t]).any()]
            for t in (t for t in apart if t + 1 not in apart and t - _BEFORE in apart):
                speeds = [(thing.centres[t] - thing.centres[t - _BEFORE]) / _BEFORE for thing in (one, other)]
                crossing = _Crossing((one, other), int(t), (speeds[0], speeds[1]))
                frames = range(int(t) + 1, min(int(t) + 1 + _LONGEST, len(source.pixels)))
                over = [frame for frame in frames if (crossing.mask(0, frame) & crossing.mask(1, frame)).any()]
                if len(over) >= _SHORTEST:
                    found.append((crossing, int(t) + 1, over[-1]))
    return found


def _cleared(source: SourceClip, crossing: _Crossing, frame: int) -> np.ndarray:
    """The frame without the two things, float32 (H, W, 3): background where anything differs from it
    near the two shapes.
    """
    assert source.background is not None
    near = dilated(crossing.mask(0, frame) | crossing.mask(1, frame), 4 + 3 * radius_of(source))
    behind = source.background[frame]
    moving = near & (difference(source.pixels[frame], behind) > max(10.0, 4 * source.grain))
    alpha = soft(closed(moving, 2), radius_of(source))[..., None]
    canvas = source.pixels[frame].astype(np.float32)
    return canvas + alpha * (behind - canvas)


def _drawn(
    source: SourceClip, crossing: _Crossing, frame: int, cleared: np.ndarray, order: tuple[int, int]
) -> np.ndarray:
    """Both things on the cleared frame, the later of ``order`` over the earlier, uint8 (H, W, 3)."""
    canvas = cleared.copy()
    for which in order:
        shift = crossing.shift(which, frame)
        alpha = moved(snug(crossing.things[which].masks[crossing.apart], radius_of(source)), *shift)[..., None]
        canvas += alpha * (moved(source.pixels[crossing.apart], *shift) - canvas)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


CROSSING_INJECTORS = (Injector("occlusion_flip", "core", flip_occlusion),)
"""What needs two things that cross."""
