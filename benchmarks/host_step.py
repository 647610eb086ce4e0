"""A step of our Flow-GRPO against one of Flow-Factory's, in processor time: the same small Wan, as many videos, the same stochastic steps.

    FLOW_FACTORY_DIR=CHECKOUT [UPSTREAM_PYTHON=PYTHON] python benchmarks/host_step.py [--steps 3] [--rounds 2] [--group-size 8]

Both train the shipped small Wan for 1 + steps steps of 2 prompts × group size videos (64 × 64, 17 frames, 10 sampling steps, guidance 1.5, one
stochastic step, one optimiser step, LoRA of rank 4, no KL) in float32, with one thread, in processes of the same interpreter, in turn. The
reward is the videos' mean brightness, asked once per step by both; it writes down its process's processor time (all threads, user and
system), and a step lasts from its first question to that of the next step. A forward pass holds a group in both.
The step that warms up is left out. Flow-Factory pads every prompt to 512 tokens, ours to as many as the small Wan was trained with, so that its
cross-attention does more: the ratio is that of the two as a user gets them, and not of the two loops alone. Goal: ours takes at most 0.8 of theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402

from cac_align.core.video import Video  # noqa: E402
from cac_align.rewards.reward import Score  # noqa: E402

PROMPTS = ("a red ball rolls right", "a blue box rolls left")


class Clock:
    """The mean brightness; every call writes the processor time of its process into $CLOCK_FILE."""

    name, bounds = "clock", (0.0, 1.0)

    @property
    def provenance(self) -> Mapping[str, str]:
        return {"reward": "clock"}

    def __call__(self, prompts: Sequence[str], videos: Sequence[Video]) -> list[Score]:
        with open(os.environ["CLOCK_FILE"], "a") as file:
            file.write(json.dumps({"cpu": time.process_time(), "videos": len(videos)}) + "\n")
        return [Score(float(video.frames(range(len(video))).pixels.mean()) / 255) for video in videos]


def flow_factory(folder: Path, steps: int, group: int) -> tuple[list[str], list[Path]]:
    """Its command, and what it needs on PYTHONPATH."""
    from cac_align.core.weights import shipped
    from tests.upstream.host_runs import HostRun, write_flow_factory

    setting = HostRun(
        str(shipped("wan")), PROMPTS, "host_step:Clock", epochs=steps + 1, group_size=group, batch_size=2 * group
    )
    write_flow_factory(folder, setting, python())
    file = folder / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["mixed_precision"] = "no"
    config["train"] |= {"latent_storage_dtype": "fp32", "kl_beta": 0, "per_device_batch_size": group}
    # One reward, the whole one: CaCReward and UnifiedVideoReward would each be asked.
    whole = {"reward_model": "cac_align.plugins.flow_factory.CaCUnifiedReward", "weight": 1.0}
    config["rewards"] = [config["rewards"][0] | whole]
    file.write_text(yaml.safe_dump(config))
    path = [Path(os.environ["FLOW_FACTORY_DIR"]) / "src", ROOT / "tests"]
    return [python(), __file__, "--flow-factory", str(file)], path


def run_flow_factory(config: str) -> None:
    """Its own entry point without autocast: it asks for bfloat16 whatever mixed_precision says, which a CPU without
    such instructions emulates, many times as slowly as float32.
    """
    import runpy

    import torch

    class Float32(torch.autocast):
        def __init__(self, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True) -> None:
            super().__init__(device_type, dtype=dtype, enabled=False)

    torch.autocast = Float32
    sys.argv = ["flow_factory.train", config]
    runpy.run_module("flow_factory.train", run_name="__main__")


def ours(folder: Path, steps: int, group: int) -> tuple[list[str], list[Path]]:
    """Our command, and what it needs on PYTHONPATH."""
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    recipe = {
        "out": str(folder / "run"), "model": "miniature", "prompts": str(folder / "prompts.txt"), "reward": "host_step:Clock",
        "num_inference_steps": 10, "guidance_scale": 1.5, "noise_level": 0.3, "sde_window": {"size": 1, "first": 1, "last": 3},
        "steps": steps + 1, "group_size": group, "prompts_per_step": 2, "micro_batch": group, "min_group_std": 0.0,
        "lora_rank": 4, "lora_alpha": 8, "lora_ffn": True, "save_every": 1000, "eval": {"every": 0}, "device": "cpu",
        "dtype": "float32", "overlap": False,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return [python(), "-m", "cac_align.cli", "align", str(folder / "recipe.yaml")], []


def python() -> str:
    return os.environ.get("UPSTREAM_PYTHON", sys.executable)


def seconds_per_step(command: list[str], path: list[Path], folder: Path, per_step: int) -> list[float]:
    """The processor seconds of every step but the first."""
    clock = folder / "clock.jsonl"
    where = os.pathsep.join(map(str, [*path, ROOT, ROOT / "benchmarks"]))
    environment = {**os.environ, "PYTHONPATH": where, "CLOCK_FILE": str(clock), "OMP_NUM_THREADS": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "LOG_FILE": str(folder / "log.jsonl")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    rows = [json.loads(line) for line in clock.read_text().splitlines()] if clock.exists() else []
    starts, seen = [], 0
    for row in rows:
        if seen % per_step == 0:
            starts.append(row["cpu"])
        seen += row["videos"]
    if len(starts) < 2:
        raise RuntimeError(f"{' '.join(command)} made {seen} videos:\n{(done.stdout + done.stderr)[-3000:]}")
    return [later - earlier for earlier, later in pairwise(starts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--flow-factory", metavar="CONFIG", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.flow_factory:
        run_flow_factory(options.flow_factory)
        return
    taken: dict[str, list[float]] = {"Flow-Factory": [], "ours": []}
    for _ in range(options.rounds):
        for name in taken:
            with tempfile.TemporaryDirectory() as made:
                folder = Path(made)
                prepare = flow_factory if name == "Flow-Factory" else ours
                command, path = prepare(folder, options.steps, options.group_size)
                taken[name] += seconds_per_step(command, path, folder, 2 * options.group_size)
    for name, seconds in taken.items():
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(
            f"{name:13s} {statistics.median(seconds):6.2f} s of processor time per step ({spread}, {len(seconds)} steps)"
        )
    theirs, own = (statistics.median(seconds) for seconds in taken.values())
    print(f"ratio {own / theirs:.2f}; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
