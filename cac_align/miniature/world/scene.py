"""Lays out scenes: where each entity is on every frame, on what ground and under what camera.

World + random stream → sample_spec → Spec (what the prompt says) → build_scene → Scene

Everything is a closed form of the frame index, so that any frame can be drawn alone and always with
the same bytes. Lengths are in pixels, velocities in pixels per frame, and y points down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from cac_align.miniature.world.draw import Entity, glyph_rows, sign_size
from cac_align.miniature.world.grammar import COLOURS, MOTIONS, OBJECTS, Actor, Spec
from cac_align.miniature.world.settings import World

GRAVITY_PX = 0.32
"""Acceleration of a bouncing object in px per frame², for frames of 64 px."""


@dataclass(frozen=True)
class Backdrop:
    """What is behind and in front of the entities, and the light."""

    # One of ``grammar.PLACES``.
    place: str
    # Seed of the texture, the flowing pattern and the noise.
    seed: int
    # Amplitude of the ground's texture in grey levels.
    texture: float = 0.0
    # Amplitude in grey levels, and speed in px per frame, of the pattern that flows over the ground.
    flow: float = 0.0
    flow_speed: float = 0.0
    # Relative amplitude, and period in frames, of the changing light.
    shade: float = 0.0
    shade_period: float = 40.0
    # Standard deviation of the sensor noise in grey levels.
    noise: float = 0.0
    # Left and right edge in px of a post in front of the entities.
    post: tuple[float, float] | None = None


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong with one entity. ``defects`` renders it, ``defect_sampling`` draws
    it.
    """

    # The anomaly type and one of its subtypes (``settings.SUBTYPES``).
    type: str
    subtype: str
    # Index of the entity in the scene.
    entity: int
    # The frames whose pixels it changes.
    frames: frozenset[int]
    # How strong it is, in (0, 1].
    severity: float
    # Words for the annotation: "who" is the entity, "part" a part of it, "kind" what it turns into.
    words: Mapping[str, str] = field(default_factory=dict)
    # The numbers by which the subtype is rendered.
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """The first frame."""
        return min(self.frames)

    @property
    def last(self) -> int:
        """The last frame."""
        return max(self.frames)


@dataclass(frozen=True, eq=False)
class Scene:
    """All that happens in a clip, ready to be drawn."""

    spec: Spec
    height: int
    width: int
    num_frames: int
    fps: float
    entities: tuple[Entity, ...]
    backdrop: Backdrop
    # Position of the camera on each frame, in px.
    camera: Float[np.ndarray, "T 2"]
    # For each ball that rolls against another solid and stops: its index and the frame from which it rests.
    stops: dict[int, int]
    # Empty in a normal clip.
    defects: tuple[Defect, ...] = ()

    def without_defects(self) -> Scene:
        """The scene of the normal twin."""
        return replace(self, defects=())


