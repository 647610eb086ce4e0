"""The prompts that the full-size alignment recipes train on ship with them."""

from pathlib import Path

import pytest

from cac_align.align.recipe import AlignRecipe
from cac_align.align.sampling.prompts import read_training_prompts
from cac_align.config import read_recipe


@pytest.mark.parametrize("name", ["align/wan2.1_1.3b", "align/wan2.1_1.3b_nft"])
def test_the_recipes_prompts_are_240_different_ones_wherever_the_command_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(AlignRecipe, Path(name))
    prompts = read_training_prompts(recipe.prompts, recipe.prompt_first, recipe.prompt_count)
    assert len(set(prompts)) == len(prompts) == 240
