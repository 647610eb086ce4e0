"""What can go wrong: each defect is a pure overlay on a scene, active on named frames and invisible everywhere else.

scene + type → sample_defect → Defect (entity, subtype, frames, severity) → apply: the edited entities on those frames

| type | subtypes |
|---|---|
| Object Distortion | stretch, melt, split, hole, mutate |
| Human Distortion | extra arm, extra leg, missing limb, detached limb, detached head, split body |
| Motion Anomalies | vanish, appear, flicker, teleport, jitter |
| Physical Violations | float, sink, interpenetrate, reverse |
| Character Anomalies | garbled, changing, mirrored |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cac_align.miniature.world.draw import LIMBS, Entity
from cac_align.miniature.world.grammar import GLYPHS, OBJECTS
from cac_align.miniature.world.scene import Scene, foot, half_width

SUBTYPES: dict[str, tuple[str, ...]] = {
    "Object Distortion": ("stretch", "melt", "split", "hole", "mutate"),
    "Human Distortion": ("extra arm", "extra leg", "missing limb", "detached limb", "detached head", "split body"),
    "Motion Anomalies": ("vanish", "appear", "flicker", "teleport", "jitter"),
    "Physical Violations": ("float", "sink", "interpenetrate", "reverse"),
    "Character Anomalies": ("garbled", "changing", "mirrored"),
}
ABSENCES = ("vanish", "appear")
SLOW = {"float": 8, "sink": 6, "interpenetrate": 6, "reverse": 8, "flicker": 3, "jitter": 3, "changing": 3}
"""Fewest frames on which a subtype can be told from an ordinary movement."""
GROUNDED = ("left", "right", "turn", "still", "wave", "into")


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong with entity number ``entity`` on ``frames`` (those whose pixels it changes). severity in (0, 1]."""

    type: str
    subtype: str
    entity: int
    frames: frozenset[int]
    severity: float
    words: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first(self) -> int:
        return min(self.frames)

    @property
    def last(self) -> int:
        return max(self.frames)

    def apply(self, scene: Scene, entities: tuple[Entity, ...]) -> tuple[Entity, ...]:
        """The scene's entities with this defect; valid on ``frames`` only."""
        edited = list(entities)
        edited[self.entity] = self._edit(scene, entities[self.entity])
        if self.subtype == "interpenetrate":  # the wall shows through the roller where the two overlap
            wall = entities[self.entity + 1]
            edited.append(replace(wall, see_through=0.5, depth=entities[self.entity].depth + 0.01))
        return tuple(edited)

    def _bump(self, scene: Scene, ramp: float) -> np.ndarray:
        t = np.arange(scene.num_frames)
        rise = np.clip(np.minimum(t - self.first + 1, self.last + 1 - t) / max(ramp, 1.0), 0, 1)
        return rise * rise * (3 - 2 * rise) if ramp > 2 else rise

    def _edit(self, scene: Scene, entity: Entity) -> Entity:
        track, value, name = dict(entity.track), self.numbers, self.subtype
        slow = self._bump(scene, 0.34 * (self.last - self.first + 1))
        quick = self._bump(scene, 1.5)
        zero = np.zeros(scene.num_frames)
        if name == "stretch":
            track["squash"] = zero + value["amount"] * quick
            track["shear"] = zero + value["shear"] * quick
        elif name == "melt":
            track["melt"] = value["amount"] * quick
        elif name == "split":
            track["gap"] = value["amount"] * quick
        elif name == "hole":
            track["hole"] = zero + value["amount"]
        elif name == "mutate":
            return replace(entity, kind=self.words["kind"])
        elif name in ("extra arm", "extra leg"):
            return replace(entity, limbs=(*entity.limbs, name), extra_angle=value["angle"])
        elif name == "missing limb":
            return replace(entity, limbs=tuple(limb for limb in entity.limbs if limb != self.words["part"]))
        elif name in ("detached limb", "detached head", "split body"):
            shift = dict.fromkeys(self.words["part"].split(", "), (value["dx"], value["dy"]))
            return replace(entity, shift=shift)
        elif name in (*ABSENCES, "flicker"):
            track["alpha"] = zero + value["alpha"]
        elif name in ("teleport", "jitter"):
            track["x"], track["y"] = track["x"] + value["dx"], track["y"] + value["dy"]
        elif name == "float":
            track["y"] = track["y"] - value["amount"] * slow
        elif name == "sink":
            track["floor"] = track["y"] + foot(entity.kind, entity.size_px)
            track["y"] = track["y"] + value["amount"] * slow
        elif name == "interpenetrate":
            track["x"] = track["x"] + value["amount"] * slow
        elif name == "reverse":
            span, back = self.last - self.first + 1, value["back"]
            turn = self.first - 1 + back
            clock = np.interp(
                np.arange(scene.num_frames),
                [self.first - 1, turn, self.first + span],
                [self.first - 1, self.first - 1 - back, self.first + span],
            )
            for key in ("x", "y", "gait", "angle", "squash"):
                if key in track:
                    track[key] = np.interp(clock, np.arange(scene.num_frames), track[key])
        elif name in ("garbled", "changing", "mirrored"):
            glyphs = list(entity.glyphs)
            for position, rows in value["glyphs"].items():
                glyphs[position] = rows
            return replace(entity, glyphs=tuple(glyphs))
        return replace(entity, track=track)


