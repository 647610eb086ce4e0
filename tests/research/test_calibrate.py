"""Fitting the shipped judge's temperature: clips of its own, and a file that the judge's folder then brings along."""

import json
import shutil
from pathlib import Path

import pytest

from cac_align.cac.judge_settings import read_two_turn, write_settings, write_temperature
from cac_align.cac.single_turn import SingleTurn
from cac_align.cac.two_turn import TwoTurn
from cac_align.core.weights import shipped
from cac_align.rewards.cac import CaC
from research.build.parts import phase, read_part
from research.experiments import calibrate
from research.training.generated import HELD_OUT, Generated
from research.training.records import Clips

ROOT = Path(__file__).parents[2]


def test_the_fit_is_written_beside_the_weights_and_read_back(tmp_path, capsys):
    folder = tmp_path / "judge"
    shutil.copytree(shipped("cac"), folder)
    write_settings(folder, read_two_turn(shipped("cac")))
    assert CaC.load(str(folder)).temperature == 1.0
    assert calibrate.main([str(folder), "16"]) == 0
    fitted = json.loads((folder / "cac_align.json").read_text())["temperature"]
    assert CaC.load(str(folder)).temperature == fitted and fitted > 1  # surer of itself than it is right
    assert f"T = {fitted}" in capsys.readouterr().out


def test_views_have_a_temperature_of_their_own_beside_the_first(tmp_path):
    folder = tmp_path / "judge"
    shutil.copytree(shipped("cac"), folder)
    write_settings(folder, read_two_turn(shipped("cac")))
    write_temperature(folder, 7.5)
    assert calibrate.main([str(folder), "16", "as_is,reversed"]) == 0
    fitted = json.loads((folder / "cac_align.json").read_text())
    assert fitted["temperature"] == 7.5 and list(fitted["tta_temperatures"]) == ["as_is, reversed"]
    own = fitted["tta_temperatures"]["as_is, reversed"]
    threshold = fitted["tta_thresholds"]["as_is, reversed"]
    assert own > 0 and own != 7.5
    assert CaC.load(str(folder)).temperature == 7.5
    pair = CaC.load(str(folder), tta=("as_is", "reversed"))
    assert (pair.temperature, pair.threshold) == (own, threshold) and threshold != 0
    assert CaC.load(str(folder)).threshold == 0 == CaC.load(str(folder), tta=("as_is", "mirrored")).threshold
    assert CaC.load(str(folder), tta=("as_is", "reversed"), settings=SingleTurn(wording="brief")).threshold == 0, (
        "fitted for two turns"
    )
    assert CaC.load(str(folder), tta=("as_is", "mirrored")).temperature == 7.5, "not fitted: that of the video as it is"
    (folder / "cac_align.json").write_text('{"tta_temperatures": {"mirrored": 3.5}}')  # tta alone were fitted
    assert [CaC.load(str(folder), tta=tta).temperature for tta in (("mirrored",), ("as_is",))] == [3.5, 1.0]


def test_a_judge_that_scores_nothing_is_not_fitted(tmp_path):
    shutil.copytree(shipped("cac"), tmp_path / "judge")
    # asked in the long words of the full size, which the small judge has never heard, and given little room for what it makes of them
    write_settings(tmp_path / "judge", TwoTurn(max_new_tokens=24))
    with pytest.raises(ValueError, match="no video has a score; the first says: "):
        calibrate.main([str(tmp_path / "judge"), "2"])


def test_its_clips_are_neither_the_lessons_nor_the_held_out_ones():
    pools = read_part("generated")
    recipes = [phase(Generated, pools, name) for name in pools["phases"]]
    fitted_on = range(calibrate.FIRST, calibrate.FIRST + 10_000)
    examples = [range(recipe.seed, recipe.seed + recipe.clips) for recipe in recipes]
    records = phase(Clips, {"phases": read_part("judge")}, "records")
    examples.append(range(records.seed, records.seed + records.drawn))
    assert len(examples) > 2
    pairs = [(one, other) for at, one in enumerate(examples) for other in examples[:at]]
    assert not [pair for pair in pairs if pair[0].start < pair[1].stop and pair[1].start < pair[0].stop]
    assert not [noise for noise in examples if noise.start < fitted_on.stop and fitted_on.start < noise.stop]
    assert not [noise for noise in examples if noise.start < HELD_OUT.stop and HELD_OUT.start < noise.stop]
    assert HELD_OUT.start >= fitted_on.stop
    assert calibrate.main([]) == 2
