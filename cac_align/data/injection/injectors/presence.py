"""Objects that vanish, appear, flicker or become something else: Motion Anomalies."""

from __future__ import annotations

import numpy as np

from cac_align.data.injection.injector import Edit, Injector, SourceClip
from cac_align.data.injection.injectors.compositing import (
    IDENTITY,
    Cutout,
    Placement,
    choose_object,
    choose_span,
)

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
    )


PRESENCE_INJECTORS = (
    Injector("vanish", "core", vanish),
    Injector("appear", "core", appear),
)
"""What makes things come and go."""
