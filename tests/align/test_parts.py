"""The parts of the alignment loop: prompts, windows, chunks, guards, journal, judging, the LoRA, one sampled micro-batch."""

import errno
import json
import math
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cac_align.align.async_reward import Judging, score_all
from cac_align.align.evaluator import watch_prompts
from cac_align.align.group_advantages import telling
from cac_align.align.lora import add_lora, copy_of, follow, lora_of, save_lora, swapped, zeroed
from cac_align.align.recipe import (
    FlowGrpoRecipe,
    Window,
    check,
    chunk_prompts,
    learning_rate,
    prompts_at,
    read_prompts,
    window_steps,
)
from cac_align.align.rollout import Flow, latent_shape, sample, sample_seed, velocity
from cac_align.align.setup import check_device, prepare
from cac_align.config import read_recipe
from cac_align.core.video import Video
from cac_align.generation.wan import Wan
from cac_align.rewards.build import load_reward
from cac_align.rewards.ledger import Ledger
from cac_align.runs.metrics_log import Rows, numbers_of, plain, seconds_of
from tests.support.tiny_flow import Boxes, Brightness, Broken, every, recipe, write_wan

ROOT = Path(__file__).parents[2]


# ---- prompts, windows, chunks --------------------------------------------------------------------------------------


def test_blank_lines_and_repetitions_are_left_out_and_counted(tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("a red ball\n\n  a blue box \na red ball\na green ball\n   \n")
    assert read_prompts(str(file), 0, 1) == ["a red ball", "a blue box", "a green ball"]
    assert "3 prompts; left out 2 blank lines and 1 repetitions" in capsys.readouterr().err
    file.write_text("\n".join(f"prompt {n}" for n in range(10_000)))
    assert len(read_prompts(str(file), 0, 1)) == 10_000
    assert not capsys.readouterr().err
    file.write_text("\n \n")
    with pytest.raises(ValueError, match="holds no prompt; write one per line"):
        read_prompts(str(file), 0, 1)
    file.write_text('{"prompt": "a red ball"}\n{"prompt": "a blue box"}\n')
    assert read_prompts(str(file), 0, 1) == ["a red ball", "a blue box"]
    file.write_text('{"text": "x"}\n')
    with pytest.raises(ValueError, match=r"prompts: .*prompts.txt:1: expected a JSON object with a prompt"):
        read_prompts(str(file), 0, 1)


def test_every_prompt_is_used_once_per_pass_and_never_twice_in_a_step():
    prompts = [f"p{n}" for n in range(7)]
    given = FlowGrpoRecipe(prompts_per_step=3, seed=5)
    steps = [prompts_at(step, prompts, given) for step in range(70)]
    assert all(len(set(step)) == 3 for step in steps)
    assert sorted([*steps[0], *steps[1]]) == sorted({*steps[0], *steps[1]}), "the first six of the first pass differ"
    for passes in range(0, 70, 7):  # seven steps are three passes, with two seams in them
        used = [prompt for step in steps[passes : passes + 7] for prompt in step]
        assert [used.count(prompt) for prompt in prompts] == [3] * 7
    assert steps[0] != prompts_at(0, prompts, replace(given, seed=6))


def test_windows_are_drawn_from_their_range():
    drawn = {window_steps(Window(3, 1, 6), 10, np.random.default_rng(seed)) for seed in range(300)}
    assert all(
        len(set(steps)) == 3 and min(steps) >= 1 and max(steps) <= 6 and list(steps) == sorted(steps) for steps in drawn
    )
    assert len(drawn) == 20, "all of 6 choose 3"
    assert window_steps(Window(0, 2, 4), 10, np.random.default_rng(0)) == (2, 3, 4)
    with pytest.raises(
        ValueError, match=re.escape("(of 10 steps the last, 9, stays without noise), received first=1, last=9")
    ):
        window_steps(Window(3, 1, 9), 10, np.random.default_rng(0))
    with pytest.raises(ValueError, match=re.escape("sde_window.size must lie in [0, 2]")):
        window_steps(Window(3, 1, 2), 10, np.random.default_rng(0))


def test_groups_divide_over_processes_or_it_is_said_how():
    assert chunk_prompts(FlowGrpoRecipe(group_size=16, prompts_per_step=2), 8) == 1
    assert chunk_prompts(FlowGrpoRecipe(group_size=16, prompts_per_step=2), 32) == 2  # the paper: 32 GPUs, 32 videos
    told = "group_size 16 × prompts_per_step 1 = 16 videos do not divide over 3 processes; the nearest group sizes that do are 15 and 18"
    with pytest.raises(ValueError, match=re.escape(told)):
        chunk_prompts(FlowGrpoRecipe(group_size=16, prompts_per_step=1), 3)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"group_size": 1}, "group_size must be at least 2, received 1"),
        ({"lr": 0.0}, "lr must be a positive number, received 0.0"),
        ({"min_lr_ratio": 1.5}, "min_lr_ratio is the share of lr that the last step has, in [0, 1]; received 1.5"),
        ({"ema": 1.0}, "ema must lie in [0, 1), received 1.0"),
        ({"objective": "nft", "kl_beta": 0.1}, "kl_beta belongs to objective grpo"),
        ({"objective": "nft", "shared_noise": True}, "shared_noise needs stochastic steps"),
        ({"credit": "local", "aggregation": "decoupled"}, "use aggregation sum with it"),
        ({"global_std": True, "aggregation": "decoupled"}, "global_std belongs to aggregation sum and credit uniform"),
        ({"global_std": True, "credit": "local"}, "global_std belongs to aggregation sum and credit uniform"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, None; received 'float16'"),
        ({"min_spread": -1.0}, "min_spread must be a number of at least 0, received -1.0"),
        ({"sampler": "checkpoint"}, "which objective grpo learns from; use sampler euler, or objective nft"),
        ({"sampler": "unipc"}, "sampler must be one of euler, checkpoint; received 'unipc'"),
        ({"dynamics": "euler"}, "dynamics must be one of flow, dance, cps; received 'euler'"),
    ],
)
def test_wrong_recipes_are_refused_in_one_sentence(changes, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        check(replace(FlowGrpoRecipe(), **changes))


def test_a_device_that_is_not_to_be_had_is_refused_before_anything_is_loaded(tmp_path):
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, told in (
        (f"cuda:{count}", rf"device=cuda:{count}: torch .* sees {count} GPUs here"),
        ("gpu", "device must be cpu, cuda or cuda:N, received 'gpu'"),
        (
            "meta",
            "device=meta, but accelerate runs this process on .*; leave device out, or mend what accelerate was told",
        ),
    ):
        with pytest.raises(ValueError, match=told):
            prepare(recipe("no such model", tmp_path, device=device))


def test_a_gpu_that_accelerate_did_not_choose_is_refused_with_the_way_to_it():
    one, two = torch.device("cuda:0"), torch.device("cuda:1")
    for wish, given in (
        (None, two),
        (torch.device("cuda"), two),
        (two, two),
        (one, torch.device("cuda")),
        (torch.device("cpu"),) * 2,
    ):
        check_device(wish, given)
    told = "device=cuda:1, but accelerate runs this process on cuda:0; accelerate takes the GPUs .*: set CUDA_VISIBLE_DEVICES=1 and"
    with pytest.raises(ValueError, match=told):
        check_device(two, one)
    with pytest.raises(
        ValueError, match=re.escape("device=cuda, but accelerate runs this process on cpu; leave device out")
    ):
        check_device(torch.device("cuda"), torch.device("cpu"))


def test_the_learning_rate_falls_along_half_a_cosine():
    given = FlowGrpoRecipe(lr=2.0, min_lr_ratio=0.1, steps=5)  # by hand: (1 + cos 45°) / 2 = .8535534
    expected = [2.0, 2 * (0.1 + 0.9 * 0.8535534), 1.1, 2 * (0.1 + 0.9 * 0.1464466), 0.2]
    assert [learning_rate(step, given) for step in range(5)] == pytest.approx(expected, abs=1e-6)
    assert {learning_rate(step, FlowGrpoRecipe(lr=2.0, steps=5)) for step in range(9)} == {2.0}
    assert learning_rate(0, FlowGrpoRecipe(lr=2.0, min_lr_ratio=0.1, steps=1)) == 2.0


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/flow_grpo").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_recipes_read(path):
    given = read_recipe(FlowGrpoRecipe, path)
    check(given)
    window_steps(given.sde_window, given.num_inference_steps, np.random.default_rng(0))
    assert (ROOT / given.reward).is_file()
    assert given.global_std and (given.normalise_ratio or given.objective == "nft"), (
        "what the miniature's trials showed to matter"
    )
    if path.stem == "wan2.1_1.3b":  # the paper's numbers
        paper = (
            given.steps,
            given.group_size,
            given.prompts_per_step,
            given.lora_rank,
            given.noise_level,
            given.num_inference_steps,
        )
        assert paper == (120, 16, 2, 32, 0.3, 50) and (given.height, given.width, given.num_frames) == (480, 832, 81)


def test_watched_prompts_are_not_trained_on_where_a_function_makes_them(tmp_path):
    given = FlowGrpoRecipe(prompt_count=20)
    given.watch.prompts = 6
    trained = read_prompts(given.prompts, given.prompt_first, 20, note=False)
    following = read_prompts(given.prompts, given.prompt_first + 20, 6, note=False)
    assert watch_prompts(given, trained) == following
    given.prompts = str(tmp_path / "file.txt")
    assert watch_prompts(given, trained) == trained[:6]


# ---- journal and judging -------------------------------------------------------------------------------------------


def test_rows_forget_what_will_be_done_again_and_torn_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    log = Rows(path)
    for step in range(3):
        log.add({"step": step, "score": float("nan") if step else np.float32(0.5)})
    with path.open("a") as file:
        file.write('{"step": 3, "sco')
    assert [row["step"] for row in Rows(path).rows] == [0, 1, 2]
    again = Rows(path, before=2)
    again.add({"step": 2, "score": 1.0})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 0, "score": 0.5}, {"step": 1, "score": None}, {"step": 2, "score": 1.0},
    ]  # fmt: skip
    assert numbers_of({"a": 1, "b": {"c": 2.5, "d": None}, "e": "x", "f": True}, "p/") == {"p/a": 1.0, "p/b/c": 2.5}
    assert plain({"x": [float("inf"), 1]}) == {"x": [None, 1]}


