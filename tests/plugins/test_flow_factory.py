"""The Flow-Factory adapter against its contract: small stand-ins for its abc and processor, written from the contract's text."""

import importlib
import inspect
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cac_align.plugins.common import host
from tests.support.hosting import clip


@dataclass
class RewardModelOutput:
    rewards: Any
    extra_info: dict | None = None


class PointwiseRewardModel:
    required_fields: tuple = ("image", "prompt")
    use_tensor_inputs = False

    def __init__(self, config, accelerator):
        self.accelerator, self.config, self.device, self.dtype, self.model = (
            accelerator,
            config,
            config.device,
            config.dtype,
            None,
        )


class GroupwiseRewardModel(PointwiseRewardModel):
    pass


@dataclass
class Config:
    """RewardArguments: known keys, and everything else in extra_kwargs."""

    name: str = "cac"
    device: Any = field(default_factory=lambda: torch.device("cpu"))
    dtype: Any = torch.bfloat16
    batch_size: int = 2
    async_reward: bool = False
    extra_kwargs: dict = field(default_factory=dict)


def pointwise(model, samples, batch_size):
    """The processor's way: fields by signature, present on all samples, batch by batch, cast to float32 on the CPU."""
    parameters = inspect.signature(model.__call__).parameters
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    rewards = []
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        names = [name for name in parameters if all(sample.get(name) is not None for sample in batch)]
        output = model(**{name: [sample[name] for sample in batch] for name in names})
        rewards.append(torch.as_tensor(output.rewards, device="cpu", dtype=torch.float32))
    return torch.cat(rewards)


@pytest.fixture
def adapter(monkeypatch):
    monkeypatch.setattr(host, "_rewards", {})
    monkeypatch.setattr(host, "_host_rewards", {})
    fake = ModuleType("flow_factory.rewards.abc")
    fake.PointwiseRewardModel, fake.RewardModelOutput = PointwiseRewardModel, RewardModelOutput
    fake.GroupwiseRewardModel = GroupwiseRewardModel
    for name in ("flow_factory", "flow_factory.rewards"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.delitem(sys.modules, "cac_align.plugins.flow_factory", raising=False)
    yield importlib.import_module("cac_align.plugins.flow_factory")
    sys.modules.pop("cac_align.plugins.flow_factory", None)


def sample(prompt="p", level=240):
    pixels = clip(level) if level else np.zeros_like(clip())
    video = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return {"prompt": prompt, "video": video, "image": None, "latents": torch.zeros(1), "prompt_embeds": torch.zeros(1)}


def build(adapter, kind="CaCUnifiedReward", **extra):
    return getattr(adapter, kind)(
        Config(extra_kwargs={"reward": "tests.support.hosting:scripted", **extra}), SimpleNamespace(device="cpu")
    )


def test_whole_and_components_in_order_with_a_tail_batch(adapter):
    samples = [sample("a", 240), sample("a", 90), sample("b", 240)]
    whole = pointwise(build(adapter), samples, 2)
    assert whole.dtype == torch.float32 and whole.tolist() == pytest.approx([0.825, 0.425, 0.825])
    assert pointwise(build(adapter, "CaCReward"), samples, 2).tolist() == pytest.approx([0.9, 0.1, 0.9])
    assert pointwise(build(adapter, "UnifiedVideoReward"), samples, 3).tolist() == pytest.approx([0.75] * 3)
    assert torch.equal(
        (pointwise(build(adapter, "CaCReward"), samples, 1) + 0.75) / 2, whole
    )  # weights 0.5 / 0.5 and "sum"


def test_what_the_processor_reads_off_the_class(adapter):
    for kind in (adapter.CaCUnifiedReward, adapter.CaCReward, adapter.UnifiedVideoReward):
        assert issubclass(kind, PointwiseRewardModel)
        assert kind.use_tensor_inputs is True and kind.required_fields == ("prompt", "video")
        assert list(inspect.signature(kind.__call__).parameters) == ["self", "prompt", "video", "latent_index_map"]


def test_asynchronous_workers_share_one_reward(adapter):
    model = build(adapter)
    assert build(adapter).host_reward is model.host_reward  # training and evaluation instances
    levels = [240, 90] * 8
    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(lambda level: pointwise(model, [sample("p", level)], 1).item(), levels))
    assert values == pytest.approx([0.825, 0.425] * 8)


def test_a_stacked_batch_is_accepted(adapter):
    videos = torch.stack([sample()["video"], sample(level=90)["video"]])
    assert build(adapter)(prompt=["a", "b"], video=videos).rewards == pytest.approx([0.825, 0.425])


def test_wrong_options_and_missing_media_are_typed_errors(adapter):
    with pytest.raises(ValueError, match="did you mean 'reward'"):
        build(adapter, rewrd="x")
    with pytest.raises(ValueError, match="judge video"):
        build(adapter)(prompt=["a"])
    with pytest.raises(ValueError, match="one prompt per video"):
        build(adapter)(prompt=["a"], video=[sample()["video"]] * 2)


def test_the_policy_reaches_the_host(adapter):
    bad = sample()
    bad["video"] = bad["video"] * float("nan")
    from cac_align.plugins.common.missing_scores import MissingScoreError

    with pytest.raises(MissingScoreError, match=r"policy raise.*NaN"):
        pointwise(build(adapter, on_missing="raise"), [sample(), bad], 2)
    neutral = build(adapter, max_unscored_share=1.0, group_size=2)
    assert pointwise(neutral, [sample(), bad], 2).tolist() == pytest.approx([0.825, 0.825])


