"""The TeleBoost function against its contract: a DataProto with the step's videos in, (B,) rewards out, and ViPO's maps."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cac_align.plugins.common import host
from cac_align.plugins.teleboost import step_rewards
from tests.support.hosting import clip

REWARD = {"reward": "tests.support.hosting:scripted"}


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(host, "_rewards", {})
    monkeypatch.setattr(host, "_host_rewards", {})


def proto(*levels, captions=None, uid=None, maps=None):
    """(B, C, T, H, W) in [0, 1] with 17 frames of 32 × 48 pixels: latents of 5 × 4 × 6."""
    frames = torch.stack([torch.from_numpy(clip(level)).permute(3, 0, 1, 2).float() / 255 for level in levels])
    batch = {"video_frames": frames} | ({} if maps is None else {"pixel_weight_maps": maps})
    other = {"caption": np.array(captions or ["a"] * len(levels), dtype=object)}
    return SimpleNamespace(batch=batch, non_tensor_batch=other if uid is None else other | {"uid": np.array(uid)})


def test_a_batch_has_one_reward_per_video():
    rewards = step_rewards(proto(240, 90), **REWARD)["rewards"]
    assert rewards.shape == (2,) and rewards.dtype == torch.float32 and rewards.device.type == "cpu"
    assert rewards.tolist() == pytest.approx([0.825, 0.425])
    with pytest.raises(ValueError, match="did you mean 'ledger'"):
        step_rewards(proto(240), **REWARD, ledgr="x")


def test_groups_are_what_the_trainer_says_they_are():
    data = proto(240, 90, 90, 90, uid=["x", "x", "y", "y"])  # one caption twice in a step
    data.batch["video_frames"][3] = torch.nan
    rewards = step_rewards(data, **REWARD)["rewards"]
    assert rewards.tolist() == pytest.approx([0.825, 0.425, 0.425, 0.425])  # by caption it would be .558


def test_maps_lie_where_the_judge_saw_the_defect():
    theirs = torch.full((2, 5, 4, 6), 0.5, dtype=torch.bfloat16)
    data = proto(240, 90, maps=theirs)
    step_rewards(data, **REWARD, weight_maps=True, contrast=8)
    maps = data.batch["pixel_weight_maps"].float()
    assert data.batch["pixel_weight_maps"].dtype == torch.bfloat16 and maps.shape == theirs.shape
    assert maps.mean((1, 2, 3)).tolist() == pytest.approx([1, 1], abs=0.01)
    assert (maps[0] == 1).all()  # the bright one is normal
    # The dark one: window of frames 1 and 2 at 4 fps, .25 to .5 s, the box [100, 300] of 1000 both ways: 4.8 to 14.4
    # pixels across and 3.2 to 9.6 down. Source frames 4 to 8 lie in latent frames 1 and 2, the box in 2 × 2 cells.
    heavy = maps[1] > 1
    assert heavy.nonzero().tolist() == [[t, y, x] for t in (1, 2) for y in (0, 1) for x in (0, 1)]
    assert float(maps[1][heavy].mean() / maps[1][~heavy].mean()) == pytest.approx(8, rel=0.02)
    advantage = torch.tensor([0.5, -0.5]).view(-1, 1, 1, 1) * maps  # what ViPO's trainer makes of it
    assert advantage.mean((1, 2, 3)).tolist() == pytest.approx([0.5, -0.5], abs=0.01)


def test_maps_that_nobody_would_read_or_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="pixel_weight.enable=true"):
        step_rewards(proto(240), **REWARD, weight_maps=True)
    with pytest.raises(ValueError, match=r"\(5, 3, 6\)"):
        step_rewards(proto(240, maps=torch.ones(1, 5, 3, 6)), **REWARD, weight_maps=True)
