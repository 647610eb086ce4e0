"""The bank of clips and repairs from which ``repair_table`` makes the tables of docs/repair.md.

python -m research.experiments.repair_bank --out DIR: clips by the small Wan, the oracle's and the judge's verdicts on them,
and repairs of the broken ones; resumable, stage by stage. The plan is in docs/repair.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cac_align.core.judgement import Anomaly
from cac_align.core.video import Video
from cac_align.core.weights import shipped
from cac_align.generation.latent_masks import grow_and_soften, latent_grid, marked_cells, pixel_mask
from cac_align.generation.repair.latent_video import decode_frames
from cac_align.generation.repair.resample import resample, tail_schedule
from cac_align.generation.wan import Wan
from cac_align.miniature.oracle.oracle import analyse
from cac_align.miniature.world.settings import TEST_SEEDS
from cac_align.miniature.world.world import make_prompts
from cac_align.rewards.cac import CaC
from cac_align.runs.files import append_lines
from cac_align.runs.metrics_log import read_rows
from research.training.generated import HELD_OUT, anomalies_of

FIRST_PROMPT = TEST_SEEDS[400_000]
FIRST_SEED = HELD_OUT[500_000]
BATCH = 20


@dataclass(frozen=True)
class Arm:
    """One way to repair a broken clip. boxes: exact, judge, shuffled or whole."""

    name: str
    boxes: str
    strength: float
    border: int = 1
    attempt: int = 0


ARMS = (
    Arm("exact", "exact", 0.92),
    Arm("whole", "whole", 0.92),
    Arm("judge", "judge", 0.92),
    Arm("shuffled", "shuffled", 0.92),
    Arm("exact 2", "exact", 0.95, attempt=1),
    Arm("exact 3", "exact", 0.98, attempt=2),
    Arm("hard", "exact", 0.92, border=0),
    Arm("σ .83", "exact", 0.83),
    Arm("σ .88", "exact", 0.88),
    Arm("σ .95", "exact", 0.95),
    Arm("σ .98", "exact", 0.98),
)


class Bank:
    """The files of the bank: ``rows.jsonl`` (verdicts by key), ``latents/KEY.npy`` (float16)."""

    def __init__(self, out: Path) -> None:
        self.out = out
        (out / "latents").mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, dict[str, Any]] = {row["key"]: row for row in read_rows(out / "rows.jsonl")}

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        lines = [dict(row) for row in rows]
        append_lines(self.out / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in lines))
        self.rows |= {row["key"]: row for row in lines}

    def latents(self, key: str) -> torch.Tensor:
        return torch.from_numpy(np.load(self.out / "latents" / f"{key}.npy")).float()

    def keep_latents(self, key: str, latents: torch.Tensor) -> None:
        np.save(self.out / "latents" / f"{key}.npy", latents.half().numpy())


def clip_key(slot: int, sample: int) -> str:
    """The name of a generated clip in the bank."""
    return f"{slot:03d}-{sample}"


def oracle_row(prompt: str, video: Video) -> dict[str, Any]:
    """What the oracle says: normal, follows, and the anomalies as an annotator would write them."""
    result = analyse(prompt, video)
    anomalies = anomalies_of(result, video.fps, video.height, video.width)
    if not anomalies and result.verdict.window is not None:
        anomalies = (Anomaly(result.verdict.types[0], result.verdict.window),)
    return {
        "normal": result.verdict.status == "normal",
        "follows": all(result.verdict.follows.values()),
        "anomalies": [anomaly.to_json() for anomaly in anomalies],
    }


def judge_row(score: Any) -> dict[str, Any]:
    """What the shipped judge says: R (None without a score), its anomalies and how many turns it took."""
    judgement = score.evidence
    abnormal = judgement is not None and judgement.status == "abnormal"
    return {
        "R": score.value if score.scored else None,
        "judge": judgement.status if judgement is not None and score.scored else None,
        "judge_anomalies": [anomaly.to_json() for anomaly in judgement.anomalies] if abnormal else [],
        "turns": len(judgement.turns) if judgement is not None else 0,
    }


def batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The items, ``BATCH`` at a time."""
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def generate(bank: Bank, wan: Wan, judge: CaC, prompts: Sequence[str], samples: Sequence[int], total: int) -> None:
    """Clips and their verdicts; ``total`` seeds belong to each slot."""
    grid = latent_grid(wan)
    todo = [(slot, sample) for sample in samples for slot in range(len(prompts))]
    for group in batches([each for each in todo if clip_key(*each) not in bank.rows]):
        asked = [prompts[slot] for slot, _ in group]
        # From noise alone with weights of 1 everywhere: plain sampling, by the function that repairs.
        zeros = torch.zeros(len(group), int(wan.pipeline.transformer.config.in_channels), *grid.shape)
        seeds = [FIRST_SEED + slot * total + sample for slot, sample in group]
        latents = resample(wan, asked, zeros, torch.ones(len(group), *grid.shape), 1.0, seeds).half().float()
        videos = [clip(wan, decode_frames(wan, one)) for one in latents]
        scores = judge(asked, videos)
        rows = []
        for (slot, sample), prompt, one, video, score in zip(group, asked, latents, videos, scores, strict=True):
            key = clip_key(slot, sample)
            bank.keep_latents(key, one)
            rows.append({"key": key, "prompt": prompt, **oracle_row(prompt, video), **judge_row(score)})
        bank.add(rows)


