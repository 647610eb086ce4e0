"""VBVR-Bench through a stand-in for its package: which scoring is asked, and what is no score."""

import json
import sys
import types

import numpy as np
import PIL.Image
import pytest

from cac_align.cli.main import main
from cac_align.core.encoding import write_mp4

PARTS = {"first": 1.0, "final": 0.5, "task_specific": 0.2}


class Evaluator:
    def __init__(self, task, device):
        self.task = task

    def evaluate(self, info, **options):
        if self.task == "G-2_raises":
            raise RuntimeError("no rule")
        if self.task == "G-3_error":
            return {"score": 0.0, "error": "cannot open", "dimensions": {}}
        if options.get("task_specific_only"):
            assert info["no_ssim_fallback"]
            return {"score": PARTS["task_specific"], "dimensions": {"task_specific": 0.2}}
        assert "no_ssim_fallback" not in info
        return {"score": 0.6, "dimensions": PARTS, "details": {"video_frame_count": 4}}


@pytest.fixture()
def folders(tmp_path, monkeypatch):
    package = types.ModuleType("vbvr_bench.evaluators")
    package.get_evaluator = Evaluator
    monkeypatch.setitem(sys.modules, "vbvr_bench", types.ModuleType("vbvr_bench"))
    monkeypatch.setitem(sys.modules, "vbvr_bench.evaluators", package)
    pixels = np.full((4, 32, 32, 3), 100, np.uint8)
    for task in ("G-1_fine", "G-2_raises", "G-3_error", "G-4_broken", "G-5_absent", "G-6_no_truth"):
        truth = tmp_path / "gt" / "In-Domain_50" / task / "0"
        truth.mkdir(parents=True)
        write_mp4(truth / "ground_truth.mp4", pixels, 8)
        for name in ("first_frame", "final_frame"):
            PIL.Image.fromarray(pixels[0]).save(truth / f"{name}.png")
        made = tmp_path / "made" / "In-Domain_50" / task
        made.mkdir(parents=True)
        write_mp4(made / "0.mp4", pixels, 8)
    (tmp_path / "made" / "In-Domain_50" / "G-4_broken" / "0.mp4").write_bytes(b"not a video")
    (tmp_path / "made" / "In-Domain_50" / "G-5_absent" / "0.mp4").unlink()
    (tmp_path / "gt" / "In-Domain_50" / "G-6_no_truth" / "0" / "final_frame.png").unlink()
    return tmp_path


@pytest.mark.parametrize("scoring, expected", [("task_specific", 0.2), ("weighted", 0.6)])
def test_each_scoring_is_asked_for_and_no_failure_is_a_zero(folders, capsys, scoring, expected):
    command = ["evaluate", "vbvr", str(folders / "made"), "--ground-truth", str(folders / "gt"), "--scoring", scoring]
    assert main([*command, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["scoring"] == scoring and told["unscored"] == 5
    assert told["means"]["all"]["value"] == told["means"]["In-Domain_50"]["value"] == expected
    errors = {row["task"]: row["error"] for row in told["videos"]}
    assert errors.pop("G-1_fine") is None and all(errors.values())
    assert "no rule" in errors["G-2_raises"] and "final_frame.png" in errors["G-6_no_truth"]
    assert main(command) == 1 and scoring in capsys.readouterr().out


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    (tmp_path / "gt" / "s" / "t" / "0").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "vbvr_bench", None)
    monkeypatch.delitem(sys.modules, "vbvr_bench.evaluators", raising=False)
    command = ["evaluate", "vbvr", str(tmp_path), "--ground-truth", str(tmp_path / "gt"), "--scoring", "weighted"]
    assert main(command) == 2 and "install VBVR-EvalKit" in capsys.readouterr().err
