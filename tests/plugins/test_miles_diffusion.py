"""The miles_diffusion function against its contract: (args, samples) to one float each, in order, asynchronously."""

import asyncio
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cac_align.plugins.common import host
from cac_align.plugins.common.missing_scores import MissingScoreError
from cac_align.plugins.miles_diffusion import microgroup_rewards
from cac_align.rewards.build import load_reward
from tests.support.hosting import clip, serving


@dataclass
class Sample:
    """The fields of miles' Sample that a reward reads."""

    prompt: str = ""
    generated_output: Any = None
    rollout_log_probs: Any = None


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(host, "_rewards", {})
    monkeypatch.setattr(host, "_host_rewards", {})


def sample(level, *, prompt="a", scale=255.0, trained=True):
    pixels = torch.from_numpy(clip(level)).permute(3, 0, 1, 2).float() / scale
    return Sample(prompt, pixels, torch.zeros(4) if trained else None)


def score(samples, group=3, url="tests.support.hosting:scripted"):
    return asyncio.run(microgroup_rewards(SimpleNamespace(rm_url=url, n_samples_per_prompt=group), samples))


def test_a_microgroup_is_scored_by_a_service_in_both_of_its_ranges():
    samples = [sample(240), sample(90), sample(240, scale=1.0)]
    with serving(load_reward("tests.support.hosting:scripted")) as (url, _):
        values = score(samples, url=url)
    assert values == pytest.approx([0.825, 0.425, 0.825]) and all(type(value) is float for value in values)


def test_a_missing_score_needs_the_whole_group():
    samples = [sample(240), sample(90), sample(240)]
    samples[2].generated_output[:] = torch.nan
    assert score(samples) == pytest.approx([0.825, 0.425, 0.625])
    with pytest.raises(MissingScoreError, match="its group 16"):
        score(samples, group=16)  # a microgroup of 3


def test_an_evaluation_is_known_by_its_samples_and_leaves_out():
    broken = sample(240, trained=False)
    broken.generated_output[:] = torch.nan
    assert score([sample(240, trained=False), broken]) == pytest.approx([0.825, 0.825])


@pytest.mark.parametrize("output", [None, torch.zeros(3, 1, 8, 8)])
def test_an_image_is_refused(output):
    with pytest.raises(ValueError, match="judges video"):
        score([Sample("a", output, torch.zeros(4))])
