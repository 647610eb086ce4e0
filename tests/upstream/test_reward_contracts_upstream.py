"""Hosts whose trainers want GPUs: their own reward loaders, registries, dispatchers and clients call our adapters over a service."""

import json
import os
import subprocess

import pytest

from cac_align.rewards.build import load_reward
from tests.support.hosting import serving
from tests.upstream.hosts import PYTHON, REPOSITORY, checkout, need

pytestmark = [pytest.mark.upstream, pytest.mark.timeout(300)]


def ask(script: str, home: object, reward: str = "tests.support.hosting:scripted") -> dict:
    """What the host's interpreter found with its own code; the test fails with its last lines where it failed."""
    module = f"tests.upstream.reward_contracts.{script}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    with serving(load_reward(reward)) as (url, _):
        command = [PYTHON, "-m", module, url, str(home)]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FACTS "))[6:])


def test_genrl():
    home = checkout("GENRL_DIR", "ModelTC/GenRL", "genrl/rewards.py")
    need("accelerate", "diffusers", "imageio", "wandb")
    found = ask("ask_genrl", home)
    assert found["trained"]["cac_raw"] == pytest.approx([0.9, 0.1])
    assert found["trained"]["avg"] == pytest.approx([(0.45 + 0.375) / 2, (0.05 + 0.375) / 2])
    assert found["evaluated"] == pytest.approx([0.825])
    assert "cac_unifed_score" in found["unknown"]
    assert found["without_module"] == [0.0]  # what doctor looks for: our name without our module is a silent 0


def test_miles_diffusion():
    home = checkout("MILES_DIFFUSION_DIR", "radixark/miles_diffusion", "miles/rollout/rm_hub/__init__.py")
    need("ray", "safetensors")
    found = ask("ask_miles_diffusion", home)
    assert found["group"] == pytest.approx([0.825, 0.425]) and found["evaluated"] == pytest.approx([0.825])
    assert "judges video" in found["image"]


def test_flow_factory_groupwise():
    """Samples 0-3 have an order, 4-7 are equal, 9 is a video without a score, 12-15 are a group without any."""
    home = checkout("FLOW_FACTORY_DIR", "X-GenGroup/Flow-Factory", "src/flow_factory/train.py")
    need("datasets", "imageio", "ftfy")
    found = ask("ask_flow_factory", home)
    rewards = [found["rewards"][str(index)] for index in range(16)]
    assert sorted(range(4), key=rewards.__getitem__) == [0, 3, 2, 1] and sum(rewards[:4]) == pytest.approx(2, abs=1e-5)
    assert rewards[4:8] == [0.5] * 4 and rewards[8] > rewards[9] > rewards[11] and len(set(rewards[12:])) == 1
    for kind in ("sum False", "sum True", "gdpo False"):
        advantages = [found["advantages"][kind][str(index)] for index in range(16)]
        assert sorted(range(4), key=advantages.__getitem__) == [0, 3, 2, 1] and advantages[1] > 0.5
        assert [advantages[index] for index in (4, 5, 6, 7, 9, 12, 13, 14, 15)] == pytest.approx([0] * 9, abs=1e-4)
    assert found["evaluated"] == [] and "async_reward: false" in found["refused"]


def test_pref_grpo():
    home = checkout("PREF_GRPO_DIR", "CodeGoat24/Pref-GRPO", "fastvideo/rewards/dispatcher.py")
    need("open_clip")
    found = ask("ask_pref_grpo", home)
    assert found["rewards"] == pytest.approx([0.825, 0.425]) and found["logged"] == pytest.approx([0.825, 0.425])
    assert found["advantages"] == pytest.approx([0.5**0.5, -(0.5**0.5)])  # two videos, their unbiased std


def test_vbvr_rl():
    home = checkout("VBVR_RL_DIR", "pufanyi/vbvr-rl", "src/trainer/rewards/registry.py")
    need("webdataset", "loguru")
    found = ask("ask_vbvr_rl", home, "tests.support.hosting:brightness")
    assert found["names"] == ["cac", "cac_unified", "unifiedreward_video"] and found["shape"] == [1, 3, 17, 32, 48]
    *scored, diverged = found["rewards"]
    assert len(set(scored)) == 3 and diverged == pytest.approx(sum(scored) / 3)


def test_fastvideo():
    home = checkout("FASTVIDEO_DIR", "hao-ai-lab/FastVideo (pull request 1653)", "fastvideo/train/methods/rl/promptrl")
    need("fastapi", "multipart", "requests")
    found = ask("ask_fastvideo", home)
    assert found["group"] == pytest.approx([0.825, 0.425, 0.625]) and found["alone"] == pytest.approx([0.825])
    assert "none is neutral" in found["failures"][0] and "CAC_ALIGN_FPS=24" in found["failures"][1]


def test_teleboost():
    home = checkout("TELEBOOST_DIR", "Tele-AI/TeleBoost", "teleboost/reward/execution/custom.py")
    need("verl", "tensordict")
    found = ask("ask_teleboost", home)
    assert found["rewards"] == pytest.approx([0.825, 0.425]) and found["means"] == pytest.approx([1, 1])
    assert found["largest"] == pytest.approx([1, 8])
