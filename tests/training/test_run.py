"""Keeping a run: schedule, the log's cut, folders that are whole or absent, what may differ on resume, shares of a batch."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from cac_align.training.run import Keeping, Log, claim, flat, learning_rate, read_rows, shares, union
from cac_align.training.sft import SftRecipe
from tests.support.two_processes import run_two


def test_the_learning_rate_by_hand():
    keeping = Keeping(steps=11, warmup_steps=2, lr=1.0, min_lr_ratio=0.2)
    rates = [learning_rate(step, keeping) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[10] == pytest.approx(0.2)
    assert rates[6] == pytest.approx(0.2 + 0.8 * 0.5)  # half way down the cosine
    assert all(a >= b for a, b in pairwise(rates[2:]))
    constant = Keeping(steps=5, warmup_steps=0, lr=1e-6, min_lr_ratio=1.0)
    assert {learning_rate(step, constant) for step in range(5)} == {1e-6}


def test_the_log_is_cut_back_to_the_checkpoint_and_a_torn_line_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n{"step": 3, "lo')
    log = Log(tmp_path, 1, Keeping(), SftRecipe())
    log.write({"step": 2, "loss": 0.123456789, "kl": float("nan")})
    assert read_rows(path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.123457, "kl": None}] == log.rows


def test_tensorboard_gets_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Log(tmp_path, 0, Keeping(tensorboard=True), SftRecipe())
    log.write({"step": 1, "loss": 2.5, "best": True})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == [2.5]


def test_a_folder_belongs_to_one_recipe(tmp_path):
    recipe = SftRecipe()
    claim(tmp_path, recipe)
    claim(tmp_path, replace(recipe, run=replace(recipe.run, threads=3, save_every=7)))  # these may differ
    with pytest.raises(
        ValueError, match=r"holds a run with model.path=miniature, received model.path=other; give another out="
    ):
        claim(tmp_path, replace(recipe, model=replace(recipe.model, path="other")))
    found = json.loads((tmp_path / "recipe.json").read_text())
    assert found["run.lr"] == 1e-4 == flat(recipe)["run.lr"]
    del found["data.turns"]  # a run from before the key existed had today's default
    (tmp_path / "recipe.json").write_text(json.dumps(found))
    claim(tmp_path, recipe)
    with pytest.raises(ValueError, match=r"holds a run with data.turns=2, received data.turns=1"):
        claim(tmp_path, replace(recipe, data=replace(recipe.data, turns=1)))


def test_shares_are_disjoint_complete_and_equally_many():
    parts = [shares(range(16), 2, rank, 4) for rank in range(4)]
    assert [len(part) for part in parts] == [2] * 4
    assert sorted(item for part in parts for micro in part for item in micro) == list(range(16))
    with pytest.raises(
        ValueError, match="a batch of 6 cannot be cut into micro-batches of 2 on 2 processes; make it a multiple of 4"
    ):
        shares(range(6), 2, 0, 2)


def test_wrong_schedules():
    with pytest.raises(ValueError, match="run.steps must be at least 1"):
        Keeping(steps=0)
    with pytest.raises(ValueError, match="run.lr and run.clip_norm must be positive"):
        Keeping(lr=0.0)


UNION = """
import sys
from types import SimpleNamespace
from accelerate import Accelerator
from cac_align.cli import leave
from cac_align.training.run import union
from cac_align.training.samples import DataRecipe, Stage
accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
stage = Stage("data", {}, {}, (), DataRecipe(max_bad=0.3), 0, {"clip9/scan": "gone", f"clip{rank}/scan": f"torn {rank}"}, 10)
run = SimpleNamespace(accelerator=accelerator)
stage.leave_out_all(union(run, stage.bad))
found = sorted(stage.bad.items())
if rank == 1:
    stage.bad["clip5/look"] = "torn"
try:
    stage.leave_out_all(union(run, stage.bad))
except ValueError as error:
    print(f"{rank} {found} {error}\\n", end="", flush=True)
leave(0)
"""


def test_one_process_is_told_what_it_found():
    assert union(SimpleNamespace(accelerator=SimpleNamespace(num_processes=1)), {"clip0/scan": "torn"}) == {
        "clip0/scan": "torn"
    }


@pytest.mark.slow
def test_two_processes_count_what_either_left_out_and_stop_together(tmp_path):
    """Both know of clip9; each has one of its own: three of ten, the limit. One more on the second process stops both."""
    (tmp_path / "union.py").write_text(UNION)
    out = run_two([str(tmp_path / "union.py")], {"PYTHONPATH": str(Path(__file__).parents[2])})
    assert out.returncode == 0, out.stderr[-3000:]
    said = sorted(line for line in out.stdout.splitlines() if line)
    assert len(said) == 2
    for rank, line in enumerate(said):
        found = "[('clip0/scan', 'torn 0'), ('clip1/scan', 'torn 1'), ('clip9/scan', 'gone')]"
        assert line.startswith(f"{rank} {found} 4 of 10 samples") and line.endswith("the last one, clip5/look: torn")
