"""The alignment loop on a tiny real Wan: exact ratios, learning, interruption, and everything that can go wrong."""

import copy
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file

from cac_align.align.lora import copy_weights
from cac_align.align.monitoring.closing import closing_lines
from cac_align.align.recipe import EvalRecipe, SdeWindow
from cac_align.align.sampling.rollout import guided_velocity, sample_with_lora
from cac_align.align.sampling.sde import log_prob, transition
from cac_align.align.setup import build_async_reward
from cac_align.align.trainer import AlignRun, align
from cac_align.cli.main import main
from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
from cac_align.generation.wan import Wan
from cac_align.rewards.domain import Domain
from cac_align.rewards.ledger import Ledger
from tests.support.tiny_flow import WORDS, Brightness, environment, lora, recipe, rows, same, write_recipe, write_wan


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """A run that nobody interrupts, with everything that has a state: average, optimizer, two updates per batch."""
    out = tmp_path_factory.mktemp("whole")
    align(recipe(model, out, ema_decay=0.5))
    return out


@pytest.fixture(autouse=True)
def fresh_counter():
    Brightness.calls.clear()
    Brightness.fail_after = None
    yield
    Brightness.fail_after = None


# ---- it learns, and exactly ----------------------------------------------------------------------------------------


def test_a_run_leaves_what_it_promises(whole):
    log = rows(whole)
    assert [row["step"] for row in log] == [0, 1, 2]
    for row in log:
        assert row["ratio"] == 1.0 and row["max_ratio_error"] == 0.0, (
            "recomputed log-probabilities of unchanged weights"
        )
        assert ("median_gradient" in row) == (row["step"] == 0), "of the first step"
        assert row["videos"] == 8 and row["unscored"] == 0 and row["grad_norm"] > 0 and row["seconds"]["other"] >= 0
        assert len(row["sde_steps"]) == 2 and set(row["sde_steps"]) <= {0, 1, 2}
    assert len({tuple(row["prompts"]) for row in log}) == 3 and len({tuple(row["sde_steps"]) for row in log}) > 1
    assert {path.name for path in (whole / "checkpoints").iterdir()} == {"step-000002", "step-000003"}
    assert (whole / "lora_last").is_dir() and not same(lora(whole), load_last(whole))
    assert len(list((whole / "samples").rglob("*.mp4"))) == 3


def load_last(out):
    from safetensors.torch import load_file

    return load_file(out / "lora_last" / "pytorch_lora_weights.safetensors")


def test_every_advantage_is_linked_to_its_score(whole):
    ledger = Ledger(whole / "ledger.jsonl")
    scored = [row for row in ledger.rows() if row["kind"] == "score"]
    assert len(scored) == 24
    groups = {}
    for row in scored:
        (facts,) = ledger.extra(row["key"])
        groups.setdefault((facts["step"], facts["group"]), []).append(
            (row["score"], facts["advantage"], facts["sample"])
        )
    assert len(groups) == 6
    for members in groups.values():
        scores = np.array([score for score, _, _ in members])
        expected = (scores - scores.mean()) / scores.std()
        np.testing.assert_allclose([advantage for _, advantage, _ in members], expected, atol=1e-3)
        assert sorted(place for _, _, place in members) == [0, 1, 2, 3]


def test_an_update_makes_better_videos_likelier_than_worse_ones(model, tmp_path):
    run = AlignRun(recipe(model, tmp_path, lr=3e-3, prompts_per_step=1, sde_window=SdeWindow(0, 0, 2)))
    before = run._sample_chunk(0, 0, ["a red ball"], (0, 1, 2))
    advantages = []
    run._update(0, [before], advantages)
    advantage = torch.from_numpy(advantages[0].advantage)
    (rollout,) = before.rollouts
    gain = torch.zeros(4)
    with torch.no_grad():
        for step in rollout.steps:
            v = guided_velocity(run.flow, step.x, step.index, rollout.embeds)
            mean = transition("flow", step.x, v, run.flow.schedule.sigmas, step.index, 0.7).mean
            gain += log_prob(step.x_next, mean, step.std) - log_prob(step.x_next, step.mean, step.std)
    run.async_reward.close()
    assert (gain * advantage).sum() > 0
    assert gain[advantage.argmax()] > gain[advantage.argmin()]