def test_seconds_add_up():
    spent = seconds_of(10.0, {"model": 4.0, "vae": 1.0, "backward": 3.0}, judge_s=5.0, wait_s=0.5)
    assert spent["saved"] == 4.5 and spent["other"] == 1.5 and spent["optimizer"] == 0.0


def grey(level):
    return Video.open(np.full((5, 16, 16, 3), level, np.uint8), fps=16)


def test_no_failure_becomes_a_number():
    scores = score_all(Brightness(), ["a", "b"], [grey(51), None])
    assert scores[0].value == pytest.approx(0.2) and not scores[1].scored and "not finite" in scores[1].error
    failed = score_all(Broken(), ["a", "b"], [grey(51), grey(52)])
    assert [score.error for score in failed] == [
        "reward broken failed: ConnectionError: no server at http://127.0.0.1:9"
    ] * 2


class FullDisk(Brightness):
    def __call__(self, prompts, videos):
        raise OSError(errno.ENOSPC, "the ledger took 10 of 80 bytes")


def test_a_ledger_that_cannot_be_written_ends_the_run():
    judging = Judging(FullDisk(), None)
    with pytest.raises(OSError, match="10 of 80 bytes"):
        judging.wait(judging.submit(["a"], [grey(1)]))
    judging.close()


class Held(Brightness):
    """A reward that begins, and ends when the gate is opened."""

    def __init__(self):
        self.begun, self.gate = threading.Event(), threading.Event()

    def __call__(self, prompts, videos):
        self.begun.set()
        assert self.gate.wait(60)
        return super().__call__(prompts, videos)


