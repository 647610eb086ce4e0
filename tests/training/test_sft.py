"""Stages 1 and 2: the loss is the mean over answer tokens, a run goes on after a stop as if there had been none, bad input stops it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import FileSystemReader

from cac_align.cac.judge_settings import read_two_turn, write_settings
from cac_align.cac.two_turn import TwoTurn
from cac_align.runs.checkpoint import checkpoints
from cac_align.training import sft
from cac_align.training.policy import AnswerLogProbs, ModelRecipe, answer_mask, load
from cac_align.training.processes import fsdp_plugin, start_accelerator
from cac_align.training.run import RunConfig, TrainingRun
from cac_align.training.samples import DataRecipe, draw, read_stage, segment
from cac_align.training.sft import SftRecipe, train_sft
from tests.support import sharded_cpu, tiny_stage
from tests.support.two_processes import run_two


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    tiny_stage.model_folder(folder / "model")
    tiny_stage.data_folder(folder / "data")
    return folder


def recipe(root, out, stage=2, **changes) -> SftRecipe:
    data = DataRecipe(folder=str(root / "data"), samples=f"stage{stage}.jsonl", wording="brief", held_out=0.3)
    run = RunConfig(steps=4, warmup_steps=1, lr=1e-3, save_every=2, eval_every=2, cpu=True, weight_decay=0.01)
    made = SftRecipe(
        stage=stage,
        out=str(root / out),
        batch=4,
        micro_batch=2,
        lora_rank=4 if stage == 1 else 0,
        model=ModelRecipe(path=str(root / "model")),
        data=data,
        run=run,
    )
    return replace(made, **changes)


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_the_first_loss_is_the_mean_cross_entropy_per_answer_token(root):
    made = recipe(root, "loss", run=replace(recipe(root, "").run, steps=1))
    train_sft(made)
    (row, _) = rows(root / "loss")
    stage = read_stage(made.data, ("scan", "look"), 0)
    model, processor = load(made.model)
    total, count = 0.0, 0
    for sample in draw(stage, 0, 4):
        store = {}
        one = segment(stage, sample, processor, store)
        ids = torch.cat([one.ids, torch.tensor([one.answer])], 1)
        labels = torch.cat([torch.full_like(one.ids, -100), torch.tensor([one.answer])], 1)
        pixels, grid = store[one.videos[0]]
        types = (ids == processor.video_token_id) * 2
        out = model(
            input_ids=ids, mm_token_type_ids=types, pixel_values_videos=pixels, video_grid_thw=grid, labels=labels
        )
        total += out.loss.item() * len(one.answer)  # transformers' own loss, a mean over this sample's tokens
        count += len(one.answer)
    assert row["tokens"] == count and row["loss"] == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stopped_run_ends_with_the_same_weights(root, stage):
    whole, parts = f"whole{stage}", f"parts{stage}"
    write_settings(root / "model", TwoTurn(max_new_tokens=77, margin_s=9.0))
    train_sft(recipe(root, whole, stage))
    made = recipe(root, parts, stage)
    train_sft(replace(made, run=replace(made.run, stop_after=3)))
    torn = (
        root / parts / "checkpoints" / ".step-000004.part"
    )  # what a kill in the middle of the next checkpoint leaves behind
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    with (root / parts / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "loss": 1.0}\n{"step": 4, "lo')
    train_sft(made)
    assert same(root / whole / "final", root / parts / "final") and same(root / whole / "best", root / parts / "best")
    assert not same(root / whole / "final", root / "model")
    steps = [row["step"] for row in rows(root / parts) if "loss" in row]
    assert steps == [1, 2, 3, 4] and [path.name for path in (root / parts / "checkpoints").iterdir()] == ["step-000004"]
    for name in ("loss", "norm"):
        assert [row.get(name) for row in rows(root / parts)] == [row.get(name) for row in rows(root / whole)]
    load(ModelRecipe(path=str(root / parts / "final")))  # a plain Qwen3-VL, adapters merged
    asked = read_two_turn(root / parts / "final")
    assert asked == replace(made.two_turn, max_new_tokens=77), "of the start's settings, what no training decides"
    before = (root / parts / "final" / "model.safetensors").stat().st_mtime_ns
    assert train_sft(made) == root / parts / "final"  # a finished run is not touched
    assert (root / parts / "final" / "model.safetensors").stat().st_mtime_ns == before


def test_samples_are_read_while_the_step_before_runs_and_change_nothing(root, monkeypatch):
    """The second step's samples are there before the first step ends; weights and log are those of a run that reads in turn."""
    reads, read = [], sft._read

    def noted(stage, step, *rest):
        samples = read(stage, step, *rest)
        reads.append((step, threading.current_thread() is threading.main_thread()))
        second_read.set() if step == 1 else None
        return samples

    descend, second_read = sft._descend, threading.Event()

    def waits(run, batches, count):
        assert made.overlap is False or run.step != 0 or second_read.wait(60), "not read ahead"
        assert made.overlap or not second_read.is_set() or run.step != 0
        return descend(run, batches, count)

    monkeypatch.setattr(sft, "_read", noted)
    monkeypatch.setattr(sft, "_descend", waits)
    for name, overlap in (("ahead", True), ("in-turn", False)):
        second_read.clear()
        reads.clear()
        made = recipe(root, name, overlap=overlap)
        train_sft(made)
        assert reads == [(step, False) for step in range(4)], "each once, in a thread of their own"
    assert same(root / "ahead" / "final", root / "in-turn" / "final")
    for one, two in zip(rows(root / "ahead"), rows(root / "in-turn"), strict=True):
        for name in {"loss", "norm", "left_out", "held_out_loss"} & one.keys():
            assert one[name] == two[name]


