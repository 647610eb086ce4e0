"""The domain of a reward: what lies outside it has no score, and the shipped judges state the playground."""

import json

import numpy as np
import pytest

from cac_align.core.video import Video
from cac_align.core.weights import ship, shipped, weights_folder
from cac_align.miniature.world.settings import PLAYGROUND
from cac_align.miniature.world.world import make_prompts
from cac_align.rewards.build import RewardRecipe, load_reward
from cac_align.rewards.cac import CaC
from cac_align.rewards.domain import Domain, domain_name, domain_notice, domains_of, read_domain
from cac_align.rewards.unified import UnifiedReward
from cac_align.vlm.scripted import ScriptedVlm

PROMPT = "a red ball rolls to the right on grass"


def video(frames=17, size=64, fps=16.0):
    return Video.open(np.full((frames, size, size, 3), 90, np.uint8), fps=fps, layout="THWC")


def test_the_shipped_judges_state_the_playground():
    domain = read_domain(shipped("cac"))
    assert domain is not None and domain == read_domain(shipped("unified"))
    assert domain.name == "miniature"
    assert domain.frame_sizes == ((PLAYGROUND.height, PLAYGROUND.width),)
    assert domain.num_frames == PLAYGROUND.num_frames and domain.fps == (PLAYGROUND.fps,)
    prompts = set(make_prompts(range(3_000_000, 3_003_000), PLAYGROUND))
    assert len(prompts) == 216
    assert [prompt for prompt in prompts if domain.mismatch(prompt, video())] == []


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat walks",
        "a red star spins to the left on grass",
        "a red ball slides to the left on grass",
        "a red ball bounces in a room",
        "a red ball bounces on grass as the camera drifts",
        "",
        "an orange ball rises on sand",
    ],
)
def test_other_prompts_are_outside(prompt):
    domain = read_domain(shipped("cac"))
    assert domain is not None and repr(prompt[:60]) in (domain.mismatch(prompt, video()) or "")


def test_frame_size_length_and_rate_are_checked_and_all_are_named():
    domain = read_domain(shipped("cac"))
    assert domain is not None and domain.mismatch(PROMPT.upper() + ".", video()) is None
    reason = domain.mismatch(PROMPT, video(frames=33, size=96, fps=8.0)) or ""
    assert "96 x 96" in reason and "33 frames" in reason and "8 frames per second" in reason
    assert Domain("anything").mismatch("whatever", video(frames=3)) is None


NORMAL = '{"COT": "fine", "status": "normal", "anomalies": []}'


def cac(**more):
    judge = ScriptedVlm(lambda conversation: NORMAL)
    return CaC(judge, domain=Domain("small", frame_sizes=((64, 64),)), **more), judge


def test_a_video_outside_has_no_score_and_is_not_judged():
    reward, judge = cac()
    scores = reward(["p", "p", "p"], [video(), video(size=96), video()])
    assert [score.scored for score in scores] == [True, False, True]
    assert len(judge.asked) == 2
    assert "96 x 96" in (scores[1].error or "") and "allow_out_of_domain=true" in (scores[1].error or "")
    assert scores[1].provenance["domain"] == scores[0].provenance["domain"] == "small"


def test_it_is_scored_where_that_is_allowed_and_the_provenance_says_so():
    reward, judge = cac(allow_out_of_domain=True)
    strict, _ = cac()
    assert reward(["p"], [video(size=96)])[0].scored and len(judge.asked) == 1
    assert dict(reward.provenance) != dict(strict.provenance)  # a ledger never hands a strict reward that number
    assert domain_name(reward.provenance) == "small"


def test_a_judge_that_fails_outside_its_domain_says_first_what_it_was_made_for():
    """A judge of toys asked about a real clip writes no JSON: the reader must learn why, and what to use instead."""
    judge = ScriptedVlm(lambda conversation: "a dog " * 200)
    reward = CaC(judge, domain=Domain("small", frame_sizes=((64, 64),)), allow_out_of_domain=True)
    inside, outside = reward(["p", "p"], [video(), video(size=96)])
    assert not inside.scored and not outside.scored
    assert "small" not in (inside.error or "") and (outside.error or "").endswith(inside.error or "?")
    said = (outside.error or "").removesuffix(inside.error or "?")
    assert "toy for the small" in said and "96 x 96" in said and "qwen3vl_8b_server" in said


def test_unified_reward_has_the_same_check():
    text = "Alignment Score (1-5): 4\nPhysics Score (1-5): 4\nStyle Score (1-5): 4"
    reward = UnifiedReward(ScriptedVlm(lambda conversation: text), domain=Domain("small", num_frames=(17,)))
    scores = reward(["p", "p"], [video(), video(frames=21)])
    assert scores[0].value == 4 and not scores[1].scored and "21 frames" in (scores[1].error or "")


def test_a_reward_without_domain_has_none():
    reward = CaC(ScriptedVlm(lambda conversation: NORMAL))
    assert "domain" not in reward.provenance and domains_of(reward) == {} and domain_notice(reward) is None


def test_the_default_reward_refuses_another_world_and_the_recipe_key_allows_it():
    strict = load_reward(None, ["components.cac.tta=[as_is]"])
    (score,) = strict(["a dog runs along a beach"], [video(frames=33)])
    assert not score.scored and (score.error or "").count("33 frames") == 1  # both components, one reason
    notice = domain_notice(strict) or ""
    assert all(name in notice for name in ("miniature", "qwen3vl_8b_server", "qwen3vl_4b_server", "qwen3vl_2b_server"))
    assert domain_name(strict.provenance) == "miniature"
    allowed = load_reward(None, ["allow_out_of_domain=true", "components.cac.tta=[as_is]"])
    (score,) = allowed(["a dog runs along a beach"], [video(frames=33)])
    assert score.scored or "The judge's failure: " in (score.error or "")  # it was asked
    assert RewardRecipe().allow_out_of_domain is False


def test_a_wrong_domain_is_an_error_with_its_file(tmp_path):
    (tmp_path / "cac_align.json").write_text(json.dumps({"domain": {"name": "x", "frame": [[1, 1]]}}))
    with pytest.raises(ValueError, match=r"cac_align\.json.*frame_sizes"):
        read_domain(tmp_path)
    (tmp_path / "cac_align.json").write_text(json.dumps({"domain": {"name": "x", "prompt": "("}}))
    with pytest.raises(ValueError, match="regular expression"):
        read_domain(tmp_path)
    assert read_domain("some/hub-id") is None and read_domain("http://localhost:1/v1") is None


def test_weights_that_are_shipped_anew_keep_the_domain(tmp_path, monkeypatch):
    import torch
    from safetensors.torch import save_file

    monkeypatch.setattr("cac_align.core.weights.weights_folder", lambda: tmp_path / "weights")
    former = json.loads((weights_folder() / "cac" / "cac_align.json").read_text())
    (tmp_path / "weights" / "cac").mkdir(parents=True)
    (tmp_path / "weights" / "cac" / "cac_align.json").write_text(json.dumps(former))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "cac_align.json").write_text('{"two_turn": {}}')
    save_file({"a": torch.zeros(2)}, tmp_path / "new" / "model.safetensors")
    now = json.loads((ship("cac", tmp_path / "new") / "cac_align.json").read_text())
    assert now == {"two_turn": {}, "domain": former["domain"]}
