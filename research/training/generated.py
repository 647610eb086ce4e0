"""Generated clips in a pool: what the small Wan draws, annotated by the oracle as the paper's
annotators annotate generated videos.

recipe → small Wan → clips (resumable) → oracle.analyse → anomalies (windows, boxes, words), places
→ couples → ``pool.ClipPool``

A couple is two clips of one prompt, one normal and one anomalous, by different noise: what differs
is more than the defect, as it is between real generated videos. Seeds of the noise start at
``seed``; ``HELD_OUT`` are never trained on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cac_align.core.judgement import Anomaly, Box, Window
from cac_align.core.video import Video
from cac_align.generation.build import GeneratorRecipe, load_generator
from cac_align.miniature.oracle.oracle import TOLERANCE, OracleResult, analyse
from cac_align.miniature.teacher import teacher
from cac_align.miniature.world.draw import extent
from cac_align.miniature.world.settings import PLAYGROUND, PROMPT_SEEDS, TRAIN_SEEDS
from cac_align.miniature.world.world import make_prompts
from cac_align.vlm.local import set_threads
from research.training.pool import KEPT_EVERY

HELD_OUT = range(90_000_000, 91_000_000)
"""Noise seeds of clips by which judges are measured."""
GAP_FRAMES = 4
"""Broken frames at most this far apart (a step of the first scan) belong to one anomaly."""


@dataclass(frozen=True)
class Generated:
    """Clips to draw and annotate. out: the pool's folder. model: "miniature" or a pipeline's
    folder; lora: a LoRA folder (empty: none).

    clips: how many; seed: the first noise seed. guidance: guidance scales, taken in turn. steps: of
    sampling. batch: clips per call.
    """

    out: str = "runs/miniature/generated"
    model: str = "miniature"
    lora: str = ""
    clips: int = 4000
    seed: int = 50_000_000
    guidance: tuple[float, ...] = (1.0, 2.0)
    steps: int = 10
    batch: int = 20
    threads: int = 1
    tolerance: float = TOLERANCE

    def __post_init__(self) -> None:
        if self.seed < HELD_OUT.stop and self.seed + self.clips > HELD_OUT.start:
            raise ValueError(f"noise seeds {HELD_OUT.start} to {HELD_OUT.stop} are held out, received seed={self.seed}")
        if not self.guidance or self.clips < 1 or self.batch < 1:
            raise ValueError("expected at least one guidance scale, one clip and a batch of 1")


# ---- what the oracle saw, as an annotator would write it -----------------------------------------------------------


def anomalies_of(result: OracleResult, fps: float, height: int, width: int) -> tuple[Anomaly, ...]:
    """The oracle's result as annotations: per type one anomaly for each stretch of anomalous
    frames, in order of time.

    Boxes are the extents of the entity as it was fitted (px → [0, 1000]); an absence has boxes on
    the visible frames beside it, and its window holds those (Appendix B.1.3). Stretches on which no
    box lies inside the frame are left out.
    """
    who = f"{result.colour} {result.spec.kind}"
    count = len(result.missing)
    extents = extent(result.fit.entity, np.arange(count), height, width)
    found = []
    for name, frames in result.frames_by_type.items():
        for first, last in _stretches(frames):
            absent = name == "Motion Anomalies" and bool(result.missing[first : last + 1].any())
            if absent:
                first, last = max(first - 1, 0), min(last + 1, count - 1)
            boxed = [f for f in range(first, last + 1) if extents[f] is not None and not result.missing[f]]
            boxes = {f: (Box.from_pixels(*extents[f], width, height),) for f in boxed}
            if boxes:
                window = Window(first / fps, last / fps)
                found.append(Anomaly(name, window, _reason(result, name, who, first, last, absent), who, boxes))
    return tuple(sorted(found, key=lambda anomaly: (anomaly.window, anomaly.type)))


def _reason(result: OracleResult, name: str, who: str, first: int, last: int, absent: bool) -> str:
    if absent:
        ends = first == 0, last == len(result.missing) - 1
        return f"the {who} {'suddenly appears' if ends == (True, False) else 'suddenly disappears'}"
    if name == "Motion Anomalies":
        return f"the {who} jumps to another place"
    if name == "Physical Violations":
        note = result.reasons[name]
        if "sinks" in note:
            return f"the {who} sinks into the ground"
        return (
            f"the {who} floats up without support"
            if "floats" in note
            else f"the {who} runs backwards against its motion"
        )
    return f"the {who} melts and its outline wobbles"


def _stretches(frames: np.ndarray) -> list[tuple[int, int]]:
    """First and last frame of each run of flagged frames, runs at most ``GAP_FRAMES`` apart taken
    together.
    """
    runs: list[tuple[int, int]] = []
    for frame in np.flatnonzero(frames).tolist():
        if runs and frame - runs[-1][1] <= GAP_FRAMES:
            runs[-1] = (runs[-1][0], frame)
        else:
            runs.append((frame, frame))
    return runs


def places_of(result: OracleResult, height: int, width: int) -> list[str]:
    """Where the entity is on every frame (``teacher.place``), ``teacher.AWAY`` where it is missing."""
    return [
        teacher.AWAY if gone else teacher.place(float(x / width), float(y / height))
        for x, y, gone in zip(result.fit.x, result.fit.y, result.missing, strict=True)
    ]


# ---- clips to measure judges by ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DrawnClip:
    """A generated clip with the oracle's annotations; the same names as ``world.Clip``."""

    prompt: str
    shown: Video
    status: str
    anomalies: tuple[Anomaly, ...]

    def video(self) -> Video:
        return self.shown