def test_with_lora_a_checkpoint_holds_what_is_trained(root):
    made = recipe(root, "adapters", 1, run=replace(recipe(root, "").run, steps=2, save_every=1, eval_every=0))
    train_sft(replace(made, run=replace(made.run, stop_after=1)))
    (folder,) = checkpoints(root / "adapters")
    held = load_file(folder / "model.safetensors")
    assert held and all(".lora_" in name for name in held)
    train_sft(made)  # resumes: the base comes from model.path
    train_sft(replace(made, out=str(root / "adapters-whole")))
    assert same(root / "adapters" / "final", root / "adapters-whole" / "final")
    held.popitem()
    (folder,) = checkpoints(root / "adapters")
    save_file(held, folder / "model.safetensors")
    shutil.rmtree(root / "adapters" / "final")
    with pytest.raises(ValueError, match="does not fit this model: .*lora_.* is only in one of them"):
        train_sft(replace(made, run=replace(made.run, stop_after=1)))


def test_the_best_evaluation_is_kept(root):
    made = recipe(
        root, "best", run=replace(recipe(root, "").run, steps=4, lr=1.0, max_grad_norm=1e3, eval_every=1)
    )  # soon much worse
    train_sft(made)
    losses = {row["step"]: row["held_out_loss"] for row in rows(root / "best") if "held_out_loss" in row}
    state = json.loads((checkpoints(root / "best")[-1] / "progress.json").read_text())
    assert state["best"]["step"] == min(losses, key=losses.get) < 4 and set(losses) == {1, 2, 3, 4}
    assert not same(root / "best" / "best", root / "best" / "final")


def with_broken_held_out(root, name, *statuses):
    """The data with the held-out videos of these classes unreadable, and the recipe that reads them one sample a pass."""
    folder = tiny_stage.data_folder(root / name)
    made = recipe(root, f"out-{name}", micro_batch=1, run=replace(recipe(root, "").run, steps=1, eval_every=1))
    made = replace(made, data=replace(made.data, folder=str(folder), max_unusable=0.5))
    stage = read_stage(made.data, ("scan", "look"), 0)
    for record in {sample.record for sample in stage.held_out}:
        if stage.records[record].status in statuses:
            (folder / f"{record}.mp4").write_bytes(b"broken")
    return made