# ---- choosing -----------------------------------------------------------------------------------------------------


def _span(
    rng: np.random.Generator, count: int, least: int, first: int = 1, last: int | None = None
) -> tuple[int, int] | None:
    """First and last frame of a defect: 2 frames to seconds, more than half of them under one second at 16 fps."""
    last = count - 1 if last is None else last
    room = last - first + 1
    draw = rng.random()
    low, high = (2, 3) if draw < 0.1 else (4, 8) if draw < 0.42 else (9, 15) if draw < 0.74 else (16, 40)
    length = int(rng.integers(low, high + 1))
    length = min(max(length, least), room, max(int(0.7 * count), least))
    if length < least:
        return None
    start = first + int(rng.integers(room - length + 1))
    return start, start + length - 1


def _distance(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    return sum(a != b for a, b in zip("".join(one), "".join(other), strict=True))


def _mirror(rows: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(row[::-1] for row in rows)


def _glyph_change(
    rng: np.random.Generator, entity: Entity, name: str, severity: float
) -> dict[int, tuple[str, ...]] | None:
    count = len(entity.glyphs)
    positions = [
        p for p in range(count) if name != "mirrored" or _distance(entity.glyphs[p], _mirror(entity.glyphs[p])) >= 4
    ]
    if not positions:
        return None
    wanted = min(max(1, round(severity * count * 0.8)), len(positions))
    chosen = sorted(int(p) for p in rng.permutation(positions)[:wanted])
    fresh: dict[int, tuple[str, ...]] = {}
    letters = sorted(GLYPHS)
    for position in chosen:
        rows = entity.glyphs[position]
        if name == "mirrored":
            fresh[position] = _mirror(rows)
        elif name == "changing":
            others = [GLYPHS[letter] for letter in letters if _distance(GLYPHS[letter], rows) >= 4]
            fresh[position] = others[int(rng.integers(len(others)))]
        else:
            for _ in range(200):
                bits = rng.permutation([1] * (n := int(rng.integers(6, 11))) + [0] * (15 - n))
                new = tuple("".join(map(str, bits[row * 3 : row * 3 + 3])) for row in range(5))
                if (
                    _distance(new, rows) >= 5
                    and min(min(_distance(new, g), _distance(new, _mirror(g))) for g in GLYPHS.values()) >= 3
                ):
                    fresh[position] = new
                    break
            else:
                return None
    return fresh


def defect_order(rng: np.random.Generator, scene: Scene, subtypes: tuple[str, ...], tries: int) -> list[str]:
    """Subtypes to try on a scene, each ``tries`` times in a row so that the demanding ones are not crowded out."""
    order = [subtypes[index] for index in rng.permutation(len(subtypes))]
    if scene.stops and "interpenetrate" in order and rng.random() < 0.75:
        order.sort(key=lambda name: name != "interpenetrate")
    return [name for name in order for _ in range(tries)]


def sample_defect(rng: np.random.Generator, scene: Scene, kind_of: str, name: str) -> Defect | None:
    """A defect of type ``kind_of`` and subtype ``name`` on this scene, or None when this draw does not fit."""
    entity_at = _main_entity(rng, scene, kind_of, name)
    if entity_at is None:
        return None
    entity, actor = scene.entities[entity_at], scene.spec.actors[entity_at]
    severity, count, size = float(rng.uniform(0.35, 1.0)), scene.num_frames, entity.size_px
    span = _span(rng, count, SLOW.get(name, 2))
    side = 1.0 if rng.random() < 0.5 else -1.0
    words = {"who": f"{actor.colour} {actor.kind}"}
    numbers: dict[str, Any] = {}
    if name == "vanish":
        span = span if rng.random() < 0.6 else (int(rng.integers(int(0.25 * count), int(0.9 * count))), count - 1)
        numbers["alpha"] = 0.0
    elif name == "appear":
        span, numbers["alpha"] = (0, int(rng.integers(2, max(int(0.7 * count), 3)))), 0.0
    elif name == "interpenetrate":
        if entity_at not in scene.stops:
            return None
        span = _span(rng, count, SLOW[name], first=scene.stops[entity_at])
        towards = np.sign(scene.entities[entity_at + 1].track["x"][0] - entity.track["x"][0])
        numbers["amount"] = float(towards * size * (0.6 + 0.8 * severity))
    if span is None:
        return None
    first, last = span
    frames = frozenset(range(first, last + 1))
    length = last - first + 1
    if name == "stretch":
        numbers |= {"amount": side * (0.28 + 0.34 * severity), "shear": float(rng.uniform(-0.35, 0.35))}
    elif name == "melt":
        numbers["amount"] = size * (0.18 + 0.3 * severity)
    elif name == "split":
        numbers["amount"] = size * (0.22 + 0.42 * severity)
    elif name == "hole":
        numbers["amount"] = size * (0.3 + 0.25 * severity)
    elif name == "mutate":
        others = [kind for kind in OBJECTS if kind != entity.kind]
        words["kind"] = others[int(rng.integers(len(others)))]
    elif name == "extra arm":
        numbers["angle"] = side * float(rng.uniform(1.5, 2.2))
    elif name == "extra leg":
        numbers["angle"] = side * float(rng.uniform(0.85, 1.3))
    elif name == "missing limb":
        words["part"] = LIMBS[int(rng.integers(4))]
    elif name == "detached limb":
        words["part"] = LIMBS[int(rng.integers(4))]
        outward = {"near arm": (-1, 0.1), "far arm": (1, 0.1), "near leg": (-0.9, 0.25), "far leg": (0.9, 0.25)}[
            words["part"]
        ]
        reach = size * (0.36 + 0.3 * severity)
        numbers |= {"dx": outward[0] * reach, "dy": outward[1] * reach}
    elif name == "detached head":
        words["part"] = "head"
        reach = size * (0.42 + 0.35 * severity)
        angle = float(rng.uniform(-0.9, 0.9))
        numbers |= {"dx": reach * np.sin(angle), "dy": -reach * np.cos(angle)}
    elif name == "split body":
        words["part"] = "torso, head, near arm, far arm"
        reach = size * (0.28 + 0.25 * severity)
        numbers |= {"dx": side * reach, "dy": -reach * float(rng.uniform(0.2, 0.6))}
    elif name == "flicker":
        period = 2 if rng.random() < 0.6 else 4
        off = [frame for frame in range(first, last + 1) if (frame - first) % period < period // 2]
        frames, numbers["alpha"] = frozenset(off), 0.45 * (1 - severity)
        if len(off) < 2:
            return None
    elif name == "teleport":
        if rng.random() < 0.4:
            frames = frozenset(range(first, count))
        for _ in range(20):
            reach, angle = (11 + 14 * severity) * scene.height / 64, rng.uniform(0, 2 * np.pi)
            dx, dy = reach * np.cos(angle), 0.6 * reach * np.sin(angle)
            at = sorted(frames)
            x, y = entity.track["x"][at] + dx - scene.camera[at, 0], entity.track["y"][at] + dy - scene.camera[at, 1]
            half = 0.6 * half_width(entity)
            if (
                x.min() > half
                and x.max() < scene.width - half
                and y.min() > 0.5 * size
                and y.max() < scene.height - 0.5 * size
            ):
                break
        else:
            return None
        numbers |= {"dx": float(dx), "dy": float(dy)}
    elif name == "jitter":
        reach = (2.2 + 3.0 * severity) * scene.height / 64
        # Signs of period five: one that divides the step of a scan (4 of 16 frames a second) would be still wherever it is looked at.
        flip = np.resize([1.0, -1.0, -1.0, 1.0, -1.0], count)
        numbers |= {
            "dx": flip * side * reach * rng.uniform(0.7, 1.0, count),
            "dy": reach * rng.uniform(-0.6, 0.6, count),
        }
    elif name in ("float", "sink"):
        if actor.motion not in GROUNDED or entity.kind in ("sign", "lamp"):
            return None
        numbers["amount"] = (6 + 9 * severity) * scene.height / 64 if name == "float" else size * (0.6 + 0.6 * severity)
    elif name == "reverse":
        if actor.motion not in ("left", "right", "down"):
            return None
        back = min(length // 2, first - 1)
        if back < 4:
            return None
        numbers["back"] = back
    elif name in ("garbled", "changing", "mirrored"):
        glyphs = _glyph_change(rng, entity, name, severity)
        if glyphs is None:
            return None
        numbers["glyphs"] = glyphs
    return Defect(kind_of, name, entity_at, frames, severity, words, numbers)


def _main_entity(rng: np.random.Generator, scene: Scene, kind_of: str, name: str) -> int | None:
    """Which entity suffers. Any that can, so that the main one is not the only suspect."""
    wanted = {
        "Object Distortion": OBJECTS,
        "Human Distortion": ("figure",),
        "Character Anomalies": ("sign",),
        "Motion Anomalies": (*OBJECTS, "figure", "sign"),
        "Physical Violations": (*OBJECTS, "figure"),
    }[kind_of]
    able = [index for index, entity in enumerate(scene.entities) if entity.kind in wanted]
    if name == "interpenetrate":
        able = [index for index in able if index in scene.stops]
    return able[int(rng.integers(len(able)))] if able else None