def _pick(rng: np.random.Generator, options: tuple[str, ...] | list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def foot(kind: str, size: float) -> float:
    """Distance in px from an entity's centre down to the ground on which it stands."""
    if kind == "figure":
        return 0.2 * size + 0.78 * size * 0.98 + 0.115 * size
    if kind == "sign":
        return 3.4 * size + 4 * size
    return size * {"ball": 1.0, "lamp": 1.0, "box": 0.92, "star": 1.0, "triangle": 0.85}[kind]


def half_width(entity: Entity) -> float:
    """Half the width of an entity in px."""
    if entity.kind == "sign":
        return sign_size(entity)[0]
    return entity.size_px * (0.5 if entity.kind == "figure" else 1.0)


def sample_spec(rng: np.random.Generator, world: World, want: str | None) -> Spec:
    """A prompt of this world; a defect of the anomaly type ``want`` must be possible in its scene
    (None: no matter which).
    """
    objects = [kind for kind in world.kinds if kind in OBJECTS]
    solids = [kind for kind in world.kinds if kind in (*OBJECTS, "figure")]
    pools = {
        "Object Distortion": objects,
        "Human Distortion": ["figure"],
        "Character Anomalies": ["sign"],
        "Motion Anomalies": [kind for kind in world.kinds if kind != "lamp"],
        "Physical Violations": solids,
    }
    kind = _pick(rng, pools[want] if want else list(world.kinds))
    place = _pick(rng, world.places)
    hues = [colour for colour in world.colours if not (place == "at night" and colour == "black")]
    order = rng.permutation(len(hues))
    colours = [hues[index] for index in order]
    meets = (
        world.max_entities > 1
        and "ball" in world.kinds
        and want in ("Physical Violations", "Object Distortion", "Motion Anomalies")
        and rng.random() < (0.45 if want == "Physical Violations" else 0.15)
    )
    if meets:
        actors = [
            Actor("ball", colours[0], "into"),
            Actor(_pick(rng, [k for k in objects if k != "star"]), colours[1], "still"),
        ]
    else:
        moving = want == "Physical Violations"
        motions = [
            m
            for m in MOTIONS[kind]
            if m in world.motions and m != "into" and not (moving and m in ("still", "up") and kind != "figure")
        ]
        text = _pick(rng, world.words) if kind == "sign" else ""
        actors = [Actor(kind, colours[0], _pick(rng, motions), text)]
    extra = int(rng.integers(world.max_entities)) if world.max_entities > 1 else 0
    for index in range(max(extra - (1 if meets else 0), 0)):
        kind = _pick(rng, world.kinds)
        text = _pick(rng, world.words) if kind == "sign" else ""
        motions = [m for m in MOTIONS[kind] if m in world.motions and m != "into"]
        actors.append(Actor(kind, colours[2 + index], _pick(rng, motions), text))
    return Spec(tuple(actors), place, bool(rng.random() < world.camera_drift))


def build_scene(rng: np.random.Generator, world: World, spec: Spec) -> Scene:
    """Place and move what ``spec`` asks for; what the prompt leaves open is drawn from ``rng``."""
    height, width = world.height, world.width
    unit = min(height, width) / 64
    lengths = world.num_frames
    if len(lengths) == 1:
        count = lengths[0]
    else:
        weights = np.asarray(world.length_weights or [1.0] * len(lengths), float)
        count = int(lengths[int(np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(), side="right"))])
    lanes = np.sort(rng.uniform(0.72, 0.94, len(spec.actors)))[::-1] * height
    rng.shuffle(lanes[1:])
    entities: list[Entity] = []
    stops: dict[int, int] = {}
    for index, actor in enumerate(spec.actors):
        lane = float(lanes[index])
        if index and spec.actors[index - 1].motion == "into":
            lane = float(lanes[index - 1])
        if actor.motion == "into":
            continue
        entities.append(_entity(rng, world, actor, count, lane, unit, crowd=len(spec.actors)))
        if index and spec.actors[index - 1].motion == "into":
            wall = entities.pop()
            roller, wall, stop = _meeting(rng, world, spec.actors[index - 1], wall, count, lane, unit)
            if stop is not None:
                stops[len(entities)] = stop
            entities += [roller, wall]
    camera = np.zeros((count, 2))
    if spec.drift:
        along = np.linspace(-0.5, 0.5, count)
        reach = rng.uniform(5, 11) * unit * _sign_of(rng)
        camera = np.stack([reach * along, 0.3 * rng.uniform(-1, 1) * reach * along], 1)
    backdrop = Backdrop(
        place=spec.place,
        seed=int(rng.integers(1 << 30)),
        texture=float(rng.uniform(5, 16)) if rng.random() < world.texture else 0.0,
        flow=float(rng.uniform(5, 14)) if rng.random() < world.flow else 0.0,
        flow_speed=float(rng.uniform(0.3, 1.2) * _sign_of(rng) * unit),
        shade=float(rng.uniform(0.04, 0.14)) if rng.random() < world.shading else 0.0,
        shade_period=float(rng.uniform(24, 70)),
        noise=float(rng.uniform(0.5, 2.5)) if rng.random() < world.noise else 0.0,
        post=_post(rng, width, unit) if rng.random() < world.occlusion else None,
    )
    return Scene(spec, height, width, count, world.fps, tuple(entities), backdrop, camera, stops)


def _post(rng: np.random.Generator, width: int, unit: float) -> tuple[float, float]:
    left, across = rng.uniform(0.2, 0.75) * width, rng.uniform(4, 14) * unit
    return left, left + across