def clip(wan: Wan, frames: np.ndarray) -> Video:
    """Frames of the small Wan as a video."""
    return Video.open(frames, fps=wan.setting.fps, layout="THWC")


def repair(bank: Bank, wan: Wan, judge: CaC, arm: Arm, slots: int, total: int) -> None:
    """One arm on the clips of samples 0 and 1 that it applies to.

    Exact and shuffled boxes: clips that the oracle calls broken, later attempts where the earlier ones
    did not mend. The judge's boxes: those that the
    judge calls abnormal and places. The whole clip: all of them, because a canvas may hold any.
    """
    keys = [clip_key(slot, sample) for sample in (0, 1) for slot in range(slots)]
    broken = [key for key in keys if not bank.rows[key]["normal"]]
    earlier = [other.name for other in ARMS if other.name.startswith("exact") and other.attempt < arm.attempt]
    open_ones = [key for key in broken if not any(bank.rows[f"{key} {name}"]["normal"] for name in earlier
                                                  if f"{key} {name}" in bank.rows)]  # fmt: skip
    by_boxes = {"whole": keys, "judge": [key for key in keys if bank.rows[key]["judge_anomalies"]]}
    chosen = by_boxes.get(arm.boxes, open_ones)
    grid, steps = latent_grid(wan), len(tail_schedule(wan, arm.strength).timesteps)
    blank = clip(wan, np.zeros((grid.num_frames, grid.height_px, grid.width_px, 3), np.uint8))

    def weights_of(key: str) -> np.ndarray:
        if arm.boxes == "whole":
            return np.ones(grid.shape, np.float32)
        source = broken[(broken.index(key) + 1) % len(broken)] if arm.boxes == "shuffled" else key
        field = "judge_anomalies" if arm.boxes == "judge" else "anomalies"
        mask = marked_cells([Anomaly.from_json(row) for row in bank.rows[source][field]], blank, grid)
        return grow_and_soften(mask, grow=1, border=arm.border)

    for group in batches([key for key in chosen if f"{key} {arm.name}" not in bank.rows]):
        prompts = [bank.rows[key]["prompt"] for key in group]
        before = torch.stack([bank.latents(key) for key in group])
        weights = np.stack([weights_of(key) for key in group])
        numbers = [int(key[:3]) * total + int(key[4:]) for key in group]
        seeds = [FIRST_SEED + 100_000 * (1 + arm.attempt) + number for number in numbers]
        after = resample(wan, prompts, before, torch.from_numpy(weights), arm.strength, seeds)
        rows, videos = [], []
        for key, prompt, one, former, weight in zip(group, prompts, after, before, weights, strict=True):
            kept, made = decode_frames(wan, former), decode_frames(wan, one)
            inside = pixel_mask(weight, grid)[..., None]
            videos.append(clip(wan, np.where(inside, made, kept)))
            outside = np.abs(made.astype(int) - kept)[~inside[..., 0]]
            rows.append(
                {
                    "key": f"{key} {arm.name}",
                    "prompt": prompt,
                    "steps": steps,
                    "share": float(weight.mean()),
                    "decoder_change_outside": float(outside.mean()) if outside.size else None,
                    **oracle_row(prompt, videos[-1]),
                }
            )
        if arm.name in ("judge", "whole"):
            for row, score in zip(rows, judge(prompts, videos), strict=True):
                row.update(judge_row(score))
        bank.add(rows)


def lengths(bank: Bank, wan: Wan, prompts: Sequence[str]) -> None:
    """Clips of 33 and 65 frames, which the small Wan was not trained for."""
    for frames in (33, 65):
        longer = wan.with_setting(num_frames=frames)
        grid = latent_grid(longer)
        todo = [n for n in range(len(prompts)) if f"{frames} frames {n}" not in bank.rows]
        for group in [todo[start : start + 4] for start in range(0, len(todo), 4)]:
            asked = [prompts[n] for n in group]
            zeros = torch.zeros(len(group), int(wan.pipeline.transformer.config.in_channels), *grid.shape)
            seeds = [FIRST_SEED + 90_000 + n for n in group]
            latents = resample(longer, asked, zeros, torch.ones(len(group), *grid.shape), 1.0, seeds)
            for n, prompt, one in zip(group, asked, latents, strict=True):
                row = oracle_row(prompt, clip(wan, decode_frames(longer, one)))
                bank.add([{"key": f"{frames} frames {n}", "prompt": prompt, **row}])


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the bank, in the order in which its parts are needed most."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--arms", nargs="*", default=[arm.name for arm in ARMS])
    parser.add_argument("--lengths", type=int, default=0, help="prompts for clips of 33 and 65 frames")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bank = Bank(options.out)
    wan, judge = Wan.load(shipped("wan")), CaC.miniature()
    prompts = make_prompts(range(FIRST_PROMPT, FIRST_PROMPT + options.prompts))
    generate(bank, wan, judge, prompts, range(2), options.samples)
    arms = [arm for arm in ARMS if arm.name in options.arms]
    for arm in arms[:4]:
        repair(bank, wan, judge, arm, options.prompts, options.samples)
    generate(bank, wan, judge, prompts, range(2, options.samples), options.samples)
    for arm in arms[4:]:
        repair(bank, wan, judge, arm, options.prompts, options.samples)
    if options.lengths:
        lengths(bank, wan, prompts[: options.lengths])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
