"""Objects that vanish, appear, flicker or become something else: Motion Anomalies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cac_align.data.injection.injector import Edit, Injector, MovingObject, SourceClip
from cac_align.data.injection.injectors.compositing import (
    IDENTITY,
    Cutout,
    Placement,
    choose_object,
    choose_span,
    during,
    radius_of,
)
from cac_align.data.injection.sources.masks import snug

_TYPE = "Motion Anomalies"


def vanish(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """The object is gone for a while (3 to 16 frames, the more severe the longer), or from some
    frame to the end.
    """
    thing = choose_object(source, rng)
    cutout = Cutout.of(source, thing, rng)
    first, last = choose_span(rng, thing.frames, 3, 4 + round(12 * severity))
    if rng.random() < 0.4:
        last = int(thing.frames[-1])
    return _absence(cutout, thing.noun, first, last, "vanish", f"the {thing.noun} suddenly disappears")


def appear(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """The object is missing up to some frame, then it is there at once."""
    thing = choose_object(source, rng)
    cutout = Cutout.of(source, thing, rng)
    _, last = choose_span(rng, thing.frames, 2, 4 + round(12 * severity))
    return _absence(
        cutout, thing.noun, int(thing.frames[0]), last, "appear", f"the {thing.noun} suddenly appears out of nowhere"
    )


def _absence(cutout: Cutout, noun: str, first: int, last: int, subtype: str, reason: str) -> Edit:
    gone = Placement(opacity=0.0)
    return Edit(
        cutout.pasted(lambda frame: (gone if first <= frame <= last else IDENTITY,)),
        cutout.sham(),
        _TYPE,
        subtype,
        reason,
        noun,
        cutout.mask,
        absence=True,
        numbers={"first": first, "last": last},
    )


def flicker(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """The object's brightness jumps from frame to frame while that of everything else stays."""
    thing = choose_object(source, rng)
    first, last = choose_span(rng, thing.frames, 5, 16)
    depth = 0.25 + 0.6 * severity
    gains = np.where(rng.random(last - first + 1) < 0.5, 1 - depth, 1 + 0.5 * depth)
    gains[1:-1][rng.random(len(gains) - 2) < 0.25] = 1.0
    gains[[0, -1]] = 1 - depth  # brightening may not show on a bright thing

    def painted(strength: float) -> np.ndarray:
        return _repainted(
            source, thing, first, last, lambda piece, frame: piece * (1 + strength * (gains[frame - first] - 1))
        )

    return Edit(
        painted(1.0),
        painted(0.0),
        _TYPE,
        "flicker",
        f"the {thing.noun} flickers while everything around it keeps its light",
        thing.noun,
        during(thing.masks, first, last),
        numbers={"first": first, "last": last},
    )


def change_identity(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """From some frame on the object has other colours and shades: it becomes another thing."""
    thing = choose_object(source, rng)
    first, last = choose_span(rng, thing.frames, 6, len(source.pixels))
    last = int(thing.frames[-1]) if rng.random() < 0.5 else last
    angle = (np.pi / 3 + 2 * np.pi / 3 * severity) * (1 if rng.random() < 0.5 else -1)
    turn, negative = _hue_turn(angle), 0.2 + 0.6 * severity * float(rng.random())
    level = float(source.pixels[thing.masks].mean())

    def painted(strength: float) -> np.ndarray:
        def other(piece: np.ndarray, frame: int) -> np.ndarray:
            ramp = strength * min((frame - first + 1) / 3, 1.0)
            turned = piece @ turn.T
            turned = turned + negative * (2 * level - 2 * turned.mean(-1, keepdims=True))
            return piece + ramp * (turned - piece)

        return _repainted(source, thing, first, last, other)

    return Edit(
        painted(1.0),
        painted(0.0),
        _TYPE,
        "identity change",
        f"the {thing.noun} turns into something of another colour and texture",
        thing.noun,
        during(thing.masks, first, last),
        numbers={"first": first, "last": last},
    )


def _hue_turn(angle: float) -> np.ndarray:
    """The rotation of RGB about the grey axis, (3, 3)."""
    axis = np.full(3, 3**-0.5)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * np.outer(axis, axis)


def _repainted(
    source: SourceClip,
    thing: MovingObject,
    first: int,
    last: int,
    other: Callable[[np.ndarray, int], np.ndarray],
) -> np.ndarray:
    """The frames with the object's pixels, float32 (…, 3), replaced by ``other(pixels, frame)`` on the
    frames ``first`` to ``last``, through a soft matte.
    """
    out, radius = source.pixels.copy(), radius_of(source)
    for frame in range(first, last + 1):
        alpha = snug(thing.masks[frame], radius)
        inside = alpha > 0
        piece = out[frame][inside].astype(np.float32)
        painted = piece + alpha[inside][:, None] * (other(piece, frame) - piece)
        out[frame][inside] = np.clip(painted + 0.5, 0, 255).astype(np.uint8)
    return out


PRESENCE_INJECTORS = (
    Injector("vanish", "core", vanish),
    Injector("appear", "core", appear),
    Injector("flicker", "core", flicker),
    Injector("identity_change", "core", change_identity),
)
"""What makes things come, go, flicker and become other things."""
