"""The flow_grpo launcher against its contract: an unmodified script finds our names, its own go to the original."""

import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest
import torch

from cac_align.plugins import flow_grpo
from cac_align.plugins.common import host
from cac_align.plugins.common.missing_scores import MissingScoreError
from tests.support import hosting
from tests.support.hosting import clip, scripted


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(host, "_rewards", {})
    monkeypatch.setattr(host, "_host_rewards", {})


def original(device, score_dict):
    """Upstream's multi_score: a closure over a local table; unknown names are a KeyError."""
    table = {"clipscore": lambda images, prompts, metadata: ([float(len(prompt)) for prompt in prompts], {})}
    functions = {name: table[name] for name in score_dict}

    def score(images, prompts, metadata, ref_images=None, only_strict=True):
        details = {name: functions[name](images, prompts, metadata)[0] for name in functions}
        details["avg"] = [sum(score_dict[n] * details[n][i] for n in functions) for i in range(len(prompts))]
        return details, {"from": "upstream"}

    return score


def batch(*levels):
    return torch.stack([torch.from_numpy(clip(level)).permute(0, 3, 1, 2).float() / 255 for level in levels])


OPTIONS = {"reward": "tests.support.hosting:scripted"}


def test_names_are_mixed_with_upstreams_own():
    score = flow_grpo.multi_score(original, OPTIONS)("cpu", {"cac": 0.5, "unifiedreward_video": 0.5, "clipscore": 2.0})
    details, more = score(batch(240, 90), ("ab", "abc"), [{}, {}], only_strict=True)
    assert details["cac"] == pytest.approx([0.9, 0.1]) and details["unifiedreward_video"] == pytest.approx([0.75, 0.75])
    assert details["clipscore"] == [2.0, 3.0] and more == {"from": "upstream"}
    assert details["avg"] == pytest.approx([0.825 + 4, 0.425 + 6])
    for values in details.values():
        assert torch.as_tensor(values).shape == (2,) and torch.isfinite(torch.as_tensor(values)).all()


def test_ours_alone_and_theirs_alone():
    details, _ = flow_grpo.multi_score(original, OPTIONS)("cpu", {"cac_unified": 1.0})(batch(240), ["a"], [{}])
    assert details == {"cac_unified": [pytest.approx(0.825)], "avg": [pytest.approx(0.825)]}
    theirs = flow_grpo.multi_score(original, OPTIONS)("cpu", {"clipscore": 1.0})
    assert theirs(torch.zeros(1, 3, 8, 8), ["abc"], [{}])[0]["avg"] == [3.0]
    with pytest.raises(KeyError, match="beauty"):
        flow_grpo.multi_score(original, OPTIONS)("cpu", {"cac": 1.0, "beauty": 1.0})


def test_built_twice_called_from_eight_threads_loaded_once(monkeypatch):
    built = []
    monkeypatch.setattr(hosting, "counted", lambda: built.append(1) or scripted(), raising=False)
    factory = flow_grpo.multi_score(original, {"reward": "tests.support.hosting:counted"})
    train, evaluate = factory("cpu", {"cac": 0.5, "unifiedreward_video": 0.5}), factory("cpu", {"cac": 1.0})
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(train, batch(240, 90), ["a", "a"], [{}, {}]) for _ in range(16)]
        assert all(future.result()[0]["avg"] == pytest.approx([0.825, 0.425]) for future in futures)
    assert evaluate(batch(90), ["a"], [{}], only_strict=False)[0]["avg"] == pytest.approx([0.1])
    assert built == [1]


def test_bad_input_is_an_error_and_never_a_number():
    score = flow_grpo.multi_score(original, OPTIONS)("cpu", {"cac": 1.0})
    with pytest.raises(ValueError, match=r"expected \(B, T, C, H, W\), received shape \(2, 3, 8, 8\)"):
        score(torch.zeros(2, 3, 8, 8), ["a", "b"], [{}, {}])
    with pytest.raises(ValueError, match="one prompt per video"):
        score(batch(240), ["a", "b"], [{}, {}])
    with pytest.raises(MissingScoreError, match="holds 1 videos of the prompt"):
        score(batch(240, 90) * 3, ["a", "b"], [{}, {}])


def test_an_evaluation_sends_the_number_that_the_scripts_leave_out():
    """The scripts say only_strict=False in an evaluation, and average what is not -10."""
    pixels = batch(240, 90)
    pixels[1] = float("nan")
    score = flow_grpo.multi_score(original, OPTIONS)("cpu", {"cac": 0.5, "unifiedreward_video": 0.5})
    details, _ = score(pixels, ["a", "b"], [{}, {}], only_strict=False)
    assert details["cac"] == [pytest.approx(0.9), -10.0] and details["avg"] == [pytest.approx(0.825), -10.0]


