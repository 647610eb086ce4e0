"""Reading recipes: wrong keys are answered with the nearest valid one; overrides, sections and defaults work."""

import re
from pathlib import Path

import pytest

from cac_align.align.recipe import AlignRecipe
from cac_align.config import read_recipe
from cac_align.generation.build import BestOfNRecipe
from cac_align.rewards.build import RewardRecipe
from cac_align.training.grpo import GrpoRecipe
from cac_align.training.sft import SftRecipe
from tests.support.tracked import tracked

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("path", tracked("recipes", "*.yaml"), ids=lambda path: path.stem)
def test_every_recipe_opens_with_its_command(path):
    head = path.read_text(encoding="utf-8").splitlines()[:12]
    commands = (
        "cac-align ",
        "python -m ",
        "python ",
        "ff-train ",
        "accelerate launch ",
        "vllm serve ",
        "sglang.launch_server ",
    )
    assert head[0].startswith("# ") and any(line.startswith("#") and word in line for line in head for word in commands)


def test_listed_components_replace_the_default_ones(tmp_path):
    file = tmp_path / "one.yaml"
    file.write_text("reward:\n  components:\n    judge: {kind: cac, model: some/where}\n")
    assert set(read_recipe(RewardRecipe, file, section="reward").components) == {"judge"}
    assert set(read_recipe(BestOfNRecipe, file).reward.components) == {"judge"}


def test_an_override_of_an_unknown_component_is_refused(tmp_path):
    file = tmp_path / "one.yaml"
    file.write_text("components:\n  cac: {kind: cac, model: some/where}\n")
    for wrong, near in (
        ("components.caC.temperature=13", "did you mean 'cac'"),
        ("components.unified.weight=2", "did you mean 'cac'"),
    ):
        with pytest.raises(
            ValueError, match=rf"one.yaml: no component '.*'; {near}\? A new one needs its kind or model"
        ):
            read_recipe(RewardRecipe, file, [wrong])
    with pytest.raises(ValueError, match="no component 'caC'"):
        read_recipe(BestOfNRecipe, None, ["reward.components.caC.temperature=13"])
    new = read_recipe(
        RewardRecipe,
        file,
        [
            "components.normal_flow_speed.weight=0.3",
            "components.normal_flow_speed.kind=normal_flow_speed",
            "components.cac.weight=2",
        ],
    )
    assert {name: (one.kind, one.weight) for name, one in new.components.items()} == {
        "cac": ("cac", 2.0),
        "normal_flow_speed": ("normal_flow_speed", 0.3),
    }


@pytest.mark.parametrize(
    "text, message",
    [
        ("normalize: range\n", "did you mean 'normalise'"),
        ("components: {cac: {kind: cac, wordnig: brief}}\n", "did you mean 'wording'"),
        ("components: {cac: {scan_fps: fast}}\n", "scan_fps"),
        ("normalise: [\n", "not YAML"),
        ("- a\n", r"expected keys and values, found \['a'\]"),
        ("components: [a]\n", "a list or a single value stands where keys and values are expected"),
        ("reward:\n", "expected keys and values under reward, found None"),
        ("reward: other.yaml\n", "its reward is the recipe other.yaml; pass that one"),
    ],
)
def test_a_wrong_recipe_names_the_key_and_the_nearest_valid_one(tmp_path, text, message):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        read_recipe(RewardRecipe, file, section="reward")
    assert "wrong.yaml" in str(raised.value)


def test_overrides_reach_nested_keys_and_are_checked():
    recipe = read_recipe(RewardRecipe, None, ["components.cac.windows=each", "normalise=group"])
    assert recipe.components["cac"].windows == "each" and recipe.normalise == "group"
    with pytest.raises(ValueError, match="unknown key"):
        read_recipe(RewardRecipe, None, ["components.cac.window=each"])
    with pytest.raises(ValueError, match="expected key=value, received 'each'"):
        read_recipe(RewardRecipe, None, ["each"])
    with pytest.raises(ValueError, match="no such recipe file"):
        read_recipe(RewardRecipe, "nowhere.yaml")


@pytest.mark.parametrize(
    "override, place",
    [("normalise=range", "reward.normalise"), ("seeds.n=3", "seed"), ("height=64", "generator.height")],
)
def test_a_key_in_the_wrong_place_is_answered_with_its_place(override, place):
    wrong = override.partition("=")[0].partition(".")[0]
    with pytest.raises(ValueError, match=re.escape(f"unknown key {wrong!r}; did you mean {place!r}?")):
        read_recipe(BestOfNRecipe, None, [override])


def test_an_empty_value_is_refused_with_the_spelling_of_an_empty_text():
    with pytest.raises(ValueError, match=r"normalise: Incompatible value 'None'.* an empty text is 'normalise=\"\"'"):
        read_recipe(RewardRecipe, None, ["normalise="])
    assert read_recipe(RewardRecipe, None, ['normalise=""']).normalise == ""


OF_KIND = {
    RewardRecipe: "reward/miniature.yaml",
    BestOfNRecipe: "best_of_n/miniature.yaml",
    AlignRecipe: "align/miniature.yaml",
    SftRecipe: "train/stage1.yaml",
    GrpoRecipe: "train/stage3.yaml",
}


@pytest.mark.parametrize("given", OF_KIND.values())
@pytest.mark.parametrize("kind", OF_KIND)
def test_a_recipe_of_another_kind_is_recognised_in_every_direction(kind, given):
    section = "reward" if kind is RewardRecipe else None
    if given in (OF_KIND[kind], "best_of_n/miniature.yaml" if section else None):
        return
    with pytest.raises(ValueError, match="this is a recipe for|its reward is the recipe"):
        read_recipe(kind, RECIPES / given, section=section)
