"""What a small judge is shown while it learns: world clips in a pool, made to look generated, asked about as at inference.

seeds → ClipPool (rendered once, kept on disk at 8 fps) → clip → degrade (blur, noise, tint) → conversation + the teacher's answer

Three kinds of lesson for the two-turn judge, one for the other: ``pair`` (two neighbouring frames, boxes: the single-frame warm-up,
two frames being what one temporal patch holds), ``scan`` (turn 1), ``look`` (turn 2, on right, shifted, too wide and wrong windows),
and the holistic scores. A batch holds clips of one length and one kind, so that nothing is padded.
Everything is drawn from a generator seeded by (seed, step): lessons depend on nothing that happened before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cac_align.judgement import Anomaly, Turn, Window, hull, shown_frames
from cac_align.miniature import teacher
from cac_align.miniature.grammar import parse_prompt
from cac_align.video import Frames, Video
from cac_align.vlm.protocol import Conversation

KEPT_EVERY = 2
"""Source frames kept in the pool: every second one of 16 fps, because turn 2 looks at 8."""


@dataclass(frozen=True)
class LessonPlan:
    """Shares and strengths of what the judge is shown. Shares lie in [0, 1].

    wording: the instructions' wording (``cac_align.cac.prompts``). studio: share of clips from the plain world.
    degraded: share of clips that are made to look generated. look: share of turn-2 batches in the joint stage; pair: of frame pairs.
    hard_looks: among turn 2's abnormal windows, the share that is shifted or too wide; wrong_claim: share of looks whose suspicion
    names another defect than the window shows. scan_fps, look_fps: as in ``cac_align.cac.two_turn.TwoTurn``.
    """

    wording: str = "brief"
    studio: float = 0.35
    degraded: float = 0.5
    look: float = 0.4
    pair: float = 0.1
    hard_looks: float = 0.3
    wrong_claim: float = 0.2
    scan_fps: float = 4.0
    look_fps: float = 8.0


@dataclass(frozen=True)
class Lesson:
    """A conversation that ends with the user's message, and the answer that is right."""

    conversation: Conversation
    answer: str


