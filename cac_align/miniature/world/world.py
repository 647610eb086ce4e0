"""The miniature world: short clips of moving things with exact knowledge of what is wrong in them.

seed → scene (prompt, entities, backdrop, camera) → perhaps defects → pixels, window, boxes, words → ``Clip``

Deterministic by (seed, world, anomalous), streamed without storing. The same seed with ``anomalous`` True and False
is the same scene with and without its defect (but for about 3 % of seeds, whose first scene fits no defect of the drawn type). Seed ranges: TRAIN_SEEDS for every training, VALID_SEEDS for choices, TEST_SEEDS for numbers,
PROMPT_SEEDS for prompts of generated clips. Prompts: ``grammar``; geometry: ``scene``; pixels: ``draw``; what goes wrong: ``defects``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from cac_align.core.encoding import write_mp4
from cac_align.core.judgement import ANOMALY_TYPES, Anomaly, Status
from cac_align.core.video import Video
from cac_align.miniature.world.annotation import annotate, pixel_boxes
from cac_align.miniature.world.defects import SUBTYPES, Defect, defect_order, sample_defect
from cac_align.miniature.world.grammar import (
    COLOURS,
    KINDS,
    MOTIONS,
    PLACES,
    VOCABULARY,
    WORDS,
    Actor,
    Spec,
    parse_prompt,
)
from cac_align.miniature.world.render import compose, compose_defects, paint_backdrop, render
from cac_align.miniature.world.scene import Scene, build_scene, sample_spec

if TYPE_CHECKING:
    from cac_align.data.records import Record

TRAIN_SEEDS = range(0, 1_000_000)
VALID_SEEDS = range(1_000_000, 2_000_000)
TEST_SEEDS = range(2_000_000, 3_000_000)
PROMPT_SEEDS = range(3_000_000, 4_000_000)

_ALL_MOTIONS = tuple(sorted({motion for motions in MOTIONS.values() for motion in motions}))


@dataclass(frozen=True)
class World:
    """What can happen in a clip. Shares are probabilities per clip in [0, 1].

    height, width: px, multiples of 16 from 64 to 512. num_frames: allowed lengths (each 4k + 1, 17 to 81), drawn with ``length_weights``.
    kinds, colours, places, motions, words: what prompts may name. max_entities: most entities in a scene.
    texture, flow, shading, camera_drift, occlusion, noise: shares of clips with a textured ground, something flowing over it,
    changing light, a drifting camera, a post in front, sensor noise; passing: share of left/right movers that enter or leave the frame. anomaly_share: share of anomalous clips when nothing is asked for.
    types: anomaly types that occur, drawn evenly. second_defect: share of anomalous clips with two defects. subtypes: by type.
    """

    name: str = "full"
    height: int = 64
    width: int = 64
    num_frames: tuple[int, ...] = (17, 25, 33, 41, 49, 65, 81)
    length_weights: tuple[float, ...] = (0.06, 0.12, 0.34, 0.2, 0.18, 0.06, 0.04)
    fps: float = 16.0
    kinds: tuple[str, ...] = KINDS
    colours: tuple[str, ...] = tuple(COLOURS)
    places: tuple[str, ...] = tuple(PLACES)
    motions: tuple[str, ...] = _ALL_MOTIONS
    words: tuple[str, ...] = WORDS
    max_entities: int = 3
    texture: float = 0.7
    flow: float = 0.35
    shading: float = 0.3
    camera_drift: float = 0.3
    occlusion: float = 0.3
    passing: float = 0.2
    noise: float = 0.6
    anomaly_share: float = 0.5
    second_defect: float = 0.12
    types: tuple[str, ...] = ANOMALY_TYPES
    subtypes: tuple[tuple[str, tuple[str, ...]], ...] = tuple(SUBTYPES.items())

    def __post_init__(self) -> None:
        for side, name in ((self.height, "height"), (self.width, "width")):
            if not (64 <= side <= 512 and side % 16 == 0):
                raise ValueError(f"World.{name} must be a multiple of 16 from 64 to 512 px, received {side}")
        for count in self.num_frames:
            if not (17 <= count <= 81 and count % 4 == 1):
                raise ValueError(
                    f"World.num_frames must be 4k + 1 (Wan's rule) from 17 to 81: 17, 21, …, 81; received {count}"
                )
        if len(self.length_weights) not in (0, len(self.num_frames)):
            object.__setattr__(self, "length_weights", ())
        for name, allowed in (
            ("kinds", KINDS),
            ("colours", COLOURS),
            ("places", PLACES),
            ("motions", _ALL_MOTIONS),
            ("words", WORDS),
        ):
            unknown = sorted(set(getattr(self, name)) - set(allowed))
            if unknown or not getattr(self, name):
                raise ValueError(f"World.{name} must name some of {', '.join(allowed)}; received {unknown or 'none'}")
        if unknown := sorted(set(self.types) - set(ANOMALY_TYPES)):
            raise ValueError(f"World.types must be some of {', '.join(ANOMALY_TYPES)}; received {unknown}")


FULL = World()
"""The world that judges are trained and measured in."""

STUDIO = World(
    name="studio",
    num_frames=(33,),
    length_weights=(),
    kinds=("ball", "box", "figure", "sign"),
    colours=("red", "green", "blue", "yellow", "purple", "cyan"),
    places=("on grass", "on sand", "in a room", "at night"),
    motions=("left", "right", "up", "down", "bounce", "still"),
    words=WORDS[:6],
    max_entities=1,
    texture=0.0,
    flow=0.0,
    shading=0.0,
    camera_drift=0.0,
    occlusion=0.0,
    passing=0.0,
    noise=0.0,
    anomaly_share=0.4,
    second_defect=0.0,
)
"""The narrower world of plain scenes: one large entity, plain ground, 33 frames, still camera."""

PLAYGROUND = replace(
    STUDIO,
    name="playground",
    num_frames=(17,),
    kinds=("ball", "box"),
    places=("on grass", "on sand", "at night"),
    types=("Object Distortion", "Motion Anomalies", "Physical Violations"),
)
"""The world that the small Wan learns in forty minutes of one core: a ball or a box on plain ground, 17 frames (1.06 s)."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A rendered clip and the truth about it. pixels: uint8 (T, H, W, 3) RGB."""

    prompt: str
    pixels: UInt8[np.ndarray, "T H W 3"]
    fps: float
    status: Status
    anomalies: tuple[Anomaly, ...]
    scene: Scene
    seed: int
    areas: tuple[float, ...] = ()

    @property
    def defects(self) -> tuple[Defect, ...]:
        return self.scene.defects

    @cached_property
    def normal_pixels(self) -> UInt8[np.ndarray, "T H W 3"]:
        """The same scene without its defects, drawn now."""
        return render(self.scene.without_defects())

    def video(self) -> Video:
        return Video.open(self.pixels, fps=self.fps, name=f"world-{self.seed}")

    def record(self, path: str) -> Record:
        """The annotation record of this clip stored at ``path`` (relative to the records file)."""
        from cac_align.data.records import Record

        count, height, width = self.pixels.shape[:3]
        extra = {
            "seed": self.seed,
            "defects": [
                {"subtype": defect.subtype, "severity": round(defect.severity, 4), "area_share": round(area, 4)}
                for defect, area in zip(self.defects, self.areas, strict=True)
            ],
        }
        name = f"{self.seed}-{self.status}"
        return Record(
            name,
            path,
            self.prompt,
            self.fps,
            count,
            width,
            height,
            self.status,
            self.anomalies,
            "world",
            "audited",
            extra,
        )