def test_judging_runs_beside_the_caller_and_counts_what_it_saved(tmp_path):
    reward = Held()
    judging = Judging(reward, Ledger(tmp_path / "ledger.jsonl"))
    future = judging.submit(["a"], [grey(51)])  # comes back although nothing is judged yet
    assert reward.begun.wait(60) and not future.done()
    began = time.perf_counter()
    time.sleep(0.2)
    worked = time.perf_counter() - began
    reward.gate.set()
    future.result()
    ((score, moved),) = judging.wait(future)
    assert score.scored and moved == 0.0 and judging.busy_s >= worked and judging.waited_s < judging.busy_s
    judging.link("a", grey(51), score, {"step": 1, "advantage": 0.5})
    judging.link("a", grey(51), score, {"step": 1, "advantage": 0.5})
    (row,) = [row for row in judging.ledger.rows() if row["kind"] == "extra"]
    assert row["extra"] == {"step": 1, "advantage": 0.5}
    judging.close()


def test_without_overlap_the_caller_waits():
    reward = Held()
    blocking = Judging(reward, None, overlap=False)
    threading.Timer(0.2, reward.gate.set).start()
    assert blocking.submit(["a"], [grey(51)]).done() and blocking.waited_s > 0
    blocking.close()


def test_the_small_judges_boxes_reach_the_evidence():
    (score,) = Boxes()(["a"], [grey(9)])
    assert score.evidence.anomalies[0].boxes[1][0].to_json() == [0, 0, 500, 500]


