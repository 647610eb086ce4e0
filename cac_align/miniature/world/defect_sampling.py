"""Which defect befalls a scene: the entity, the frames and the strength are drawn here; ``defects``
renders them.

Scene + anomaly type → sample_subtypes → sample_defect → Defect, or None when this draw does not fit
the scene
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cac_align.miniature.world.draw import LIMBS, Entity
from cac_align.miniature.world.grammar import GLYPHS, OBJECTS, Actor
from cac_align.miniature.world.scene import Defect, Scene, half_width

_MIN_FRAMES = {"float": 8, "sink": 6, "interpenetrate": 6, "reverse": 8, "flicker": 3, "jitter": 3, "changing": 3}
"""Fewest frames on which a subtype can be told from an ordinary movement; 2 for all others."""
_GROUNDED_MOTIONS = ("left", "right", "turn", "still", "wave", "into")
_ENTITY_KINDS = {
    "Object Distortion": OBJECTS,
    "Human Distortion": ("figure",),
    "Character Anomalies": ("sign",),
    "Motion Anomalies": (*OBJECTS, "figure", "sign"),
    "Physical Violations": (*OBJECTS, "figure"),
}
"""Which entities an anomaly type can befall."""

Span = tuple[int, int]
"""First and last frame."""


@dataclass
class _Draft:
    """A defect while it is drawn. ``side`` is -1 or 1 at random; ``words`` and ``frames`` are
    changed in place.
    """

    rng: np.random.Generator
    scene: Scene
    index: int
    subtype: str
    severity: float
    side: float
    words: dict[str, str]
    frames: frozenset[int]

    @property
    def entity(self) -> Entity:
        return self.scene.entities[self.index]

    @property
    def actor(self) -> Actor:
        return self.scene.spec.actors[self.index]

    @property
    def size(self) -> float:
        return self.entity.size_px


def sample_subtypes(rng: np.random.Generator, scene: Scene, subtypes: tuple[str, ...], tries: int) -> list[str]:
    """Subtypes to try on a scene, each ``tries`` times in a row so that the demanding ones are not
    crowded out.
    """
    order = [subtypes[index] for index in rng.permutation(len(subtypes))]
    if scene.stops and "interpenetrate" in order and rng.random() < 0.75:
        order.sort(key=lambda name: name != "interpenetrate")
    return [name for name in order for _ in range(tries)]


def sample_defect(rng: np.random.Generator, scene: Scene, anomaly_type: str, subtype: str) -> Defect | None:
    """A defect of this type and subtype on this scene, or None when this draw does not fit."""
    index = _sample_entity(rng, scene, anomaly_type, subtype)
    if index is None:
        return None
    actor, severity = scene.spec.actors[index], float(rng.uniform(0.35, 1.0))
    span = _sample_span(rng, scene.num_frames, _MIN_FRAMES.get(subtype, 2))
    side = 1.0 if rng.random() < 0.5 else -1.0
    if subtype in _SPANS:
        span = _SPANS[subtype](rng, scene, index, span)
    if span is None:
        return None
    words = {"who": f"{actor.colour} {actor.kind}"}
    draft = _Draft(rng, scene, index, subtype, severity, side, words, frozenset(range(span[0], span[1] + 1)))
    numbers = _NUMBERS[subtype](draft)
    if numbers is None:
        return None
    return Defect(anomaly_type, subtype, index, draft.frames, severity, draft.words, numbers)


def _sample_entity(rng: np.random.Generator, scene: Scene, anomaly_type: str, subtype: str) -> int | None:
    """Any entity that the defect can befall, so that the main one is not the only suspect."""
    able = [index for index, entity in enumerate(scene.entities) if entity.kind in _ENTITY_KINDS[anomaly_type]]
    if subtype == "interpenetrate":
        able = [index for index in able if index in scene.stops]
    return able[int(rng.integers(len(able)))] if able else None


# ---- frames -------------------------------------------------------------------------------------------------------


def _sample_span(rng: np.random.Generator, count: int, least: int, first: int = 1) -> Span | None:
    """A span of at least ``least`` frames that starts at ``first`` or later; None when a clip of
    ``count`` frames is too short. Lengths run from 2 frames to seconds, more than half of them
    under one second at 16 fps.
    """
    room = count - first
    draw = rng.random()
    low, high = (2, 3) if draw < 0.1 else (4, 8) if draw < 0.42 else (9, 15) if draw < 0.74 else (16, 40)
    length = int(rng.integers(low, high + 1))
    length = min(max(length, least), room, max(int(0.7 * count), least))
    if length < least:
        return None
    start = first + int(rng.integers(room - length + 1))
    return start, start + length - 1


def _vanish_span(rng: np.random.Generator, scene: Scene, index: int, span: Span | None) -> Span | None:
    """Gone for a while, or from some frame to the end."""
    count = scene.num_frames
    return span if rng.random() < 0.6 else (int(rng.integers(int(0.25 * count), int(0.9 * count))), count - 1)


def _appear_span(rng: np.random.Generator, scene: Scene, index: int, span: Span | None) -> Span | None:
    """Missing from the first frame on."""
    return 0, int(rng.integers(2, max(int(0.7 * scene.num_frames), 3)))


def _interpenetrate_span(rng: np.random.Generator, scene: Scene, index: int, span: Span | None) -> Span | None:
    """After the roller has come to rest against the wall."""
    return _sample_span(rng, scene.num_frames, _MIN_FRAMES["interpenetrate"], first=scene.stops[index])


_SPANS: dict[str, Callable[[np.random.Generator, Scene, int, Span | None], Span | None]] = {
    "vanish": _vanish_span,
    "appear": _appear_span,
    "interpenetrate": _interpenetrate_span,
}
"""Subtypes whose frames follow a rule of their own."""


# ---- strength -----------------------------------------------------------------------------------------------------


def _stretch(draft: _Draft) -> dict[str, Any]:
    return {"amount": draft.side * (0.28 + 0.34 * draft.severity), "shear": float(draft.rng.uniform(-0.35, 0.35))}


def _melt(draft: _Draft) -> dict[str, Any]:
    return {"amount": draft.size * (0.18 + 0.3 * draft.severity)}


def _split(draft: _Draft) -> dict[str, Any]:
    return {"amount": draft.size * (0.22 + 0.42 * draft.severity)}


def _hole(draft: _Draft) -> dict[str, Any]:
    return {"amount": draft.size * (0.3 + 0.25 * draft.severity)}


def _mutate(draft: _Draft) -> dict[str, Any]:
    others = [kind for kind in OBJECTS if kind != draft.entity.kind]
    draft.words["kind"] = others[int(draft.rng.integers(len(others)))]
    return {}


def _extra_arm(draft: _Draft) -> dict[str, Any]:
    return {"angle": draft.side * float(draft.rng.uniform(1.5, 2.2))}


def _extra_leg(draft: _Draft) -> dict[str, Any]:
    return {"angle": draft.side * float(draft.rng.uniform(0.85, 1.3))}


def _missing_limb(draft: _Draft) -> dict[str, Any]:
    draft.words["part"] = LIMBS[int(draft.rng.integers(4))]
    return {}


def _detached_limb(draft: _Draft) -> dict[str, Any]:
    part = draft.words["part"] = LIMBS[int(draft.rng.integers(4))]
    directions = {"near arm": (-1, 0.1), "far arm": (1, 0.1), "near leg": (-0.9, 0.25), "far leg": (0.9, 0.25)}
    reach = draft.size * (0.36 + 0.3 * draft.severity)
    return {"dx": directions[part][0] * reach, "dy": directions[part][1] * reach}


def _detached_head(draft: _Draft) -> dict[str, Any]:
    draft.words["part"] = "head"
    reach = draft.size * (0.42 + 0.35 * draft.severity)
    angle = float(draft.rng.uniform(-0.9, 0.9))
    return {"dx": reach * np.sin(angle), "dy": -reach * np.cos(angle)}


def _split_body(draft: _Draft) -> dict[str, Any]:
    draft.words["part"] = "torso, head, near arm, far arm"
    reach = draft.size * (0.28 + 0.25 * draft.severity)
    return {"dx": draft.side * reach, "dy": -reach * float(draft.rng.uniform(0.2, 0.6))}


def _absence(draft: _Draft) -> dict[str, Any]:
    return {"alpha": 0.0}


def _flicker(draft: _Draft) -> dict[str, Any] | None:
    """Off on half of each period of 2 or 4 frames."""
    period = 2 if draft.rng.random() < 0.6 else 4
    first = min(draft.frames)
    draft.frames = frozenset(frame for frame in draft.frames if (frame - first) % period < period // 2)
    return {"alpha": 0.45 * (1 - draft.severity)} if len(draft.frames) >= 2 else None


def _teleport(draft: _Draft) -> dict[str, Any] | None:
    """A jump to a place inside the frame, for a while or for good."""
    rng, scene, entity = draft.rng, draft.scene, draft.entity
    if rng.random() < 0.4:
        draft.frames = frozenset(range(min(draft.frames), scene.num_frames))
    at = sorted(draft.frames)
    margin = 0.6 * half_width(entity)
    for _ in range(20):
        reach, angle = (11 + 14 * draft.severity) * scene.height / 64, rng.uniform(0, 2 * np.pi)
        dx, dy = reach * np.cos(angle), 0.6 * reach * np.sin(angle)
        x, y = entity.track["x"][at] + dx - scene.camera[at, 0], entity.track["y"][at] + dy - scene.camera[at, 1]
        inside_x = x.min() > margin and x.max() < scene.width - margin
        if inside_x and y.min() > 0.5 * draft.size and y.max() < scene.height - 0.5 * draft.size:
            return {"dx": float(dx), "dy": float(dy)}
    return None


def _jitter(draft: _Draft) -> dict[str, Any]:
    rng, count = draft.rng, draft.scene.num_frames
    reach = (2.2 + 3.0 * draft.severity) * draft.scene.height / 64
    # Signs of period five: a period that divides the step of a scan (4 of 16 frames a second) would look like rest.
    signs = np.resize([1.0, -1.0, -1.0, 1.0, -1.0], count)
    return {
        "dx": signs * draft.side * reach * rng.uniform(0.7, 1.0, count),
        "dy": reach * rng.uniform(-0.6, 0.6, count),
    }


def _stands_on_ground(draft: _Draft) -> bool:
    return draft.actor.motion in _GROUNDED_MOTIONS and draft.entity.kind not in ("sign", "lamp")


def _float(draft: _Draft) -> dict[str, Any] | None:
    return {"amount": (6 + 9 * draft.severity) * draft.scene.height / 64} if _stands_on_ground(draft) else None


def _sink(draft: _Draft) -> dict[str, Any] | None:
    return {"amount": draft.size * (0.6 + 0.6 * draft.severity)} if _stands_on_ground(draft) else None


def _interpenetrate(draft: _Draft) -> dict[str, Any]:
    wall = draft.scene.entities[draft.index + 1]
    towards = np.sign(wall.track["x"][0] - draft.entity.track["x"][0])
    return {"amount": float(towards * draft.size * (0.6 + 0.8 * draft.severity))}


def _reverse(draft: _Draft) -> dict[str, Any] | None:
    back = min(len(draft.frames) // 2, min(draft.frames) - 1)
    fits = draft.actor.motion in ("left", "right", "down") and back >= 4
    return {"back": back} if fits else None


# ---- letters ------------------------------------------------------------------------------------------------------

Glyph = tuple[str, ...]
"""A letter's rows of cells, each "0" or "1"."""


