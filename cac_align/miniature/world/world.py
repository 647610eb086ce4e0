"""Makes clips of the miniature world: short videos of moving things with exact annotations of their
defects.

seed → spec (``grammar``) → scene (``scene``) → perhaps defects (``defect_sampling``) → pixels
(``render``) + annotations → Clip

A clip depends on (seed, world, anomalous) only. The same seed with ``anomalous`` True and False
gives the same scene with and without its defect, except for about 3 % of the seeds, whose first
scene fits no defect of the drawn type.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from cac_align.core.encoding import write_mp4
from cac_align.core.judgement import Anomaly, Status
from cac_align.core.video import Video
from cac_align.miniature.world.annotation import annotate
from cac_align.miniature.world.defect_sampling import sample_defect, sample_subtypes
from cac_align.miniature.world.grammar import parse_prompt
from cac_align.miniature.world.render import compose, compose_defects, paint_backdrop, render
from cac_align.miniature.world.scene import Defect, Scene, build_scene, sample_spec
from cac_align.miniature.world.settings import FULL, PLAYGROUND, STUDIO, World

if TYPE_CHECKING:
    from cac_align.data.records import Record


@dataclass(frozen=True, eq=False)
class Clip:
    """A rendered clip and its annotations. ``areas`` holds each anomaly's mean share of the frame's
    area.
    """

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
        """The rendered defects, in the order of ``anomalies``."""
        return self.scene.defects

    @cached_property
    def normal_pixels(self) -> UInt8[np.ndarray, "T H W 3"]:
        """The same scene without its defects."""
        return render(self.scene.without_defects())

    def video(self) -> Video:
        """The clip as a video."""
        return Video.open(self.pixels, fps=self.fps, name=f"world-{self.seed}")

    def record(self, path: str) -> Record:
        """The annotation record of this clip, stored at ``path`` (relative to the records file)."""
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
    """The clip of this seed. With ``anomalous`` None it is anomalous with probability
    ``world.anomaly_share``.

    Raises ``ValueError`` for a negative seed, or when no anomaly of the world's types fits any of
    its scenes.
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
        clip = _clip_with_defect(rng, scene, world, want, subtypes, seed)
        if clip is not None:
            return clip
    raise ValueError(
        f"no anomaly of the types {', '.join(world.types)} fits the scenes of world {world.name!r} at seed {seed}"
    )


def make_candidate(prompt: str, seed: int, world: World = STUDIO) -> Clip:
    """A clip of a given prompt, anomalous with probability ``world.anomaly_share``, as an imperfect
    generator would make it.

    It depends on (prompt, seed, world) only. Raises ``ValueError`` for a prompt outside the
    grammar.
    """
    spec = parse_prompt(prompt)
    digest = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")
    anomalous = np.random.default_rng((0xCAD, digest, seed)).random() < world.anomaly_share
    for attempt in range(60):
        rng = np.random.default_rng((0xCAD, digest, seed, attempt))
        scene = build_scene(rng, world, spec)
        if not anomalous:
            frames = np.arange(scene.num_frames)
            pixels = compose(scene, frames, paint_backdrop(scene, frames), scene.entities)
            return Clip(spec.prompt, pixels, world.fps, "normal", (), scene, seed)
        want = world.types[int(rng.integers(len(world.types)))]
        clip = _clip_with_defect(rng, scene, world, want, dict(world.subtypes), seed)
        if clip is not None:
            return clip
    raise ValueError(f"no anomaly of the types {', '.join(world.types)} fits the prompt {prompt!r}")


class Renderer:
    """A stand-in for a text-to-video model: renders the prompt's scene, anomalous as often as
    ``world.anomaly_share`` says.
    """

    def __init__(self, world: World = STUDIO) -> None:
        self.world = world

    @property
    def provenance(self) -> dict[str, str]:
        """What the videos were made with."""
        return {
            "generator": "miniature world",
            "world": self.world.name,
            "anomaly_share": repr(self.world.anomaly_share),
        }

    def __call__(self, prompt: str, seed: int) -> Video:
        return make_candidate(prompt, seed, self.world).video()


def _clip_with_defect(
    rng: np.random.Generator, scene: Scene, world: World, want: str, subtypes: Mapping[str, tuple[str, ...]], seed: int
) -> Clip | None:
    frames = np.arange(scene.num_frames)
    backdrop = paint_backdrop(scene, frames)
    clean = compose(scene, frames, backdrop, scene.entities)
    for name in sample_subtypes(rng, scene, subtypes[want], tries=4):
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
    """The normal pixels with the frames of the scene's defects redrawn."""
    hit = np.asarray(sorted(set().union(*(defect.frames for defect in scene.defects))))
    pixels = clean.copy()
    pixels[hit] = compose_defects(scene, hit, backdrop[hit])
    return pixels


def _visible(defect: Defect, pixels: np.ndarray, clean: np.ndarray, scene: Scene) -> bool:
    """Whether every frame of the defect differs from the normal one, and most of them clearly.

    A pixel counts as different from 24 of 255 levels on.
    """
    frames = sorted(defect.frames)
    change = np.abs(pixels[frames].astype(np.int16) - clean[frames]).max(-1) >= 24
    counts = change.sum((1, 2)) / (scene.height * scene.width / 4096)
    return bool(counts.min() >= 3 and np.median(counts) >= 16)


def stream(seeds: Iterable[int], world: World = FULL, *, anomalous: bool | None = None) -> Iterator[Clip]:
    """The clips of these seeds, one after another; none is kept in memory."""
    for seed in seeds:
        yield make_clip(seed, world, anomalous=anomalous)


def make_prompts(seeds: Iterable[int], world: World = PLAYGROUND) -> list[str]:
    """The prompts of these seeds, without rendering a clip. Generated clips take theirs from
    PROMPT_SEEDS.
    """
    prompts = []
    for seed in seeds:
        rng = np.random.default_rng((0xCAC, 0, seed))
        rng.random()
        prompts.append(sample_spec(rng, world, world.types[int(rng.integers(len(world.types)))]).prompt)
    return prompts


def write_world(
    n: int,
    seed: int,
    out_dir: str | Path,
    world: World = PLAYGROUND,
    progress: Callable[[int], Any] | None = None,
) -> Path:
    """Write ``n`` clips of the seeds ``seed``, ``seed`` + 1, … as mp4 files with ``records.jsonl``,
    and return its path.

    Every second clip is anomalous. progress: called with 1 per clip. Raises ``ValueError`` unless
    ``n`` is a positive even number.
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
            if progress is not None:
                progress(1)
            yield clip.record(name)

    write_records(out / "records.jsonl", records())
    return out / "records.jsonl"
