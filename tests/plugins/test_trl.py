"""TRL-style reward functions: keyword arguments in, a float per video out, a name to log under."""

import pytest
import torch

from cac_align.plugins import trl
from cac_align.plugins.common import host
from cac_align.plugins.common.missing_scores import MissingScoreError
from cac_align.plugins.trl import VideoReward, prompt_text
from tests.support.hosting import clip


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(host, "_rewards", {})
    monkeypatch.setattr(host, "_host_rewards", {})


def video(level=240):
    return torch.from_numpy(clip(level)).permute(0, 3, 1, 2).float() / 255


def test_completions_or_a_column_hold_the_videos():
    reward = VideoReward(reward="tests.support.hosting:scripted")
    assert reward.__name__ == "cac_unified"
    values = reward(
        prompts=["a", "b"], completions=[video(240), video(90)], completion_ids=[[1], [2]], trainer_state=None
    )
    assert values == pytest.approx([0.825, 0.425])
    assert reward(prompts=["a"], completions=["some text"], videos=[video(90)]) == pytest.approx([0.425])


@pytest.mark.parametrize("installed", ["1.10.0", "1.16.0", "2.0.1"])
def test_no_score_is_none_where_trl_leaves_it_out(monkeypatch, installed):
    monkeypatch.setattr(trl, "_trl_version", lambda: installed)
    reward = VideoReward(reward="tests.support.hosting:brightness", leave_out=True, max_unscored_share=0.6, min_seen=4)
    values = reward(prompts=["a", "unscorable"], completions=[video(), video() * float("nan")])
    assert values[0] > 0 and values[1] is None
    assert reward(prompts=["unscorable"], completions=[video()]) == [None]
    with pytest.raises(MissingScoreError, match="too many videos without a score .* 3 of 4 unscored"):
        reward(prompts=["unscorable"], completions=[video()])


def test_a_missing_score_raises():
    with pytest.raises(MissingScoreError, match="1 of 2 videos have no score"):
        VideoReward(reward="tests.support.hosting:brightness", on_missing="raise")(
            prompts=["a", "unscorable"], completions=[video(), video()]
        )
    reward = VideoReward(reward="tests.support.hosting:brightness", max_unscored_share=1.0, group_size=2)
    values = reward(prompts=["a", "a"], completions=[video(), video() * float("nan")])
    assert values[1] == pytest.approx(values[0])


@pytest.mark.parametrize("installed", ["", "0.24.0", "1.9.3"])
def test_none_is_refused_where_trl_would_count_it_as_zero(monkeypatch, installed):
    monkeypatch.setattr(trl, "_trl_version", lambda: installed)
    with pytest.raises(
        ValueError, match=f"leave_out needs trl >= 1.10, found {installed or 'none'}: an older one may count None as 0"
    ):
        VideoReward(reward="tests.support.hosting:brightness", leave_out=True)


def test_wrong_use_is_a_typed_error():
    with pytest.raises(ValueError, match="no videos"):
        VideoReward(reward="tests.support.hosting:brightness")(prompts=["a"])
    with pytest.raises(ValueError, match="one prompt per video"):
        VideoReward(reward="tests.support.hosting:brightness")(prompts=["a"], completions=[video()] * 2)
    with pytest.raises(ValueError, match="unknown reward option"):
        VideoReward(rewards="x")


def test_chats_are_read_by_their_last_message():
    assert prompt_text([{"role": "system", "content": "s"}, {"role": "user", "content": "a ball"}]) == "a ball"
    parts = [{"type": "video"}, {"type": "text", "text": "a ball"}]
    assert prompt_text([{"role": "user", "content": parts}]) == "a ball"
