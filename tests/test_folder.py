"""What a judge's folder says of itself: how it has learnt to be asked, and the temperatures fitted for it."""

import shutil

import pytest

from cac_align.cac import folder
from cac_align.cac.two_turn import TwoTurn
from cac_align.rewards.cac import CaC
from cac_align.weights import shipped


def test_a_folder_that_says_nothing_is_asked_as_in_the_paper(tmp_path):
    assert folder.settings_of(tmp_path) == TwoTurn() == folder.settings_of("http://127.0.0.1:1/v1")
    assert folder.temperature_of(tmp_path, ("as_is",)) == 1.0


def test_settings_and_temperatures_are_read_back(tmp_path):
    asked = TwoTurn(wording="brief", max_new_tokens=640, margin_s=0.25)
    folder.write_settings(tmp_path, asked)
    assert folder.read(tmp_path) == {"two_turn": {"wording": "brief", "max_new_tokens": 640, "margin_s": 0.25}}
    folder.write_temperature(tmp_path, 7.0)
    folder.write_temperature(tmp_path, 5.0, ("as_is", "reversed"))
    assert folder.settings_of(tmp_path) == asked
    found = [folder.temperature_of(tmp_path, views) for views in (("as_is",), ("as_is", "reversed"), ("mirrored",))]
    assert found == [7.0, 5.0, 7.0]
    folder.write_temperature(tmp_path, 6.0)  # fitted anew: those of views belonged to former weights
    assert folder.read(tmp_path).keys() == {"two_turn", "temperature"}
    folder.write_settings(tmp_path, TwoTurn())
    assert folder.read(tmp_path) == {"two_turn": {}} and folder.max_pixels_of(tmp_path) is None
    folder.write_settings(tmp_path, TwoTurn(), 50_176)
    folder.write_temperature(tmp_path, 6.0)
    assert folder.read(tmp_path) == {"two_turn": {}, "max_pixels": 50_176, "temperature": 6.0}


def test_a_judge_sees_the_resolution_that_it_has_learnt_with(tmp_path):
    judge = tmp_path / "judge"
    shutil.copytree(shipped("cac"), judge)
    folder.write_settings(judge, folder.settings_of(judge), 17 * 32 * 32)

    assert CaC.load(str(judge), device="cpu").vlm.passport["max_pixels"] == "17408"
    assert CaC.load(str(judge), device="cpu", max_pixels=69_632).vlm.passport["max_pixels"] == "69632"
    assert "max_pixels" not in CaC.miniature(device="cpu").vlm.passport


@pytest.mark.parametrize(
    ("text", "what"),
    [("{", "is not JSON"), ("[1]", "holds a list"), ('{"two_turn": {"margin": 1}}', "expected some of scan_fps")],
)
def test_what_cannot_be_read_is_named(tmp_path, text, what):
    (tmp_path / folder.NAME).write_text(text)
    with pytest.raises(ValueError, match=what):
        folder.settings_of(tmp_path)
