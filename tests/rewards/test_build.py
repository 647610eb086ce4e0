"""Rewards from recipes: which component reads which key, defaults, servers, and the judge's own settings file."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cac_align.cac.augmentations import FOUR_PHASES
from cac_align.cac.judge_settings import write_settings
from cac_align.cac.two_turn import TwoTurn
from cac_align.config import import_name, read_recipe
from cac_align.core.weights import shipped
from cac_align.generation.build import BestOfNRecipe
from cac_align.rewards.build import JudgeRecipe, RewardRecipe, load_reward
from tests.support.tracked import tracked

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("path", tracked("recipes/reward", "*.yaml"), ids=lambda path: path.stem)
def test_reward_recipes_read(path):
    recipe = read_recipe(RewardRecipe, path)
    alone = {"miniature_ur": {"unified"}, "miniature_cac": {"cac"}, "api": {"api"}}
    partners = alone.get(path.stem, {"unified", "cac"})
    partners |= {"normal_flow_speed"} if path.stem.endswith("_normal_flow") else set()
    assert set(recipe.components) == partners and recipe.normalise == "range"
    assert {name: part.kind for name, part in recipe.components.items()} == {name: name for name in partners}


def test_defaults_are_the_miniature_combination():
    recipe = read_recipe(RewardRecipe, None)
    assert {part.model for part in recipe.components.values()} == {"miniature"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (JudgeRecipe(kind="unified", max_new_tokens=300), "kind unified: max_new_tokens=300 would not be read"),
        (JudgeRecipe(kind="unified", prompt_file="mine.txt"), "kind unified: prompt_file='mine.txt' would not be read"),
        (JudgeRecipe(kind="unified", tta=["reversed"]), "kind unified: tta=['reversed'] would not be read"),
        (JudgeRecipe(mode="readout", max_new_tokens=7), "kind cac: max_new_tokens=7 would not be read"),
        (JudgeRecipe(mode="single_turn", look_fps=16.0), "kind cac: look_fps=16.0 would not be read"),
        (JudgeRecipe(full_speed=0.3), "kind cac: full_speed=0.3 would not be read"),
        (
            JudgeRecipe(kind="normal_flow_speed", temperature=2.0),
            "kind normal_flow_speed: temperature=2.0 would not be read",
        ),
        (
            JudgeRecipe(kind="tests.support.tiny_flow:Brightness", device="cpu"),
            "kind tests.support.tiny_flow:Brightness: device='cpu' would not be read",
        ),
    ],
)
def test_a_key_that_the_component_does_not_read_is_refused(given, message):
    with pytest.raises(ValueError, match=re.escape(f"component 'one': {message}; leave it out")):
        load_reward(RewardRecipe(components={"one": given}))


@pytest.mark.parametrize(
    "model, key",
    [
        ("miniature", "served_model=x"),
        ("miniature", "concurrency=4"),
        ("miniature", "retries=9"),
        ("http://127.0.0.1:1/v1", "device=cpu"),
    ],
)
def test_a_key_of_the_other_backend_is_refused(model, key):
    with pytest.raises(
        ValueError, match=rf"{key.partition('=')[0]} is for a judge .* and model is {re.escape(model)}; leave it out"
    ):
        load_reward(None, [f"components.cac.model={model}", f"components.cac.{key}"])


def test_a_recipe_sets_retries_and_backoff_of_a_server():
    served = ["components.cac.model=http://127.0.0.1:1/v1", "components.cac.served_model=x"]
    given = [*served, "components.cac.retries=12", "components.cac.backoff_s=2"]
    vlm = load_reward(None, given).components["cac"].vlm
    assert (vlm.retries, vlm.backoff_s) == (12, 2.0)
    kept = load_reward(None, served).components["cac"].vlm
    assert (kept.retries, kept.backoff_s) == (4, 0.5)
    with pytest.raises(ValueError, match="retries >= 0"):
        load_reward(None, [*served, "components.cac.retries=-1"])
    with pytest.raises(ValueError, match="retries"):
        load_reward(None, [*served, "components.cac.retries=often"])


def test_a_servers_revision_enters_its_provenance():
    served = ["components.cac.model=http://127.0.0.1:1/v1", "components.cac.served_model=x"]

    def provenance(*given):
        return dict(load_reward(None, [*served, *given]).provenance)

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


def test_the_settings_file_decides_and_the_recipe_overrides_it(tmp_path):
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


def test_the_miniature_has_one_default():
    """score, best-of-n and demo judge alike, and the recipes that state the default are the default."""
    root = RECIPES
    default = RewardRecipe()
    assert read_recipe(RewardRecipe, root / "reward/miniature_tta.yaml") == default
    assert read_recipe(BestOfNRecipe, root / "best_of_n/miniature.yaml").reward == default
    assert BestOfNRecipe().reward == default and tuple(default.components["cac"].tta) == FOUR_PHASES