def world_r1(device, score_dict):
    """World-R1's multi_score: the script trains on its "reward_total", and reads no "avg"."""

    def score(images, prompts, metadata, ref_images=None, only_strict=True):
        return {"reward_general": [0.5] * len(prompts), "reward_total": [1.0] * len(prompts)}, {}

    return score


def test_our_rewards_are_part_of_the_total_that_the_script_trains_on():
    alone = flow_grpo.multi_score(world_r1, OPTIONS, "reward_total")("cpu", {"cac": 1.0})
    assert alone(batch(240), ["a"], [{}])[0] == {"cac": [pytest.approx(0.9)], "reward_total": [pytest.approx(0.9)]}
    mixed = flow_grpo.multi_score(world_r1, OPTIONS, "reward_total")("cpu", {"cac": 2.0, "reward_general": 2.0})
    details, _ = mixed(batch(240, 90), ["a", "a"], [{}, {}])
    assert details["reward_total"] == pytest.approx([1.0 + 1.8, 1.0 + 0.2]) and "avg" not in details
    left_out = flow_grpo.multi_score(world_r1, OPTIONS)("cpu", {"cac": 1.0, "reward_general": 1.0})
    with pytest.raises(ValueError, match="cac would be left out of training"):
        left_out(batch(240), ["a"], [{}])


def diffusion_nft(device, score_dict):
    """A multi_score without ref_images (DiffusionNFT's): a fifth argument by position is a TypeError."""
    return lambda images, prompts, metadata, only_strict=True: ({"avg": [float(only_strict)] * len(prompts)}, {})


def test_an_original_without_reference_images_gets_none():
    score = flow_grpo.multi_score(diffusion_nft, OPTIONS)("cpu", {"cac": 1.0, "theirs": 1.0})
    assert score(batch(240), ["a"], [{}], only_strict=True)[0]["avg"] == [pytest.approx(1.9)]
    assert score(batch(240), ["a"], [{}], only_strict=False)[0]["avg"] == [pytest.approx(0.9)]


def test_the_launcher_takes_the_total_that_the_module_names(monkeypatch, tmp_path, capsys):
    package, rewards = ModuleType("flow_grpo"), ModuleType("flow_grpo.rewards")
    rewards.multi_score, rewards.REWARD_TOTAL, package.rewards = world_r1, "reward_total", rewards
    monkeypatch.setitem(sys.modules, "flow_grpo", package)
    monkeypatch.setitem(sys.modules, "flow_grpo.rewards", rewards)
    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    script = tmp_path / "train.py"
    script.write_text(
        "import torch, flow_grpo.rewards\n"
        "score = flow_grpo.rewards.multi_score('cpu', {'cac': 1.0})\n"
        "print(score(torch.full((1, 9, 3, 16, 16), 0.9), ['p'], [{}])[0][flow_grpo.rewards.REWARD_TOTAL])\n"
    )
    monkeypatch.setenv("CAC_ALIGN_REWARD", "tests.support.hosting:scripted")
    flow_grpo.main([str(script)])
    assert capsys.readouterr().out.startswith("[0.9")
    monkeypatch.setenv("CAC_ALIGN_TIMEOUT_S", "soon")
    with pytest.raises(ValueError, match="timeout_s: expected float, received 'soon'"):
        flow_grpo.main([str(script)])


def test_the_launcher_runs_an_untouched_script(monkeypatch, tmp_path, capsys):
    package, rewards = ModuleType("flow_grpo"), ModuleType("flow_grpo.rewards")
    rewards.multi_score, package.rewards = original, rewards
    monkeypatch.setitem(sys.modules, "flow_grpo", package)
    monkeypatch.setitem(sys.modules, "flow_grpo.rewards", rewards)
    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside.py").write_text("WEIGHT = 1.0\n")
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, torch, flow_grpo.rewards\n"
        "from beside import WEIGHT\n"
        "assert __name__ == '__main__'\n"
        "score = getattr(flow_grpo.rewards, 'multi_score')('cpu', {'cac': WEIGHT})\n"
        "print(sys.argv[1:], score(torch.full((1, 9, 3, 16, 16), 0.9), ['p'], [{}])[0])\n"
    )
    monkeypatch.setenv("CAC_ALIGN_FPS", "8")
    flow_grpo.main(
        ["--reward", "tests.support.hosting:scripted", str(script), "--config", "c.py:wan", "--reward", "theirs"]
    )
    printed = capsys.readouterr().out
    assert printed.startswith("['--config', 'c.py:wan', '--reward', 'theirs']") and "0.9" in printed
    assert next(iter(host._host_rewards.values())).options.fps == 8.0