def test_the_clips_that_are_kept_tell_most():
    class Told:
        def __init__(self, advantage, values):
            from cac_align.align.async_reward import Verdict

            self.advantage, self.dead = np.array(advantage), np.zeros(1, bool)
            self.verdicts = [Verdict(value, {}, None, 0.1) for value in values]

    credits = [Told([0.0, -2.0, 1.0], [0.1, 0.2, 0.3]), Told([0.5, 0.0, 3.0], [0.1, math.nan, 0.3])]
    assert telling(credits, 3) == {(1, 1), (0, 1), (1, 2)}
    assert telling(credits, 0) == set()


# ---- one micro-batch and the LoRA ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return Wan.load(write_wan(tmp_path_factory.mktemp("wan")), device="cpu")


def flow_of(wan):
    return Flow.of(wan, wan.pipeline.transformer, torch.device("cpu"))


def test_a_sample_depends_on_its_seed_and_not_on_its_batch(wan):
    flow = flow_of(wan)
    both = sample(flow, ["a red ball", "a blue box"], [1, 2], (0, 2), noise_level=0.7)
    alone = sample(flow, ["a blue box"], [2], (0, 2), noise_level=0.7)
    torch.testing.assert_close(both.latents[1:], alone.latents)
    assert [step.index for step in both.steps] == [0, 2]
    assert latent_shape(flow) == (4, 3, 4, 4) == tuple(both.latents.shape[1:])
    assert all(every(video).shape == (5, 16, 16, 3) for video in both.videos)
    other = sample(flow, ["a blue box"], [3], (0, 2), noise_level=0.7)
    assert not torch.allclose(other.latents, alone.latents)
    assert len({sample_seed(0, 3, step, n) for step in range(50) for n in range(64)}) == 3200


def test_videos_with_shared_first_noise_part_at_the_first_stochastic_step(wan):
    flow = flow_of(wan)
    words = ["a red ball"] * 3
    step = sample(flow, words, [1, 2, 3], (1,), noise_level=0.7, first_seeds=[7, 7, 8]).steps[0]
    torch.testing.assert_close(step.x[0], step.x[1])
    assert not torch.allclose(step.x[0], step.x[2]) and not torch.allclose(step.x_next[0], step.x_next[1])
    own = sample(flow, words, [1, 2, 3], (), first_seeds=[1, 2, 3])
    assert torch.equal(own.latents, sample(flow, words, [1, 2, 3], ()).latents)


def test_the_kept_steps_chain_and_recompute_exactly(wan):
    flow = flow_of(wan)
    made = sample(flow, ["a red ball", "a blue box"], [1, 2], (1, 2), noise_level=0.7)
    first, second = made.steps
    assert torch.equal(first.x_next, second.x)
    from cac_align.align.sde import transition

    with torch.enable_grad():
        again = transition("flow", first.x, velocity(flow, first.x, 1, made.embeds), flow.schedule.sigmas, 1, 0.7)
    assert torch.equal(again.mean, first.mean) and again.std == first.std


