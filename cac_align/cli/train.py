"""`cac-align train stage1|stage2|stage3 RECIPE out=DIR [key=value]`: a recipe in, a folder of weights out."""

from __future__ import annotations

import argparse


def run_train(options: argparse.Namespace) -> int:
    from cac_align.config import read_recipe

    overrides = [*options.overrides, *options.settings]
    _check_stage(options.recipe, options.stage)
    if options.stage == "stage3":
        from cac_align.training.grpo import GrpoRecipe, train_grpo

        print(train_grpo(read_recipe(GrpoRecipe, options.recipe, overrides)))
        return 0
    from cac_align.training.sft import SftRecipe, train_sft

    recipe = read_recipe(SftRecipe, options.recipe, overrides)
    if f"stage{recipe.stage}" != options.stage:
        raise ValueError(f"{options.recipe} is a recipe of stage {recipe.stage}, received {options.stage}")
    print(train_sft(recipe))
    return 0


def _check_stage(path: str, asked: str) -> None:
    """Raise ``ValueError`` for a recipe of another stage, before its keys are read as this one's. Stages 1 and 2 say which they are;
    stage 3 has rollouts. What is no recipe at all is left to ``read_recipe``."""
    from omegaconf import OmegaConf

    try:
        given = OmegaConf.to_container(OmegaConf.load(path))
    except Exception:
        return
    if not isinstance(given, dict) or not ({"stage", "rollout"} & given.keys()):
        return
    own = f"stage{given['stage']}" if "stage" in given else "stage3"
    if own != asked:
        raise ValueError(f"{path} is a recipe of {own}, received {asked}; run `cac-align train {own} {path}`")
