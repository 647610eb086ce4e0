"""Best-of-N recipes and the generators that they describe."""

import re
from pathlib import Path

import pytest

from cac_align.config import read_recipe
from cac_align.generation.build import BestOfNRecipe, GeneratorRecipe, load_generator
from tests.support.tiny_flow import Brightness
from tests.support.tracked import tracked

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("path", tracked("recipes/best_of_n", "*.yaml"), ids=lambda path: path.stem)
def test_best_of_n_recipes_read(path):
    recipe = read_recipe(BestOfNRecipe, path)
    assert recipe.n == 5 and set(recipe.reward.components) == {"unified", "cac"}


def test_a_users_own_generator_takes_no_settings_of_wan():
    assert isinstance(load_generator(GeneratorRecipe(model="tests.support.tiny_flow:Brightness")), Brightness)
    with pytest.raises(
        ValueError, match=re.escape("generator tests.support.tiny_flow:Brightness: lora='runs/lora' would not be read")
    ):
        load_generator(GeneratorRecipe(model="tests.support.tiny_flow:Brightness", lora="runs/lora"))