def test_an_unreadable_held_out_video_costs_no_pass_and_does_not_count(root, monkeypatch):
    made = with_broken_held_out(root, "broken", "abnormal")
    passes = []
    forward = AnswerLogProbs.forward

    def counted(self, *batches):
        log_p = forward(self, *batches)
        if not self.training:
            passes.append((-log_p.sum().item(), int(answer_mask(*batches).sum())))
        return log_p

    monkeypatch.setattr(AnswerLogProbs, "forward", counted)
    train_sft(made)
    (row,) = [row for row in rows(root / "out-broken") if "held_out_loss" in row]
    assert len(passes) == 4  # a scan and a look of a record of either class; those of one class cannot be read
    normal = passes[::2]  # classes take turns; on the other passes the first readable sample stands in
    assert passes[1] == passes[3] == passes[0]
    assert row["held_out_loss"] == pytest.approx(sum(x for x, _ in normal) / sum(n for _, n in normal), rel=1e-5)
    with pytest.raises(
        ValueError, match=r"process 0 can read none of 4 held-out samples of .*none.*; is the folder there\?"
    ):
        train_sft(with_broken_held_out(root, "none", "normal", "abnormal"))
    few = with_broken_held_out(root, "few", "abnormal")
    with pytest.raises(ValueError, match=r"2 of 12 samples .* more than data.max_unusable=0.1 allows"):
        train_sft(replace(few, data=replace(few.data, max_unusable=0.1)))


def test_micro_batches_change_only_rounding(root):
    train_sft(recipe(root, "micro2"))
    train_sft(recipe(root, "micro4", micro_batch=4))
    for a, b in zip(rows(root / "micro2"), rows(root / "micro4"), strict=True):
        assert a.keys() == b.keys()
        for name in {"loss", "norm", "held_out_loss"} & a.keys():
            assert a[name] == pytest.approx(b[name], rel=1e-3)


def test_answers_that_count_frames_are_learnt_at_the_rates_they_count_at():
    """ "Frame 1-2" of a scan at 4 fps is another time at 2 fps."""
    with pytest.raises(ValueError, match=r"data.scan_fps must be 4, received 2: the answers count frames at that rate"):
        SftRecipe(data=DataRecipe(scan_fps=2.0))
    with pytest.raises(ValueError, match=r"data.look_fps must be 8, received 4"):
        SftRecipe(data=DataRecipe(look_fps=4.0))


def test_another_number_of_processes_goes_on_with_whole_steps(root):
    """accelerate keeps its count of micro-batches in the checkpoint; what is left of it would cut the next steps in the middle."""
    made = recipe(root, "recount")
    model, processor = load(made.model)

    def begun(parts):
        return TrainingRun(made, start_accelerator("no", parts, cpu=made.run.cpu), AnswerLogProbs(model), processor)

    def steps(run, parts):
        """One step of ``parts`` micro-batches: whether the optimiser acted behind the last one and no other."""
        acted, weight = [], next(p for p in run.scorer.parameters() if p.requires_grad)
        real = run.optimizer.optimizer.step
        run.optimizer.optimizer.step = lambda *a, **k: (acted.append(len(asked)), real(*a, **k))
        asked = []
        run.descend([lambda: (asked.append(1), weight.sum())[1] for _ in range(parts)])
        run.optimizer.optimizer.step = real
        return acted

    first = begun(3)
    assert steps(first, 3) == [3]
    first.step += 1
    first.save()
    assert steps(begun(2), 2) == [2]  # 3 of before + 1 would have been the end of a step of 2


def test_another_recipe_in_the_same_folder_is_refused(root):
    made = recipe(root, "claimed", run=replace(recipe(root, "").run, steps=1))
    train_sft(made)
    with pytest.raises(
        ValueError, match=r"another recipe \(run.lr differ; run.lr was 0.001, now 0.1\); choose another out="
    ):
        train_sft(replace(made, run=replace(made.run, lr=0.1)))


def test_a_finished_run_takes_more_steps_and_equals_one_that_took_them_at_once(root):
    constant = replace(recipe(root, "").run, steps=2, warmup_steps=0, min_lr_ratio=1.0, eval_every=0)
    made = recipe(root, "extended", run=constant)
    train_sft(replace(made, run=replace(constant, stop_after=1)))
    with pytest.raises(ValueError, match="run.steps was 2, now 3"):  # its schedule is not at its end
        train_sft(replace(made, run=replace(constant, steps=3)))
    train_sft(made)
    train_sft(replace(made, run=replace(constant, steps=3)))
    train_sft(replace(made, out=str(root / "extended-whole"), run=replace(constant, steps=3)))
    assert same(root / "extended" / "final", root / "extended-whole" / "final")


