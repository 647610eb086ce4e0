"""One command makes all weights: stamps, resume after a kill, a refusal below the expected figures, installing above them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cac_align.core.weights import read_manifest, weights_folder
from cac_align.miniature.models.judge import JudgeSize, build_judge_tokenizer, build_model, num_parameters
from research.build import run as build_run
from research.build.__main__ import main
from research.build.gate import MAX_MEGABYTES, MIN_HEAD_SIZE, install, misfits, read_expected, refusals
from research.build.parts import RECIPES, phase, read_part, shrink, shrunk
from research.build.run import Step, code_hash, read_stamp, run, wanted
from research.build.steps import TARGETS, curriculum
from research.training.train_judge import JudgeTraining
from tests.support.tiny_curriculum import write_tiny_recipes
from tests.support.tracked import tracked

ROOT = Path(__file__).parents[2]


# ---- the whole chain, at a thousandth ----


def started(arguments, out):
    """The command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (out.parent / "killed.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "research.build", *arguments], env=environment, stdout=log, stderr=log, cwd=ROOT
        )


def stamp_of(out, name):
    return read_stamp(out / name) or {}


def events(out, name):
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["event"] for row in rows if row["step"] == name]


@pytest.mark.timeout(1200)  # half a minute of one core; a busy machine takes longer than the suite's limit
def test_from_nothing_through_a_kill_to_the_refusal(tmp_path, capsys):
    recipes, out = write_tiny_recipes(tmp_path / "recipes"), tmp_path / "out"
    arguments = ["all", "--scale", "0.001", "--out", str(out), "--recipes", str(recipes)]
    before = (weights_folder() / "manifest.json").read_bytes()
    process = started(arguments, out)
    begun, patience = out / "judge" / "encoder" / "stamp.json", time.monotonic() + 900
    while not begun.is_file() and process.poll() is None and time.monotonic() < patience:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert begun.is_file(), (tmp_path / "killed.log").read_text(errors="replace")[-2000:]
    assert stamp_of(out, "wan/third")["done"] and not (out / "figures").exists()
    refused = (tmp_path / "killed.log").read_text(errors="replace")
    assert "weights with this small Wan will not be installed: prompt_following: 0.000" in refused, (
        "said before the judge"
    )

    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "accuracy: 0.000" in said and "scale 0.001 is never installed" in said
    assert events(out, "vae") == ["begun", "done", "skipped"]
    assert events(out, "judge/encoder")[-1] in ("done", "skipped") and events(out, "judge/stage3") == ["begun", "done"]
    steps = curriculum(out, 0.001, recipes)
    assert [step.name for step in steps if not stamp_of(out, step.name)["done"]] == []
    assert (weights_folder() / "manifest.json").read_bytes() == before
    for judge in ("judge/calibrated/judge", "unified/second/final"):
        config = json.loads((out / judge / "config.json").read_text())
        assert config["text_config"]["head_dim"] >= MIN_HEAD_SIZE

    # another recipe for one step: it and what follows are stale, what it was made from is not
    chosen = (recipes / "judge.yaml").read_text().replace("near: 0.02", "near: 0.03")
    (recipes / "judge.yaml").write_text(chosen)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "judge/splits was made from something else (recipe key near differs)" in said
    assert "judge/stage1, judge/stage2, judge/stage3, judge/calibrated, figures;" in said
    assert main(["all", "--out", str(out), "--recipes", str(recipes)]) == 2
    assert "scale was 0.001, now 1.0" in capsys.readouterr().err


# ---- steps ----


def steps_of(done, recipe=1):
    def make(name):
        def work(folder):
            done.append(name)
            (folder / "made").write_text(name)
            return {"length": len(name)}

        return work

    first = Step("a", {"n": recipe}, (), ("research.build.parts",), 1, make("a"))
    return [first, Step("b", {"n": 0}, ("a",), (), 1, make("b")), Step("c", {"n": 0}, (), (), 1, make("c"))]


