"""Local advantages are used only with a judge whose audit does not speak against them."""

import json

import pytest

from cac_align.align.advantages.local_gate import check_local_audit, gated
from cac_align.align.recipe import AlignRecipe
from cac_align.align.trainer import align
from tests.support.tiny_flow import lora, recipe, same, write_wan

JUDGE = {"reward": "boxes"}


def write_audit(path, localises, provenance):
    row = {"localisation": {"localises": localises, "reason": "windows: IoU 0.2"}, "provenance": provenance}
    path.write_text(json.dumps(row))
    return str(path)


@pytest.mark.parametrize("prefix", ["", "cac/"], ids=["of the judge alone", "of a combination"])
def test_an_audit_decides_between_local_and_uniform(tmp_path, prefix):
    provenance = {f"{prefix}{key}": value for key, value in JUDGE.items()}
    ours = {"reward": "combine", "cac/reward": "boxes", "still/reward": "still"}
    for localises, expected in ((True, "local"), (False, "uniform")):
        path = write_audit(tmp_path / "audit.json", localises, provenance)
        found, line = gated(AlignRecipe(advantages="local", local_audit=path), ours)
        assert found.advantages == expected and line


def test_without_an_audit_nothing_changes_and_it_is_said():
    local = AlignRecipe(advantages="local")
    found, line = gated(local, JUDGE)
    assert found == local and line
    assert gated(AlignRecipe(), JUDGE) == (AlignRecipe(), None)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"localisation": {}}'])
def test_a_file_that_is_no_audit_is_refused_by_name(tmp_path, text):
    path = tmp_path / "audit.json"
    if text is not None:
        path.write_text(text)
    named = AlignRecipe(advantages="local", local_audit=str(path))
    for refuse in (check_local_audit, lambda one: gated(one, JUDGE)):
        with pytest.raises(ValueError, match=r"local_audit .*audit\.json"):
            refuse(named)


def test_an_audit_of_another_judge_is_refused(tmp_path):
    path = write_audit(tmp_path / "audit.json", True, {"reward": "another"})
    with pytest.raises(ValueError, match="another judge.*differ in reward"):
        gated(AlignRecipe(advantages="local", local_audit=path), JUDGE)


def test_a_run_whose_judge_does_not_localise_trains_as_with_uniform_advantages(tmp_path):
    model, located = write_wan(tmp_path / "wan"), {"steps": 1, "reward": "tests.support.tiny_flow:located"}
    path = write_audit(tmp_path / "audit.json", False, JUDGE)
    lines = []
    align(recipe(model, tmp_path / "gated", advantages="local", local_audit=path, **located), lines.append)
    align(recipe(model, tmp_path / "uniform", **located))
    align(recipe(model, tmp_path / "local", advantages="local", **located))
    assert any(path in line for line in lines)
    trained = {name: lora(tmp_path / name) for name in ("gated", "uniform", "local")}
    assert same(trained["gated"], trained["uniform"]) and not same(trained["local"], trained["uniform"])
