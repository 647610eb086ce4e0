"""`cac-align align RECIPE --set out=DIR`: Flow-GRPO or DiffusionNFT on a Wan checkpoint.

On several GPUs:

    accelerate launch --config_file recipes/align/accelerate/ddp.yaml -m cac_align.cli align RECIPE
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from cac_align.cli.options import add_set_option, add_verb, check_writable, input_path


def add_align(verbs: Any) -> None:
    """The options of `cac-align align`."""
    about = "align a Wan model with a reward by Flow-GRPO or DiffusionNFT; writes a LoRA"
    statuses = "0 trained; 1 trained, and an alarm was raised or stopped the run; 2 wrong input"
    parser = add_verb(verbs, "align", run_align, about, epilog=f"The same command resumes. Exit status: {statuses}.")
    parser.add_argument("recipe", type=input_path, help="YAML, e.g. recipes/align/miniature.yaml")
    add_set_option(parser, "override one key of the recipe, e.g. out=DIR; repeatable")


def run_align(options: argparse.Namespace) -> int:
    """Train as the recipe says and print the folder of the LoRA.

    Returns 1 where an alarm was raised, else 0.
    """
    from cac_align.align.recipe import AlignRecipe, check_align_recipe
    from cac_align.config import read_recipe

    recipe = read_recipe(AlignRecipe, options.recipe, options.overrides, folder="align")
    check_align_recipe(recipe)
    _check_inputs(recipe)
    main = int(os.environ.get("RANK", "0")) == 0
    from cac_align.align.monitoring.closing import closing_lines
    from cac_align.align.trainer import align
    from cac_align.runs.progress import progress_bar, say

    def notify(line: str) -> None:
        if main and not (options.quiet and line.startswith("step ")):
            say(line)

    result = align(recipe, notify, progress_bar)
    if not main:
        return 0
    if recipe.track:
        _log_evidence(recipe.track, Path(recipe.out))
    for line in closing_lines(Path(recipe.out), result.step, recipe.steps, result.alarms):
        say(line)
    print(result.lora)
    return 1 if result.alarms else 0


def _check_inputs(recipe: Any) -> None:
    """Raise ``ValueError`` for prompts, rewards, checkpoints and folders that cannot be used, before
    a model or even torch is loaded.
    """
    from cac_align.align.advantages.local_gate import check_local_audit
    from cac_align.align.sampling.prompts import read_training_prompts, step_prompts
    from cac_align.generation.build import GeneratorRecipe, check_generator
    from cac_align.rewards.build import unloaded_reward
    from cac_align.rewards.reachable import check_reachable

    check_writable("out=", Path(recipe.out), folder=True)
    check_local_audit(recipe)
    step_prompts(0, read_training_prompts(recipe.prompts, recipe.prompt_first, recipe.prompt_count, note=False), recipe)
    check_generator(GeneratorRecipe(model=recipe.model))
    for reward in dict.fromkeys((recipe.reward, recipe.eval.reward or recipe.reward)):
        check_reachable(unloaded_reward(reward or None))


def _log_evidence(kind: str, out: Path) -> None:
    """Log the boxed clips beside their advantages to the tracker that the run itself was logged to."""
    from cac_align.plugins.common.evidence import log_evidence
    from cac_align.runs.metrics_log import open_tracker

    writer = open_tracker(kind, out / "evidence" if kind == "tensorboard" else out, 0)
    log_evidence(out / "ledger.jsonl", writer)
    (writer.close if hasattr(writer, "close") else writer.finish)()
