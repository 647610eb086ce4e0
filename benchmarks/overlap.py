"""How well judging and reading hide behind generating and training, with parts that sleep for a known time.

python benchmarks/overlap.py [align] [best-of-n] [sft] [--seconds 1.0]

align: two processes, a reward that sleeps as long as sampling takes; step over the longer of the two (goal <= 1.15).
best-of-n: a judge that sleeps as long as generating takes; total over the longer of the two (goal <= 1.10).
sft: a step that takes as long as decoding and encoding its samples; seconds it waits for samples, as a share (goal <= 5 %).

Each is measured with overlap and without in the same run. Without, align gives each chunk to the reward whole, as it did
before portions; the others do one after the other. Sleeping stands for work on another machine or a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cac_align.core.video import Video
from cac_align.rewards.reward import Score

ROOT = Path(__file__).parents[1]


class Sleeper:
    """A score after a while: the mean brightness."""

    name, bounds = "sleeper", (0.0, 1.0)
    seconds_per_video = 0.0

    @property
    def provenance(self) -> Mapping[str, str]:
        return {"reward": "sleeper"}

    def __call__(self, prompts: Sequence[str], videos: Sequence[Video]) -> list[Score]:
        time.sleep(self.seconds_per_video * len(videos))
        return [Score(float(video.frames([0]).pixels.mean()) / 255) for video in videos]


def align_worker(seconds: float, folder: Path) -> None:
    """One of two processes: eight videos a step, a chunk of 16 over both, one video per micro-batch."""
    import torch

    from cac_align.align import trainer
    from cac_align.align.recipe import AlignRecipe, EvalRecipe, SdeWindow
    from cac_align.align.sampling import chunks
    from cac_align.config import read_recipe

    torch.set_num_threads(1)
    recipe = read_recipe(AlignRecipe, ROOT / "recipes/align/miniature.yaml", [])
    recipe = replace(
        recipe, reward="__main__:Sleeper", group_size=16, micro_batch=1, prompts_per_step=1, steps=3, num_frames=5,
        num_inference_steps=4, sde_window=SdeWindow(1, 0, 1), lora_rank=4, save_every=1000, clips_per_step=0,
        eval=EvalRecipe(every=0), global_std=False, device="cpu",
    )  # fmt: skip
    sample_batch, videos_per_call = chunks.sample_batch, chunks.videos_per_call

    def slow_batch(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        made = sample_batch(*arguments, **options)
        time.sleep(max(0.0, seconds - (time.perf_counter() - began)))
        return made

    chunks.sample_batch = slow_batch  # type: ignore[assignment]
    for name, per_video, portions in (("no reward", 0.0, True), ("portions", seconds, True), ("whole", seconds, False)):
        Sleeper.seconds_per_video = per_video
        trainer.videos_per_call = videos_per_call if portions else lambda *a, **k: 10**6  # type: ignore[assignment]
        trainer.AlignRun(replace(recipe, out=str(folder / name))).train()


def align(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command = [*launch, __file__, "--worker", folder, "--seconds", str(seconds)]
        env = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        steps = {}
        for name in ("no reward", "portions", "whole"):
            rows = [
                json.loads(line)["seconds"] for line in (Path(folder) / name / "log.jsonl").read_text().splitlines()
            ]
            steps[name] = sum(row["step"] for row in rows[1:]) / len(rows[1:])
    longer = max(steps["no reward"], 8 * seconds)
    print(f"align, 2 processes: a step without a reward {steps['no reward']:.2f} s, judging {8 * seconds:.2f} s")
    print(f"  a chunk at a time {steps['whole']:.2f} s: {steps['whole'] / longer:.2f} of the longer")
    print(
        f"  in portions       {steps['portions']:.2f} s: {steps['portions'] / longer:.2f} of the longer (goal <= 1.15)"
    )


def best_of_n(seconds: float) -> None:
    from cac_align.generation import best_of_n as room

    def generate(prompt: str, seed: int) -> Video:
        time.sleep(seconds / 5)
        return Video.open(np.full((4, 16, 16, 3), 10 * seed, np.uint8), fps=16)

    Sleeper.seconds_per_video = seconds / 5
    prompts = [f"prompt {number}" for number in range(20)]
    longer = seconds * len(prompts)
    print(f"best-of-n: {len(prompts)} prompts of 5, generating {longer:.1f} s, judging {longer:.1f} s")
    for overlap in (False, True):
        began = time.perf_counter()
        room.best_of_n(prompts, generate, Sleeper(), n=5, overlap=overlap)
        took, goal = time.perf_counter() - began, " (goal <= 1.10)" if overlap else ""
        print(f"  {'overlapped' if overlap else 'in turn   '} {took:.2f} s: {took / longer:.2f} of the longer{goal}")


def sft(seconds: float) -> None:
    """The real loop on a tiny model; reading and stepping both take ``seconds`` at least."""
    from cac_align.training import sft as room
    from cac_align.training.policy import ModelRecipe
    from cac_align.training.run import RunConfig
    from cac_align.training.samples import DataRecipe

    sys.path.insert(0, str(ROOT))
    from tests.support import tiny_stage

    read, descend = room._read, room._descend

    def padded(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            found = function(*arguments)
            time.sleep(max(0.0, seconds - (time.perf_counter() - began)))
            return found

        return call

    room._read, room._descend = padded(read), padded(descend)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_stage.model_folder(folder / "model")
        tiny_stage.data_folder(folder / "data")
        data = DataRecipe(folder=str(folder / "data"), samples="stage2.jsonl", wording="brief", held_out=0.0)
        run = RunConfig(steps=11, warmup_steps=1, save_every=100, eval_every=0, cpu=True)
        for overlap in (False, True):
            room.train_sft(
                room.SftRecipe(
                    stage=2,
                    out=str(folder / str(overlap)),
                    batch=2,
                    micro_batch=2,
                    lora_rank=0,
                    overlap=overlap,
                    model=ModelRecipe(path=str(folder / "model")),
                    data=data,
                    run=run,
                )
            )
            rows = [json.loads(line) for line in (folder / str(overlap) / "log.jsonl").read_text().splitlines()]
            first, last = rows[0], rows[-1]  # the first step has nothing to hide its reading behind
            waited = last["waited_for_samples"] - first["waited_for_samples"]
            share, goal = waited / (last["seconds"] - first["seconds"]), " (goal <= 5 %)" if overlap else ""
            print(f"sft, {'read ahead' if overlap else 'in turn   '}: waited for samples {share:.1%} of a step{goal}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["align", "best-of-n", "sft", []], metavar="PART")
    parser.add_argument("--seconds", type=float, default=1.0, help="of sampling a video, of a prompt, of a step")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        align_worker(options.seconds, options.worker)
        return
    for name, part in (("best-of-n", best_of_n), ("sft", sft), ("align", align)):
        if name in options.parts or not options.parts:
            part(options.seconds)


if __name__ == "__main__":
    main()
