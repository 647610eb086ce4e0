"""What all adapters share: options, one reward per process, pixels of every kind, evidence in the ledger."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cac_align.core.video import Video
from cac_align.plugins.common import host
from cac_align.plugins.common.host import HostOptions, HostReward, host_reward, open_pixels
from cac_align.plugins.common.missing_scores import MissingScoreError
from cac_align.rewards.build import reward_choices
from tests.support import hosting
from tests.support.hosting import Brightness, clip, group_normalised, scripted, serving


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch):
    monkeypatch.setattr(host, "_rewards", {})
    monkeypatch.setattr(host, "_host_rewards", {})


def floats(level=200, **more):
    """The clip as a float tensor (T, C, H, W) in [0, 1]."""
    return torch.from_numpy(clip(level, **more)).permute(0, 3, 1, 2).float() / 255


def test_an_unknown_option_names_the_nearest():
    assert HostOptions.read({"fps": 8, "on_missing": "neutral"}, layout="TCHW") == HostOptions(
        fps=8, on_missing="neutral", layout="TCHW"
    )
    with pytest.raises(ValueError, match="unknown reward option 'on_mising'; did you mean 'on_missing'"):
        HostOptions.read({"on_mising": "neutral"})


def test_a_reward_is_built_once_per_process_whoever_asks(monkeypatch):
    built = []
    monkeypatch.setattr(hosting, "counted", lambda: built.append(1) or scripted(), raising=False)
    all_options = [
        HostOptions(reward="tests.support.hosting:counted", component=name) for name in (None, "cac", "unified")
    ] * 8
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda options: host_reward(options, "test"), all_options))
    assert len(built) == 1 and len(set(map(id, found))) == 3
    assert found[1].reward.components["cac"] is found[0].reward.components["cac"]


def test_components_are_normalised_as_in_the_whole():
    values = {
        name: reward(["p"], [Video.open(clip(240), fps=16)])[0].value
        for name, reward in reward_choices(scripted()).items()
    }
    assert values == {"unified+cac": pytest.approx(0.825), "unified": pytest.approx(0.75), "cac": pytest.approx(0.9)}
    with pytest.raises(ValueError, match="has no component 'vq'; it offers unified\\+cac, unified, cac"):
        host_reward(HostOptions(reward="tests.support.hosting:scripted", component="vq"), "test")
    with pytest.raises(ValueError, match="only a fragment"):
        host_reward(HostOptions(reward="tests.support.hosting:group_normalised"), "test")
    assert group_normalised().normalise == "group"


def test_a_reward_alone_reaches_hosts_on_zero_to_one_too():
    """UnifiedReward says 1 to 5; a host that adds it to CaC would weigh it fourfold."""
    unified = scripted().components["unified"]
    (alone,) = reward_choices(unified).values()
    assert unified.bounds == (1.0, 5.0) and alone.bounds == (0.0, 1.0)
    assert alone(["p"], [Video.open(clip(240), fps=16)])[0].value == pytest.approx(0.75)
    cac = scripted().components["cac"]
    assert reward_choices(cac) == {cac.name: cac}  # where it lies already


def test_a_url_means_the_service(monkeypatch):
    from cac_align.serving.service import ServiceSettings

    with serving(scripted(), ServiceSettings(token="s3cret")) as (url, _):
        monkeypatch.setenv("JUDGE_TOKEN", "s3cret")
        reward = host_reward(HostOptions(reward=url, component="cac", token_env="JUDGE_TOKEN", timeout_s=9), "test")
        assert reward.values(["p"], [floats(240)]) == [pytest.approx(0.9)]
        monkeypatch.setenv("CAC_ALIGN_TOKEN", "s3cret")
        named = host_reward(HostOptions(reward=url, component="cac", timeout_s=9), "test")
        assert named.values(["p"], [floats(240)]) == [pytest.approx(0.9)], "the token that the service reads, too"
        with pytest.raises(ValueError, match="token_env names NO_SUCH"):
            host_reward(HostOptions(reward=url, token_env="NO_SUCH"), "test")


@pytest.mark.parametrize(
    "pixels, layout",
    [
        (floats(), None),
        (floats().double(), None),
        (floats().half(), None),
        (floats().permute(1, 0, 2, 3), None),
        (floats().permute(1, 0, 2, 3)[None], None),
        (floats().requires_grad_(), None),
        (torch.from_numpy(clip()).permute(0, 3, 1, 2), None),
        (torch.from_numpy(clip()).permute(3, 0, 1, 2), "CTHW"),
        (clip(), None),
        (floats(num_frames=3), "TCHW"),
    ],
)
def test_pixels_of_every_kind_become_the_same_video(pixels, layout):
    video = open_pixels(pixels, 16.0, layout, "video")
    expected = clip(num_frames=len(video))
    assert np.array_equal(video.frames(range(len(video))).pixels, expected)
    assert video.fps == 16


def test_rounding_equals_videos_own():
    noise = torch.rand(9, 3, 20, 24, generator=torch.Generator().manual_seed(0)) * 1.0005 - 0.0002
    ours, direct = open_pixels(noise, 16.0, None, "a"), Video.open(noise, fps=16)
    assert np.array_equal(ours.frames(range(9)).pixels, direct.frames(range(9)).pixels)


@pytest.mark.parametrize(
    "pixels, reason",
    [
        (floats() * 255, "must lie in \\[0, 1\\]"),
        (floats(100) * 2 - 1, "must lie in \\[0, 1\\]"),
        (torch.full((5, 3, 8, 8), float("nan")), "NaN or infinite"),
        (floats() / 0, "NaN or infinite"),
        (torch.empty(0, 3, 8, 8), "empty"),
        (torch.rand(3, 3, 8, 8), "pass layout="),
        (torch.rand(5, 4, 8, 8), "no axis"),
        (torch.rand(2, 5, 3, 8, 8), "expected 4 axes"),
        (torch.rand(3, 8, 8), "expected 4 axes"),
        (torch.ones(5, 3, 8, 8, dtype=torch.bool), "must be uint8"),
        (torch.ones(3, 4, 8, 8, dtype=torch.uint8), "pass layout="),
        ("/no/such.mp4", "no such|cannot|not|No such"),
    ],
)
def test_bad_pixels_are_that_videos_missing_score(pixels, reason):
    reward = HostReward(Brightness(), HostOptions(on_missing="raise"), "test")
    bad, good = reward.scores(["a", "b"], [pixels, floats()])
    assert not bad.scored and good.scored
    with pytest.raises(MissingScoreError, match=reason):
        reward.values(["a", "b"], [pixels, floats()])


def test_wrong_counts_and_empty_batches():
    reward = HostReward(Brightness(), HostOptions(), "test")
    assert reward.values([], []) == []
    with pytest.raises(ValueError, match="one prompt per video, received 2 prompts and 1 videos"):
        reward.values(["a", "b"], [floats()])


def test_the_ledger_holds_evidence_facts_and_every_substitution(tmp_path):
    path = tmp_path / "ledger.jsonl"
    options = HostOptions(ledger=str(path), on_missing="neutral", max_unscored_share=1.0, group_size=2)
    reward = HostReward(Brightness(), options, "flow-factory/cac")
    sent = reward.values(["p"], [floats()], step=7)
    assert sent == [pytest.approx(192 / 255)]

    class Half(Brightness):
        def one(self, prompt, video):
            return super().one("unscorable" if video.frames([0]).pixels.mean() < 100 else prompt, video)

    half = HostReward(Half(), options, "flow-factory/cac")
    sent = half.values(["p", "p"], [floats(210), floats(60)], over_ranks=False, step=8)
    assert sent == [pytest.approx(202 / 255)] * 2
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["kind"] for row in rows].count("missing") == 2  # it was asked again
    extras = [row["extra"] for row in rows if row["kind"] == "extra"]
    assert {"host": "flow-factory/cac", "fps": 16.0, "step": 7} in extras
    (note,) = [extra for extra in extras if "unscored" in extra]
    assert (
        note["unscored"] is True and note["policy"].startswith("neutral") and note["sent"] == pytest.approx(202 / 255)
    )
    missing = next(row for row in rows if row["kind"] == "missing")
    assert missing["score"] is None  # the score itself stays missing


def test_a_host_that_names_no_reward_is_refused():
    with pytest.raises(ValueError, match="state the option reward"):
        host_reward(HostOptions(), "test")


class Forgetful(Brightness):
    """Has no score for a video when it is first asked about it."""

    def one(self, prompt, video):
        return super().one("unscorable" if len(self.batches) == 1 else prompt, video)


def test_a_judge_is_asked_again_before_a_score_is_missing():
    judge = Forgetful()
    assert HostReward(judge, HostOptions(), "test").values(["p", "q"], [floats(), floats()]) == [192 / 255] * 2
    assert judge.batches == [["p", "q"]] * 2
    never = HostReward(Forgetful(), HostOptions(reasks=0, on_missing="raise"), "test")
    with pytest.raises(MissingScoreError, match="2 of 2"):
        never.values(["p", "q"], [floats(), floats()])


def test_only_what_has_no_score_is_asked_again():
    judge = Brightness()
    HostReward(judge, HostOptions(), "test").scores(["p", "unscorable"], [floats(), floats()])
    assert judge.batches == [["p", "unscorable"], ["unscorable"]]


def test_an_evaluation_has_its_own_policy_and_count():
    reward = HostReward(Brightness(), HostOptions(), "test")
    values = reward.values(["unscorable", "q"], [floats(), floats()], evaluation=True, left_out=-10.0)
    assert values == [-10.0, pytest.approx(192 / 255)]
    assert (reward.evaluation_count.unscored, reward.count.seen) == (1, 0)


def test_facts_are_each_videos_own(tmp_path):
    path = tmp_path / "ledger.jsonl"
    reward = HostReward(Brightness(), HostOptions(ledger=str(path)), "test")
    reward.scores(["p", "q"], [floats(210), floats(60)], each=[{"group": 3}, {"group": 4}], step=1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    prompts = {row["key"]: row["prompt"] for row in rows if row["kind"] == "score"}
    facts = {prompts[row["key"]]: row["extra"] for row in rows if row["kind"] == "extra"}
    known = {"host": "test", "fps": 16.0, "step": 1}  # the rate it was judged at: hosts tag their files 8
    assert facts == {"p": {**known, "group": 3}, "q": {**known, "group": 4}}
    with pytest.raises(ValueError, match="one set of facts per video, received 1 for 2"):
        reward.scores(["p", "q"], [floats(210), floats(60)], each=[{"group": 3}])


def test_adapters_import_nothing_heavy():
    modules = ["flow_grpo", "verl_omni", "videoalign", "trl", "genrl", "miles_diffusion", "pref_grpo", "teleboost"]
    modules += ["vbvr_rl", "fastvideo", "common.host", "common.ranks", "doctor.checklist"]
    heavy = [
        "torch",
        "transformers",
        "diffusers",
        "decord",
        "av",
        "PIL",
        "scipy",
        "fastapi",
        "httpx",
        "pydantic",
        "omegaconf",
    ]
    code = f"import sys\nfor name in {modules}: __import__(f'cac_align.plugins.{{name}}')\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