@dataclass(frozen=True, eq=False)
class PoolClip:
    """A rendered clip. pixels: uint8 (K, H, W, 3), source frames 0, 2, 4, …; ``clock`` knows all source frames' times."""

    seed: int
    prompt: str
    anomalies: tuple[Anomaly, ...]
    clock: Video
    pixels: UInt8[np.ndarray, "K H W 3"]

    def frames(self, indices: Sequence[int], fps: float) -> Frames:
        """These source frames; an odd one shows its even neighbour's pixels."""
        picked = self.pixels[[index // KEPT_EVERY for index in indices]]
        return Frames(picked, tuple(indices), tuple(self.clock.times_s[i] for i in indices), fps, len(self.clock))


class ClipPool:
    """Rendered clips on disk: ``pixels.u8`` (all clips one after another) and ``clips.jsonl`` (where each begins, and its truth)."""

    def __init__(self, folder: Path) -> None:
        lines = (folder / "clips.jsonl").read_text(encoding="utf-8").splitlines()
        self.rows = [json.loads(line) for line in lines]
        self.pixels = np.memmap(folder / "pixels.u8", np.uint8, "r")
        self.groups: dict[tuple[int, bool], list[int]] = {}
        for number, row in enumerate(self.rows):
            self.groups.setdefault((row["num_frames"], bool(row["anomalies"])), []).append(number)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> PoolClip:
        row = self.rows[number]
        shape = (-(-row["num_frames"] // KEPT_EVERY), row["height"], row["width"], 3)
        pixels = self.pixels[row["offset"] : row["offset"] + int(np.prod(shape))].reshape(shape)
        times = tuple(frame / row["fps"] for frame in range(row["num_frames"]))
        clock = Video(row["fps"], times, row["height"], row["width"], f"world {row['seed']}", None)
        anomalies = tuple(Anomaly.from_json(item) for item in row["anomalies"])
        return PoolClip(row["seed"], row["prompt"], anomalies, clock, pixels)

    def lengths(self) -> dict[int, int]:
        """How many clips there are of each number of frames."""
        counts: dict[int, int] = {}
        for (length, _), members in self.groups.items():
            counts[length] = counts.get(length, 0) + len(members)
        return dict(sorted(counts.items()))

    @classmethod
    def open(
        cls, folder: Path, plan: LessonPlan, first_seed: int, clips: int, *, progress: Callable[[str], None] | None = None
    ) -> ClipPool:
        """The pool in this folder, rendering what is missing; goes on where a former call was stopped.

        Clip ``n`` has seed ``first_seed + n`` and is anomalous when n is odd. Raises ``ValueError`` when the folder holds another pool.
        """
        from cac_align.miniature.world import FULL, STUDIO, make_clip

        folder.mkdir(parents=True, exist_ok=True)
        rows: list[str] = []
        end = 0
        if (folder / "clips.jsonl").is_file():
            for line in (folder / "clips.jsonl").read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:  # a kill tore the last line
                    break
                rows.append(line)
                end = row["offset"] + row["bytes"]
            if rows and (json.loads(rows[0])["seed"], json.loads(rows[0])["studio"]) != (first_seed, plan.studio):
                raise ValueError(f"{folder} holds clips from seed {json.loads(rows[0])['seed']}, expected {first_seed}; give another pool")
        rows = rows[:clips] if len(rows) > clips else rows
        with open(folder / "pixels.u8", "ab") as pixels, open(folder / "clips.jsonl", "w", encoding="utf-8") as lines:
            pixels.truncate(end)
            pixels.seek(end)
            lines.write("".join(line + "\n" for line in rows))
            for number in range(len(rows), clips):
                seed = first_seed + number
                plain = np.random.default_rng((seed, 1)).random() < plan.studio
                clip = make_clip(seed, STUDIO if plain else FULL, anomalous=number % 2 == 1)
                kept = np.ascontiguousarray(clip.pixels[::KEPT_EVERY])
                pixels.write(kept.tobytes())
                pixels.flush()
                row = {
                    "seed": seed,
                    "studio": plan.studio,
                    "prompt": clip.prompt,
                    "fps": clip.fps,
                    "num_frames": len(clip.pixels),
                    "height": kept.shape[1],
                    "width": kept.shape[2],
                    "anomalies": [anomaly.to_json() for anomaly in clip.anomalies],
                    "offset": end,
                    "bytes": kept.nbytes,
                }
                end += kept.nbytes
                lines.write(json.dumps(row) + "\n")
                if progress is not None and (number + 1) % 500 == 0:
                    lines.flush()
                    progress(f"rendered {number + 1}/{clips} clips")
        return cls(folder)


# ---- making clips look generated ----------------------------------------------------------------------------------


def degrade(pixels: UInt8[np.ndarray, "T H W 3"], rng: np.random.Generator, strength: float = 1.0) -> UInt8[np.ndarray, "T H W 3"]:
    """Blur, blotches, grain, block averages and a tint, the same for all frames but for grain and blotches: what a small VAE does.

    ``strength`` scales all of them; 1 is the strength of training. Labels stay true: nothing is moved or mirrored.
    """
    import torch

    count, height, width, _ = pixels.shape
    x = torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)
    resize = torch.nn.functional.interpolate
    if rng.random() < 0.7:  # lost detail
        scale = 1 - strength * rng.uniform(0.1, 0.45)
        small = resize(x, size=(max(8, round(height * scale)), max(8, round(width * scale))), mode="bilinear", antialias=True)
        x = resize(small, size=(height, width), mode="bilinear")
    if rng.random() < 0.5:  # blotches that come and go
        coarse = rng.standard_normal((count, 3, height // 8, width // 8)).astype(np.float32)
        x = x + float(strength * rng.uniform(0.005, 0.03)) * resize(torch.from_numpy(coarse), size=(height, width), mode="bilinear")
    if rng.random() < 0.4:  # block averages, as in a coarse JPEG
        mix = float(strength * rng.uniform(0.1, 0.45))
        blocks = resize(torch.nn.functional.avg_pool2d(x, 4), size=(height, width), mode="nearest")
        x = (1 - mix) * x + mix * blocks
    if rng.random() < 0.5:  # grain
        x = x + float(strength * rng.uniform(0.005, 0.035)) * torch.from_numpy(rng.standard_normal(x.shape).astype(np.float32))
    gain = torch.from_numpy((1 + strength * rng.uniform(-0.08, 0.08, (1, 3, 1, 1))).astype(np.float32))
    shift = float(strength * rng.uniform(-0.05, 0.05))
    x = (x * gain + shift).clamp(0, 1)
    return (x.permute(0, 2, 3, 1) * 255 + 0.5).to(torch.uint8).numpy()


def _shown(clip: PoolClip, indices: Sequence[int], fps: float, rng: np.random.Generator, plan: LessonPlan) -> Frames:
    frames = clip.frames(indices, fps)
    if rng.random() >= plan.degraded:
        return frames
    return Frames(degrade(frames.pixels, rng), frames.indices, frames.times_s, frames.fps, frames.num_source_frames)


# ---- lessons for the two-turn judge -------------------------------------------------------------------------------


def cac_lessons(pool: ClipPool, plan: LessonPlan, batch: int, *, seed: tuple[int, int], pairs: bool) -> list[Lesson]:
    """One batch for the two-turn judge, half normal and half abnormal. ``pairs``: the warm-up, frame pairs only."""
    rng = np.random.default_rng(seed)
    draw = rng.random()
    if pairs or draw < plan.pair:
        return [_pair(pool[_any(pool, rng, n % 2 == 1)], rng, plan) for n in range(batch)]
    length = _length(pool, rng)
    if draw < plan.pair + plan.look:
        steps = int(rng.choice(np.arange(0, 7), p=_LOOK_STEPS))
        return [_look(pool[_member(pool, rng, length, n % 4 != 0 and n % 2 == 1)], n % 2 == 1, steps, rng, plan) for n in range(batch)]
    return [_scan(pool[_member(pool, rng, length, n % 2 == 1)], rng, plan) for n in range(batch)]


_LOOK_STEPS = np.array([0.22, 0.2, 0.17, 0.14, 0.11, 0.09, 0.07])


def _any(pool: ClipPool, rng: np.random.Generator, abnormal: bool) -> int:
    return _member(pool, rng, _length(pool, rng), abnormal)


def _length(pool: ClipPool, rng: np.random.Generator) -> int:
    counts = pool.lengths()
    return int(rng.choice(list(counts), p=np.array(list(counts.values())) / len(pool)))


def _member(pool: ClipPool, rng: np.random.Generator, length: int, abnormal: bool) -> int:
    members = pool.groups.get((length, abnormal)) or pool.groups[(length, not abnormal)]
    return members[int(rng.integers(len(members)))]