def make_clip(seed: int, world: World = FULL, *, anomalous: bool | None = None) -> Clip:
    """The clip of this seed. ``anomalous`` None: decided by the seed with probability ``world.anomaly_share``.

    Raises ``ValueError`` for a negative seed, or when no anomaly of the world's types fits any of its scenes.
    """
    if seed < 0:
        raise ValueError(f"seed must be a non-negative integer, received {seed}")
    subtypes = dict(world.subtypes)
    for attempt in range(60):
        rng = np.random.default_rng((0xCAC, attempt, seed))
        if attempt == 0:  # decided once: a scene that fits no defect must not shift the shares
            decided = rng.random() < world.anomaly_share
            want = world.types[int(rng.integers(len(world.types)))]
        spec = sample_spec(rng, world, want)
        scene = build_scene(rng, world, spec)
        frames = np.arange(scene.num_frames)
        if not (decided if anomalous is None else anomalous):
            backdrop = paint_backdrop(scene, frames)
            return Clip(
                spec.prompt, compose(scene, frames, backdrop, scene.entities), world.fps, "normal", (), scene, seed
            )
        clip = _with_defect(rng, scene, world, want, subtypes, seed)
        if clip is not None:
            return clip
    raise ValueError(
        f"no anomaly of the types {', '.join(world.types)} fits the scenes of world {world.name!r} at seed {seed}"
    )


def make_candidate(prompt: str, seed: int, world: World = STUDIO) -> Clip:
    """A clip of a given prompt, as a generator that errs would make it: broken with probability ``world.anomaly_share``.

    Deterministic by (prompt, seed, world). Raises ``ValueError`` for a prompt outside the grammar.
    """
    spec = parse_prompt(prompt)
    digest = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")
    broken = np.random.default_rng((0xCAD, digest, seed)).random() < world.anomaly_share
    for attempt in range(60):
        rng = np.random.default_rng((0xCAD, digest, seed, attempt))
        scene = build_scene(rng, world, spec)
        if not broken:
            frames = np.arange(scene.num_frames)
            pixels = compose(scene, frames, paint_backdrop(scene, frames), scene.entities)
            return Clip(spec.prompt, pixels, world.fps, "normal", (), scene, seed)
        want = world.types[int(rng.integers(len(world.types)))]
        clip = _with_defect(rng, scene, world, want, dict(world.subtypes), seed)
        if clip is not None:
            return clip
    raise ValueError(f"no anomaly of the types {', '.join(world.types)} fits the prompt {prompt!r}")


