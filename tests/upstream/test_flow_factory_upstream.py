"""Flow-Factory itself: its own loader, processor and GRPO trainer with our rewards, on a CPU, one and two processes."""

import json

import pytest

from cac_align.rewards.build import load_reward
from tests.support.hosting import serving
from tests.upstream.host_runs import HostRun, write_flow_factory
from tests.upstream.hosts import ON_MISSING, PROMPTS, PYTHON, REWARD, SIZES, checkout, need, run, small_wan

pytestmark = [pytest.mark.upstream, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("processes, asynchronous, remote", [(1, False, False), (2, True, True)])
def test_its_grpo_trains_two_epochs_with_our_rewards(tmp_path, processes, asynchronous, remote):
    home = checkout("FLOW_FACTORY_DIR", "X-GenGroup/Flow-Factory", "src/flow_factory/train.py")
    need("datasets", "imageio", "ftfy")
    ledger = tmp_path / "ledger.jsonl"
    with serving(load_reward(REWARD)) as (url, _):
        setting = HostRun(
            str(small_wan(tmp_path / "wan")),
            PROMPTS,
            url if remote else REWARD,
            processes=processes,
            asynchronous=asynchronous,
            batch_size=1 if remote else 8,
            **SIZES,
        )
        command = write_flow_factory(tmp_path, setting, PYTHON)
        output = run(command, tmp_path, [home / "src"], LOG_FILE=str(tmp_path / "log.jsonl"))
    assert "Training completed successfully" in output
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    facts = [row["extra"] for row in rows if row["kind"] == "extra" and "unscored" not in row["extra"]]  # of samples
    samples = 2 * 2 * 4  # epochs × prompts × group size
    for name in ("cac", "unified"):
        assert sum(fact["host"] == f"flow-factory/{name}" for fact in facts) == samples
    judged = [row for row in rows if row["kind"] in ("score", "missing") and row["reward"] == "cac"]
    assert len(judged) == samples and all(row["judgement"]["turns"] for row in judged)
    scored = [row for row in judged if row["kind"] == "score"]
    assert len(scored) == samples or (ON_MISSING == "neutral" and len(scored) > samples // 2)
    assert all(row["judgement"]["status"] in ("normal", "abnormal") for row in scored)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    ratios = [value for row in log for key, value in row.items() if key.startswith("train/ratio")]
    assert len([row for row in log if "train/ratio_mean" in row]) == 2  # one optimiser step per epoch
    assert ratios[0] == pytest.approx(
        1, abs=1e-4
    )  # the recomputed log-probability equals the rollout's before the first update
    assert all(row["train/grad_norm"] > 0 for row in log if "train/grad_norm" in row)  # the rewards tell samples apart
    means = {
        key: [row[key] for row in log if key in row]
        for key in {key for row in log for key in row}
        if "reward_cac" in key
    }
    assert means and all(0 <= value <= 1 for key, values in means.items() if "mean" in key for value in values)


@pytest.mark.parametrize("sampler", ["group_contiguous", "distributed_k_repeat"])
def test_its_grpo_trains_on_two_ranks_with_a_judge_of_pairs(tmp_path, sampler):
    """Groups on one rank each, or spread over both: then Flow-Factory gathers videos and decodes the prompts anew."""
    home = checkout("FLOW_FACTORY_DIR", "X-GenGroup/Flow-Factory", "src/flow_factory/train.py")
    need("datasets", "imageio", "ftfy")
    setting = HostRun(
        str(small_wan(tmp_path / "wan")),
        PROMPTS,
        "tests.support.hosting:pairs",
        processes=2,
        epochs=1,
        groupwise=True,
        sampler=sampler,
        eval_every=1,
        **SIZES,
    )
    command = write_flow_factory(tmp_path, setting, PYTHON)
    output = run(command, tmp_path, [home / "src"], LOG_FILE=str(tmp_path / "log.jsonl"))
    assert "Training completed successfully" in output
    rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    scored = [row for row in rows if row["kind"] == "combined"]
    assert len(scored) == 2 * 4  # prompts × group size, each judged on one rank only
    groups: dict[str, list[float]] = {}
    for row in scored:  # a tokenizer decodes its own way: the random one leaves its marks of a word's beginning
        groups.setdefault(row["prompt"].replace("▁", ""), []).append(row["score"])
    assert set(groups) <= set(PROMPTS) and len(groups) == 2
    assert all(len(group) == 4 and sum(group) == pytest.approx(2, abs=1e-5) for group in groups.values())
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    numbers = {key: value for row in log for key, value in row.items()}
    assert numbers["train/reward_pairs_mean"] == pytest.approx(0.5, abs=1e-5) and numbers["train/grad_norm"] > 0
    assert numbers["train/ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert not [key for key in numbers if key.startswith("eval/reward")]  # evaluations ask no groupwise reward
