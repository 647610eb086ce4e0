"""The verl-omni function against its contract: called by keyword with what its signature names, one uint8 video per call."""

import asyncio
import inspect
import math

import pytest
import torch

from cac_align.plugins import verl_omni
from cac_align.plugins.common import host
from cac_align.plugins.common.missing_scores import RunStopped
from tests.support.hosting import clip


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(host, "_rewards", {})
    monkeypatch.setattr(host, "_host_rewards", {})


def manager(solution_image, ground_truth="p", extra_info=None, **entry):
    """What the multi-reward manager does: keywords filtered by signature, the rest of the entry beside them."""
    given = {
        "data_source": "d",
        "solution_image": solution_image,
        "ground_truth": ground_truth,
        "extra_info": extra_info or {},
    }
    given |= {"reward_router_address": "x", "reward_model_tokenizer": None, "model_name": "m"} | entry
    names = inspect.signature(verl_omni.compute_score).parameters
    assert inspect.iscoroutinefunction(verl_omni.compute_score)
    return asyncio.run(verl_omni.compute_score(**{key: value for key, value in given.items() if key in names}))


def video(level=240, num_frames=17):
    return torch.from_numpy(clip(level, num_frames)).permute(0, 3, 1, 2)


def test_both_layouts_and_a_batch_of_one():
    for pixels in (video(), video().permute(1, 0, 2, 3), video().permute(1, 0, 2, 3)[None], video().numpy()):
        row = manager(pixels, reward="tests.support.hosting:scripted")
        assert row["score"] == pytest.approx(0.825) and row["normalised/cac"] == pytest.approx(0.9)
        assert all(isinstance(value, float) and math.isfinite(value) for value in row.values())


def test_three_frames_need_a_stated_layout():
    with pytest.raises(RunStopped, match="pass layout="):
        manager(video(num_frames=3), reward="tests.support.hosting:scripted")
    assert manager(video(num_frames=3), reward="tests.support.hosting:scripted", layout="TCHW", component="cac")[
        "score"
    ] == pytest.approx(0.9)


def test_only_uint8_is_accepted():
    with pytest.raises(RunStopped, match="uint8 pixels"):
        manager(video().float() / 255, reward="tests.support.hosting:scripted")


def test_the_prompt_is_the_extra_informations_or_the_ground_truth():
    with pytest.raises(RunStopped, match="told not to"):
        manager(video(), "p", {"prompt": "unscorable"}, reward="tests.support.hosting:brightness")
    with pytest.raises(RunStopped, match="told not to"):
        manager(video(), "unscorable", {"prompt": ""}, reward="tests.support.hosting:brightness")
    assert manager(video(), "unscorable", {"prompt": "fine"}, reward="tests.support.hosting:brightness")["score"] > 0


def test_samples_are_scored_side_by_side():
    async def both():
        calls = [
            verl_omni.compute_score(
                data_source="d", solution_image=video(level), ground_truth="p", reward="tests.support.hosting:scripted"
            )
            for level in (240, 90)
        ]
        return await asyncio.gather(*calls)

    assert [row["score"] for row in asyncio.run(both())] == pytest.approx([0.825, 0.425])


def test_a_dead_service_cannot_become_a_zero():
    """Without ``required`` the host catches ``Exception`` and trains on 0.0."""
    with pytest.raises(BaseException, match=r"127\.0\.0\.1:9") as stopped:
        manager(video(), reward="http://127.0.0.1:9", retries=0, reasks=0, timeout_s=2)
    assert not isinstance(stopped.value, Exception)
    with pytest.raises(RunStopped, match="state the option reward"):
        manager(video())