def test_a_nan_loss_stops_before_anything_is_applied(root, tmp_path):
    folder = tiny_stage.model_folder(tmp_path / "model")
    model, _ = load(ModelRecipe(path=str(folder)))
    with torch.no_grad():
        model.model.language_model.norm.weight[0] = float("nan")
    model.save_pretrained(folder)
    made = recipe(root, "nan", model=ModelRecipe(path=str(folder)))
    with pytest.raises(
        ValueError, match="step 0: the loss is nan; nothing of this step was saved, no checkpoint was written yet"
    ):
        train_sft(made)
    assert not checkpoints(root / "nan") and not (root / "nan" / "final").exists()


def test_wrong_recipes(root):
    with pytest.raises(ValueError, match="a batch of 4 cannot be cut into micro-batches of 3 on 1 processes"):
        train_sft(recipe(root, "uneven", micro_batch=3))
    with pytest.raises(ValueError, match="batch must be even"):
        SftRecipe(batch=3)
    with pytest.raises(ValueError, match="stage must be 1"):
        SftRecipe(stage=3)


HERE = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
SCRIPT = """
import json, sys
from cac_align.cli.main import leave
from cac_align.config import read_recipe
from cac_align.training.sft import SftRecipe, train_sft
train_sft(read_recipe(SftRecipe, sys.argv[1], sys.argv[3:]))
leave(0)
"""


def command(root, out, *more):
    """Stage 2 as a process of its own."""
    values = ["stage=2", "batch=4", "micro_batch=2", "lora_rank=0", f"out={root / out}", f"model.path={root / 'model'}"]
    values += [f"data.folder={root / 'data'}", "data.samples=stage2.jsonl", "data.wording=brief", "data.held_out=0.3"]
    values += ["run.warmup_steps=1", "run.lr=1e-3", "run.cpu=true", *more]
    (root / "empty.yaml").write_text("stage: 2\n")
    return [str(root / "empty.yaml"), "-", *values]


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_same_weights(root):
    more = ["run.steps=40", "run.save_every=1", "run.eval_every=7"]
    (root / "script.py").write_text(SCRIPT)
    subprocess.run([sys.executable, str(root / "script.py"), *command(root, "unkilled", *more)], check=True, env=HERE)
    kills = 0
    for wait_s in (0.0, 0.3, 0.05, 0.6, 0.2):
        process = subprocess.Popen([sys.executable, str(root / "script.py"), *command(root, "killed", *more)], env=HERE)
        log = root / "killed" / "log.jsonl"
        size = log.stat().st_size if log.exists() else 0
        while process.poll() is None and (not log.exists() or log.stat().st_size <= size):
            time.sleep(0.01)
        time.sleep(wait_s)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([sys.executable, str(root / "script.py"), *command(root, "killed", *more)], check=True, env=HERE)
    assert kills and same(root / "unkilled" / "final", root / "killed" / "final")
    assert [row["loss"] for row in rows(root / "killed") if "loss" in row] == [
        row["loss"] for row in rows(root / "unkilled") if "loss" in row
    ]


SHARDED = sharded_cpu.__file__
BLOCKS = {"FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen3VLTextDecoderLayer,Qwen3VLVisionBlock"}