def test_the_first_step_says_how_large_gradients_are_beside_adams_eps(model, tmp_path):
    lines = []
    run = AlignRun(recipe(model, tmp_path / "tiny", steps=1, adam_eps=1e-30), lines.append)
    assert run.optimizer.param_groups[0]["eps"] == 1e-30
    run.train()
    median = rows(tmp_path / "tiny")[0]["median_gradient"]
    assert 0 < median < 1 and f"step 0: median |gradient| {median:.1e}, adam_eps 1.0e-30" in lines
    lines.clear()
    align(recipe(model, tmp_path / "large", steps=1, adam_eps=1.0), lines.append)
    assert rows(tmp_path / "large")[0]["median_gradient"] == median, "whatever eps is"
    assert any("adam_eps 1.0e+00: not far above adam_eps" in line for line in lines)


def test_bfloat16_recomputes_within_a_thousandth(model, tmp_path):
    align(recipe(model, tmp_path, dtype="bfloat16", steps=1, micro_batch=2))
    (row,) = rows(tmp_path)
    assert row["max_ratio_error"] < 1e-3


def test_memory_does_not_grow_with_the_number_of_stochastic_steps(model, tmp_path):
    def most_bytes_at_once(size):
        run = AlignRun(recipe(model, tmp_path / str(size), sde_window=SdeWindow(size, 0, 2)))
        chunk = run._sample_chunk(0, 0, ["a red ball"], tuple(range(size)))
        held, most, backward = 0, 0, run._accumulate

        def pack(tensor):
            nonlocal held, most
            held += tensor.numel() * tensor.element_size()
            most = max(most, held)
            return tensor

        def counted(losses, weight):
            nonlocal held
            backward(losses, weight)
            held = 0

        run._accumulate = counted
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run._update(0, [chunk], [])
        run.async_reward.close()
        return most

    one, three = most_bytes_at_once(1), most_bytes_at_once(3)
    assert one > 0 and three == one


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "nft", "nft_decay": 0.5, "sampler": "checkpoint"},
        {"objective": "nft", "advantages": "local", "reward": "tests.support.tiny_flow:located"},
        {"advantages": "local", "reward": "tests.support.tiny_flow:located"},
        {"aggregation": "decoupled", "reward": "tests.support.tiny_flow:both"},
        {"objective": "nft", "global_std": True},
        {"dynamics": "cps", "kl_beta": 0.1, "normalise_ratio": True, "num_inner_epochs": 2, "lora_ffn": True},
        {
            "dynamics": "dance",
            "gradient_checkpointing": True,
            "overlap": False,
            "guidance_scale": 1.0,
            "micro_batch": 3,
        },
        {"shared_noise": True, "normalise_ratio": True},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()).replace("/", "_"),
)
def test_every_objective_and_option_trains(changes, model, tmp_path):
    align(recipe(model, tmp_path, steps=2, save_every=2, **changes))
    log = rows(tmp_path)
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in log)
    if "kl_beta" in changes:
        assert log[0]["kl"] > 0, "the second update of the first batch has left the reference"
    elif "objective" not in changes:
        assert log[1]["max_ratio_error"] == 0.0
    if "reward" in changes:
        assert set(log[0]["components"]) == set(log[0]["variance_shares"]) and sum(
            log[0]["variance_shares"].values()
        ) == pytest.approx(1)
    if "shared_noise" in changes:
        assert all(step.x.flatten(1).std(0).max() < 1e-6 for step in _first_sde_steps(model, tmp_path, changes))
    assert any(tensor.abs().max() > 0 for name, tensor in lora(tmp_path).items() if "lora_B" in name)


