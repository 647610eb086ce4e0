"""The other judges from a recipe: what they need is told before anything is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cac_align.core.video import Video
from cac_align.evaluation.bench.bench import bench
from cac_align.rewards.build import JUDGE_KINDS, JudgeRecipe, RewardRecipe, load_reward, reward_choices
from cac_align.rewards.combine import compares_videos
from cac_align.rewards.judges.votes import VotedCaC
from cac_align.rewards.metered import MeteredReward, MeteredVlm, UsageMeter, metered
from cac_align.rewards.pairwise.tournament import Tournament
from cac_align.rewards.reachable import check_reachable, servers_of

URL = "http://127.0.0.1:1/v1"


def load(**keys):
    return load_reward(RewardRecipe(components={"judge": JudgeRecipe(**{"model": URL, **keys})}))


def test_a_pair_judge_becomes_a_tournament(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("Which is better? {prompt}")
    reward = load(kind="unified_flex", prompt_file=str(path), allow_other_prompt=True, schedule="anchor", anchors=3)
    assert isinstance(reward, Tournament) and (reward.schedule, reward.anchors) == ("anchor", 3)
    assert compares_videos(reward) and reward.bounds == (0.0, 1.0)


def test_a_pair_judge_in_a_pointwise_place_names_another_judge(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("Call.\n=== user ===\nWhich is better? {prompt} {N}")
    reward = load(kind="vr_thinker", prompt_file=str(path), allow_other_prompt=True)
    video = Video.open(np.zeros((9, 16, 16, 3), np.uint8), fps=8.0)
    (score,) = reward(["a"], [video])
    refusals = [str(score.error)]
    for refused in (lambda: bench(tmp_path / "records.jsonl", {"judge": reward}), lambda: reward_choices(reward)):
        with pytest.raises(ValueError, match="compares pairs") as told:
            refused()
        refusals.append(str(told.value))
    assert all("kind: cac" in refusal for refusal in refusals)


def test_an_endpoint_is_asked_once_per_vote(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    reward = load(kind="api", served_model="some-model", votes=7, scan_fps=2.0, api_key_env="SOME_KEY")
    assert isinstance(reward, VotedCaC) and len(reward.voters) == 7 and reward.settings.scan_fps == 2.0
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(ValueError, match="SOME_KEY"):
        load(kind="api", served_model="some-model", api_key_env="SOME_KEY")


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"kind": "videoscore3"}, "kind must be"),
        ({"kind": "unified_think"}, "prompt_file is not given; fetch UnifiedReward-Think/"),
        ({"kind": "videophy2", "model": "some/folder", "prompt_file": "x"}, "behind a URL"),
        ({"kind": "videoscore2", "model": "miniature"}, "no miniature"),
        ({"kind": "api"}, "served_model"),
        ({"kind": "api", "served_model": "m", "votes": 2}, "3 or more"),
        ({"kind": "videoscore2", "schedule": "anchor"}, "schedule"),
        ({"kind": "vr_thinker"}, "copy the system prompt"),
        ({"kind": "vr_thinker", "model": "some/folder", "prompt_file": "x"}, "behind a URL"),
        ({"kind": "vr_thinker", "prompt_file": __file__, "allow_other_prompt": True}, "=== user ==="),
        ({"kind": "skyra"}, "fetch eval/utils/ViFBench.py from github.com/JoeLeelyf/Skyra"),
        ({"kind": "skyra", "model": "some/folder", "prompt_file": "x"}, "behind a URL"),
        ({"kind": "skyra", "votes": 5, "prompt_file": "x"}, "votes"),
        ({"kind": "videoveritas"}, "infer_vllm_single.py"),
        ({"kind": "videoveritas", "prompt_file": __file__}, "sha256 1ce40e58a85d"),
        ({"kind": "videoveritas", "votes": 2}, "3 or more"),
        ({"kind": "videoveritas", "vote_temperature": 0.5}, "how many votes"),
        ({"kind": "videoveritas", "votes": 5, "vote_temperature": 0.0}, "above 0"),
        ({"kind": "videoveritas", "votes": 5, "model": "some/folder"}, "name a URL"),
        ({"kind": "unified_think", "tta": ["mirrored"]}, "tta"),
    ],
)
def test_what_is_missing_is_named(keys, message):
    with pytest.raises(ValueError, match=message):
        load(**keys)


def test_what_stands_around_a_judge_reaches_its_model(tmp_path):
    """Reachability and cost see the servers of pair judges and of votes; a wrapper says that pairs are compared."""
    path = tmp_path / "prompt.txt"
    path.write_text("Which is better? {prompt}")
    pairs = load(kind="unified_think", prompt_file=str(path), allow_other_prompt=True)
    votes = load(kind="api", served_model="some-model", votes=3)
    assert len(servers_of(pairs)) == len(servers_of(votes)) == 1
    for reward in (pairs, votes):
        with pytest.raises(ValueError, match="127.0.0.1:1"):
            check_reachable(reward)
    counted: Any = metered(pairs, UsageMeter())
    assert isinstance(counted.comparator.vlm, MeteredVlm) and compares_videos(counted)
    counted = metered(votes, UsageMeter())
    assert all(isinstance(voter, MeteredVlm) for voter in counted.voters)
    assert compares_videos(MeteredReward(pairs, UsageMeter())) == compares_videos(pairs)


def test_every_kind_has_its_place_on_the_page_of_judges():
    page = (Path(__file__).parents[3] / "docs" / "judges.md").read_text(encoding="utf-8")
    assert {kind for kind in JUDGE_KINDS if f"`{kind}`" not in page} == set()