def test_what_is_done_is_not_done_again_and_a_failed_step_goes_on(tmp_path):
    done = []
    assert run(steps_of(done), tmp_path) == {"a": {"length": 1}, "b": {"length": 1}, "c": {"length": 1}}
    assert run(steps_of(done), tmp_path)["a"] == {"length": 1} and done == ["a", "b", "c"]

    def fails(folder):
        (folder / "half").write_text("")
        raise RuntimeError("out of memory")

    last = Step("d", {}, ("c",), (), 1, fails)
    with pytest.raises(RuntimeError):
        run([*steps_of(done), last], tmp_path)
    assert not stamp_of(tmp_path, "d")["done"]
    goes_on = Step("d", {}, ("c",), (), 1, lambda folder: {"half": (folder / "half").is_file()})
    assert run([*steps_of(done), goes_on], tmp_path)["d"] == {"half": True}


def test_a_changed_recipe_makes_its_step_and_what_follows_stale(tmp_path):
    done = []
    run(steps_of(done), tmp_path)
    with pytest.raises(ValueError, match=r"recipe key n differs.*anew: a, b; or"):
        run(steps_of(done, recipe=2), tmp_path)
    assert done == ["a", "b", "c"]
    run(steps_of(done, recipe=2), tmp_path, rebuild=True)
    assert done == ["a", "b", "c", "a", "b"]
    with pytest.raises(ValueError, match="scale"):
        run(steps_of(done, recipe=2), tmp_path, build_run.Build(0.5))


def test_the_stamp_knows_the_code_behind_a_step(tmp_path, monkeypatch):
    (tmp_path / "research" / "training").mkdir(parents=True)
    top, below = tmp_path / "research" / "training" / "top.py", tmp_path / "research" / "training" / "below.py"
    top.write_text("def f():\n    from research.training import below\n")
    below.write_text("x = 1\n")
    (tmp_path / "research" / "training" / "other.py").write_text("x = 1\n")
    monkeypatch.setattr(build_run, "ROOT", tmp_path)
    first = code_hash(["research.training.top"])
    (tmp_path / "research" / "training" / "other.py").write_text("x = 2\n")
    assert code_hash(["research.training.top"]) == first
    below.write_text("x = 2\n")
    assert code_hash(["research.training.top"]) != first


def test_a_target_has_what_it_needs_and_no_more():
    steps = curriculum(Path("out"))
    names = {target: [step.name for step in wanted(steps, ends)] for target, ends in TARGETS.items()}
    assert names["vae"] == ["vae"]
    assert names["wan"] == ["vae", "wan/first", "wan/second", "wan/third", "wan/figures"]
    assert names["all"] == [step.name for step in steps]
    assert "judge/stage3" not in names["unified"] and "generated/base" in names["unified"]
    for position, step in enumerate(steps):
        assert set(step.inputs) <= {earlier.name for earlier in steps[:position]}, step.name


# ---- the recipes as they ship ----