def _first_sde_steps(model, folder, changes):
    """The first stochastic step of a new run's groups, a micro-batch each."""
    run = AlignRun(recipe(model, folder / "again", micro_batch=4, group_size=4, **changes))
    try:
        chunk = run._sample_chunk(0, 0, run.prompts[:1], (1, 2))
        return [rollout.steps[0] for rollout in chunk.rollouts]
    finally:
        run.async_reward.close()


def test_the_lora_loads_with_diffusers_and_makes_the_same_velocities(whole, model):
    from diffusers import WanPipeline

    run = AlignRun(recipe(model, whole, ema_decay=0.5))  # resumes at the end: its average is what was saved
    run.async_reward.close()
    pipeline = WanPipeline.from_pretrained(model)
    pipeline.load_lora_weights(str(whole / "lora"))
    x = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    embeds = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))
    asked = {
        "hidden_states": x,
        "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": embeds,
        "return_dict": False,
    }
    with torch.no_grad():
        for name, parameter in run.lora.items():
            parameter.copy_(run.ema[name])
        expected = run.transformer(**asked)[0]
        torch.testing.assert_close(pipeline.transformer(**asked)[0], expected)
        pipeline.transformer.disable_adapters()
        assert not torch.allclose(pipeline.transformer(**asked)[0], expected)


def test_videos_of_a_trained_lora_come_from_the_checkpoints_own_sampler(whole, model):
    plain = sample_with_lora(model, None, ["a red ball", "a blue box"], [1, 2])
    tuned = sample_with_lora(model, whole / "lora", ["a red ball", "a blue box"], [1, 2])
    assert [len(video) for video in plain] == [5, 5]
    assert plain[0].content_hash != tuned[0].content_hash
    with pytest.raises(ValueError, match="no LoRA that fits"):
        sample_with_lora(model, model, ["a red ball"], [1])


