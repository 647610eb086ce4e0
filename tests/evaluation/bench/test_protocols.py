"""Each judge under its own protocol and under CaC's prompt."""

import pytest

from cac_align.core.weights import shipped
from cac_align.evaluation.bench.protocols import protocol_rows
from cac_align.rewards.build import RewardRecipe, unloaded_reward


def recipe(tmp_path, text):
    path = tmp_path / "judge.yaml"
    path.write_text(text)
    return str(path)


def test_the_cac_row_is_the_same_model_with_kind_cac(tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("x")
    path = recipe(
        tmp_path,
        f"""components:
  judge: {{kind: videoscore2, model: "http://127.0.0.1:1/v1", prompt_file: {prompt}, max_new_tokens: 99, retries: 0}}
""",
    )
    rows, notes = protocol_rows("vs2", path, ["components.judge.concurrency=3"], "both")
    assert notes == [] and [(row.name, row.protocol) for row in rows] == [
        ("vs2 (official)", "official"),
        ("vs2 (CaC's prompt)", "cac"),
    ]
    assert rows[0].recipe == path and rows[0].overrides == ("components.judge.concurrency=3",)
    asked = rows[1].recipe
    assert isinstance(asked, RewardRecipe)
    (component,) = asked.components.values()
    assert (component.kind, component.model, component.mode) == ("cac", "http://127.0.0.1:1/v1", "two_turn")
    assert (component.retries, component.concurrency) == (0, 3)  # how the server is reached stays
    assert component.served_model == "VideoScore2"  # the name that the judge's kind would have asked for
    assert component.prompt_file is None and component.max_new_tokens is None  # its own prompt and limit go
    assert unloaded_reward(asked).name == "cac"


def test_the_miniature_of_unified_reward_stays_itself(tmp_path):
    path = recipe(tmp_path, "components: {judge: {kind: unified, model: miniature}}")
    (row,), _ = protocol_rows("ur", path, [], "cac")
    assert row.recipe.components["cac"].model == str(shipped("unified"))


def test_judges_with_one_row_say_why(tmp_path):
    one = {
        "cac": "components: {judge: {kind: cac}}",
        "hps": "components: {judge: {kind: hpsv3, model: m, prompt_file: p}}",
        "two": "components: {a: {kind: cac}, b: {kind: unified}}",
        "pairs": 'components: {judge: {kind: unified_think, model: "http://127.0.0.1:1/v1", prompt_file: p}}',
    }
    found = {}
    for name, text in one.items():
        rows, notes = protocol_rows(name, recipe(tmp_path, text), [], "both")
        found[name] = ([row.protocol for row in rows], len(notes))
    assert found == {
        "cac": (["cac"], 0),
        "hps": (["official"], 1),
        "two": (["official"], 1),
        "pairs": (["cac"], 1),
    }
    for name in ("hps", "two"):
        with pytest.raises(ValueError, match=f"judge '{name}'.*--protocol official"):
            protocol_rows(name, recipe(tmp_path, one[name]), [], "cac")
    with pytest.raises(ValueError, match="its model is not known here"):
        protocol_rows("mine", "some.module:Judge", [], "cac")
    assert protocol_rows("mine", "some.module:Judge", [], "both")[0][0].protocol == "official"
