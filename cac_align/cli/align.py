"""`cac-align align RECIPE [key=value …]`: Flow-GRPO or DiffusionNFT on a Wan checkpoint; resumes with the same command.

On several processes: accelerate launch --config_file recipes/align/accelerate/ddp.yaml -m cac_align.cli align RECIPE out=DIR
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def run_align(options: argparse.Namespace) -> int:
    """0: trained to the end without an alarm. 1: trained, and a guard raised an alarm, or stopped the run."""
    from cac_align.align.recipe import FlowGrpoRecipe, check
    from cac_align.config import read_recipe

    recipe = read_recipe(FlowGrpoRecipe, options.recipe, [*options.overrides, *options.settings])
    check(recipe)
    main = int(os.environ.get("RANK", "0")) == 0
    from cac_align.align.trainer import align

    outcome = align(recipe, say=lambda line: print(line, file=sys.stderr, flush=True) if main else None)
    if not main:
        return 0
    if recipe.track:
        _show_evidence(recipe.track, Path(recipe.out))
    print(outcome.lora)
    return 1 if outcome.alarms else 0


def _show_evidence(kind: str, out: Path) -> None:
    """The boxed clips beside their advantages, where the run is watched."""
    from cac_align.plugins.evidence import log_evidence
    from cac_align.runs.metrics_log import open_tracker

    writer = open_tracker(kind, out / "evidence" if kind == "tensorboard" else out, 0)
    log_evidence(out / "ledger.jsonl", writer)
    (writer.close if hasattr(writer, "close") else writer.finish)()
