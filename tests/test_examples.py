"""Every example runs as its docstring says, and what it prints is true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tracked import tracked

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name):
    """The lines that an example prints."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize("path", tracked("examples", "*.py"), ids=lambda path: path.stem)
def test_the_docstring_names_the_command(path):
    assert f"python {path.relative_to(EXAMPLES.parent).as_posix()}" in ast.get_docstring(
        ast.parse(path.read_text(encoding="utf-8"))
    )


def test_every_example_is_tested_here():
    """Those of examples/real in test_examples_real.py, the notebook in test_walkthrough.py."""
    assert {path.relative_to(EXAMPLES).as_posix() for path in tracked("examples")} - {
        path.relative_to(EXAMPLES).as_posix() for path in tracked("examples/clips")
    } == {
        "README.md",
        "score_a_video.py",
        "best_of_five.py",
        "your_own_reward.py",
        "walkthrough.ipynb",
        "real/api_judge.py",
        "real/flow_factory.py",
        "real/flow_factory.yaml",
        "real/flow_factory_miniature.yaml",
        "real/served_judge.sh",
        "real/trl_prompt_writer.py",
    }


def test_score_a_video_tells_the_normal_clip_from_the_anomalous_one():
    text = "\n".join(run("score_a_video.py"))
    normal, anomalous = text.split("truth: abnormal")
    assert normal.startswith("truth: normal")
    (high,), (low,) = (re.findall(r"R = ([\d.]+)", part) for part in (normal, anomalous))
    assert float(low) < 0.5 < float(high)
    assert "Object Distortion" not in normal and "Object Distortion" in anomalous
    boxes = [box for frame in re.findall(r"frame \d+: (\[\[.*\]\])", anomalous) for box in ast.literal_eval(frame)]
    assert boxes and all(0 <= low < high <= 1000 for x0, y0, x1, y1 in boxes for low, high in ((x0, x1), (y0, y1)))


def test_best_of_five_chooses_the_highest_score_and_leaves_the_videos():
    reason, scores, place = run("best_of_five.py")
    values = ast.literal_eval(scores.removeprefix("scores: "))
    assert len(values) == 5 and reason.startswith(f"Candidate {values.index(max(values))} ")
    out = Path(place.rpartition(" ")[2])
    assert len(list((out / "videos").glob("*.mp4"))) == 5 and (out / "ledger.jsonl").is_file()


def test_your_own_reward_weighs_its_two_components():
    lines = run("your_own_reward.py")
    assert len(lines) == 3
    for line in lines:
        total, parts = float(line.split()[0]), ast.literal_eval(re.search(r"\{.*?\}", line)[0])
        assert total == pytest.approx(0.8 * parts["normalised/cac"] + 0.2 * parts["normalised/motion"], abs=0.0011)