def _glyph_distance(one: Glyph, other: Glyph) -> int:
    return sum(a != b for a, b in zip("".join(one), "".join(other), strict=True))


def _mirror_glyph(rows: Glyph) -> Glyph:
    return tuple(row[::-1] for row in rows)


def _mirrored_glyph(rng: np.random.Generator, rows: Glyph) -> Glyph | None:
    return _mirror_glyph(rows)


def _other_glyph(rng: np.random.Generator, rows: Glyph) -> Glyph | None:
    others = [GLYPHS[letter] for letter in sorted(GLYPHS) if _glyph_distance(GLYPHS[letter], rows) >= 4]
    return others[int(rng.integers(len(others)))]


def _garbled_glyph(rng: np.random.Generator, rows: Glyph) -> Glyph | None:
    """Random cells that resemble no letter and no mirrored letter; None when 200 draws found none."""
    for _ in range(200):
        bits = rng.permutation([1] * (n := int(rng.integers(6, 11))) + [0] * (15 - n))
        new = tuple("".join(map(str, bits[row * 3 : row * 3 + 3])) for row in range(5))
        if _glyph_distance(new, rows) >= 5 and all(
            min(_glyph_distance(new, glyph), _glyph_distance(new, _mirror_glyph(glyph))) >= 3
            for glyph in GLYPHS.values()
        ):
            return new
    return None


