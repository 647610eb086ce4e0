"""`cac-align train stage1|stage2|stage3 RECIPE out=DIR [key=value]`: a recipe in, a folder of weights out."""

from __future__ import annotations

import argparse


def run_train(options: argparse.Namespace) -> int:
    from cac_align.recipe import read_recipe

    if options.stage == "stage3":
        from cac_align.training.grpo import GrpoRecipe, train_grpo

        print(train_grpo(read_recipe(GrpoRecipe, options.recipe, options.overrides)))
        return 0
    from cac_align.training.sft import SftRecipe, train_sft

    recipe = read_recipe(SftRecipe, options.recipe, options.overrides)
    if f"stage{recipe.stage}" != options.stage:
        raise ValueError(f"{options.recipe} is a recipe of stage {recipe.stage}, received {options.stage}")
    print(train_sft(recipe))
    return 0