def held_out_clips(
    count: int,
    *,
    model: str = "miniature",
    lora: str | None = None,
    guidance: float | None = None,
    first: int = HELD_OUT.start,
) -> list[DrawnClip]:
    """``count`` clips by this generator from held-out noise (from seed ``first``), prompts of the
    prompt seeds in turn.
    """
    generator = load_generator(GeneratorRecipe(model=model, lora=lora, guidance_scale=guidance))
    clips = []
    for begin in range(0, count, 20):
        numbers = range(begin, min(begin + 20, count))
        prompts = make_prompts([PROMPT_SEEDS[number] for number in numbers], PLAYGROUND)
        videos = generator.batch(prompts, [first + number for number in numbers])
        for prompt, video in zip(prompts, videos, strict=True):
            result = analyse(prompt, video)
            anomalies = anomalies_of(result, video.fps, video.height, video.width)
            clips.append(DrawnClip(prompt, video, result.verdict.status, anomalies))
    return clips


# ---- the pool -----------------------------------------------------------------------------------------------------


def draw(recipe: Generated) -> Path:
    """Draw and annotate what is missing, then write the couples; goes on where a former call was
    stopped. Returns the pool's folder.

    Clips that do not follow their prompt are kept in ``drawn.jsonl`` and put into no couple: their
    truth is not the prompt's.
    """
    set_threads(recipe.threads)
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = _kept(out / "drawn.jsonl", recipe)
    end = rows[-1]["offset"] + rows[-1]["bytes"] if rows else 0
    generators = [
        load_generator(
            GeneratorRecipe(
                model=recipe.model, lora=recipe.lora or None, guidance_scale=scale, num_inference_steps=recipe.steps
            )
        )
        for scale in recipe.guidance
    ]
    with open(out / "pixels.u8", "ab") as pixels, open(out / "drawn.jsonl", "w", encoding="utf-8") as lines:
        pixels.truncate(end)
        lines.write("".join(json.dumps(row) + "\n" for row in rows))
        while len(rows) < recipe.clips:
            first = len(rows)
            numbers = range(first, min(first + recipe.batch, recipe.clips))
            prompts = make_prompts([TRAIN_SEEDS[number] for number in numbers], PLAYGROUND)
            generator = generators[first // recipe.batch % len(generators)]
            for number, prompt, video in zip(
                numbers, prompts, generator.batch(prompts, [recipe.seed + n for n in numbers]), strict=True
            ):
                row, kept = _annotated(prompt, video, recipe.tolerance)
                rows.append(
                    {
                        "seed": recipe.seed + number,
                        "tolerance": recipe.tolerance,
                        **row,
                        "offset": end,
                        "bytes": kept.nbytes,
                    }
                )
                pixels.write(kept.tobytes())
                end += kept.nbytes
                lines.write(json.dumps(rows[-1]) + "\n")
            pixels.flush()
            lines.flush()
            anomalous = np.mean([row["anomalies"] != [] for row in rows])
            print(f"drawn {len(rows)}/{recipe.clips} clips, {anomalous:.2f} anomalous", file=sys.stderr, flush=True)
    couples = couple(rows)
    (out / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in couples), encoding="utf-8")
    return out


def couple(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in the pool's order, a normal and a anomalous clip of one prompt in turn; the rarer kind
    of a prompt is used several times.
    """
    by: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    for row in rows:
        if row["follows"] and bool(row["anomalies"]) == row["anomalous"]:
            by.setdefault(row["prompt"], ([], []))[row["anomalous"]].append(row)
    found = []
    for normal, anomalous in by.values():
        if normal and anomalous:
            for number in range(max(len(normal), len(anomalous))):
                found += [normal[number % len(normal)], anomalous[number % len(anomalous)]]
    return found


def _annotated(prompt: str, video: Video, tolerance: float) -> tuple[dict[str, Any], np.ndarray]:
    result = analyse(prompt, video, tolerance=tolerance)
    anomalies = anomalies_of(result, video.fps, video.height, video.width)
    scan_s = [video.times_s[index] for index in video.indices_at(4.0)]
    kept = np.ascontiguousarray(video.frames(range(0, len(video), KEPT_EVERY)).pixels)
    row = {
        "world": "generated",
        "prompt": prompt,
        "fps": video.fps,
        "num_frames": len(video),
        "height": video.height,
        "width": video.width,
        "anomalies": [anomaly.to_json() for anomaly in anomalies],
        "places": places_of(result, video.height, video.width),
        "shape_error": [round(float(far), 3) for far in result.shape_error[::KEPT_EVERY]],
        "scannable": bool(teacher.visible(anomalies, scan_s)),
        "anomalous": result.verdict.status == "abnormal",
        "follows": all(result.verdict.follows.values()),
    }
    return row, kept


def _kept(path: Path, recipe: Generated) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:  # a kill tore the last line
            break
    # Pools drawn before the oracle had a tolerance were annotated with a factor of 1, and do not say so.
    found = rows[0].get("tolerance", 1.0) if rows else recipe.tolerance
    if found != recipe.tolerance:
        raise ValueError(
            f"{path} was annotated with tolerance={found}, received tolerance={recipe.tolerance}; give another out"
        )
    if rows and rows[0]["seed"] != recipe.seed:
        raise ValueError(
            f"{path} holds clips from seed {rows[0]['seed']}, received seed={recipe.seed}; give another out"
        )
    return rows[: len(rows) // recipe.batch * recipe.batch]
