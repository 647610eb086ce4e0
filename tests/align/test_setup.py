"""What is refused before the first step: accelerate's settings, rewards that cannot judge what they will be shown, checkpoints that differ."""

import os
import re
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType

from cac_align.align.recipe import EvalRecipe
from cac_align.align.setup import build_async_reward, check_device, check_launch, prepare
from cac_align.align.trainer import AlignRun, align
from cac_align.rewards.combine import combine
from tests.support.tiny_flow import Brightness, Still, environment, recipe, write_wan
from tests.support.two_processes import run_two


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture
def fresh_accelerate():
    """accelerate reads its environment once per process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_DYNAMO_BACKEND", "EAGER", "dynamo_backend must be no"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2", "gradient_accumulation_steps must be 1"),
    ],
)
def test_settings_under_which_something_else_would_be_trained_are_refused(
    model, tmp_path, monkeypatch, fresh_accelerate, name, value, message
):
    """Under dynamo the LoRA was saved under names that nothing loads; accumulation divides the gradient that max_grad_norm is meant for."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"accelerate's settings: {message}.*; pass --config_file"):
        prepare(recipe(model, tmp_path))


@pytest.mark.parametrize(
    ("kind", "is_fsdp2", "precision", "message"),
    [
        (DistributedType.DEEPSPEED, False, "no", "DEEPSPEED is not supported"),
        (DistributedType.FSDP, False, "no", "FSDP 1 is not supported"),
        (DistributedType.FSDP, True, "no", "fsdp_reshard_after_forward must be true"),
        (DistributedType.MULTI_GPU, False, "fp16", "mixed_precision fp16 is not supported"),
    ],
)
def test_what_this_machine_cannot_start_is_refused_by_name(kind, is_fsdp2, precision, message):
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(reshard_after_forward=False))
    given = SimpleNamespace(distributed_type=kind, is_fsdp2=is_fsdp2, mixed_precision=precision, state=state)
    with pytest.raises(ValueError, match=message):
        check_launch(given)


def grouped():
    return combine({"brightness": Brightness(), "still": Still()}, normalise="group")


def test_an_evaluation_prompt_has_one_video_and_a_group_normaliser_needs_two(model, tmp_path):
    given = {"reward": f"{__name__}:grouped", "steps": 1}
    with pytest.raises(
        ValueError,
        match=re.escape("normalise: group compares the videos of a prompt, and an evaluation prompt has one video"),
    ):
        build_async_reward(recipe(model, tmp_path, eval=EvalRecipe(every=1, prompts=2), **given), tmp_path, 1)
    assert align(recipe(model, tmp_path, eval=EvalRecipe(every=0), **given)).step == 1


class Points(Brightness):
    """Boxes need R in [0, 1]; this one gives one to five points."""

    bounds = (1.0, 5.0)


def points():
    return combine({"cac": Points(), "still": Still()})


def test_local_advantages_need_a_score_from_zero_to_one(model, tmp_path):
    with pytest.raises(
        ValueError,
        match=re.escape("local_component 'cac' has bounds (1.0, 5.0); local advantages need a score in [0, 1]"),
    ):
        build_async_reward(recipe(model, tmp_path, advantages="local", reward=f"{__name__}:points"), tmp_path, 1)


def test_nft_asks_for_no_stochastic_window(model, tmp_path):
    """Four steps hold no window of 3 among steps 1 to 6, which only an SDE needs."""
    AlignRun(recipe(model, tmp_path, objective="nft", sde_window={"size": 3, "first": 1, "last": 6}))


def test_an_alarm_outlives_the_call_that_raised_it(model, tmp_path):
    """With tolerance −10 every evaluation raises an alarm. The same command again does not train past eval.stop, and a finished run still says so."""
    given = recipe(
        model,
        tmp_path,
        steps=2,
        eval=EvalRecipe(every=1, prompts=2, source="tests.support.tiny_flow:prompts", tolerance=-10.0, stop=True),
    )
    message = [align(given), align(given)]
    assert [one.step for one in message] == [1, 1] and message[0].alarms == message[1].alarms != ()
    on = recipe(
        model,
        tmp_path,
        steps=2,
        eval=EvalRecipe(every=1, prompts=2, source="tests.support.tiny_flow:prompts", tolerance=-10.0),
    )
    done = align(on)
    assert done.step == 2 and set(message[0].alarms) < set(done.alarms) and align(on).alarms == done.alarms


APART = """
import os, sys
from pathlib import Path
from tests.support.tiny_flow import recipe
from cac_align.cli.main import leave
from cac_align.align.trainer import AlignRun
try:
    AlignRun(recipe(sys.argv[1], Path(sys.argv[2]) / os.environ["RANK"], steps=2, micro_batch=2))
except ValueError as error:
    print(f"{error}\\n", end="", flush=True)
leave(0)
"""


@pytest.mark.slow
def test_machines_whose_checkpoints_differ_do_not_train_on(model, tmp_path):
    """An out on each machine's own disk: only the first process writes there, and after a restart the second would begin anew."""
    align(recipe(model, tmp_path / "0", steps=1, micro_batch=2))
    (tmp_path / "apart.py").write_text(APART)
    done = run_two([str(tmp_path / "apart.py"), str(model), str(tmp_path)], environment())
    assert done.returncode == 0, done.stderr[-3000:]
    message = [line for line in done.stdout.splitlines() if line]
    assert len(message) == 2, os.linesep.join(message)
    for rank, line in enumerate(sorted(message)):
        assert line.startswith(str(tmp_path / str(rank))) and "(process 0 after step 1, process 1 after step 0)" in line


def test_a_device_that_is_not_to_be_had_is_refused_before_anything_is_loaded(tmp_path):
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, message in (
        (f"cuda:{count}", rf"device=cuda:{count}: torch .* sees {count} GPUs"),
        ("gpu", "device must be cpu, cuda or cuda:N, received 'gpu'"),
        (
            "meta",
            "device=meta, but accelerate runs this process on .*; leave device out, or change accelerate",
        ),
    ):
        with pytest.raises(ValueError, match=message):
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
    message = "device=cuda:1, but accelerate runs this process on cuda:0; accelerate takes the GPUs .*: set CUDA_VISIBLE_DEVICES=1 and"
    with pytest.raises(ValueError, match=message):
        check_device(two, one)
    with pytest.raises(
        ValueError, match=re.escape("device=cuda, but accelerate runs this process on cpu; leave device out")
    ):
        check_device(torch.device("cuda"), torch.device("cpu"))
