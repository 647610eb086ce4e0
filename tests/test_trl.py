"""TRL-style reward functions: keyword arguments in, a float or None per video out, a name to log under."""

import pytest
import torch
from hosting import clip

from cac_align.plugins import host
from cac_align.plugins.trl import VideoReward, prompt_text


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(host, "_rewards", {})
    monkeypatch.setattr(host, "_hosted", {})


def video(level=240):
    return torch.from_numpy(clip(level)).permute(0, 3, 1, 2).float() / 255


def test_completions_or_a_column_hold_the_videos():
    reward = VideoReward(reward="hosting:scripted")
    assert reward.__name__ == "cac_unified"
    values = reward(prompts=["a", "b"], completions=[video(240), video(90)], completion_ids=[[1], [2]], trainer_state=None)
    assert values == pytest.approx([0.825, 0.425])
    assert reward(prompts=["a"], completions=["some text"], videos=[video(90)]) == pytest.approx([0.425])


def test_no_score_is_none():
    reward = VideoReward(reward="hosting:brightness")
    values = reward(prompts=["a", "unscorable"], completions=[video(), video() * float("nan")])
    assert values[0] > 0 and values[1] is None
    assert reward(prompts=["unscorable"], completions=[video()]) == [None]


def test_wrong_use_is_a_typed_error():
    with pytest.raises(ValueError, match="no videos"):
        VideoReward(reward="hosting:brightness")(prompts=["a"])
    with pytest.raises(ValueError, match="one prompt per video"):
        VideoReward(reward="hosting:brightness")(prompts=["a"], completions=[video()] * 2)
    with pytest.raises(ValueError, match="unknown reward option"):
        VideoReward(rewards="x")


def test_chats_are_read_by_their_last_message():
    assert prompt_text([{"role": "system", "content": "s"}, {"role": "user", "content": "a ball"}]) == "a ball"
    parts = [{"type": "video"}, {"type": "text", "text": "a ball"}]
    assert prompt_text([{"role": "user", "content": parts}]) == "a ball"
