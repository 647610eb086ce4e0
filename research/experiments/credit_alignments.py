"""Six forms of credit, each in whole short alignments of the small Wan, with the oracle as the judge.

    python -m research.experiments.credit_alignments OUT [--runs uniform:0 position-wise:0 …] [--table]

prompts → 2 × 16 clips a step → oracle: R and exact boxes → advantages of one arm → Flow-GRPO step → held-out clips

Every arm of one seed begins with the same weights, prompts and noises. The loop is that of ``cac-align align``; only
the advantages are those of ``credit_gradients.advantages_of``. A run that was stopped goes on. The plan and its rule
are in docs/local_advantages.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cac_align.align.advantages.group import GroupAdvantages
from cac_align.align.async_reward import reward_sample
from cac_align.align.losses.grpo_loss import split_by_position
from cac_align.align.recipe import AlignRecipe, EvalRecipe, SdeWindow
from cac_align.align.sampling.chunks import RolloutChunk
from cac_align.align.trainer import AlignRun
from cac_align.core.judgement import Judgement
from cac_align.core.video import Video
from cac_align.evaluation.statistics import Estimate, mean_interval
from cac_align.miniature.oracle.oracle import analyse
from cac_align.rewards.reward import Score
from cac_align.runs.checkpoint import release_folder
from cac_align.vlm.local import set_threads
from research.experiments.credit_gradients import ARMS, advantages_of
from research.experiments.table2 import Judged, judged
from research.training.generated import anomalies_of

STEPS, SKIPPED, GROUP, PROMPTS = 20, 4, 16, 2
ORDER = (*(f"{arm}:0" for arm in ARMS), "uniform:1", "position-wise:1", *(f"{arm}:1" for arm in ARMS[2:]))
"""The runs in the order in which they are taken: ARM:SEED."""


class ExactScore:
    """The oracle as a reward: 1 for a clip that it calls normal, else 0, with its boxes."""

    name = "exact"
    bounds = (0.0, 1.0)
    provenance: Mapping[str, str] = {"judge": "oracle"}

    def __call__(self, prompts: Sequence[str], videos: Sequence[Video]) -> list[Score]:
        scores = []
        for prompt, video in zip(prompts, videos, strict=True):
            try:
                result = analyse(prompt, video)
            except ValueError as error:
                scores.append(Score.missing(str(error), provenance=self.provenance))
                continue
            status = result.verdict.status
            found = () if status == "normal" else anomalies_of(result, video.fps, video.height, video.width)
            scores.append(
                Score(float(status == "normal"), evidence=Judgement(status, tuple(found)), provenance=self.provenance)
            )
        return scores


class ArmRun(AlignRun):
    """An alignment whose advantages are those of one arm."""

    arm = ARMS[0]

    def _compute_advantages(self, chunks: Sequence[RolloutChunk]) -> Iterator[tuple[RolloutChunk, GroupAdvantages]]:
        for chunk in chunks:
            scored = self._scores(chunk)
            rows = [reward_sample(one, video, self.grid) for one, video in zip(scored, chunk.videos, strict=True)]
            if any(row.error for row in rows):
                raise ValueError(f"a clip without a score: {[row.error for row in rows if row.error][:2]}")
            latents = torch.cat([rollout.latents for rollout in chunk.rollouts]).float().cpu().numpy()
            maps, zero_std = [], []
            for start in range(0, len(rows), GROUP):
                group = rows[start : start + GROUP]
                scores = np.array([row.value for row in group])
                masks = np.stack([row.mask for row in group if row.mask is not None])
                rng = np.random.default_rng((self.recipe.seed, 3, self.step, chunk.first_group, start))
                zero_std.append(bool(scores.std() == 0))
                found = advantages_of(scores, masks, latents[start : start + GROUP], rng)[self.arm]
                maps.append(np.zeros(masks.shape) if zero_std[-1] else found)
            by_position = torch.from_numpy(np.ascontiguousarray(np.concatenate(maps)))
            base, deviation = split_by_position(by_position)
            flags = np.array(zero_std)
            trained = torch.from_numpy(~np.repeat(flags, GROUP))
            advantage = by_position.flatten(1).mean(1).numpy()
            yield chunk, GroupAdvantages(base, deviation, trained, advantage, flags, tuple(rows))


def recipe_of(out: Path, seed: int) -> AlignRecipe:
    """recipes/align/miniature.yaml, shorter: 20 steps of 2 × 16 clips."""
    return AlignRecipe(
        out=str(out), reward="research.experiments.credit_alignments:ExactScore", local_component="exact",
        advantages="local", seed=seed, prompt_count=240, num_inference_steps=10, dynamics="flow", noise_level=0.7,
        sde_window=SdeWindow(size=3, first=1, last=6), steps=STEPS, group_size=GROUP, prompts_per_step=PROMPTS,
        micro_batch=16, clip_range=1e-3, lora_rank=32, lora_alpha=64, lora_ffn=True, lr=7e-4, min_lr_ratio=0.3,
        normalise_ratio=True, save_every=5, keep_checkpoints=1, clips_per_step=0, device="cpu",
        eval=EvalRecipe(every=0),
    )  # fmt: skip


def folder_of(out: Path, run: str) -> Path:
    return out / run.replace(" ", "_").replace(":", "-")


def train(out: Path, run: str) -> None:
    """Align one arm with one seed to the end, from where it stopped."""
    arm, seed = run.rsplit(":", 1)
    if arm not in ARMS:
        raise ValueError(f"no arm {arm!r}; the arms are {', '.join(ARMS)}")
    folder = folder_of(out, run)
    if (folder / "lora").exists():
        return
    kind = type("OneArm", (ArmRun,), {"arm": arm})
    try:
        kind(recipe_of(folder, int(seed)), partial(print, run, flush=True)).train()
    finally:
        release_folder(folder)


def verdicts(out: Path, run: str) -> list[Judged]:
    """The oracle's verdicts on the clips of the run's last LoRA; prompts that no run trains on."""
    (out / "judged").mkdir(parents=True, exist_ok=True)
    return judged(folder_of(out, run).name, str(folder_of(out, run) / "lora"), out / "judged")


def training_rates(out: Path, run: str) -> np.ndarray:
    """The share of broken clips among each step's 32 sampled clips, in per cent, without the first ``SKIPPED`` steps."""
    rows = [json.loads(line) for line in (folder_of(out, run) / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return np.array([100 * (1 - row["score"]) for row in rows])[SKIPPED:]


def held_out_rates(rows: Sequence[Judged]) -> np.ndarray:
    """The share of broken clips per prompt, in per cent."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row.prompt, []).append(100.0 * row.anomalous)
    return np.array([np.mean(values) for values in found.values()])


def table(out: Path, runs: Sequence[str]) -> str:
    """One line per finished run; differences are to uniform of the same seed."""
    done = [run for run in runs if (folder_of(out, run) / "lora").exists()]
    lines = [
        "| arm, seed | broken while training | minus uniform | broken, held out | minus uniform | follows | px/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in done:
        arm, seed = run.rsplit(":", 1)
        base = f"uniform:{seed}" if arm != "uniform" and f"uniform:{seed}" in done else None
        cells = [f"{arm}, {seed}"]
        for measure in (training_rates, lambda out, run: held_out_rates(verdicts(out, run))):
            own = measure(out, run)
            cells.append(_told(mean_interval(own.tolist()), ".1f"))
            cells.append("" if base is None else _told(mean_interval((own - measure(out, base)).tolist()), "+.1f"))
        rows = verdicts(out, run)
        cells.append(f"{np.mean([row.follows for row in rows]):.0%}")
        cells.append(f"{np.nanmean([row.displacement_px_s for row in rows]):.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _told(found: Estimate, form: str) -> str:
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"


def main() -> None:
    """Take every run to its end and judge it; then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", nargs="*", default=ORDER)
    parser.add_argument("--table", action="store_true", help="only print the table of the runs that have ended")
    options = parser.parse_args()
    set_threads(1)
    for run in () if options.table else options.runs:
        train(options.out, run)
        verdicts(options.out, run)
    print(table(options.out, options.runs))


if __name__ == "__main__":
    main()
