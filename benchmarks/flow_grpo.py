"""What the alignment loop costs beyond model, VAE and reward, and what an overlapped reward costs, at the size of the small Wan.

python benchmarks/flow_grpo.py [--steps 2] [--group-size 8] [--prompts 4] [--judge-seconds 0.25] [recipe keys …]

Three runs of the same recipe: no reward to wait for (it answers at once), a reward that needs --judge-seconds per video, overlapped, and the
same without overlap. The reward sleeps, as one on another machine does, and its scores are the videos' brightness. Printed: seconds per
step, the loop's own share (goal <= 5 %), overlapped over no reward (goal <= 1.10), and the most memory saved for one backward pass with
one and with three stochastic steps (goal: equal). The first step of each run is left out: it warms up.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cac_align.align.recipe import AlignRecipe, EvalRecipe, SdeWindow
from cac_align.align.trainer import AlignRun
from cac_align.config import read_recipe
from cac_align.core.video import Video
from cac_align.rewards.reward import Score


class Sleeper:
    """The mean brightness, after a while."""

    name, bounds = "sleeper", (0.0, 1.0)
    seconds_per_video = 0.0

    @property
    def provenance(self) -> Mapping[str, str]:
        return {"reward": "sleeper"}

    def __call__(self, prompts: Sequence[str], videos: Sequence[Video]) -> list[Score]:
        time.sleep(self.seconds_per_video * len(videos))
        return [Score(float(video.frames(range(len(video))).pixels.mean()) / 255) for video in videos]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2, help="measured steps, after one that warms up")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--judge-seconds", type=float, default=0.25, help="per video")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = read_recipe(AlignRecipe, Path(__file__).parents[1] / "recipes/align/miniature.yaml", options.settings)
    recipe = replace(
        recipe, reward="__main__:Sleeper", group_size=options.group_size, micro_batch=options.group_size,
        prompts_per_step=options.prompts, steps=options.steps + 1, save_every=1000, eval=EvalRecipe(every=0),
    )  # fmt: skip
    rows = {
        "no reward": measure(recipe, 0.0),
        "overlapped": measure(recipe, options.judge_seconds),
        "not overlapped": measure(replace(recipe, overlap=False), options.judge_seconds),
    }
    for name, row in rows.items():
        print(
            f"{name:16s} {row['step']:8.2f} s/step   judged {row['judge']:6.2f} s, waited {row['wait']:6.2f} s, own {row['other']:6.3f} s"
        )
    print(f"the loop's own share of a step: {rows['no reward']['other'] / rows['no reward']['step']:.1%} (goal <= 5 %)")
    print(f"overlapped over no reward: {rows['overlapped']['step'] / rows['no reward']['step']:.2f} (goal <= 1.10)")
    one, three = (saved_bytes(recipe, size) for size in (1, 3))
    print(
        f"saved for one backward pass: {one / 1e6:.1f} MB with one stochastic step, {three / 1e6:.1f} MB with three (goal: equal)"
    )


def measure(recipe: AlignRecipe, judge_seconds: float) -> dict[str, float]:
    """Mean seconds of the steps after the first."""
    Sleeper.seconds_per_video = judge_seconds
    with tempfile.TemporaryDirectory() as folder:
        AlignRun(replace(recipe, out=folder)).train()
        rows = [json.loads(line)["seconds"] for line in (Path(folder) / "log.jsonl").read_text().splitlines()][1:]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def saved_bytes(recipe: AlignRecipe, size: int) -> int:
    """The most bytes autograd holds at a time during an update with ``size`` stochastic steps."""
    held = most = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal held, most
        held += tensor.numel() * tensor.element_size()
        most = max(most, held)
        return tensor

    Sleeper.seconds_per_video = 0.0
    with tempfile.TemporaryDirectory() as folder:
        run = AlignRun(replace(recipe, out=folder, prompts_per_step=1, sde_window=SdeWindow(size, 1, 6)))
        backward = run._accumulate

        def counted(losses: torch.Tensor, weight: torch.Tensor) -> None:
            nonlocal held
            backward(losses, weight)
            held = 0

        run._accumulate = counted  # type: ignore[method-assign]
        chunk = run._sample_chunk(0, 0, run.prompts[:1], tuple(range(1, 1 + size)))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run._update(0, [chunk], [])
        run.async_reward.close()
    return most


if __name__ == "__main__":
    main()
