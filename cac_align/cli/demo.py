"""`cac-align demo`: Best-of-5 with UnifiedReward and CaC on the shipped miniature models."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cac_align.cli.options import add_verb, check_positive, check_writable, stated_domain


def add_demo(verbs: Any) -> None:
    """The options of `cac-align demo`."""
    about = "Best-of-5 with UnifiedReward + CaC on the miniature; writes videos, ledger.jsonl and report.html"
    parser = add_verb(verbs, "demo", run_demo, about)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder to write")
    parser.add_argument("--n", type=int, default=5, help="candidates per prompt")
    parser.add_argument("--prompts", type=int, default=8, help="how many prompts")
    parser.add_argument("--seed", type=int, default=0, help="first seed of the candidates")
    parser.add_argument(
        "--guidance-scale",
        type=float,
        help="of the small Wan (default: 1.0, no guidance; a higher value breaks fewer clips at twice the time)",
    )


def run_demo(options: argparse.Namespace) -> int:
    """Run the demo and print its summary. Returns 1 where no prompt has a chosen candidate."""
    from cac_align.miniature.demo import demo
    from cac_align.rewards.build import load_reward
    from cac_align.runs.progress import progress_bar

    check_positive("--n", options.n)
    check_positive("--prompts", options.prompts)
    check_writable("--out", options.out, folder=True)
    settings = {
        "n": options.n,
        "num_prompts": options.prompts,
        "seed": options.seed,
        "guidance_scale": options.guidance_scale,
    }
    reward = load_reward()
    with stated_domain(reward):
        for line in demo(options.out, reward=reward, progress=progress_bar, **settings):
            print(line, flush=True)
    undecided = json.loads((options.out / "summary.json").read_text(encoding="utf-8"))["undecided"]
    return 1 if undecided == options.prompts else 0
