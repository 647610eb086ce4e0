"""`make ablations`: the table from hand-made results, what is shared and what is skipped, and one real run of all that is in it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from cac_align.config import read_recipe
from cac_align.core.judgement import Anomaly, Window
from cac_align.data.records import Record
from cac_align.training.early_stopping import Stopped
from research.experiments import ablations
from research.experiments.ablations import Ablations, deal, main, open_rows, path, report, run, stage_recipe
from research.experiments.ablations_table import VARIANTS, table

ROOT = Path(__file__).parents[2]
BY_NAME = {variant.name: variant for variant in VARIANTS}


def figures(right, **changes):
    made = {
        "clips": 8,
        "no_verdict": 2,
        "right_of_all": right,
        "temporal_iou": 0.5,
        "spatial_iou": None,
        "recall_sparse": 1.0,
    }
    return {**made, "auroc": 0.75, **changes}


# ---- the table -------------------------------------------------------------------------------------------------------


def test_the_table_from_hand_made_results():
    rows = [
        {"variant": "full", "seed": 0, "figures": figures(0.8)},
        {"variant": "full", "seed": 1, "figures": figures(0.9, spatial_iou=0.25)},
        {"variant": "no-stage-2", "seed": 0, "stopped": "stage 3: 99.0% of rollouts are malformed"},
        {"variant": "no-stage-2", "seed": 1, "figures": figures(0.5)},
        {"variant": "no-type", "seed": 0, "stopped": "stage 3: collapse"},
        {"variant": "untrained", "seed": None, "figures": figures(0.5, temporal_iou=None, auroc=None)},
    ]
    chosen = [BY_NAME[name] for name in ("full", "untrained", "no-stage-2", "no-type", "single-turn")]
    head, line, full, untrained, no_two, no_type, single = table(chosen, rows)
    assert head.count("|") == line.count("|") == full.count("|") == 11
    # sd of .8 and .9 with n − 1: .1 / √2 = .0707; two of eight clips without a verdict: .250; one of two runs caught nothing
    assert full == (
        "| full recipe | 0.817 | 0.850 ± 0.071 | 0.500 ± 0.000 | 0.250 (1 of 2) | 1.000 ± 0.000 | 0.750 ± 0.000 | 0.250 ± 0.000 | – | 2 |"
    )
    # start weights have no seed: .5 − .8 and .5 − .9; a seed is compared with the full recipe of the same seed: .5 − .9
    assert untrained == "| start weights, two turns | 0.537 | 0.500 | – | – | 1.000 | – | 0.250 | -0.350 ± 0.071 | – |"
    assert no_two.startswith("| no stage 2 (multi-frame SFT) | 0.651 | 0.500 | ") and no_two.endswith(
        "| -0.400 | 1 of 2 |"
    )
    assert no_type.count("stopped") == 6 and no_type.endswith("| – | 0 of 1 |") and single.count("open") == 6
    text = report(Ablations(start="/somewhere/else/start", stage3={"run": {"steps": 7}}), rows)
    assert "- no stage 2 (multi-frame SFT), seed 0: stage 3: 99.0% of rollouts are malformed\n" in text
    assert (
        "Start: `start`." in text
        and "/somewhere" not in text
        and "stage 3 7." in text
        and "500 normal + 500 anomalous" in text
    )


def test_the_paper_is_in_the_variants():
    assert len(VARIANTS) == 10 and VARIANTS[0].name == "full"
    accuracy = {"full": 0.817, "untrained": 0.537, "no-stage-1": 0.701, "no-stage-2": 0.651, "no-stage-3": 0.674}
    accuracy |= {
        "single-turn": 0.734,
        "no-temporal": 0.629,
        "no-spatial": 0.716,
        "no-type": 0.710,
        "untrained-single-turn": 0.514,
    }
    assert {variant.name: variant.paper for variant in VARIANTS} == accuracy
    with pytest.raises(
        ValueError, match="without must be one of format, status, type, temporal, spatial, received 'time'"
    ):
        replace(VARIANTS[0], without="time")


# ---- what is trained -------------------------------------------------------------------------------------------------


def test_variants_share_what_they_have_in_common():
    assert path(BY_NAME["full"]) == ("stage1", "stage1+2", "stage1+2+3")
    assert path(BY_NAME["no-stage-3"]) == path(BY_NAME["full"])[:2]
    assert path(BY_NAME["no-spatial"]) == ("stage1", "stage1+2", "stage1+2+3-no-spatial")
    assert path(BY_NAME["no-stage-1"]) == ("stage2", "stage2+3") and path(BY_NAME["no-stage-2"]) == (
        "stage1",
        "stage1+3",
    )
    assert path(BY_NAME["single-turn"]) == ("stage1", "stage1+2-single", "stage1+2-single+3-single")
    assert path(BY_NAME["untrained"]) == ()
    trainings = [name for variant in VARIANTS for name in path(variant)]
    assert len(trainings) == 21 and len(set(trainings)) == 11


def test_each_variant_changes_one_thing_in_the_recipes():
    shipped = read_recipe(Ablations, ROOT / "research" / "recipes" / "ablations.yaml")
    assert shipped.chosen == VARIANTS and shipped.seeds == [0, 1, 2] and shipped.test_clips == 1000
    recipe = replace(shipped, recipes=str(ROOT / "recipes" / "train"))

    def made(stage, name, seed=1):
        return stage_recipe(recipe, stage, BY_NAME[name], seed, Path("data"), "start", Path("out"))

    full = made(3, "full")
    assert (full.run.steps, full.run.seed, full.run.cpu, full.data.turns, full.model.path) == (30, 1, True, 2, "start")
    assert (full.rollout.group_size, full.grpo.beta, full.data.samples, full.data.folder) == (
        8,
        0.01,
        "stage3.jsonl",
        "data",
    )
    for name in ("temporal", "spatial", "type"):
        assert made(3, f"no-{name}") == replace(full, weights=replace(full.weights, **{name: 0.0}))
    assert made(3, "single-turn") == replace(full, data=replace(full.data, turns=1))
    assert made(2, "single-turn") == replace(made(2, "full"), data=replace(made(2, "full").data, turns=1))
    assert made(1, "single-turn") == made(1, "full") and made(2, "no-type") == made(2, "full") != made(
        2, "full", seed=2
    )


def test_dealt_annotations_stay_with_their_prompt_and_tell_nothing():
    broken = (Anomaly("Object Distortion", Window(0.25, 0.75), "r", "p"),)
    records = [
        Record(
            str(k),
            f"{k}.mp4",
            f"prompt {k % 5}",
            16.0,
            17,
            64,
            64,
            "abnormal" if k // 5 % 2 else "normal",
            broken * (k // 5 % 2),
        )
        for k in range(200)
    ]
    dealt = deal(records)
    assert [(one.id, one.video, one.prompt) for one in dealt] == [(one.id, one.video, one.prompt) for one in records]
    for prompt in {record.prompt for record in records}:
        before, after = ([one.status for one in some if one.prompt == prompt] for some in (records, dealt))
        assert sorted(before) == sorted(after) and before != after
    kept = sum(one.status == other.status for one, other in zip(records, dealt, strict=True))
    assert 70 < kept < 130, "a coin would keep 100 of 200, its standard deviation is 7"
    assert deal(records) == dealt != deal(records, seed=1)


def test_what_is_done_is_skipped():
    recipe = Ablations(seeds=[3, 5], variants=["full", "untrained", "no-type"])
    rows = [{"variant": "full", "seed": 3, "figures": {}}, {"variant": "no-type", "seed": 5, "stopped": "…"}]
    assert [(variant.name, seed) for variant, seed in open_rows(recipe, rows)] == [
        ("untrained", None),
        ("no-type", 3),
        ("full", 5),
    ]


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"world": "moon"}, "world must be one of full, studio, playground, received 'moon'"),
        ({"variants": ["none"]}, "variants must be some of full, untrained-single-turn, .*; received none"),
        ({"first_seed": 999_999}, "first_seed: seeds 999999 to 1001198 must lie in 0 to 999999"),
        ({"test_seed": 5}, "test_seed: seeds 5 to 1004 must lie in 2000000 to 2999999"),
        ({"clips": 3}, "clips and test_clips must be even"),
        ({"seeds": [1, 1]}, "at least one seed, each once"),
    ],
)
def test_wrong_budgets_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        Ablations(**changes)


# ---- one real run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe():
    run_for = {"steps": 2, "warmup_steps": 1, "eval_every": 2, "save_every": 2}
    sft = {"batch": 2, "micro_batch": 2, "eval_batches": 1, "run": run_for}
    return Ablations(
        clips=40,
        test_clips=4,
        seeds=[0],
        variants=["full", "untrained", "no-stage-3", "single-turn", "no-type"],
        recipes=str(ROOT / "recipes" / "train"),
        forget=sft,
        stage1={**sft, "lora_rank": 4},
        stage2=sft,
        stage3={
            "batch": 2,
            "micro_batch": 4,
            "eval_videos": 2,
            "rollout": {"group_size": 2, "max_new_tokens": 160},
            "run": run_for,
            "early_stopping": {
                "patience": 2,
                "max_malformed": 1.0,
                "max_same_verdict": 1.0,
                "max_zero_std_groups": 1.0,
            },
        },
    )


def test_a_real_run_shares_stages_resumes_and_writes_its_table(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "set_threads", lambda count: None)  # of this process: other tests keep theirs
    text = run(recipe, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["variant"] for row in rows] == ["untrained", "full", "no-stage-3", "single-turn", "no-type"]
    assert all(row["figures"]["clips"] == 4 and 0 <= row["figures"]["right_of_all"] <= 1 for row in rows)
    assert {folder.name for folder in (tmp_path / "seed0").iterdir()} == {
        "stage1",
        "stage1+2",
        "stage1+2+3",
        "stage1+2-single",
        "stage1+2-single+3-single",
        "stage1+2+3-no-type",
    }
    assert (
        "Start: the shipped mini-CaC, made to forget what is abnormal (2 steps of stage 2 on annotations dealt" in text
    )
    shared = [
        json.loads((tmp_path / name / "recipe.json").read_text())["recipe"]["model.path"]
        for name in ("start", "seed0/stage1")
    ]
    assert shared == ["miniature", str(tmp_path / "start" / "final")]
    assert text == (tmp_path / "ablations.md").read_text() and text.count("| 1 |") == 4 and "open" not in text
    assert "- no" not in text and str(tmp_path) not in text
    tables = {
        name: rollouts(tmp_path, name) for name in ("stage1+2+3", "stage1+2-single+3-single", "stage1+2+3-no-type")
    }
    assert {row["ending"] for row in tables["stage1+2-single+3-single"]} <= {"single turn", "window"}
    assert "single turn" not in {row["ending"] for row in tables["stage1+2+3"]}
    for row in tables["stage1+2+3-no-type"]:  # the type term is measured and earns nothing
        found = row["terms"]
        if row["truth"] == "abnormal":
            gamma = found["discount"]
            rest = sum(w * (1 - gamma * (1 - found[name])) for name, w in (("temporal", 2), ("spatial", 5)))
            assert found["total"] == pytest.approx(found["format"] + 2 * gamma * found["status"] + rest)
    # a second call trains and measures nothing; a variant more takes the stages that are there
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "seed0").rglob("model.safetensors")}
    with (tmp_path / "results.jsonl").open("a") as torn:
        torn.write('{"variant": "no-sta')
    monkeypatch.setattr(ablations, "evaluate", lambda *args, **more: {"playground": figures(0.25)})
    assert run(recipe, tmp_path) == text
    grown = run(replace(recipe, variants=[*recipe.variants, "no-spatial"]), tmp_path)
    assert "| without spatial IoU reward | 0.716 | 0.250 |" in grown and "0.250 | – | – | – |" not in grown
    assert {file: file.stat().st_mtime_ns for file in times} == times
    with pytest.raises(ValueError, match=r"another recipe \(test_clips differ; test_clips was 4, now 6\)"):
        run(replace(recipe, test_clips=6), tmp_path)


def rollouts(out, name):
    return [json.loads(line) for line in (out / "seed0" / name / "rollouts.jsonl").read_text().splitlines()]


def test_a_training_that_stops_itself_is_a_sentence_not_a_number(recipe, tmp_path, monkeypatch):
    calls = []

    def stops(made):
        calls.append(made.out)
        raise Stopped(f"step 1: the loss is nan; kept ({made.out}/checkpoints/step-000001)", Path(made.out))

    monkeypatch.setattr(ablations, "train_sft", stops)
    monkeypatch.setattr(ablations, "prepare", lambda recipe, out: out / "data")
    monkeypatch.setattr(ablations, "set_threads", lambda count: None)
    chosen = replace(recipe, variants=["full", "no-stage-3", "no-stage-1"], forget={})
    text = run(chosen, tmp_path)
    # stage 1 stops once and its sentence stands for both variants that pass through it; stage 2 from the start weights stops by itself
    assert [Path(out).name for out in calls] == ["stage1", "stage2"]
    said = "stage 1: step 1: the loss is nan; kept (its folder/checkpoints/step-000001)"
    assert f"- full recipe, seed 0: {said}\n- no stage 1 (single frames), seed 0: stage 2: step 1" in text
    assert f"- no stage 3 (two-turn GRPO), seed 0: {said}\n" in text and str(tmp_path) not in text
    assert text.count("| stopped |") == 3 * 3 and text.count("| 0 of 1 |") == 3
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert all("figures" not in row and row["stopped"] for row in rows)
    assert run(chosen, tmp_path) == text and len(calls) == 2
    with pytest.raises(
        Stopped, match="step 1: the loss is nan"
    ):  # a start that could not be made leaves nothing to compare
        run(replace(recipe, first_seed=recipe.first_seed + 2), tmp_path / "other")


def test_the_command(recipe, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(ablations, "run", lambda made, out: asked.append((made, out)) or "the table")
    monkeypatch.chdir(ROOT)
    assert main([str(tmp_path), "--set", "clips=200", "seeds=[4]", "stage3.run.steps=9"]) == 0
    ((made, out),) = asked
    assert (made.clips, made.seeds, made.stage3["run"], out) == (200, [4], {**made.stage3["run"], "steps": 9}, tmp_path)
    assert made.stage3["run"]["eval_every"] == 10 and capsys.readouterr().out == "the table\n"
    assert main([str(tmp_path), "--set", "wrold=full"]) == 2 and "did you mean 'world'" in capsys.readouterr().err
    assert math.isclose(made.splits.near, 0.02)
