"""How each defect changes an entity: a pure overlay on a scene, active on the defect's frames and
invisible elsewhere.

Defect + Scene → apply_defect → the entities as they are drawn on the defect's frames
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cac_align.miniature.world.draw import Entity
from cac_align.miniature.world.scene import Defect, Scene, foot

ABSENCES = ("vanish", "appear")
"""Subtypes in which an entity is missing from the picture."""


def apply_defect(defect: Defect, scene: Scene, entities: tuple[Entity, ...]) -> tuple[Entity, ...]:
    """The entities with this defect; valid on ``defect.frames`` only."""
    edited = list(entities)
    entity = entities[defect.entity]
    edited[defect.entity] = _EDITS[defect.subtype](defect, scene, entity)
    if defect.subtype == "interpenetrate":  # the wall shows through the roller where the two overlap
        edited.append(replace(entities[defect.entity + 1], see_through=0.5, depth=entity.depth + 0.01))
    return tuple(edited)


def _envelope(defect: Defect, scene: Scene, ramp: float) -> np.ndarray:
    """A curve over all frames, (T,): 0 outside the defect, rising to 1 and falling again within
    ``ramp`` frames.
    """
    t = np.arange(scene.num_frames)
    rise = np.clip(np.minimum(t - defect.first + 1, defect.last + 1 - t) / max(ramp, 1.0), 0, 1)
    return rise * rise * (3 - 2 * rise) if ramp > 2 else rise


def _quick(defect: Defect, scene: Scene) -> np.ndarray:
    return _envelope(defect, scene, 1.5)


def _slow(defect: Defect, scene: Scene) -> np.ndarray:
    return _envelope(defect, scene, 0.34 * (defect.last - defect.first + 1))


def _with_tracks(entity: Entity, **tracks: np.ndarray) -> Entity:
    return replace(entity, track={**entity.track, **tracks})


def _constant(scene: Scene, value: float) -> np.ndarray:
    return np.zeros(scene.num_frames) + value


def _stretch(defect: Defect, scene: Scene, entity: Entity) -> Entity:
    quick, zero = _quick(defect, scene), np.zeros(scene.num_frames)
    return _with_tracks(
        entity, squash=zero + defect.numbers["amount"] * quick, shear=zero + defect.numbers["shear"] * quick
    )


def _melt(defect: Defect, scene: Scene, entity: Entity) -> Entity:
    return _with_tracks(entity, melt=defect.numbers["amount"] * _quick(defect, scene))


def _split(defect: Defect, scene: Scene, entity: Entity) -> Entity:
    return _with_tracks(entity, gap=defect.numbers["amount"] * _quick(defect, scene))


def _hole(defect: Defect, scene: Scene, entity: Entity) -> Entity:
    return _with_tracks(entity, hole=_constant(scene, defect.numbers["amount"]))


def _mutate(defect: Defect, scene: Scene, entity: Entity) -> Entity:
    return replace(entity, kind=defect.words["kind"])


def _extra_limb(defect: Defect, scene: Scene, entity: Entity) -> Entity:
    return replace(entity, limbs=(*entity.limbs, defect.subtype), extra_angle=defect.numbers["angle"])


def _missing_limb(defect: Defect, scene: Scene, entity: Entity) -> Entity:
    return replace(entity, limbs=tuple(limb for limb in entity.limbs if limb != defect.words["part"]))


def _detached_part(defect: Defect, scene: Scene, entity: Entity) -> Entity:
    offset = (defect.numbers["dx"], defect.numbers["dy"])
    return replace(entity, shift=dict.fromkeys(defect.words["part"].split(", "), offset))


def _fade(defect: Defect, scene: Scene, entity: Entity) -> Entity:
    return _with_tracks(entity, alpha=_constant(scene, defect.numbers["alpha"]))


def _displace(defect: Defect, scene: Scene, entity: Entity) -> Entity:
    return _with_tracks(entity, x=entity.track["x"] + defect.numbers["dx"], y=entity.track["y"] + defect.numbers["dy"])


def _float(defect: Defect, scene: Scene, entity: Entity) -> Entity:
    return _with_tracks(entity, y=entity.track["y"] - defect.numbers["amount"] * _slow(defect, scene))


def _sink(defect: Defect, scene: Scene, entity: Entity) -> Entity:
    y = entity.track["y"]
    lowered = y + defect.numbers["amount"] * _slow(defect, scene)
    return _with_tracks(entity, floor=y + foot(entity.kind, entity.size_px), y=lowered)


def _interpenetrate(defect: Defect, scene: Scene, entity: Entity) -> Entity:
    return _with_tracks(entity, x=entity.track["x"] + defect.numbers["amount"] * _slow(defect, scene))


def _reverse(defect: Defect, scene: Scene, entity: Entity) -> Entity:
    before, back, frames = defect.first - 1, defect.numbers["back"], np.arange(scene.num_frames)
    after = before + defect.last - defect.first + 2
    clock = np.interp(frames, [before, before + back, after], [before, before - back, after])
    keys = [key for key in ("x", "y", "gait", "angle", "squash") if key in entity.track]
    return _with_tracks(entity, **{key: np.interp(clock, frames, entity.track[key]) for key in keys})


def _replace_glyphs(defect: Defect, scene: Scene, entity: Entity) -> Entity:
    glyphs = list(entity.glyphs)
    for position, rows in defect.numbers["glyphs"].items():
        glyphs[position] = rows
    return replace(entity, glyphs=tuple(glyphs))


_EDITS: dict[str, Callable[[Defect, Scene, Entity], Entity]] = {
    "stretch": _stretch,
    "melt": _melt,
    "split": _split,
    "hole": _hole,
    "mutate": _mutate,
    "extra arm": _extra_limb,
    "extra leg": _extra_limb,
    "missing limb": _missing_limb,
    "detached limb": _detached_part,
    "detached head": _detached_part,
    "split body": _detached_part,
    "vanish": _fade,
    "appear": _fade,
    "flicker": _fade,
    "teleport": _displace,
    "jitter": _displace,
    "float": _float,
    "sink": _sink,
    "interpenetrate": _interpenetrate,
    "reverse": _reverse,
    "garbled": _replace_glyphs,
    "changing": _replace_glyphs,
    "mirrored": _replace_glyphs,
}