def _sign_of(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


def _size(rng: np.random.Generator, actor: Actor, unit: float, crowd: int) -> float:
    if actor.kind == "figure":
        return float(rng.uniform(15.5, 18) if crowd == 1 else rng.uniform(12, 16)) * unit
    if actor.kind == "sign":
        if crowd == 1 and len(actor.text) <= 2:
            return 4.0 * unit
        return (3.0 if len(actor.text) <= 3 else 2.5) * unit
    if actor.kind == "lamp":
        return float(rng.uniform(4, 6)) * unit
    return float(rng.uniform(7.5, 10) if crowd == 1 else rng.uniform(6, 9)) * unit


def _entity(
    rng: np.random.Generator, world: World, actor: Actor, count: int, lane: float, unit: float, crowd: int
) -> Entity:
    size = _size(rng, actor, unit, crowd)
    rgb = COLOURS[actor.colour]
    entity = Entity(actor.kind, rgb, size, lane, {}, glyph_rows(actor.text) if actor.text else ())
    half, width = half_width(entity), world.width
    t = np.arange(count, dtype=np.float64)
    ground = lane - foot(actor.kind, size)
    if actor.kind == "sign":
        ground = min(max(lane - 7.4 * size, sign_size(entity)[1] + 1), world.height * 0.5)
    if actor.kind == "lamp":
        ground = rng.uniform(0.15, 0.4) * world.height
    low, high = half + 1, width - half - 1
    room = max(high - low, 1.0)
    still = rng.uniform(low, high) if room > 1 else width / 2
    x, y = np.full(count, still), np.full(count, ground)
    track: dict[str, np.ndarray] = {}
    seconds = count / 33
    if actor.motion in ("left", "right"):
        reach = room * rng.uniform(0.62, 0.98) if room > 24 * unit else room
        reach = min(reach, 44 * unit * max(seconds, 0.7))
        start = low + rng.uniform(0, room - reach)
        if rng.random() < world.passing:  # comes in from outside, or leaves: an ordinary way to appear and to vanish
            reach = 0.75 * width
            start = -half - 2 if rng.random() < 0.5 else width + half + 2 - reach
        x = start + reach * t / (count - 1)
        if actor.motion == "left":
            x = width - x
    elif actor.motion == "turn":
        reach, period = room * rng.uniform(0.6, 0.95), count * rng.uniform(0.85, 1.15)
        x = (
            low
            + rng.uniform(0, room - reach)
            + reach * (0.5 - 0.5 * np.cos(2 * np.pi * t / period + rng.uniform(-0.5, 0.5)))
        )
        if rng.random() < 0.5:
            x = width - x
    elif actor.motion in ("up", "down"):
        top = size * 1.2 + 1
        reach = max(ground - top, 4.0) * rng.uniform(0.75, 1.0)
        start = top + rng.uniform(0, max(ground - top - reach, 0))
        path = t / (count - 1)
        path = path if actor.motion == "up" else 0.45 * path + 0.55 * path * path
        y = start + reach * (path if actor.motion == "down" else 1 - path)
    elif actor.motion == "bounce":
        peak = min(rng.uniform(0.6, 1.0) * (ground - size - 1), 30 * unit)
        gravity = GRAVITY_PX * unit
        half_time = np.sqrt(2 * peak / gravity)
        phase = rng.uniform(-1, 1) * half_time
        local = (t + phase) % (2 * half_time) - half_time
        y = ground - (peak - 0.5 * gravity * local * local)
        touch = np.clip(1 - (half_time - np.abs(local)) / 1.6, 0, 1)
        track["squash"] = 0.14 * touch
        y = y + 0.1 * size * touch
        if crowd > 1 and rng.random() < 0.6:
            x = still + (rng.uniform(low, high) - still) * t / (count - 1)
    tumbles = crowd > 1 and actor.kind in ("star", "triangle", "box") and actor.motion in ("up", "down", "bounce")
    if tumbles or (actor.kind == "star" and actor.motion in ("left", "right", "turn")):
        track["angle"] = (x - x[0]) / size if actor.kind == "star" else rng.uniform(-0.06, 0.06) * t
    if actor.kind == "figure":
        if actor.motion in ("left", "right", "turn"):
            track["gait"] = x / (0.33 * size) * 0.75 + rng.uniform(0, 6.28)
        else:
            track["gait"] = np.full(count, 0.35)
        if actor.motion == "wave":
            track["wave"] = 1.25 + 0.55 * np.sin(2 * np.pi * t / rng.uniform(9, 15) + rng.uniform(0, 6.28))
    if actor.motion == "blink":
        period, duty = rng.uniform(5, 12), rng.uniform(0.35, 0.65)
        track["glow"] = np.where((t + rng.uniform(0, 12)) % period < duty * period, 1.0, 0.42)
    track["x"], track["y"] = x, y
    return replace(entity, track=track)


def _meeting(
    rng: np.random.Generator, world: World, actor: Actor, wall: Entity, count: int, lane: float, unit: float
) -> tuple[Entity, Entity, int | None]:
    """A ball that rolls against a resting solid: it stops there or bounces back with some of its
    speed.

    Returns the ball, the solid, and the frame from which the ball rests (None when it bounces
    back).
    """
    size, side = float(rng.uniform(6, 8.5)) * unit, _sign_of(rng)
    gap = size + half_width(wall) * (0.62 if wall.kind == "triangle" else 0.92 if wall.kind == "box" else 1.0)
    place = rng.uniform(0.58, 0.72) * world.width
    contact = place - gap
    hit = int(count * rng.uniform(0.3, 0.55))
    speed = (contact - size - 1) * rng.uniform(0.75, 1.0) / hit
    t = np.arange(count, dtype=np.float64)
    stops = rng.random() < 0.7
    x = contact - speed * np.maximum(hit - t, 0) - (0.0 if stops else 0.7 * speed) * np.maximum(t - hit, 0)
    if side < 0:
        x, place = world.width - x, world.width - place
    ball = Entity("ball", COLOURS[actor.colour], size, lane, {"x": x, "y": np.full(count, lane - size)})
    still = {"x": np.full(count, place), "y": np.full(count, lane - foot(wall.kind, wall.size_px))}
    return ball, replace(wall, depth=lane - 0.01, track=still), hit + 1 if stops else None