def test_an_evaluation_is_known_by_its_samples_without_a_trajectory(adapter, monkeypatch):
    """Flow-Factory's evaluations keep no trajectory; each holds one video per prompt, which is no group."""
    from cac_align.plugins.common.missing_scores import MissingScoreError

    bad = {**sample("b"), "video": sample()["video"] * float("nan")}
    with pytest.raises(MissingScoreError, match="1 videos of the prompt"):  # a version that does not tell
        pointwise(build(adapter), [sample("a"), bad], 2)
    samples = ModuleType("flow_factory.samples")
    samples.BaseSample = SimpleNamespace(latent_index_map=None)
    monkeypatch.setitem(sys.modules, samples.__name__, samples)
    model = build(adapter, min_seen=100)
    assert pointwise(model, [sample("a"), bad], 2).tolist() == pytest.approx([0.825, 0.825])
    assert model.host_reward.evaluation_count.unscored == 1
    trained = [{**one, "prompt": "a", "latent_index_map": torch.arange(3)} for one in (sample("a", 90), bad)]
    assert pointwise(model, trained, 2).tolist() == pytest.approx([0.425, 0.425])
    assert model.host_reward.count.unscored == 1


def group(adapter, *levels, prompt="p", **extra):
    """What the processor gets for one group of clips with these brightnesses."""
    model = build(adapter, "GroupReward", reward="tests.support.hosting:pairs", **{"max_unscored_share": 1.0, **extra})
    return pointwise(model, [sample(prompt, level) for level in levels], len(levels)).tolist()


def bradley_terry_of_a_chain(n):
    """Expected win rates where each item beats all below it, prior one half: minorisation-maximisation by hand."""
    strength = [1.0] * n
    for _ in range(20000):
        games = [
            sum(1 / (strength[i] + strength[j]) for j in range(n) if j != i) + 1 / (strength[i] + 1) for i in range(n)
        ]
        strength = [(n - 1 - i + 0.5) / games[i] for i in range(n)]
    return [sum(strength[i] / (strength[i] + strength[j]) for j in range(n) if j != i) / (n - 1) for i in range(n)]


def test_a_group_plays_one_tournament_in_the_order_of_its_samples(adapter):
    best, middle, worst = bradley_terry_of_a_chain(3)
    assert group(adapter, 120, 240, 180) == pytest.approx([worst, best, middle], abs=1e-5)
    assert sum(group(adapter, 120, 240, 180)) == pytest.approx(1.5, abs=1e-5)


def test_equal_videos_are_a_group_without_spread(adapter):
    assert group(adapter, 120, 120, 120, 120) == [0.5] * 4


def test_a_video_that_was_not_compared_has_the_mean_of_its_group(adapter):
    """A black clip, about which the judge is silent; the others' order stands, and the mean is exactly theirs."""
    best, worst = bradley_terry_of_a_chain(2)
    sent = group(adapter, 240, 0, 120)
    assert sent == pytest.approx([best, 0.5, worst], abs=1e-5)
    assert sent[1] - sum(sent) / 3 == pytest.approx(0, abs=1e-6)  # advantage 0


def test_a_silent_judge_gives_the_group_one_number_or_stops_the_run(adapter):
    from cac_align.plugins.common.missing_scores import MissingScoreError

    assert len(set(group(adapter, 240, 180, 120, prompt="silent p"))) == 1
    with pytest.raises(MissingScoreError, match=r"3 of 3 videos have no score.*the judge was silent"):
        group(adapter, 240, 180, 120, prompt="silent p", on_missing="raise")
    with pytest.raises(MissingScoreError, match="too many videos without a score"):
        group(adapter, 240, 180, 120, prompt="silent p", max_unscored_share=0.5, min_seen=3)


def test_a_group_is_judged_again_as_a_whole(adapter):
    """Scores of two tournaments do not belong together: after one gap all pairs are asked once more, in both orders."""
    model = build(adapter, "GroupReward", reward="tests.support.hosting:pairs", max_unscored_share=1.0)
    asked = model.host_reward.reward.comparator.asked
    pointwise(model, [sample("p", level) for level in (240, 180, 120)], 3)
    assert len(asked) == 6
    pointwise(model, [sample("p", level) for level in (240, 0, 120)], 3)
    assert len(asked) == 6 + 12


def test_what_a_group_reward_refuses_names_the_way_out(adapter):
    with pytest.raises(ValueError, match="async_reward: false"):
        adapter.GroupReward(Config(async_reward=True, extra_kwargs={"reward": "x:y"}), SimpleNamespace(device="cpu"))
    for reward, words in (
        ("tests.support.hosting:scripted", "CaCUnifiedReward"),
        ("http://127.0.0.1:1", "name the recipe of the judge that compares"),
    ):
        with pytest.raises(ValueError, match=words):
            build(adapter, "GroupReward", reward=reward)
    with pytest.raises(ValueError, match="only a fragment"):
        build(adapter, reward="tests.support.hosting:pairs")  # the pointwise adapter
    model = build(adapter, "GroupReward", reward="tests.support.hosting:pairs")
    with pytest.raises(ValueError, match="2 prompts"):
        model(prompt=["a", "b"], video=[sample()["video"]] * 2)
    assert issubclass(adapter.GroupReward, GroupwiseRewardModel)
    assert list(inspect.signature(adapter.GroupReward.__call__).parameters) == ["self", "prompt", "video"]