@pytest.mark.parametrize("half", [False, True])
def test_a_lora_that_finds_no_place_is_an_error_and_not_the_base_models_videos(whole, model, tmp_path, half):
    """PEFT's own names (adapter_model.safetensors of other trainers), for all of it or for half: diffusers warns and goes on without."""
    trained = load_file(whole / "lora" / "pytorch_lora_weights.safetensors")
    other = {name: name.replace("transformer.", "base_model.model.", 1) for name in list(trained)[:: 2 if half else 1]}
    save_file(
        {other.get(name, name): tensor for name, tensor in trained.items()}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(ValueError, match="no LoRA that fits"):
        Wan.load(model, lora=tmp_path, device="cpu")


# ---- evaluation videos --------------------------------------------------------------------------------------------


def test_the_same_prompts_and_seeds_are_evaluated_before_and_after(model, tmp_path):
    evaluation = EvalRecipe(
        every=2,
        prompts=3,
        source="tests.support.tiny_flow:prompts",
        reward="tests.support.tiny_flow:Still",
        tolerance=0.0,
    )
    given = recipe(model, tmp_path, steps=2, lr=5e-2, eval=evaluation, micro_batch=3)
    result = align(given)
    results = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    assert [result["step"] for result in results] == [0, 2]
    assert results[0]["total"] != results[1]["total"] and results[0]["held_out"] is not None
    names = [sorted(p.name for p in (tmp_path / "eval" / f"step-00000{n}").glob("*.mp4")) for n in (0, 2)]
    assert names[0] == names[1] and len(names[0]) == 3
    listed = [json.loads(line) for line in (tmp_path / "eval/step-000002/prompts.jsonl").read_text().splitlines()]
    assert sorted(row["video"] for row in listed) == names[0]
    fell = results[1]["normal_flow_speed"] < results[0]["normal_flow_speed"]
    assert any("normal-flow speed" in sentence for sentence in result.alarms) == fell
    hashes = {Video.open(file).content_hash for file in (tmp_path / "eval").rglob("*.mp4")}
    judged = {row["video_hash"] for row in Ledger(tmp_path / "eval" / "ledger.jsonl").rows() if "score" in row}
    assert judged == hashes  # the report finds every judgement by its file
    # Before training they are what the checkpoint's own pipeline makes of the same prompts and seeds.
    wan = Wan.load(model, device="cpu", num_frames=given.num_frames)
    made = wan.batch([row["prompt"] for row in listed], [row["seed"] for row in listed])
    for row, video in zip(listed, made, strict=True):
        write_mp4(tmp_path / "own.mp4", video.frames(range(len(video))).pixels, video.fps)
        assert (
            Video.open(tmp_path / "own.mp4").content_hash
            == Video.open(tmp_path / "eval/step-000000" / row["video"]).content_hash
        )


@pytest.mark.parametrize(("seed", "lr", "rises"), [(1, 2e-2, True), (0, 6e-2, False)])
def test_the_lora_with_the_highest_total_is_kept(seed, lr, rises, model, tmp_path):
    evaluation = EvalRecipe(every=1, prompts=4, source="tests.support.tiny_flow:prompts")
    align(recipe(model, tmp_path, seed=seed, steps=3, lr=lr, save_every=1, eval=evaluation))
    totals = [json.loads(line)["total"] for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    kept = tmp_path / "lora_best" / "pytorch_lora_weights.safetensors"
    assert (int(np.argmax(totals)) == 3, int(np.argmax(totals)) == 0) == (rises, not rises), totals
    assert kept.exists() == rises, "a LoRA is called best only where it has beaten the model before training"
    if rises:
        assert same(load_file(kept), lora(tmp_path))


# ---- interruption --------------------------------------------------------------------------------------------------


def test_a_run_cut_between_steps_ends_with_the_same_lora(whole, model, tmp_path):
    cut = recipe(model, tmp_path, ema_decay=0.5)
    assert align_until(cut, 1).lora is None
    torch.manual_seed(99)  # a new process has another random state
    align(cut)
    assert same(lora(whole), lora(tmp_path)) and same(load_last(whole), load_last(tmp_path))
    assert [without_time(row) for row in rows(tmp_path)] == [without_time(row) for row in rows(whole)]


def align_until(given, step):
    return AlignRun(given).train(stop_after=step)


def without_time(row):
    return {name: value for name, value in row.items() if name != "seconds"}


def test_a_half_judged_batch_is_not_judged_again(whole, model, tmp_path):
    cut = recipe(model, tmp_path, ema_decay=0.5)
    Brightness.fail_after = 12  # in the middle of the second step: its first group is judged, its second is not
    with pytest.raises(KeyboardInterrupt):
        align(cut)
    assert len(rows(tmp_path)) == 1
    Brightness.fail_after = None
    Brightness.calls.clear()
    align(cut)
    assert len(Brightness.calls) == 24 - 12
    assert same(lora(whole), lora(tmp_path))
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert all(len(ledger.extra(row["key"])) == 1 for row in ledger.rows() if row["kind"] == "score")


def test_a_step_at_learning_rate_zero_teaches_nothing_and_other_steps_are_another_run(model, tmp_path):
    falling = recipe(model, tmp_path / "two", steps=2, min_lr_ratio=0.0)
    align(falling)
    align(recipe(model, tmp_path / "one", steps=1))
    assert same(lora(tmp_path / "one"), lora(tmp_path / "two"))
    AlignRun(replace(falling, out=str(tmp_path / "cut"), save_every=1)).train(stop_after=1)
    with pytest.raises(ValueError, match="another recipe \\(steps differ; steps was 2, now 3\\)"):
        align(replace(falling, out=str(tmp_path / "cut"), steps=3))


def test_a_finished_run_takes_more_steps(model, tmp_path):
    falling = recipe(model, tmp_path / "more", steps=1, min_lr_ratio=0.5)
    align(falling)
    extended = align(replace(falling, steps=2))
    assert extended.step == 2 and [row["step"] for row in rows(tmp_path / "more")] == [0, 1]
    with pytest.raises(ValueError, match="steps was 2, now 1"):
        align(falling)


def test_a_run_ends_with_its_guards_and_where_the_lora_lies(model, tmp_path, monkeypatch):
    monkeypatch.setattr(Brightness, "domain", Domain("toy world"), raising=False)
    told = []
    result = align(recipe(model, tmp_path, steps=1, eval=EvalRecipe(every=1, prompts=2)), told.append)
    assert [line for line in (told[0], told[-1]) if line.startswith("note: this reward is a toy for the toy world")]
    assert sum("toy world" in line for line in told) == 2
    rows_before = rows(tmp_path)
    lines = closing_lines(tmp_path, result.step, 1, result.alarms)
    assert f"0 of {rows_before[0]['videos']} videos without a score" in lines[0] and lines[0].startswith("1 of 1 steps")
    assert "step 0 → 1" in lines[1] and "normal-flow speed" in lines[1]
    assert any(str(tmp_path / "lora") in line for line in lines)
    (tmp_path / "log.jsonl").write_text(json.dumps({**rows_before[0], "unscored": 3}) + "\n")
    assert "3 of " in closing_lines(tmp_path, 1, 1, ["the videos stand still"])[0]
    assert "alarm: the videos stand still" in closing_lines(tmp_path, 1, 1, ["the videos stand still"])


def test_a_run_without_a_checkpoint_keeps_its_folder_to_itself(model, tmp_path):
    """The evaluation before training lies there from the first minute on, and is what every later one is compared with."""
    given = recipe(model, tmp_path, steps=2, save_every=2, eval=EvalRecipe(every=2, prompts=1))
    align_until(given, 1)
    before = (tmp_path / "eval.jsonl").read_text()
    assert before and not (tmp_path / "checkpoints").exists()
    with pytest.raises(ValueError, match="another recipe \\(eval.prompts, seed differ; eval.prompts was 1, now 2\\)"):
        align(replace(given, seed=7, eval=EvalRecipe(every=2, prompts=2)))
    align(replace(given, save_every=1))  # may change
    assert (tmp_path / "eval.jsonl").read_text().startswith(before)


def test_what_stands_behind_the_names_may_not_change_either(model, tmp_path):
    """The recipe names files; a run whose reward or prompts were edited in their files would read as one curve."""
    (tmp_path / "reward.yaml").write_text("components: {one: {kind: 'tests.support.tiny_flow:Brightness'}}\n")
    (tmp_path / "prompts.txt").write_text("".join(f"a {colour} ball\n" for colour in ("red", "blue", "green")))
    out = tmp_path / "out"
    given = recipe(model, out, steps=2, reward=str(tmp_path / "reward.yaml"), prompts=str(tmp_path / "prompts.txt"))
    align_until(given, 1)
    (tmp_path / "reward.yaml").write_text("components: {one: {kind: 'tests.support.tiny_flow:Still'}}\n")
    with pytest.raises(
        ValueError, match=r"began with another reward than .* \(reward differ; reward was 'brightness', now 'still'\)"
    ):
        align(given)
    (tmp_path / "prompts.txt").write_text("a red ball\na blue ball\na red box\n")
    with pytest.raises(ValueError, match="began with other prompts than .*prompts.txt gives now; put them back"):
        align(replace(given, allow_changed_reward=True))
    (tmp_path / "prompts.txt").write_text("".join(f"a {colour} ball\n" for colour in ("red", "blue", "green")))
    align(replace(given, allow_changed_reward=True))
    assert len(rows(out)) == 2
    align(given)  # it is the run's reward from then on


def test_folders_of_other_runs_are_refused(model, tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "selection.jsonl").touch()
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "recipe.json").write_text('{"run.lr": 0.1}')
    with pytest.raises(ValueError, match="holds a run of Best-of-N; choose another out="):
        AlignRun(recipe(model, tmp_path / "best"))
    with pytest.raises(ValueError, match="holds another kind of run"):
        AlignRun(recipe(model, tmp_path / "stage"))


def test_a_checkpoint_older_than_a_key_of_the_recipe_goes_on(model, tmp_path):
    given = recipe(model, tmp_path, steps=2, save_every=1)
    align_until(given, 1)
    claim = json.loads((tmp_path / "recipe.json").read_text())
    del claim["recipe"]["min_lr_ratio"]
    (tmp_path / "recipe.json").write_text(json.dumps(claim))
    with pytest.raises(ValueError, match="another recipe \\(min_lr_ratio differ; min_lr_ratio was 1.0, now 0.5\\)"):
        align(replace(given, min_lr_ratio=0.5))
    align(given)
    assert len(rows(tmp_path)) == 2


@pytest.mark.slow
def test_sigkill_anywhere_and_the_same_command_end_in_the_same_lora(whole, model, tmp_path):
    command = [
        sys.executable,
        "-m",
        "cac_align.cli",
        "align",
        write_recipe(recipe(model, tmp_path / "run", ema_decay=0.5), tmp_path),
    ]
    running = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    log = tmp_path / "run" / "log.jsonl"
    until = time.time() + 200
    while time.time() < until and not (log.exists() and log.read_text()):
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert not (tmp_path / "run" / "lora").exists()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert same(lora(whole), lora(tmp_path / "run"))


# ---- what can go wrong ---------------------------------------------------------------------------------------------


def test_videos_that_are_not_finite_skip_the_step_are_kept_and_end_the_run(model, tmp_path):
    run = AlignRun(recipe(model, tmp_path, steps=5, max_skipped=1))
    with torch.no_grad():
        for weight in (
            run.lora.values()
        ):  # all of them: of NaN in the queries alone, attention makes zeros on some CPUs (torch 2.15, AVX-512)
            weight.fill_(float("nan"))
    before = copy_weights(run.lora)
    with pytest.raises(
        ValueError, match=re.escape("2 steps were skipped (max_skipped is 1), the last because 8 videos are not finite")
    ):
        run.train()
    assert [row["skipped"] for row in rows(tmp_path)] == ["8 videos are not finite"] * 2
    kept = torch.load(tmp_path / "inspect" / "step-000001-0.pt", weights_only=True)
    assert len(kept["rollouts"]) == 2 and kept["rollouts"][0]["latents"].isnan().any()
    assert all(torch.equal(before[name].nan_to_num(7), run.lora[name].nan_to_num(7)) for name in before)


def test_gradients_that_are_not_finite_leave_the_weights_alone(model, tmp_path):
    run = AlignRun(recipe(model, tmp_path, steps=1))
    before = copy_weights(run.lora)
    handle = run.lora[next(iter(run.lora))].register_hook(lambda grad: grad * float("inf"))
    run.train()
    handle.remove()
    (row,) = rows(tmp_path)
    assert "the gradient's norm is" in row["skipped"] and row["ratio"] == 1.0
    assert all(torch.equal(before[name], run.lora[name]) for name in before)


def test_a_reward_that_fails_stops_the_run_with_its_own_words_and_changes_nothing(model, tmp_path):
    broken = recipe(model, tmp_path, reward="tests.support.tiny_flow:Broken", patience=2, steps=4)
    message = "100% of the videos of the last 2 steps have no score (max_unscored is 10%): reward broken failed: ConnectionError: no server"
    with pytest.raises(ValueError, match=re.escape(message)):
        align(broken)
    for row in rows(tmp_path):
        assert (
            row["unscored"] == 8 and row["zero_std_groups"] == 2 and row["trained_videos"] == 0 and "score" not in row
        )
    mended = replace(broken, reward="tests.support.tiny_flow:Brightness")
    with pytest.raises(
        ValueError, match="another recipe \\(reward differ; reward was 'tests.support.tiny_flow:Broken'"
    ):
        align(mended)


def test_a_full_disk_is_said_and_the_run_resumes(whole, model, tmp_path, monkeypatch):
    import errno

    real = torch.save

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        ValueError, match="No space left on device; free space or repair the path, then run the same command"
    ):
        align(recipe(model, tmp_path, ema_decay=0.5))
    assert not list((tmp_path / "checkpoints").iterdir()), "no half of a checkpoint stays"
    monkeypatch.setattr(torch, "save", real)
    align(recipe(model, tmp_path, ema_decay=0.5))
    assert same(lora(whole), lora(tmp_path))


