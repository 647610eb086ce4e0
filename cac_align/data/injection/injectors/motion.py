"""Objects in the wrong place: teleport, jitter, freeze (Motion Anomalies), float, sink and an
impossible turn (Physical Violations).

Each is a rule that says where the cut-out object is pasted on a frame; ``compositing`` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cac_align.data.injection.injector import Edit, Injector, MovingObject, NotApplicable, SourceClip
from cac_align.data.injection.injectors.compositing import (
    IDENTITY,
    Cutout,
    Placement,
    choose_object,
    choose_offset,
    choose_span,
    clear_of_border,
)

_MOTION, _PHYSICS = "Motion Anomalies", "Physical Violations"


def _displaced(
    cutout: Cutout,
    first: int,
    last: int,
    place: Callable[[int], Placement],
    label: tuple[str, str, str],
    noun: str,
) -> Edit:
    """The edit that pastes the object at ``place(frame)`` on the frames ``first`` to ``last``.

    label: type, subtype and what the thing does.
    """

    def placements(frame: int) -> tuple[Placement, ...]:
        return (place(frame) if first <= frame <= last else IDENTITY,)

    places = [place(frame) for frame in range(first, last + 1)]
    path = {"dx": [one.dx for one in places], "dy": [one.dy for one in places]}
    return Edit(
        cutout.pasted(placements),
        cutout.sham(),
        label[0],
        label[1],
        f"the {noun} {label[2]}",
        noun,
        cutout.subject(placements, first, last),
        cutout.vacated(first, last),
        numbers={"first": first, "last": last, **path},
    )


def teleport(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """The object is somewhere else for 3 to 12 frames."""
    thing = choose_object(source, rng)
    cutout = Cutout.of(source, thing, rng)
    first, last = choose_span(rng, thing.frames, 3, 12)
    _check_whole(thing, first, last)
    dx, dy = choose_offset(source, thing, rng, float((0.6 + 1.2 * severity) * thing.size.max()), first, last)
    label = (_MOTION, "teleport", "jumps to another place and back")
    return _displaced(cutout, first, last, lambda frame: Placement(dx, dy), label, thing.noun)


def jitter(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """The object stands a little off its path, each frame in another direction, on 5 to 14 frames."""
    thing = choose_object(source, rng)
    cutout = Cutout.of(source, thing, rng)
    first, last = choose_span(rng, thing.frames, 5, 14)
    _check_whole(thing, first, last)
    reach = max((0.08 + 0.2 * severity) * thing.size.max(), 2.0)
    angles = np.cumsum(rng.uniform(0.6 * np.pi, 1.4 * np.pi, last - first + 1))
    offsets = np.rint(reach * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(int)

    def place(frame: int) -> Placement:
        dx, dy = offsets[frame - first]
        return Placement(int(dx), int(dy))

    return _displaced(cutout, first, last, place, (_MOTION, "jitter", "jitters from frame to frame"), thing.noun)


def freeze(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """The object stands still while it should move, then snaps to where it belongs."""
    thing = choose_object(source, rng)
    cutout = Cutout.of(source, thing, rng)
    first, last = choose_span(rng, thing.frames, 5, 6 + round(12 * severity))
    gone = np.linalg.norm(thing.centres[last] - thing.centres[first - 1])
    if gone < 0.3 * thing.size.max():
        raise NotApplicable("the object hardly moves: a freeze would not show")
    label = (_MOTION, "freeze", "freezes and then snaps forward while everything else moves on")
    return _displaced(cutout, first, last, lambda frame: Placement(source=first - 1), label, thing.noun)


def turn_back(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """The object runs back along its path and then catches up with itself, against its momentum."""
    thing = choose_object(source, rng)
    cutout = Cutout.of(source, thing, rng)
    first, last = choose_span(rng, thing.frames, 8, 20)
    before, after = first - 1, last + 1
    back = max(round((last - first) * (0.2 + 0.25 * severity)), 2)
    if before - back < int(thing.frames[0]):
        back = before - int(thing.frames[0])
    centres = thing.centres
    if back < 2 or np.linalg.norm(centres[before] - centres[before - back]) < 0.3 * thing.size.max():
        raise NotApplicable("the object hardly moves: a turn would not show")
    _check_whole(thing, first, last)
    frames = np.arange(first, last + 1)
    clock = np.interp(frames, [before, before + back, after], [before, before - back, after])
    seen = thing.frames
    path = np.stack([np.interp(clock, seen, centres[seen, axis]) for axis in (0, 1)], axis=1)
    offsets = np.rint(path - centres[frames]).astype(int)

    def place(frame: int) -> Placement:
        dx, dy = offsets[frame - first]
        return Placement(int(dx), int(dy))

    label = (_PHYSICS, "impossible turn", "turns back in the middle of its motion with nothing that pushes it")
    return _displaced(cutout, first, last, place, label, thing.noun)


def _rise(first: int, last: int, frame: int) -> float:
    """A curve that rises from 0, stays at 1 and falls again, over the frames ``first`` to ``last``."""
    ramp = max(0.34 * (last - first + 1), 1.0)
    share = min(max(min(frame - first + 1, last + 1 - frame) / ramp, 0.0), 1.0)
    return share * share * (3 - 2 * share)


def float_up(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """An object that stands or rolls on the ground leaves it and comes down again."""
    thing = choose_object(source, rng, fits=lambda one: one.grounded, missing="no moving object stays on the ground")
    cutout = Cutout.of(source, thing, rng)
    first, last = choose_span(rng, thing.frames, 8, 24)
    _check_whole(thing, first, last)
    height = float((0.25 + 0.55 * severity) * thing.size[1])
    height = min(height, float(np.nanmin(thing.boxes[first : last + 1, 1])))
    if height < 0.2 * thing.size[1]:
        raise NotApplicable("there is no room above the object")
    label = (_PHYSICS, "float", "floats up without support")
    return _displaced(
        cutout,
        first,
        last,
        lambda frame: Placement(dy=-round(height * _rise(first, last, frame))),
        label,
        thing.noun,
    )


def sink(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """An object on the ground goes down into it, cut off at the line on which it stood."""
    thing = choose_object(source, rng, fits=lambda one: one.grounded, missing="no moving object stays on the ground")
    cutout = Cutout.of(source, thing, rng)
    first, last = choose_span(rng, thing.frames, 6, 24)
    _check_whole(thing, first, last)
    depth = float((0.25 + 0.45 * severity) * thing.size[1])
    rows = np.arange(source.shape[1])[:, None]

    def place(frame: int) -> Placement:
        above = np.broadcast_to(rows < thing.boxes[frame, 3], source.shape[1:])
        return Placement(dy=round(depth * _rise(first, last, frame)), keep=above)

    return _displaced(cutout, first, last, place, (_PHYSICS, "sink", "sinks into the ground"), thing.noun)


def _check_whole(thing: MovingObject, first: int, last: int) -> None:
    if not clear_of_border(thing, first, last):
        raise NotApplicable("the object is cut by the picture's border")


MOTION_INJECTORS = (
    Injector("teleport", "core", teleport),
    Injector("jitter", "core", jitter),
    Injector("freeze", "core", freeze),
    Injector("impossible_turn", "core", turn_back),
    Injector("float", "core", float_up),
    Injector("sink", "core", sink),
)
"""What puts things where they cannot be."""
