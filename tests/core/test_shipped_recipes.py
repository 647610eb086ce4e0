"""A recipe is found by its path or by its name, every verb finds it so, and the shipped ones name only recipes that are found."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from cac_align.align.recipe import AlignRecipe
from cac_align.cli.main import main
from cac_align.config import read_recipe
from cac_align.core.encoding import write_mp4
from cac_align.core.judgement import Anomaly, Window
from cac_align.core.shipped_recipes import find_recipe, recipes_folder, shipped_recipe, shipped_recipes
from cac_align.data.records import Record, write_records
from cac_align.rewards.build import RewardRecipe
from tests.support.tracked import tracked


def unique_stems():
    stems = [Path(name).stem for name in shipped_recipes()]
    return [(name, stem) for name, stem in zip(shipped_recipes(), stems, strict=True) if stems.count(stem) == 1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No test here stands in the checkout."""
    monkeypatch.chdir(tmp_path)


def test_every_file_below_recipes_is_found_by_its_path_however_it_is_written():
    files = [path for path in recipes_folder().rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(files) > 20 and sorted(shipped_recipes().values()) == sorted(files)
    for name, path in shipped_recipes().items():
        assert find_recipe(name) == find_recipe(f"recipes/{name}") == find_recipe(
            Path(name).with_suffix("")
        ) == path or ("." in Path(name).stem and find_recipe(name.removesuffix(".yaml")) == path)


def test_a_name_that_one_file_has_is_enough():
    assert len(unique_stems()) > 10
    for name, stem in unique_stems():
        assert find_recipe(stem) == shipped_recipes()[name]


def test_a_name_that_several_have_is_refused_with_all_of_them():
    with pytest.raises(ValueError) as caught:
        find_recipe("miniature")
    named = [name for name in shipped_recipes() if Path(name).stem == "miniature"]
    assert len(named) > 1 and all(name in str(caught.value) for name in named)


def test_a_file_that_is_there_goes_before_a_name(tmp_path):
    (tmp_path / "qwen3vl_8b_server").write_text("components: {mine: {kind: motion}}\n")
    assert find_recipe("qwen3vl_8b_server") == Path("qwen3vl_8b_server")
    assert set(read_recipe(RewardRecipe, "qwen3vl_8b_server").components) == {"mine"}


@pytest.mark.parametrize("wrong", ["qwen3vl_8b_sever", "qwen3vl_8b_sever.yaml", "rewards/qwen3vl_8b_server.yaml"])
def test_an_unknown_name_brings_the_nearest(wrong):
    assert shipped_recipe(wrong) is None
    with pytest.raises(ValueError) as caught:
        find_recipe(wrong)
    assert str(caught.value).startswith(wrong) and "reward/qwen3vl_8b_server.yaml" in str(caught.value)


@pytest.mark.parametrize(
    "wrong", ["stage1.yaml", "/recipes/train/stage1.yaml", "../recipes/train/stage1.yaml", "x/train/stage1.yaml", ""]
)
def test_a_path_is_not_taken_for_a_name(wrong):
    """A file meant to be the user's own is never replaced by a shipped one in silence."""
    with pytest.raises(ValueError):
        find_recipe(wrong)


def values(node):
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict | list):
            yield from values(value)
        else:
            yield value


def test_what_shipped_recipes_say_of_other_recipes_is_found():
    references = []
    for path in tracked("recipes", "*.yaml"):
        if isinstance(loaded := OmegaConf.load(path), DictConfig):
            said = values(OmegaConf.to_container(loaded))
            references += [value for value in said if isinstance(value, str) and value.startswith("recipes/")]
    files = [value for value in references if value.endswith(".yaml")]
    assert "recipes/reward/qwen3vl_8b_server.yaml" in files
    assert all(find_recipe(value).is_file() for value in files)


@pytest.mark.parametrize(
    "arguments",
    [
        ["score", "a.mp4", "--prompt", "p", "--reward", "NAME"],
        ["best-of-n", "--prompts", "p.txt", "--out", "o", "--recipe", "NAME"],
        ["align", "NAME"],
        ["train", "stage1", "NAME"],
        ["serve", "--reward", "NAME"],
        ["evaluate", "calibrate", "records.jsonl", "--reward", "NAME"],
        ["evaluate", "bench", "records.jsonl", "--reward", "NAME"],
        ["data", "split", "folder", "--out", "o", "--recipe", "NAME"],
        ["data", "synthesise", "records.jsonl", "--out", "o", "--teacher", "miniature", "--recipe", "NAME"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_every_verb_looks_for_a_recipe_in_the_same_way(arguments, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a red ball\n")
    write_mp4(tmp_path / "a.mp4", np.zeros((4, 16, 16, 3), np.uint8), fps=16)
    anomaly = Anomaly("Physical Violations", window=Window(0.0, 0.1))
    normal = Record("a", "a.mp4", "a red ball", 16.0, 4, 16, 16, "normal")
    abnormal = Record("b", "a.mp4", "a red ball", 16.0, 4, 16, 16, "abnormal", (anomaly,))
    write_records(tmp_path / "records.jsonl", [normal, abnormal])
    assert main(["qwen3vl_8b_sever" if word == "NAME" else word for word in arguments]) == 2
    assert "reward/qwen3vl_8b_server.yaml" in capsys.readouterr().err


def test_a_name_that_several_have_is_looked_for_where_the_option_expects_it(tmp_path):
    folder = recipes_folder()
    for kind in ("reward", "align", "best_of_n", "data"):
        assert find_recipe("miniature", kind) == folder / kind / "miniature.yaml"
    assert find_recipe("miniature_ur", "reward") == folder / "reward" / "miniature_ur.yaml"
    assert find_recipe("splits", "reward") == folder / "data" / "splits.yaml"  # the only one of this name
    with pytest.raises(ValueError, match=r"several recipes.*align/miniature.yaml.*reward/miniature.yaml"):
        find_recipe("miniature")
    assert list(read_recipe(RewardRecipe, "miniature_ur", section="reward").components) == ["unified"]
    assert read_recipe(AlignRecipe, "miniature_ur", folder="align").reward == "recipes/reward/miniature_ur.yaml"


def test_recipes_list_show_copy(tmp_path, capsys):
    assert main(["recipes", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_recipes())
    assert all(line.split()[1][0].isalnum() for line in lines)  # a sentence, not "#!/bin/sh"
    assert main(["recipes", "show", "qwen3vl_8b_server"]) == 0
    text = find_recipe("qwen3vl_8b_server").read_text(encoding="utf-8")
    assert capsys.readouterr().out == text
    assert main(["recipes", "copy", "qwen3vl_8b_server", str(tmp_path)]) == 0
    assert main(["recipes", "copy", "qwen3vl_8b_server", str(tmp_path / "new" / "mine.yaml")]) == 0
    assert (tmp_path / "qwen3vl_8b_server.yaml").read_text() == (tmp_path / "new" / "mine.yaml").read_text() == text
    (tmp_path / "qwen3vl_8b_server.yaml").write_text("edited")
    assert main(["recipes", "copy", "qwen3vl_8b_server", str(tmp_path)]) == 2
    assert (tmp_path / "qwen3vl_8b_server.yaml").read_text() == "edited"
    assert main(["recipes", "show", "nothing_like_it"]) == 2
