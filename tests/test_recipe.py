"""Recipes: every shipped one reads, wrong keys are named with the nearest valid one, overrides and defaults work."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cac_align.cac.judge_settings import write_settings
from cac_align.cac.two_turn import TwoTurn
from cac_align.config import import_name, read_recipe
from cac_align.core.weights import shipped
from cac_align.generation.build import BestOfNRecipe, GeneratorRecipe, load_generator
from cac_align.rewards.build import JudgeRecipe, RewardRecipe, load_reward
from tests.support.tiny_flow import Brightness

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("path", sorted((RECIPES / "reward").glob("*.yaml")), ids=lambda path: path.stem)
def test_reward_recipes_read(path):
    recipe = read_recipe(RewardRecipe, path)
    alone = {"miniature_ur": {"unified"}, "miniature_cac": {"cac"}}
    partners = alone.get(path.stem, {"unified", "cac"})
    partners |= {"motion"} if path.stem.endswith("_motion") else set()
    assert set(recipe.components) == partners and recipe.normalise == "range"
    assert {name: part.kind for name, part in recipe.components.items()} == {name: name for name in partners}


@pytest.mark.parametrize("path", sorted((RECIPES / "best_of_n").glob("*.yaml")), ids=lambda path: path.stem)
def test_best_of_n_recipes_read(path):
    recipe = read_recipe(BestOfNRecipe, path)
    assert recipe.n == 5 and set(recipe.reward.components) == {"unified", "cac"}


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
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


def test_defaults_are_the_miniature_combination():
    recipe = read_recipe(RewardRecipe, None)
    assert {part.model for part in recipe.components.values()} == {"miniature"}


def test_listed_components_replace_the_default_ones(tmp_path):
    file = tmp_path / "one.yaml"
    file.write_text("reward:\n  components:\n    judge: {kind: cac, model: some/where}\n")
    assert set(read_recipe(RewardRecipe, file, section="reward").components) == {"judge"}
    assert set(read_recipe(BestOfNRecipe, file).reward.components) == {"judge"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (JudgeRecipe(kind="unified", max_new_tokens=300), "kind unified: max_new_tokens=300 would not be read"),
        (JudgeRecipe(kind="unified", prompt_file="mine.txt"), "kind unified: prompt_file='mine.txt' would not be read"),
        (JudgeRecipe(kind="unified", views=["reversed"]), "kind unified: views=['reversed'] would not be read"),
        (JudgeRecipe(mode="readout", max_new_tokens=7), "kind cac: max_new_tokens=7 would not be read"),
        (JudgeRecipe(mode="single_turn", look_fps=16.0), "kind cac: look_fps=16.0 would not be read"),
        (JudgeRecipe(full_speed=0.3), "kind cac: full_speed=0.3 would not be read"),
        (JudgeRecipe(kind="motion", temperature=2.0), "kind motion: temperature=2.0 would not be read"),
        (
            JudgeRecipe(kind="tiny_flow:Brightness", device="cpu"),
            "kind tiny_flow:Brightness: device='cpu' would not be read",
        ),
    ],
)
def test_a_key_that_nobody_would_read_is_refused(given, told):
    with pytest.raises(ValueError, match=re.escape(f"component 'one': {told}; leave it out")):
        load_reward(RewardRecipe(components={"one": given}))


def test_a_generator_of_ones_own_takes_no_settings_of_wan():
    assert isinstance(load_generator(GeneratorRecipe(model="tiny_flow:Brightness")), Brightness)
    with pytest.raises(
        ValueError, match=re.escape("generator tiny_flow:Brightness: lora='runs/lora' would not be read")
    ):
        load_generator(GeneratorRecipe(model="tiny_flow:Brightness", lora="runs/lora"))


def test_an_override_of_a_component_that_is_not_there_adds_no_judge(tmp_path):
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
        RewardRecipe, file, ["components.motion.weight=0.3", "components.motion.kind=motion", "components.cac.weight=2"]
    )
    assert {name: (one.kind, one.weight) for name, one in new.components.items()} == {
        "cac": ("cac", 2.0),
        "motion": ("motion", 0.3),
    }


@pytest.mark.parametrize(
    "text, told",
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
def test_a_wrong_recipe_names_the_key_and_the_nearest_valid_one(tmp_path, text, told):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=told) as raised:
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
    "override, told",
    [("normalise=range", "reward.normalise"), ("seeds.n=3", "seed"), ("height=64", "generator.height")],
)
def test_a_key_in_the_wrong_place_is_told_its_place(override, told):
    wrong = override.partition("=")[0].partition(".")[0]
    with pytest.raises(ValueError, match=re.escape(f"unknown key {wrong!r}; did you mean {told!r}?")):
        read_recipe(BestOfNRecipe, None, [override])


@pytest.mark.parametrize(
    "model, key",
    [
        ("miniature", "served_model=x"),
        ("miniature", "concurrency=4"),
        ("miniature", "retries=9"),
        ("http://127.0.0.1:1/v1", "device=cpu"),
    ],
)
def test_what_is_said_of_the_other_backend_is_refused(model, key):
    with pytest.raises(
        ValueError, match=rf"{key.partition('=')[0]} is for a judge .* and model is {re.escape(model)}; leave it out"
    ):
        load_reward(None, [f"components.cac.model={model}", f"components.cac.{key}"])


def test_how_long_a_served_judge_is_waited_for_is_the_recipes_to_say():
    served = ["components.cac.model=http://127.0.0.1:1/v1", "components.cac.served_model=x"]
    told = [*served, "components.cac.retries=12", "components.cac.backoff_s=2"]
    vlm = load_reward(None, told).components["cac"].vlm
    assert (vlm.retries, vlm.backoff_s) == (12, 2.0)
    kept = load_reward(None, served).components["cac"].vlm
    assert (kept.retries, kept.backoff_s) == (4, 0.5)
    with pytest.raises(ValueError, match="retries >= 0"):
        load_reward(None, [*served, "components.cac.retries=-1"])
    with pytest.raises(ValueError, match="retries"):
        load_reward(None, [*served, "components.cac.retries=often"])


def test_a_served_judges_revision_enters_its_provenance():
    served = ["components.cac.model=http://127.0.0.1:1/v1", "components.cac.served_model=x"]

    def provenance(*told):
        return dict(load_reward(None, [*served, *told]).provenance)

    plain = provenance()
    assert not any(
        key.endswith("revision") and key.startswith("cac/") for key in plain
    )  # as before: ledgers stay valid
    first, second = (provenance(f"components.cac.revision={text}") for text in ("monday", "tuesday"))
    assert first == plain | {"cac/vlm/revision": "monday"} and second == plain | {"cac/vlm/revision": "tuesday"}


def test_a_reward_can_be_named_by_module_and_name():
    assert import_name("cac_align.core.video:Video").__name__ == "Video"
    with pytest.raises(ValueError, match="cannot import 'cac_align.core.video:Nothing'"):
        load_reward("cac_align.core.video:Nothing")


def test_unknown_kinds_and_missing_keys_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="kind must be cac, unified"):
        load_reward(None, ["components.cac.kind=magic"])
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    server = [
        "components.cac.model=http://127.0.0.1:1/v1",
        "components.cac.served_model=x",
        "components.cac.api_key_env=NO_SUCH_KEY",
    ]
    with pytest.raises(ValueError, match="NO_SUCH_KEY, which is not set"):
        load_reward(RewardRecipe(components=read_recipe(RewardRecipe, None, server).components))


def test_a_judges_folder_says_how_it_is_asked_and_the_recipe_overrules_it(tmp_path):
    judge = tmp_path / "judge"
    shutil.copytree(shipped("cac"), judge)
    own = TwoTurn(scan_fps=2.0, look_fps=4.0, windows="each", wording="brief", max_new_tokens=77, margin_s=0.5)
    write_settings(judge, own)

    def settings(**given):
        return load_reward(RewardRecipe(components={"cac": JudgeRecipe(model=str(judge), **given)})).settings

    assert settings() == own
    assert settings(scan_fps=4.0, margin_s=0.0) == replace(own, scan_fps=4.0, margin_s=0.0)
    assert settings(windows="hull", constrained=True) == replace(own, windows="hull", constrained=True)
    single = settings(mode="single_turn")
    assert (single.scan_fps, single.wording, single.max_new_tokens) == (2.0, "brief", 77)
    assert settings(mode="readout").scan_fps == 2.0


def test_the_mode_of_a_cac_component_decides_which_reward_it_is():
    from cac_align.cac.verdict_only import VerdictOnly

    read = load_reward(RewardRecipe(components={"cac": JudgeRecipe(mode="readout")}))
    assert read.settings == VerdictOnly(form="readout", wording="brief") and read.name == "cac_verdict_only"
    full = load_reward(RewardRecipe(components={"cac": JudgeRecipe()}))
    assert full.name == "cac" and full.provenance["reward"] != read.provenance["reward"]
    with pytest.raises(ValueError, match="mode must be two_turn, single_turn, readout or json, received 'quick'"):
        load_reward(RewardRecipe(components={"cac": JudgeRecipe(mode="quick")}))


def test_an_empty_value_says_how_an_empty_text_is_written():
    with pytest.raises(ValueError, match=r"normalise: Incompatible value 'None'.* an empty text is 'normalise=\"\"'"):
        read_recipe(RewardRecipe, None, ["normalise="])
    assert read_recipe(RewardRecipe, None, ['normalise=""']).normalise == ""