_NEW_GLYPHS = {"garbled": _garbled_glyph, "changing": _other_glyph, "mirrored": _mirrored_glyph}


def _new_glyphs(draft: _Draft) -> dict[str, Any] | None:
    """Some of a sign's letters, exchanged: {position: rows}."""
    glyphs, count = draft.entity.glyphs, len(draft.entity.glyphs)
    positions = [
        position
        for position in range(count)
        if draft.subtype != "mirrored" or _glyph_distance(glyphs[position], _mirror_glyph(glyphs[position])) >= 4
    ]
    if not positions:
        return None
    wanted = min(max(1, round(draft.severity * count * 0.8)), len(positions))
    fresh: dict[int, Glyph] = {}
    for position in sorted(int(p) for p in draft.rng.permutation(positions)[:wanted]):
        new = _NEW_GLYPHS[draft.subtype](draft.rng, glyphs[position])
        if new is None:
            return None
        fresh[position] = new
    return {"glyphs": fresh}


_NUMBERS: dict[str, Callable[[_Draft], dict[str, Any] | None]] = {
    "stretch": _stretch,
    "melt": _melt,
    "split": _split,
    "hole": _hole,
    "mutate": _mutate,
    "extra arm": _extra_arm,
    "extra leg": _extra_leg,
    "missing limb": _missing_limb,
    "detached limb": _detached_limb,
    "detached head": _detached_head,
    "split body": _split_body,
    "vanish": _absence,
    "appear": _absence,
    "flicker": _flicker,
    "teleport": _teleport,
    "jitter": _jitter,
    "float": _float,
    "sink": _sink,
    "interpenetrate": _interpenetrate,
    "reverse": _reverse,
    "garbled": _new_glyphs,
    "changing": _new_glyphs,
    "mirrored": _new_glyphs,
}
"""The numbers by which ``defects`` renders each subtype; None: the draw does not fit the scene."""