def test_the_plan_fits_into_a_working_day_and_does_nothing(tmp_path, capsys):
    assert main(["all", "--plan", "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    spent = [float(line.split(" | ")[1]) for line in lines if line.count(" | ") == 3 and "minutes" not in line]
    assert len(spent) == len(curriculum(tmp_path)) and 0 < sum(spent) <= 8 * 60
    assert not (tmp_path / "out").exists()


def test_the_recipes_are_at_most_eight():
    assert len(tracked("research/recipes")) <= 8


def test_the_weights_they_make_are_small():
    stored = sum(
        int(row["bytes"]) for name, row in read_manifest()["wan"].items() if name.endswith(".safetensors")
    )  # the small Wan's size is MiniWan's default, as it ships
    tokenizer = build_judge_tokenizer(["a red ball rolls"], 10)
    for name, of in (("judge", "encoder"), ("unified", "first")):
        recipe = phase(JudgeTraining, read_part(name), of, steps=1)
        rows = recipe.size.num_merges + 300 - len(tokenizer)  # of the word table that this tokenizer lacks
        stored += 2 * (num_parameters(build_model(tokenizer, recipe.size)) + rows * recipe.size.text_hidden)
    assert stored < MAX_MEGABYTES * 1e6


def test_heads_that_a_vllm_refuses_are_refused_before_any_work(tmp_path):
    recipes = write_tiny_recipes(tmp_path / "recipes")
    text = (recipes / "unified.yaml").read_text().replace("text_heads: 1", "text_heads: 2")
    (recipes / "unified.yaml").write_text(text)
    with pytest.raises(ValueError, match="heads have 16 numbers"):
        curriculum(tmp_path / "out", 1.0, recipes)


def test_a_wrong_scale_or_recipe_is_named(tmp_path, capsys):
    assert main(["vae", "--scale", "0", "--out", str(tmp_path)]) == 2
    assert "--scale" in capsys.readouterr().err
    recipes = write_tiny_recipes(tmp_path / "recipes")
    text = (recipes / "wan.yaml").read_text().replace("flow_shift", "flow_shoft")
    (recipes / "wan.yaml").write_text(text)
    assert main(["wan", "--recipes", str(recipes), "--out", str(tmp_path / "out")]) == 2
    assert "flow_shoft" in capsys.readouterr().err


def test_a_scale_shrinks_counts_and_no_model():
    assert [shrunk(2000, 0.001), shrunk(2000, 0.1, 4), shrunk(30, 0.5, 2), shrunk(3, 0.1, 4)] == [2, 200, 16, 3]
    whole = phase(JudgeTraining, read_part("judge"), "sft")
    small = shrink(whole, 0.01)
    assert shrink(whole, 1) == whole and small.size == whole.size and small.lr == whole.lr
    assert (small.steps, small.batch, small.clips) == (20, 4, 120)


# ---- the gate ----

EXPECTED = {
    "accuracy": {"value": 0.97, "low": 0.96, "high": 0.98},
    "base_anomaly_rate": {"value": 0.5, "low": 0.4, "high": 0.6, "within": True},
}


@pytest.mark.parametrize(
    "accuracy, rate, named",
    [
        (0.96, 0.6, []),
        (0.99, 0.4, []),
        (0.959, 0.5, ["accuracy"]),
        (0.97, 0.61, ["base_anomaly_rate"]),
        (None, 0.3, ["accuracy", "base_anomaly_rate"]),
    ],
)
def test_a_figure_passes_from_the_lower_end_of_its_interval(accuracy, rate, named):
    figures = {"accuracy": {"value": accuracy, "low": None, "high": None}, "base_anomaly_rate": {"value": rate}}
    assert [line.split(":")[0] for line in refusals(figures, EXPECTED)] == named
    assert len(refusals({}, EXPECTED)) == 2


def test_what_is_expected_is_all_that_is_measured():
    expected = read_expected(RECIPES / "expected.json")
    judge = {"accuracy", "auroc", "temporal_iou", "spatial_iou", "auroc_generated", "oracle_agreement"}
    assert set(expected) == judge | {"base_anomaly_rate", "prompt_following"}


def weights(folder, heads, numbers=4):
    for name in ("cac", "unified", "wan"):
        (folder / name).mkdir(parents=True)
        save_file({"a": torch.ones(numbers)}, folder / name / "model.safetensors")
        size = JudgeSize(text_hidden=96)
        config = {"text_config": {"head_dim": size.text_hidden // heads}}
        (folder / name / "config.json").write_text(json.dumps(config))
        (folder / name / "cac_align.json").write_text('{"two_turn": {}}')
    return {name: folder / name for name in ("cac", "unified", "wan")}


def test_small_heads_and_large_files_do_not_ship(tmp_path, monkeypatch):
    assert misfits(weights(tmp_path / "fit", 3)) == []
    assert len(misfits(weights(tmp_path / "narrow", 4))) == 2  # both judges
    monkeypatch.setattr("research.build.gate.MAX_MEGABYTES", 1.0)
    assert "1.2 MB" in misfits(weights(tmp_path / "large", 3, numbers=100_000))[0]


def test_a_vllm_on_a_cpu_takes_the_judges_that_ship():
    assert misfits({name: weights_folder() / name for name in ("cac", "unified", "wan")}) == []


def test_installed_weights_replace_the_shipped_ones_and_keep_the_domain(tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    for name in ("cac", "unified", "wan"):
        (shipped / name).mkdir(parents=True)
        (shipped / name / "cac_align.json").write_text('{"domain": {"name": "miniature"}}')
    monkeypatch.setattr("cac_align.core.weights.weights_folder", lambda: shipped)
    install(weights(tmp_path / "new", 3))
    for name in ("cac", "unified"):
        assert json.loads((shipped / name / "cac_align.json").read_text())["domain"] == {"name": "miniature"}
    assert set(json.loads((shipped / "manifest.json").read_text())) == {"cac", "unified", "wan"}
    assert (shipped / "wan" / "model.safetensors").is_file()