def test_a_folder_that_is_not_wan_is_refused(model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match="expected a Wan text-to-video checkpoint"):
        AlignRun(recipe(other, tmp_path))


def test_a_wan_of_two_transformers_is_refused(model, tmp_path):
    """Wan 2.2's A14B: below boundary_ratio the pipeline goes on with the second one, which nobody would train or sample with."""
    one = WanPipeline.from_pretrained(model)
    parts = {name: part for name, part in one.components.items() if name != "transformer_2"}
    WanPipeline(**parts, transformer_2=copy.deepcopy(one.transformer), boundary_ratio=0.875).save_pretrained(
        tmp_path / "two"
    )
    shutil.copy(model / "cac_align.json", tmp_path / "two")
    with pytest.raises(
        ValueError, match=r"two transformers, one for high and one for low noise \(boundary_ratio 0.875\)"
    ):
        AlignRun(recipe(tmp_path / "two", tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sde_window": SdeWindow(2, 1, 3)}, "sde_window needs 0 <= first <= last <= 2"),
        ({"prompts_per_step": 7}, "prompts_per_step is 7, but there are only 6 prompts"),
        ({"height": 20}, "height must be a positive multiple of 16"),
        ({"reward": "no.yaml"}, "no.yaml: no such recipe file"),
        ({"prompts": "nowhere.txt"}, "prompts: nowhere.txt: cannot be read"),
        ({"adam_eps": 0.0}, "adam_eps must be a positive number, received 0.0"),
        ({"objective": "ppo"}, "objective must be one of grpo, nft; received 'ppo'"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_at_once(changes, message, model, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        AlignRun(recipe(model, tmp_path, **changes))


def test_local_advantages_follow_the_boxes_of_its_own_component(model, tmp_path):
    """Two judges with boxes: the first one's would be charged with the second one's score."""
    given = recipe(model, tmp_path, advantages="local", reward=str(tmp_path / "two.yaml"))
    boxes = "{kind: 'tests.support.tiny_flow:Boxes'}"
    (tmp_path / "two.yaml").write_text(
        f"components: {{first: {{kind: 'tests.support.tiny_flow:Corner'}}, cac: {boxes}}}\n"
    )
    async_reward = build_async_reward(given, tmp_path / "out", 1)
    pixels = np.zeros((5, 16, 16, 3), np.uint8)
    pixels[:, 8:, 8:] = 200  # Boxes marks the bright corner, Corner always the other one
    ((score, _),) = async_reward.wait(async_reward.submit(["a"], [Video.open(pixels, fps=16)]))
    async_reward.close()
    ((box,),) = score.evidence.anomalies[0].boxes.values()
    assert (box.xmin, box.ymin) == (500, 500)


def test_local_advantages_need_a_component_with_boxes(model, tmp_path):
    with pytest.raises(ValueError, match="local_component 'cac' is no component of the reward; it has brightness"):
        align(recipe(model, tmp_path, advantages="local", steps=1))


def test_the_command_line(model, tmp_path, capsys):
    path = write_recipe(recipe(model, "unused", steps=1), tmp_path)
    assert main(["align", path, "--set", f"out={tmp_path / 'run'}", "--set", "group_size=2"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(tmp_path / "run" / "lora") and "step 1/1" in captured.err
    assert main(["align", path, "--set", "group_sise=2"]) == 2
    assert "did you mean 'group_size'" in capsys.readouterr().err


def test_the_words_of_the_tiny_vocabulary_cover_its_prompts():
    from tests.support.tiny_flow import prompts

    assert {word for prompt in prompts(range(6)) for word in prompt.split()} <= set(WORDS)