class Renderer:
    """A stand-in for a text-to-video model: renders the prompt's scene, broken as often as ``world.anomaly_share`` says."""

    def __init__(self, world: World = STUDIO) -> None:
        self.world = world

    @property
    def provenance(self) -> dict[str, str]:
        return {
            "generator": "miniature world",
            "world": self.world.name,
            "anomaly_share": repr(self.world.anomaly_share),
        }

    def __call__(self, prompt: str, seed: int) -> Video:
        return make_candidate(prompt, seed, self.world).video()


def _with_defect(
    rng: np.random.Generator, scene: Scene, world: World, want: str, subtypes: Mapping[str, tuple[str, ...]], seed: int
) -> Clip | None:
    frames = np.arange(scene.num_frames)
    backdrop = paint_backdrop(scene, frames)
    clean = compose(scene, frames, backdrop, scene.entities)
    for name in defect_order(rng, scene, subtypes[want], tries=4):
        defect = sample_defect(rng, scene, want, name)
        if defect is None:
            continue
        pixels = _overlay(replace(scene, defects=(defect,)), clean, backdrop)
        if not _visible(defect, pixels, clean, scene):
            continue
        wrong = replace(scene, defects=(defect,))
        if rng.random() < world.second_defect:
            another = world.types[int(rng.integers(len(world.types)))]
            other = sample_defect(rng, scene, another, subtypes[another][int(rng.integers(len(subtypes[another])))])
            if (
                other is not None
                and other.entity != defect.entity
                and "interpenetrate" not in (other.subtype, defect.subtype)
            ):
                alone = _overlay(replace(scene, defects=(other,)), clean, backdrop)
                if _visible(other, alone, clean, scene):
                    wrong = replace(scene, defects=(defect, other))
                    pixels = _overlay(wrong, clean, backdrop)
        annotated = [annotate(each, wrong) for each in wrong.defects]
        if any(not anomaly.boxes for anomaly, _ in annotated):
            continue
        anomalies = tuple(anomaly for anomaly, _ in annotated)
        areas = tuple(area for _, area in annotated)
        return Clip(scene.spec.prompt, pixels, world.fps, "abnormal", anomalies, wrong, seed, areas)
    return None


def _overlay(scene: Scene, clean: np.ndarray, backdrop: np.ndarray) -> np.ndarray:
    hit = np.asarray(sorted(set().union(*(defect.frames for defect in scene.defects))))
    pixels = clean.copy()
    pixels[hit] = compose_defects(scene, hit, backdrop[hit])
    return pixels


def _visible(defect: Defect, pixels: np.ndarray, clean: np.ndarray, scene: Scene) -> bool:
    """Every frame of the defect differs, and most of them clearly: on enough pixels by at least 24 of 255 levels."""
    frames = sorted(defect.frames)
    change = np.abs(pixels[frames].astype(np.int16) - clean[frames]).max(-1) >= 24
    counts = change.sum((1, 2)) / (scene.height * scene.width / 4096)
    return bool(counts.min() >= 3 and np.median(counts) >= 16)


def stream(seeds: Iterable[int], world: World = FULL, *, anomalous: bool | None = None) -> Iterator[Clip]:
    """Clips of these seeds, one after another, nothing kept."""
    for seed in seeds:
        yield make_clip(seed, world, anomalous=anomalous)


def make_prompts(seeds: Iterable[int], world: World = PLAYGROUND) -> list[str]:
    """Prompts of this world without drawing anything: what generation is asked for. Use PROMPT_SEEDS."""
    prompts = []
    for seed in seeds:
        rng = np.random.default_rng((0xCAC, 0, seed))
        rng.random()
        prompts.append(sample_spec(rng, world, world.types[int(rng.integers(len(world.types)))]).prompt)
    return prompts


def write_world(n: int, seed: int, out_dir: str | Path, world: World = FULL) -> Path:
    """Write ``n`` clips (half normal, half anomalous) of seeds ``seed``, ``seed`` + 1, … as mp4 with ``records.jsonl``; returns its path.

    Raises ``ValueError`` unless ``n`` is a positive even number.
    """
    from cac_align.data.records import write_records

    if n <= 0 or n % 2:
        raise ValueError(f"n must be a positive even number (half normal, half anomalous), received {n}")
    out = Path(out_dir)
    (out / "videos").mkdir(parents=True, exist_ok=True)

    def records():
        for index in range(n):
            clip = make_clip(seed + index, world, anomalous=bool(index % 2))
            name = f"videos/{clip.seed}-{clip.status}.mp4"
            write_mp4(out / name, clip.pixels, clip.fps)
            yield clip.record(name)

    write_records(out / "records.jsonl", records())
    return out / "records.jsonl"


__all__ = [
    "FULL", "PLAYGROUND", "PROMPT_SEEDS", "STUDIO", "TEST_SEEDS", "TRAIN_SEEDS", "VALID_SEEDS", "VOCABULARY", "Actor", "Clip", "Renderer", "Scene", "Spec", "World",
    "make_candidate", "make_clip", "make_prompts", "parse_prompt", "pixel_boxes", "render", "stream", "write_world",
]  # fmt: skip
