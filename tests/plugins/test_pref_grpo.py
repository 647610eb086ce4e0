"""The Pref-GRPO launcher against its contract: an unmodified script imports our class as VideoAlign's and trains on "Overall"."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cac_align.core.encoding import write_mp4
from cac_align.plugins import pref_grpo
from cac_align.plugins.common import host
from tests.support.hosting import clip

ROOT = Path(__file__).parents[2]

# What its dispatcher does with the class, and its script with the dispatcher.
SCRIPT = """
import json, sys, torch
from fastvideo.models.videoalign.inference import VideoVLMRewardInference
inferencer = VideoVLMRewardInference("/nowhere/videoalign_ckpt", device="cpu", dtype=torch.float32)
rewards = inferencer.reward(sys.argv[2:], ["a"] * len(sys.argv[2:]), use_norm=True)
print(json.dumps([float(row.get("Overall", row["VQ"] + row["MQ"] + row["TA"])) for row in rewards]))
"""


@pytest.fixture
def checkout(tmp_path):
    """Packages as Pref-GRPO has them; its own inference module would end the run."""
    package = tmp_path / "fastvideo" / "models" / "videoalign"
    package.mkdir(parents=True)
    for folder in (package, *list(package.parents)[:2]):
        (folder / "__init__.py").touch()
    (package / "inference.py").write_text("raise SystemExit('the original was imported')\n")
    (tmp_path / "fastvideo" / "train_wan21.py").write_text(SCRIPT)
    return tmp_path


def run(checkout, *arguments):
    environment = {**os.environ, "CAC_ALIGN_REWARD": "tests.support.hosting:scripted", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(checkout), str(ROOT)])
    command = [sys.executable, "-m", "cac_align.plugins.pref_grpo", *arguments]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)


def test_an_unmodified_script_gets_the_whole_reward(checkout):
    paths = [checkout / f"{level}.mp4" for level in (240, 90)]
    for path, level in zip(paths, (240, 90), strict=True):
        write_mp4(path, clip(level), 16)
    done = run(checkout, "fastvideo/train_wan21.py", "--reward_spec=videoalign:1.0", *map(str, paths))
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == pytest.approx([0.825, 0.425])


def test_a_run_that_does_not_ask_for_it_does_not_start(checkout):
    done = run(checkout, "fastvideo/train_wan21.py", "--reward_spec", "unifiedreward_flex:1.0")
    assert done.returncode != 0 and "videoalign:1.0" in done.stderr and "Traceback" not in done.stderr


def test_a_missing_score_is_the_mean_of_the_prompts_videos(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "_rewards", {})
    monkeypatch.setattr(host, "_host_rewards", {})
    monkeypatch.setenv("CAC_ALIGN_REWARD", "tests.support.hosting:scripted")
    paths = [tmp_path / f"{level}.mp4" for level in (240, 90, 0)]
    for path, level in zip(paths[:2], (240, 90), strict=True):
        write_mp4(path, clip(level), 16)
    paths[2].write_bytes(b"not a video")
    ours = pref_grpo.StepReward("ignored", device="cpu", dtype=torch.float32)
    rows = ours.reward([str(path) for path in paths], ["a"] * 3)
    assert [row["Overall"] for row in rows] == pytest.approx([0.825, 0.425, 0.625])
    assert all(len(set(row.values())) == 1 and set(row) == {"VQ", "MQ", "TA", "Overall"} for row in rows)
