"""Stage 3: one step against a naive computation, exact resume, early stopping, the rollout table, two processes."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cac_align.cac.two_turn import TwoTurn
from cac_align.runs.checkpoint import checkpoints
from cac_align.training.early_stopping import EarlyStopping
from cac_align.training.grpo import GrpoRecipe, ObjectiveRecipe, split_pairs, summary, train_grpo
from cac_align.training.policy import ModelRecipe, load
from cac_align.training.rollout import RolloutRecipe, RolloutSettings, open_video_prompt, roll_out
from cac_align.training.run import RunConfig
from cac_align.training.samples import DataRecipe, draw, read_stage
from cac_align.training.sft import SftRecipe
from cac_align.training.terms import TermWeights
from tests.support import tiny_stage
from tests.support.two_processes import run_two

CALM = EarlyStopping(1, 1.0, 1.0, 1.0, 1.0, 0.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo")
    tiny_stage.model_folder(folder / "model")
    tiny_stage.data_folder(folder / "data")
    return folder


def recipe(root, out, **changes) -> GrpoRecipe:
    made = GrpoRecipe(
        out=str(root / out),
        batch=2,
        rollout_videos=2,
        micro_batch=4,
        eval_videos=2,
        model=ModelRecipe(path=str(root / "model")),
        data=DataRecipe(folder=str(root / "data"), samples="stage3.jsonl", wording="brief", held_out=0.3),
        rollout=RolloutRecipe(group_size=8, max_new_tokens=4),
        grpo=ObjectiveRecipe(beta=0.1),
        early_stopping=CALM,
        run=RunConfig(steps=4, warmup_steps=0, lr=3e-3, save_every=2, eval_every=2, cpu=True, max_grad_norm=1e6),
    )
    return replace(made, **changes)


def rows(out, name="log.jsonl"):
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_first_step_against_a_naive_computation(root):
    made = recipe(root, "first", run=replace(recipe(root, "").run, steps=1))
    train_grpo(made)
    row = rows(root / "first")[0]
    table = rows(root / "first", "rollouts.jsonl")
    # roll out again, and write Eq. 8, 9 and the gradient's norm down with plain loops and unpadded forwards
    model, processor = load(made.model)
    stage = read_stage(made.data, ("scan",), 0)
    prompts = []
    for slot, sample in enumerate(draw(stage, 0, 2)):
        record = stage.records[sample.record]
        prompts.append(open_video_prompt(slot, record, stage.video(record), 4.0))
    store = {}
    rollouts = roll_out(
        model.eval(), processor, prompts, RolloutSettings(made.rollout, "brief", 8.0, None, 0, 0), store
    )
    objective = torch.zeros(())
    for slot in range(2):
        group = rollouts[8 * slot : 8 * slot + 8]
        earned = [r.reward_terms(TermWeights()).total for r in group]
        mean = sum(earned) / 8
        std = math.sqrt(sum((value - mean) ** 2 for value in earned) / 7)
        for rollout, reward in zip(group, earned, strict=True):
            log_p = torch.cat([plain(model, processor, store, segment) for segment in rollout.segments])
            gain = (reward - mean) / (std + 1e-4)
            objective = objective + (torch.exp(log_p - log_p.detach()) * gain).mean() / 16
            (shown,) = (one for one in table if (one["slot"], one["rollout"]) == (rollout.slot, rollout.number))
            assert shown["terms"]["total"] == pytest.approx(reward) and shown["advantage"] == pytest.approx(gain)
            assert shown["tokens"] == len(log_p)
    gradients = torch.autograd.grad(-objective, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients if g is not None))
    assert row["norm"] == pytest.approx(norm, rel=1e-3) and norm > 0.05
    assert row["kl"] == pytest.approx(0, abs=1e-6) and row["loss"] == pytest.approx(-objective.item(), abs=1e-5)
    assert row["reward"] == pytest.approx(sum(one["terms"]["total"] for one in table) / 16, rel=1e-5)


def plain(model, processor, store, segment):
    ids = torch.cat([segment.ids, torch.tensor([segment.answer])], 1)
    pixels, grid = store[segment.videos[0]]
    types = (ids == processor.video_token_id) * 2
    out = model(input_ids=ids, mm_token_type_ids=types, pixel_values_videos=pixels, video_grid_thw=grid)
    log_p, first = out.logits[0].log_softmax(-1), segment.ids.shape[1]
    return torch.stack([log_p[first - 1 + n, token] for n, token in enumerate(segment.answer)])


def test_a_stopped_run_ends_with_the_same_weights_and_table(root):
    train_grpo(recipe(root, "whole"))
    made = recipe(root, "parts")
    train_grpo(replace(made, run=replace(made.run, stop_after=3)))
    with (root / "parts" / "rollouts.jsonl").open("a") as table:  # a kill between the table and the checkpoint
        table.write('{"step": 4, "slot": 0}\n{"step": 4, "sl')
    train_grpo(made)
    assert same(root / "whole" / "final", root / "parts" / "final") and not same(
        root / "whole" / "final", root / "model"
    )
    assert rows(root / "whole", "rollouts.jsonl") == rows(root / "parts", "rollouts.jsonl")
    timeless = [
        [{k: v for k, v in row.items() if k not in ("seconds", "rollout_s")} for row in rows(root / o)]
        for o in ("whole", "parts")
    ]
    assert timeless[0] == timeless[1]


def test_the_table_and_the_log_agree(root):
    train_grpo(recipe(root, "whole"))  # finished by the test above, or made now
    table, log = rows(root / "whole", "rollouts.jsonl"), [row for row in rows(root / "whole") if "reward" in row]
    assert len(table) == 4 * 16 and {row["truth"] for row in table} == {"normal", "abnormal"}
    for row in log:
        own = [one for one in table if one["step"] == row["step"]]
        for slot in (0, 1):
            assert sum(one["advantage"] for one in own if one["slot"] == slot) == pytest.approx(0, abs=1e-6)
        assert row["answer_tokens"] == pytest.approx(sum(one["tokens"] for one in own) / 16)
        assert row["second_turns"] == sum(len(one["turns"]) == 2 for one in own) / 16
        assert row["normal_rate"] == sum(one["turns"][-1]["status"] == "normal" for one in own) / 16
    assert log[-1]["kl"] > 0  # the policy has left the reference
    held_out = [row for row in rows(root / "whole") if "held_out_reward" in row]
    assert [row["step"] for row in held_out] == [2, 4] and all(row["held_out_videos"] == 2 for row in held_out)


@pytest.mark.slow
def test_the_policy_earns_more_after_twelve_steps(root):
    made = recipe(
        root, "learn", batch=4, micro_batch=8, run=replace(recipe(root, "").run, steps=12, lr=1e-2, eval_every=0)
    )
    train_grpo(replace(made, grpo=ObjectiveRecipe(beta=0.01)))
    rewards = [row["reward"] for row in rows(root / "learn")]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2  # measured with this seed: -0.85 → -0.54


def test_several_updates_use_the_old_policy_and_beta_zero_needs_no_reference(root):
    made = recipe(root, "updates", grpo=ObjectiveRecipe(beta=0.0, num_inner_epochs=3, epsilon=0.01))
    train_grpo(replace(made, run=replace(made.run, steps=1, eval_every=0, lr=1e-2)))
    (row,) = rows(root / "updates")
    assert row["kl"] == 0 and row["clipped_share"] > 0  # by the last update the ratio has left 1 ± 0.01


def test_collapse_stops_the_run_and_keeps_the_checkpoint(root):
    made = recipe(root, "stopped", early_stopping=replace(CALM, max_malformed=0.01))
    with pytest.raises(ValueError, match=r"stopped after step 1: .*% of rollouts are malformed over the last 1 steps"):
        train_grpo(made)
    assert [path.name for path in checkpoints(root / "stopped")] == ["step-000001"]
    train_grpo(
        replace(made, early_stopping=CALM, run=replace(made.run, stop_after=2))
    )  # with other limits the same run goes on
    assert [row["step"] for row in rows(root / "stopped") if "reward" in row] == [1, 2]


def test_rollouts_without_a_score_are_counted_and_do_not_enter_the_mean():
    row = {
        "slot": 0,
        "advantage": 0.0,
        "status": ["normal"],
        "truth": "normal",
        "tokens": 3,
        "malformed": False,
        "ending": "normal",
        "error": None,
    }
    scored = {"total": -2.0, "format": 0.0, "status": -1.0, "type": None, "temporal": None, "spatial": None}
    found = summary([{**row, "terms": scored}, {**row, "terms": None}])
    assert (
        found["unscored"] == 0.5
        and found["reward"] == -2.0
        and math.isnan(found["term_type"])
        and found["zero_std_groups"] == 1.0
    )
    # A suspicion without a usable window never comes to a verdict, and a clip that could not be cut is nobody's verdict.
    nowhere = {**row, "terms": scored, "status": ["abnormal"], "truth": "abnormal", "ending": "window"}
    lost = {**row, "terms": None, "status": ["abnormal"], "truth": "abnormal", "ending": "error", "error": "no frames"}
    assert summary([nowhere, lost])["accuracy"] == 0.0 and math.isnan(summary([lost])["accuracy"])
    assert summary([nowhere, lost, {**row, "terms": scored}])["accuracy"] == 0.5


def test_the_judge_is_asked_afterwards_as_in_its_rollouts():
    """In the other style the same judge is right less often (the turns of a chat are another context)."""
    made = GrpoRecipe(rollout=RolloutRecipe(context="continued"), data=DataRecipe(margin_s=0.25, wording="brief"))
    assert made.two_turn == TwoTurn(4.0, 8.0, "continued", wording="brief", margin_s=0.25)
    assert SftRecipe(data=DataRecipe(margin_s=0.25)).two_turn == TwoTurn(margin_s=0.25)


def test_wrong_recipes(root):
    with pytest.raises(ValueError, match="batch must be even"):
        GrpoRecipe(batch=3)
    with pytest.raises(ValueError, match="grpo.beta >= 0 and epsilon in"):
        GrpoRecipe(grpo=ObjectiveRecipe(epsilon=1.5))
    with pytest.raises(ValueError, match="a batch of 16 cannot be cut into micro-batches of 5"):
        train_grpo(recipe(root, "uneven", micro_batch=5))


HERE = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
SCRIPT = """
import sys
from tests.training import test_grpo
from pathlib import Path
from cac_align.cli.main import leave
from cac_align.training.grpo import train_grpo
train_grpo(test_grpo.recipe(Path(sys.argv[1]), sys.argv[2], batch=4))
leave(0)
"""


def test_early_stopping_reads_every_step():
    with pytest.raises(ValueError, match="run.log_every must be 1 in stage 3"):
        GrpoRecipe(run=RunConfig(log_every=10))


@pytest.mark.slow
def test_two_processes_give_what_one_gives(root):
    (root / "script.py").write_text(SCRIPT)
    done = run_two([str(root / "script.py"), str(root), "two"], HERE)
    assert done.returncode == 0, done.stderr[-3000:]
    subprocess.run([sys.executable, str(root / "script.py"), str(root), "one"], check=True, env=HERE)
    for a, b in zip(rows(root / "one"), rows(root / "two"), strict=True):
        for name in {"reward", "loss", "norm", "kl", "held_out_reward", "answer_tokens", "term_temporal"} & a.keys():
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-6), name
    table = [
        [(r["slot"], r["rollout"], r["record"], r["status"]) for r in rows(root / o, "rollouts.jsonl")]
        for o in ("one", "two")
    ]
    assert table[0] == table[1] and len(table[0]) == 4 * 32
    one, two, start = (weights(root / name) for name in ("one/final", "two/final", "model"))
    moved = max((one[name] - start[name]).abs().max().item() for name in one)
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 0.02 * moved and moved > 1e-4


def test_every_process_gets_as_many_of_each_class():
    """Classes alternate by slot, and a process's share would be one class: with pairs nobody waits for who drew the two-turn videos."""
    drawn = [(slot, ("normal", "abnormal")[slot % 2]) for slot in range(16)]
    parts = [split_pairs(drawn, rank, 4) for rank in range(4)]
    assert [[kind for _, kind in part].count("normal") for part in parts] == [2, 2, 2, 2]
    assert sorted(slot for part in parts for slot, _ in part) == list(range(16))
    assert [len(split_pairs(drawn, rank, 16)) for rank in range(16)] == [1] * 16  # no pairs to deal
