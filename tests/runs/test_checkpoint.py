"""Whose folder a run works in, and checkpoints that are whole or absent."""

import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from cac_align.runs.checkpoint import checkpoints, claim_folder, read_state, recipe_values, save_checkpoint, save_state


@dataclass(frozen=True)
class Part:
    lr: float = 0.1
    threads: int = 0


@dataclass(frozen=True)
class Recipe:
    out: str = "runs/x"
    sizes: tuple[int, ...] = (1, 2)
    extra: dict = field(default_factory=dict)
    run: Part = field(default_factory=Part)


def test_recipe_values_are_flat_and_as_json_stores_them():
    assert recipe_values(Recipe(extra={"a": Part()})) == {
        "out": "runs/x", "sizes": [1, 2], "extra": {"a": {"lr": 0.1, "threads": 0}}, "run.lr": 0.1, "run.threads": 0,
    }  # fmt: skip


def test_a_folder_belongs_to_one_recipe(tmp_path):
    recipe = Recipe()
    assert claim_folder(tmp_path / "out", "stage", recipe, facts={"prompts": 3}) == {"prompts": 3}
    other = replace(recipe, out="elsewhere", run=Part(threads=3))
    assert claim_folder(tmp_path / "out", "stage", other, free=("out", "run.threads"), facts={"prompts": 4}) == {
        "prompts": 3
    }
    claim_folder(tmp_path / "out", "stage", replace(recipe, run=Part(0.5, 3)), free=("run",))
    with pytest.raises(ValueError, match=r"another recipe \(run.lr, sizes differ; run.lr was 0.1, now 0.5\)"):
        claim_folder(tmp_path / "out", "stage", replace(recipe, sizes=(1,), run=Part(0.5)))
    with pytest.raises(ValueError, match=r"another kind of run \(expected align, found stage\)"):
        claim_folder(tmp_path / "out", "align", recipe)


def test_a_key_that_is_newer_than_the_run_counts_as_its_default(tmp_path):
    @dataclass(frozen=True)
    class Older:
        out: str = "runs/x"

    claim_folder(tmp_path, "stage", Older())
    claim_folder(tmp_path, "stage", Recipe())
    with pytest.raises(ValueError, match=r"sizes was \[1, 2\], now \[3\]"):
        claim_folder(tmp_path, "stage", Recipe(sizes=(3,)))


def test_a_process_that_does_not_write_leaves_no_trace(tmp_path):
    claim_folder(tmp_path / "out", "stage", Recipe(), write=False)
    assert not (tmp_path / "out").exists()


HOLD = """
import sys
from pathlib import Path
from cac_align.runs.checkpoint import claim_folder
from tests.runs.test_checkpoint import Recipe
claim_folder(Path(sys.argv[1]), "stage", Recipe())
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_in_which_another_process_works_is_refused_until_that_process_ends(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="another process is running in this folder"):
        claim_folder(tmp_path, "stage", Recipe())
    holder.kill()
    holder.communicate()
    claim_folder(tmp_path, "stage", Recipe())
    claim_folder(tmp_path, "stage", Recipe())  # the process that holds it may claim it again


def test_the_newest_checkpoints_are_kept_and_read(tmp_path):
    assert read_state(tmp_path) is None
    for step in (9, 10, 11):
        save_state(tmp_path, {"step": step, "weight": torch.full((2,), step)}, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000010", "step-000011"]
    assert read_state(tmp_path)["weight"].tolist() == [11, 11]
    (tmp_path / "checkpoints" / "step-000011" / "state.pt").write_bytes(b"torn")
    with pytest.raises(ValueError, match="step-000011: cannot be read .* remove this folder to go on"):
        read_state(tmp_path)


def test_what_fails_half_way_leaves_the_former_checkpoint_alone(tmp_path):
    save_state(tmp_path, {"step": 1})
    (tmp_path / "checkpoints" / ".step-000002.part").mkdir()  # of a kill in the middle of an earlier attempt

    def full_disk(folder):
        (folder / "half").touch()
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, full_disk)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    save_checkpoint(tmp_path, 2, lambda folder: (folder / "whole").touch())
    assert [path.name for path in (tmp_path / "checkpoints").rglob("*")] == ["step-000002", "whole"]
