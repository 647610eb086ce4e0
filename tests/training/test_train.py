"""`cac-align train`: every shipped recipe is read, the paper-size ones start, take two steps and resume on a tiny model."""

from pathlib import Path

import pytest

from cac_align.cli.main import main
from cac_align.config import read_recipe
from cac_align.runs.checkpoint import checkpoints
from cac_align.runs.metrics_log import read_rows
from cac_align.training.grpo import GrpoRecipe
from cac_align.training.sft import SftRecipe
from tests.support import tiny_stage
from tests.support.tracked import tracked

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    tiny_stage.model_folder(folder / "model", logits=(9.0, 9.0, 9.0, 8.0))
    tiny_stage.data_folder(folder / "data")
    return folder


@pytest.mark.parametrize(
    "path", tracked("recipes", "*/*stage*.yaml"), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_recipe_is_read_and_opens_with_its_command(path):
    stage = path.stem[-1]
    recipe = read_recipe(GrpoRecipe if stage == "3" else SftRecipe, path)
    head = path.read_text().split("\n\n")[0]
    assert f"train stage{stage} recipes/{path.parent.name}/{path.name}" in head and "Hardware:" in head
    assert recipe.data.samples == f"stage{stage}.jsonl" and (stage == "3" or recipe.stage == int(stage))


def test_the_paper_is_in_the_recipes():
    one, two = (read_recipe(SftRecipe, RECIPES / "train" / f"stage{n}.yaml") for n in (1, 2))
    three = read_recipe(GrpoRecipe, RECIPES / "train" / "stage3.yaml")
    assert (one.lora_rank, one.run.lr, one.run.steps) == (32, 1e-4, 9330)
    assert (two.lora_rank, two.run.lr, two.run.steps, two.data.look_share) == (
        0,
        1e-4,
        7000,
        pytest.approx(15 / 35, abs=1e-5),
    )
    assert (three.rollout.group_size, three.batch, three.run.lr, three.run.steps) == (8, 64, 1e-6, 250)
    weights = three.weights
    assert (weights.format, weights.status, weights.type, weights.temporal, weights.spatial) == (1, 2, 2, 2, 5)
    assert (weights.salient, weights.non_salient) == (1.0, 0.5) and three.grpo.beta > 0
    assert three.batch * three.rollout.group_size / three.micro_batch / 16 == 32  # accumulation on the paper's 16 GPUs


@pytest.fixture(autouse=True)
def a_fresh_accelerate():
    """accelerate keeps its state for the process; a command line begins without any."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def two_steps_and_resume(root, stage, capsys):
    out = root / f"paper{stage}"
    command = [
        "train",
        f"stage{stage}",
        str(RECIPES / "train" / f"stage{stage}.yaml"),
        f"--set=model.path={root / 'model'}",
    ]
    command += [f"--set=data.folder={root / 'data'}", f"--set=out={out}", "--set=run.steps=3"]
    if (
        stage == 3
    ):  # one GPU's share of the 512 rollouts of a step, and no 2,048 tokens of a model that never stops: bf16 is slow here
        command += [
            "--set=batch=2",
            "--set=eval_videos=2",
            "--set=rollout.group_size=4",
            "--set=rollout.max_new_tokens=64",
        ]
    assert main([*command, "--set=run.stop_after=2"]) == 0
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "final")
    steps = [row["step"] for row in read_rows(out / "log.jsonl") if "norm" in row]
    assert steps == ([1, 2, 3] if stage == 3 else [2, 3])  # stages 1 and 2 log every tenth step, and the last
    assert (out / "final" / "model.safetensors").is_file() and [path.name for path in checkpoints(out)] == [
        "step-000003"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_paper_size_recipe_starts_and_resumes(root, stage, capsys):
    two_steps_and_resume(root, stage, capsys)


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["stage2", "train/stage1.yaml"], "is a recipe of stage1, received stage2; run `cac-align train stage1 "),
        (["stage3", "train/stage2.yaml"], "is a recipe of stage2, received stage3"),
        (["stage1", "train/stage3.yaml"], "is a recipe of stage3, received stage1; run `cac-align train stage3 "),
        (["stage2", "train/stage1.yaml", "--set=stage=2"], "is a recipe of stage1, received stage2"),
        (["stage3", "train/stage3.yaml", "--set=grpo.betta=1"], "did you mean 'beta'"),
        (["stage1", "train/nothing.yaml"], "no such recipe file"),
        (
            ["stage1", "train/stage1.yaml", "--set=data.folder=nowhere"],
            "data.folder: nowhere/records.jsonl does not exist; `cac-align data split` writes this folder",
        ),
    ],
)
def test_wrong_commands_are_one_sentence(arguments, told, capsys):
    stage, recipe, *overrides = arguments
    assert main(["train", stage, str(RECIPES / recipe), *overrides]) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("cac-align train:")
