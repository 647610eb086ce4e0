"""`cac-align train stage1|stage2|stage3|judge RECIPE --set out=DIR`: CaC's three training stages, and the whole way
from videos that are fine to a measured judge.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cac_align.cli.options import add_set_option, add_verb, check_writable, input_path


def add_train(verbs: Any) -> None:
    """The options of `cac-align train`."""
    about = (
        "train CaC: stage 1 on single frames, stage 2 on clips, stage 3 by two-turn GRPO; judge: all of it, from a "
        "folder of videos (inject, synthesise, split, the stages, calibrate, bench); the same command resumes"
    )
    parser = add_verb(verbs, "train", run_train, about)
    parser.add_argument(
        "stage",
        choices=("stage1", "stage2", "stage3", "judge"),
        help="which of the paper's three stages, or the whole judge",
    )
    parser.add_argument("recipe", type=input_path, help="YAML, see recipes/train")
    add_set_option(parser, "override one key of the recipe, e.g. data.folder=DIR, model.path=DIR, out=DIR; repeatable")


def run_train(options: argparse.Namespace) -> int:
    """Run one stage, or the whole training of a judge, and print the folder of the trained weights."""
    from cac_align.config import read_recipe

    if options.stage == "judge":
        return _run_judge(options)
    _check_stage(options.recipe, options.stage)
    if options.stage == "stage3":
        from cac_align.training.grpo import GrpoRecipe, train_grpo

        recipe = read_recipe(GrpoRecipe, options.recipe, options.overrides, folder="train")
        _check_inputs(recipe)
        print(train_grpo(recipe))
        return 0
    from cac_align.training.sft import SftRecipe, train_sft

    recipe = read_recipe(SftRecipe, options.recipe, options.overrides, folder="train")
    if f"stage{recipe.stage}" != options.stage:
        raise ValueError(f"{options.recipe} is a recipe of stage {recipe.stage}, received {options.stage}")
    _check_inputs(recipe)
    print(train_sft(recipe))
    return 0


def _run_judge(options: argparse.Namespace) -> int:
    from cac_align.cli.train_judge import read_judge_training, train_judge
    from cac_align.vlm.checkpoint_hash import check_source

    recipe = read_judge_training(options.recipe, options.overrides)
    check_writable("out=", Path(recipe.out), folder=True)
    if recipe.base != "miniature":
        check_source(recipe.base)
    figures = train_judge(recipe)
    for step in ("calibrate", "bench"):
        if figures[step]["unscored"]:
            print(f"{step}: {figures[step]['unscored']} videos have no score", file=sys.stderr)
    print(Path(recipe.out) / "calibrate")
    return 0


def _check_inputs(recipe: Any) -> None:
    """Raise ``ValueError`` for a folder that cannot be written and a checkpoint that is none, before
    one is loaded.
    """
    from cac_align.vlm.checkpoint_hash import check_source

    check_writable("out=", Path(recipe.out), folder=True)
    check_source(recipe.model.source)


def _check_stage(path: Path, stage: str) -> None:
    """Raise ``ValueError`` for a recipe of another stage, before its keys are read as keys of this
    one.

    Recipes of stages 1 and 2 name their stage, those of stage 3 have a ``rollout`` section. A file
    that is no recipe at all is left to ``read_recipe``, which says so.
    """
    from omegaconf import OmegaConf

    from cac_align.core.shipped_recipes import find_recipe

    try:
        given = OmegaConf.to_container(OmegaConf.load(find_recipe(path, "train")))
    except Exception:
        return
    if not isinstance(given, dict) or not ({"stage", "rollout"} & given.keys()):
        return
    own = f"stage{given['stage']}" if "stage" in given else "stage3"
    if own != stage:
        raise ValueError(f"{path} is a recipe of {own}, received {stage}; run `cac-align train {own} {path}`")
