"""The UniRL backend against its contract: request and response shapes, flags for failures, components for the log."""

import importlib
import math
import sys
from dataclasses import dataclass, field, fields
from types import ModuleType

import pytest
import torch

from cac_align.plugins.common import host
from cac_align.plugins.common.evidence import _headline, read_evidence
from cac_align.plugins.common.missing_scores import MissingScoreError
from tests.support.hosting import clip


class RewardBackend:
    input_kind = "image"

    def __init__(self, model_name="", batch_size=8, timeout=60.0, **more):
        self.model_name, self.batch_size, self.timeout = model_name, batch_size, timeout


class BaseRewardComponentSpec:
    pass


@dataclass
class RewardRequest:
    prompts: list
    videos: list | None
    group_ids: list | None = None

    @property
    def is_video(self):
        return self.videos is not None


@dataclass
class RewardResponse:
    rewards: list = field(default_factory=list)
    component_rewards: dict = field(default_factory=dict)
    successes: list = field(default_factory=list)
    errors: list = field(default_factory=list)
    compute_time: float = 0.0


@pytest.fixture
def adapter(monkeypatch):
    monkeypatch.setattr(host, "_rewards", {})
    monkeypatch.setattr(host, "_host_rewards", {})
    base, types = ModuleType("unirl.reward.base"), ModuleType("unirl.types.reward")
    base.RewardBackend, base.BaseRewardComponentSpec = RewardBackend, BaseRewardComponentSpec
    types.RewardRequest, types.RewardResponse = RewardRequest, RewardResponse
    for name in ("unirl", "unirl.reward", "unirl.types"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.setitem(sys.modules, types.__name__, types)
    monkeypatch.delitem(sys.modules, "cac_align.plugins.unirl", raising=False)
    yield importlib.import_module("cac_align.plugins.unirl")
    sys.modules.pop("cac_align.plugins.unirl", None)


def video(level=240, num_frames=17):
    """(C, T, H, W) in [0, 1], as UniRL permutes it."""
    return torch.from_numpy(clip(level, num_frames)).permute(3, 0, 1, 2).float() / 255


def backend(adapter, **options):
    return adapter.CaCBackend(
        config=adapter.CaCSpec(reward="tests.support.hosting:scripted", **options), base_device="cpu"
    )


def test_the_spec_has_the_options_of_every_host(adapter):
    """UniRL wants a dataclass of its own base, so that the options stand there once more."""
    options = {item.name: item.default for item in fields(host.HostOptions) if item.name != "layout"}
    assert {item.name: item.default for item in fields(adapter.CaCSpec)} == {**options, "batch_size": 8}


def test_rewards_components_and_flags(adapter):
    here = backend(adapter)
    assert here.input_kind == "video" and here.is_available()
    response = here.compute_rewards(RewardRequest(["a", "b"], [video(240), video(90)]))
    assert response.rewards == pytest.approx([0.825, 0.425])
    assert response.component_rewards["normalised/cac"] == pytest.approx([0.9, 0.1])
    assert response.component_rewards["unified"] == pytest.approx([4.0, 4.0])
    assert response.successes == [True, True] and response.errors == [None, None] and response.compute_time > 0


def test_a_three_frame_video_is_read_channels_first(adapter):
    assert backend(adapter, component="cac").compute_rewards(
        RewardRequest(["a"], [video(240, 3)])
    ).rewards == pytest.approx([0.9])


def test_a_failure_is_a_flag_and_nan_never_a_number(adapter):
    response = backend(adapter, on_missing="raise").compute_rewards(RewardRequest(["a", "a"], [video(), video() * 9]))
    assert response.rewards[0] == pytest.approx(0.825) and math.isnan(response.rewards[1])
    assert response.successes == [True, False] and "must lie in [0, 1]" in response.errors[1]


def test_neutral_keeps_the_reason(adapter):
    here = backend(adapter, max_unscored_share=1.0, group_size=2)
    response = here.compute_rewards(RewardRequest(["a", "a"], [video(), video() * 9]))
    assert response.rewards == pytest.approx([0.825, 0.825]) and response.successes == [True, True]
    assert "must lie in [0, 1]" in response.errors[1]
    with pytest.raises(MissingScoreError, match="holds 1 videos of the prompt and its group 2"):
        here.compute_rewards(RewardRequest(["a", "b"], [video(), video() * 9]))


def test_each_video_is_filed_under_its_own_group(adapter, tmp_path):
    here = backend(adapter, ledger=str(tmp_path / "ledger.jsonl"))
    here.compute_rewards(RewardRequest(["a", "b"], [video(240), video(90)], ["g0", "g1"]))
    evidence = read_evidence(tmp_path / "ledger.jsonl")
    assert {item.prompt: item.facts for item in evidence} == {
        "a": {"host": "unirl", "fps": 16.0, "group": "g0"},
        "b": {"host": "unirl", "fps": 16.0, "group": "g1"},
    }
    assert "group g0" in _headline(next(item for item in evidence if item.prompt == "a"))


def test_wrong_requests_are_typed_errors(adapter):
    with pytest.raises(ValueError, match="judges video"):
        backend(adapter).compute_rewards(RewardRequest(["a"], None))
    with pytest.raises(ValueError, match="one prompt per video, received 0 prompts"):
        backend(adapter).compute_rewards(RewardRequest([], [video()]))


def test_the_prompts_of_a_request_that_has_two_sets_of_them(adapter, monkeypatch, tmp_path):
    """Since its pull request 477 a request holds the user's and the rewritten prompt, and the backend picks one."""

    @dataclass
    class TwoPrompts:
        original_prompt: list
        generation_prompt: list
        videos: list
        group_ids: list | None = None
        is_video = True

    monkeypatch.setattr(RewardBackend, "prompts", lambda self, request: request.generation_prompt, raising=False)
    here = backend(adapter, ledger=str(tmp_path / "ledger.jsonl"))
    response = here.compute_rewards(TwoPrompts(["a"], ["a, in detail"], [video(240)]))
    assert response.rewards == pytest.approx([0.825])
    assert [item.prompt for item in read_evidence(tmp_path / "ledger.jsonl")] == ["a, in detail"]


def test_a_service_that_is_down_is_not_available(adapter):
    spec = adapter.CaCSpec(reward="http://127.0.0.1:9", timeout_s=0.3)
    assert adapter.CaCBackend(config=spec, base_device="cpu").is_available() is False
