"""The GenRL module against its contract: found as ``<name>_score``, called with a device, its tensors multiplied and averaged."""

import importlib

import pytest
import torch

from cac_align.plugins.common import host
from cac_align.plugins.common.missing_scores import MissingScoreError
from tests.support.hosting import clip

MODULE = "cac_align.plugins.genrl"


@pytest.fixture(autouse=True)
def scripted_reward(monkeypatch):
    monkeypatch.setattr(host, "_rewards", {})
    monkeypatch.setattr(host, "_host_rewards", {})
    monkeypatch.setenv("CAC_ALIGN_REWARD", "tests.support.hosting:scripted")


def batch(*levels):
    return torch.stack([torch.from_numpy(clip(level)).permute(0, 3, 1, 2).float() / 255 for level in levels])


def multi_score(weights):
    """Its composition: no flag for evaluations reaches a function, values are tensors, the mean goes over the names."""
    module = importlib.import_module(MODULE)
    functions = {name: getattr(module, f"{name}_score")(torch.device("cpu")) for name in weights}

    def score(images, prompts, metadata):
        values = {name: functions[name](images, prompts, metadata)[0]["avg"] * weights[name] for name in weights}
        return {**values, "avg": torch.stack(list(values.values())).mean(0)}

    return score


def test_its_composition_takes_our_numbers():
    found = multi_score({"cac": 0.5, "unifiedreward_video": 0.5})(batch(240, 90), ["a", "b"], [{}, {}])
    assert found["cac"].tolist() == pytest.approx([0.45, 0.05]) and found["unifiedreward_video"].tolist() == [0.375] * 2
    assert found["avg"].tolist() == pytest.approx([(0.45 + 0.375) / 2, (0.05 + 0.375) / 2])
    whole = multi_score({"cac_unified": 1.0})(batch(240), ("a",), [{}])["avg"]
    assert whole.tolist() == pytest.approx([0.825]) and torch.as_tensor(whole).dtype == torch.float32


def test_training_and_evaluation_have_policies_of_their_own():
    train, evaluate = multi_score({"cac_unified": 1.0}), multi_score({"cac_unified_eval": 1.0})
    videos = batch(240, 90, 240)
    videos[2] = torch.nan
    group = train(videos, ["a"] * 3, [{}] * 3)["avg"]
    assert group[2] == pytest.approx(float(group[:2].mean())) and group[0] != group[1]
    assert evaluate(videos, ["a", "b", "c"], [{}] * 3)["avg"].tolist() == pytest.approx([0.825, 0.425, 0.625])
    with pytest.raises(MissingScoreError, match="group"):
        train(videos, ["a", "b", "c"], [{}] * 3)  # what an evaluation under a training name would do


def test_images_and_a_missing_reward_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"cac judges video.*\(1, 3, 8, 8\)"):
        multi_score({"cac": 1.0})(torch.zeros(1, 3, 8, 8), ["a"], [{}])
    monkeypatch.delenv("CAC_ALIGN_REWARD")
    with pytest.raises(ValueError, match="no reward is named"):
        multi_score({"cac": 1.0})