def test_under_fsdp_in_bfloat16_gradients_are_reduced_and_log_probabilities_returned_in_float32(monkeypatch):
    """accelerate's own policy rounds both to bfloat16: what the loss of an answer is, to two digits."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    plugin = fsdp_plugin("bf16")
    plugin.set_mixed_precision("bf16")  # as Accelerator does
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    assert fsdp_plugin("bf16") is None


def test_under_deepspeed_gradients_are_accumulated_and_reduced_in_float32(root):
    """Left to itself DeepSpeed does both in the model's precision."""
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": 2}})
    stand_in = SimpleNamespace(
        state=SimpleNamespace(deepspeed_plugin=plugin),
        gradient_accumulation_steps=2,
        prepare=lambda *given: given,
    )
    model, _ = load(ModelRecipe(path=str(root / "model")))
    run = SimpleNamespace(config=RunConfig(max_grad_norm=0.5), accelerator=stand_in, scorer=AnswerLogProbs(model))
    TrainingRun._prepare(run)
    assert plugin.deepspeed_config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert plugin.deepspeed_config["communication_data_type"] == "fp32"
    assert plugin.deepspeed_config["gradient_clipping"] == 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings", "lora_rank"),
    [
        ("FSDP", {**sharded_cpu.FSDP2, **BLOCKS}, 0),
        ("FSDP", {**sharded_cpu.FSDP2, **BLOCKS}, 4),
        ("DEEPSPEED", sharded_cpu.ZERO2, 0),
    ],
)
def test_sharded_over_two_processes_it_gives_what_one_gives_and_resumes(root, kind, settings, lora_rank):
    """Stage 2 under FSDP2 and under ZeRO-2 (where DeepSpeed is installed), two micro-batches a step on each of two gloo processes.

    One of the two held-out videos cannot be read: only one process has something to evaluate in a round, and both take their passes.
    """
    if kind == "DEEPSPEED":
        pytest.importorskip("deepspeed")
    (root / "script.py").write_text(SCRIPT)
    (root / "sharded_stage.py").write_text(SCRIPT)
    label = f"{kind}-{lora_rank}"
    made = with_broken_held_out(root, f"half-{label}", "abnormal")
    more = [
        f"lora_rank={lora_rank}",
        "run.steps=4",
        "run.eval_every=3",
        "micro_batch=1",
        f"data.folder={made.data.folder}",
        "data.max_unusable=0.5",
    ]
    env = {**HERE, **settings, "PYTHONPATH": f"{HERE['PYTHONPATH']}{os.pathsep}{root}"}

    def sharded(*values):
        out = run_two(
            [SHARDED, "sharded_stage", *command(root, f"sharded-{label}", *more, "run.cpu=false", *values)], env
        )
        assert out.returncode == 0, out.stderr[-3000:]
        assert f"distributed type {kind}, 2 processes" in out.stdout

    sharded("run.save_every=2", "run.stop_after=2")
    if lora_rank:
        (folder,) = checkpoints(root / f"sharded-{label}")
        held = FileSystemReader(folder / "pytorch_model_fsdp_0").read_metadata().state_dict_metadata
        assert held and all(".lora_" in weight for weight in held)
    sharded("run.save_every=2")
    subprocess.run(
        [sys.executable, str(root / "script.py"), *command(root, f"whole-{label}", *more, "run.save_every=4")],
        check=True,
        env=HERE,
    )
    for a, b in zip(rows(root / f"whole-{label}"), rows(root / f"sharded-{label}"), strict=True):
        for column in {"loss", "norm", "held_out_loss", "left_out"} & a.keys():
            assert a[column] == pytest.approx(b[column], rel=1e-4)
    assert [row["left_out"] for row in rows(root / f"sharded-{label}") if "loss" in row] == [
        0,
        0,
        0,
        2,
    ]  # known to both processes
    whole, parts, start = (weights(root / name) for name in (f"whole-{label}/final", f"sharded-{label}/final", "model"))
    moved = max((whole[name] - start[name]).abs().max().item() for name in whole if name in start)
    apart = max((whole[name] - parts[name]).abs().max().item() for name in whole)
    assert apart < 0.02 * moved and moved > 1e-4


@pytest.mark.slow
def test_two_processes_give_what_one_gives(root):
    (root / "script.py").write_text(SCRIPT)
    more = ["run.steps=3", "run.save_every=3", "run.eval_every=3"]
    done = run_two([str(root / "script.py"), *command(root, "two", *more)], HERE)
    assert done.returncode == 0, done.stderr[-3000:]
    subprocess.run([sys.executable, str(root / "script.py"), *command(root, "one", *more)], check=True, env=HERE)
    for a, b in zip(rows(root / "one"), rows(root / "two"), strict=True):
        for name in {"loss", "norm", "held_out_loss"} & a.keys():
            assert a[name] == pytest.approx(b[name], rel=1e-4)
    one, two = weights(root / "one" / "final"), weights(root / "two" / "final")
    start = weights(root / "model")
    moved = max((one[name] - start[name]).abs().max().item() for name in one if name in start)
    apart = max((one[name] - two[name]).abs().max().item() for name in one)
    assert apart < 0.02 * moved and moved > 1e-4
