"""The vbvr-rl reward against its contract: latents in, decoded by the trainer, a handle whose ``result()`` is a (B,) tensor."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cac_align.plugins.common import host
from cac_align.plugins.common.missing_scores import MissingScoreError
from cac_align.plugins.vbvr_rl import LatentReward

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def scripted_reward(monkeypatch):
    monkeypatch.setattr(host, "_rewards", {})
    monkeypatch.setattr(host, "_host_rewards", {})
    monkeypatch.setenv("CAC_ALIGN_REWARD", "tests.support.hosting:scripted")


class Model:
    """Its decoder's contract: (B, z, t, h, w) to (B, 3, T, H, W) in [-1, 1], and a little beyond."""

    def decode_latents(self, latents):
        frames = (latents.shape[2] - 1) * 4 + 1
        return latents[:, :1, :1].mean((3, 4), keepdim=True).expand(-1, 3, frames, 32, 48)


def trainer(**more):
    return SimpleNamespace(model=Model(), rank=0, **more)


def latents(*levels):
    return torch.stack([torch.full((16, 5, 4, 6), level) for level in levels])


def ask(reward, levels, prompt="a"):
    return reward.submit(latents(*levels), None, None, None, meta={"sample_prompt": [prompt] * len(levels)})


def test_latents_are_decoded_and_scored():
    reward = LatentReward(trainer(), SimpleNamespace(fps=16))
    meta = {"sample_prompt": ["a", "b"]}
    found = reward(latents(0.9, -0.9), None, None, None, indices=None, expert_filter=None, meta=meta)
    assert found.tolist() == pytest.approx([0.825, 0.425]) and found.dtype == torch.float32
    assert LatentReward.requires_vae and not LatentReward.requires_policy_forward
    levels = [reward._decoded(latents(level)).flat[0] for level in (-1.2, -1.0, 0.0, 1.0)]
    assert levels == [0, 0, 128, 255]  # (x + 1) × 127.5, clamped, as the host's own judge rounds


def test_submit_returns_before_the_score_is_there(monkeypatch):
    reward, gate = LatentReward(trainer(), SimpleNamespace()), threading.Event()
    scores = reward.host_reward.scores
    monkeypatch.setattr(reward.host_reward, "scores", lambda *given: gate.wait(20) and scores(*given))
    first, second = ask(reward, [0.9]), ask(reward, [-0.9])
    assert not first.scores.done()
    gate.set()
    assert second.result().tolist() == pytest.approx([0.425]) and first.result().tolist() == pytest.approx([0.825])


def test_a_group_in_several_chunks_is_whole(monkeypatch):
    monkeypatch.setenv("CAC_ALIGN_GROUP_SIZE", "4")
    reward = LatentReward(trainer(), SimpleNamespace())
    chunks = [ask(reward, [0.9, float("nan")]), ask(reward, [-0.9, -0.9])]
    assert [chunk.result().tolist() for chunk in chunks] == [
        pytest.approx([0.825, (0.825 + 2 * 0.425) / 3]),
        pytest.approx([0.425, 0.425]),
    ]
    half = [ask(reward, [float("nan")]), ask(reward, [0.9])]
    for chunk in half:  # also the one that is asked for after the failure
        with pytest.raises(MissingScoreError):
            chunk.result()


def test_what_cannot_be_scored_rightly_is_refused(monkeypatch):
    reward = LatentReward(trainer(), SimpleNamespace(fps=None))
    with pytest.raises(ValueError, match="sample_prompt"):
        reward(latents(0.9), None, None, None, meta={})
    with pytest.raises(ValueError, match="expert_filter"):
        reward(latents(0.9), None, None, None, expert_filter="high", meta={"sample_prompt": ["a"]})
    with pytest.raises(ValueError, match="CAC_ALIGN_FPS=24"):
        LatentReward(trainer(), SimpleNamespace(fps=24))
    with pytest.raises(ValueError, match="CAC_ALIGN_ON_MISSING=raise"):
        LatentReward(trainer(tensor_parallel_enabled=True), SimpleNamespace())


def test_the_launcher_registers_its_names_before_the_training_starts(tmp_path):
    for name, text in {
        "src/__init__.py": "",
        "src/cli/__init__.py": "",
        "src/trainer/__init__.py": "",
        "src/trainer/rewards/__init__.py": "",
        "src/trainer/rewards/registry.py": "FOUND = {}\ndef register_reward(name):\n"
        "    return lambda cls: FOUND.setdefault(name, cls)\n",
        "src/cli/train_grpo.py": "import sys\nfrom src.trainer.rewards.registry import FOUND\n"
        "if __name__ == '__main__':\n    print(sorted(FOUND), sys.argv[1:])\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "cac_align.plugins.vbvr_rl", "--config", "x.yaml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['cac', 'cac_unified', 'unifiedreward_video'] ['--config', 'x.yaml']"