def test_the_ode_is_wan_pipelines_own_up_to_the_solver(wan):
    """With the pipeline's scheduler replaced by Euler, our loop and ``WanPipeline`` must agree: guidance, timesteps, decoding."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    parts = wan.pipeline.components
    euler = WanPipeline(**{**parts, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)})
    euler.set_progress_bar_config(disable=True)
    swapped_wan = Wan(euler, wan.setting, wan.folder)
    expected = swapped_wan.batch(["a red ball", "a blue box"], [5, 6])
    found = sample(flow_of(swapped_wan), ["a red ball", "a blue box"], [5, 6]).videos
    for one, two in zip(expected, found, strict=True):
        assert np.abs(every(one).astype(int) - every(two).astype(int)).max() <= 1


def test_with_the_checkpoints_own_sampler_a_rollout_is_what_its_pipeline_makes(wan):
    flow, words, seeds = flow_of(wan), ["a red ball", "a blue box"], [5, 6]
    taken, euler = sample(flow, words, seeds, own_sampler=True), sample(flow, words, seeds)
    again = sample(flow, words, seeds, own_sampler=True)
    for one, two in zip(wan.batch(words, seeds), taken.videos, strict=True):
        assert np.abs(every(one).astype(int) - every(two).astype(int)).max() <= 1
    assert not torch.allclose(taken.latents, euler.latents), "UniPC is of second order"
    assert torch.equal(again.latents, taken.latents), "nothing is left of a sampler that has run"
    with pytest.raises(ValueError, match="no stochastic steps, received \\[1\\]"):
        sample(flow, words, seeds, (1,), noise_level=0.7, own_sampler=True)


def test_latents_that_are_not_finite_have_no_video(wan):
    from cac_align.align.rollout import decode_latents

    latents = torch.randn(2, 4, 3, 4, 4)
    latents[0, 0, 0, 0, 0] = float("nan")
    first, second = decode_latents(flow_of(wan), latents, ["a", "b"], [0, 1])
    assert first is None and second is not None


def test_copies_of_the_lora(tmp_path):
    wan = Wan.load(write_wan(tmp_path), device="cpu")
    transformer = wan.pipeline.transformer
    flow = flow_of(wan)
    x = torch.randn(1, 4, 3, 4, 4)
    embeds = torch.randn(2, 6, 16)
    plain_v = velocity(flow, x, 1, embeds)
    add_lora(transformer, rank=3, alpha=6, ffn=True, seed=0)
    parameters = lora_of(transformer)
    assert len(parameters) == 2 * (8 + 2), "q, k, v, o of self- and cross-attention, and the two feed-forward layers"
    assert {p for p in transformer.parameters() if p.requires_grad} == set(parameters.values())
    assert torch.equal(velocity(flow, x, 1, embeds), plain_v), "a fresh LoRA does nothing"
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.1)
    tuned = velocity(flow, x, 1, embeds)
    assert not torch.allclose(tuned, plain_v)
    before = copy_of(parameters)
    with swapped(parameters, zeroed(parameters)):
        assert torch.equal(velocity(flow, x, 1, embeds), plain_v), "the reference of the KL is the model without LoRA"
    assert all(torch.equal(before[name], parameters[name]) for name in before)
    average = {name: torch.zeros_like(value) for name, value in before.items()}
    follow(average, parameters, 0.75)
    torch.testing.assert_close(average, {name: 0.25 * value for name, value in before.items()})
    save_lora(tmp_path / "lora", before, transformer.peft_config["default"])
    fresh = Wan.load(tmp_path, device="cpu")
    fresh.pipeline.load_lora_weights(str(tmp_path / "lora"))
    torch.testing.assert_close(velocity(flow_of(fresh), x, 1, embeds), tuned)


def test_the_reward_of_a_recipe_can_be_a_name(tmp_path):
    assert load_reward(recipe("m", tmp_path).reward).name == "brightness"
