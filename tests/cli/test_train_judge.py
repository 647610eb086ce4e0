"""`cac-align train judge`: recipes are read, and a small run goes all the way and resumes."""

import json
from collections import Counter

import pytest

from cac_align.cli.inject import source_files
from cac_align.cli.main import main
from cac_align.cli.train_judge import read_judge_training
from cac_align.data.records import Record, all_records, write_records
from cac_align.runs.metrics_log import read_rows
from tests.data.test_mixture import record


def test_of_a_records_file_the_normal_videos_are_taken_with_their_prompts(tmp_path):
    rows = [Record(f"{n}", f"videos/{n}.mp4", f"prompt {n}", 16.0, 17, 16, 16, "normal") for n in range(2)] + [
        record("bad", "abnormal")
    ]
    write_records(tmp_path / "records.jsonl", rows)
    found = source_files([tmp_path / "records.jsonl"])
    assert [(file.path, file.name, file.prompt) for file in found] == [
        (tmp_path / "videos" / f"{n}.mp4", f"{n}.mp4", f"prompt {n}") for n in range(2)
    ]
    write_records(tmp_path / "bad.jsonl", rows[2:])
    with pytest.raises(ValueError, match="none of its records is normal"):
        source_files([tmp_path / "bad.jsonl"])


@pytest.mark.parametrize("name", ["judge", "judge_miniature"])
def test_the_shipped_recipes_are_read_with_their_stages(name):
    recipe = read_judge_training(f"train/{name}.yaml")
    assert recipe.videos and 0 < recipe.held_out < 1
    assert recipe.synthesis.wording == ("full" if name == "judge" else "brief")


@pytest.mark.parametrize(
    "override, told",
    [
        ("stage2.recipe=miniature_stage1", "stage2.recipe: miniature_stage1 is a recipe of stage 1"),
        ("stage1.set=[run.stepps=3]", "did you mean"),
        ("held_out=1.5", "held_out is a share in"),
        ("videos=[]", "videos is empty"),
        ("judge.tta=nothing", "tta"),
        ("videos=[nowhere.jsonl]", "nowhere.jsonl"),
        ("injection.fsp=3", "fps"),
    ],
)
def test_a_wrong_recipe_is_one_sentence_before_any_work(override, told, tmp_path, capsys):
    command = ["train", "judge", "judge_miniature", "--set", f"out={tmp_path / 'out'}", "--set", override]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("cac-align train:") and not (tmp_path / "out" / "inject").exists()


def test_a_recipe_of_a_judge_is_no_recipe_of_a_stage(capsys):
    assert main(["train", "stage1", "judge_miniature"]) == 2
    assert "cac-align train judge" in capsys.readouterr().err


# Playground clips in which something moves that can be followed.
FOLLOWED = (20, 26, 36, 46, 82, 84, 106, 124, 140, 150, 162, 172, 180, 198, 224, 240, 266, 298)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_small_judge_is_made_interrupted_and_resumed(tmp_path, capsys, monkeypatch):
    from cac_align.cli import train_judge
    from cac_align.core.encoding import write_mp4
    from cac_align.miniature.world.settings import PLAYGROUND
    from cac_align.miniature.world.world import make_clip

    (tmp_path / "world").mkdir()
    clips = [make_clip(seed, PLAYGROUND, anomalous=False) for seed in FOLLOWED]
    for clip in clips:
        write_mp4(tmp_path / "world" / f"{clip.seed}.mp4", clip.pixels, clip.fps)
    write_records(tmp_path / "world" / "records.jsonl", [clip.record(f"{clip.seed}.mp4") for clip in clips])
    out = tmp_path / "run"
    command = ["train", "judge", "judge_miniature", "--set", f"videos=[{tmp_path / 'world' / 'records.jsonl'}]"]
    command += ["--set", f"out={out}", "--set", "pairs=36"]

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # as Ctrl-C between split and stage 1
        patched.setattr(train_judge, "_train_stage", interrupt)
        assert main(command) == 130
    assert [(row["step"], row["event"]) for row in read_rows(out / "log.jsonl")][-1] == ("stage1", "begun")
    before = {path: path.stat().st_mtime_ns for path in (out / "inject").rglob("*.mp4")}
    assert before and main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "calibrate")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    events = Counter((row["step"], row["event"]) for row in read_rows(out / "log.jsonl"))
    assert events["inject", "done"] == events["inject", "skipped"] == events["bench", "done"] == 1
    assert events["stage1", "begun"] == 2

    held = {
        item.extra["origin"]["sha256"]
        for name in ("calibrate", "bench")
        for item in all_records(out / "hold_out" / f"{name}.jsonl")
    }
    learned = all_records(out / "split" / "records.jsonl")
    assert learned and not held & {item.extra["origin"]["sha256"] for item in learned}
    assert json.loads((out / "bench" / "bench.json").read_text())["n"] == len(
        all_records(out / "hold_out" / "bench.jsonl")
    )
    assert (out / "calibrate" / "model.safetensors").is_file() and (out / "calibrate" / "cac_align.json").is_file()

    assert main([*command, "--set", "injection.tries=2"]) == 2
    assert "injection.tries differ" in capsys.readouterr().err
    assert main(command) == 0  # all of it skipped
    assert Counter(row["event"] for row in read_rows(out / "log.jsonl"))["skipped"] == 4 + 9


def test_a_changed_key_of_a_stage_is_named_and_free_keys_are_free(tmp_path, monkeypatch):
    """With steps that do nothing: what counts here is which folder was made from what."""
    from cac_align.cli import train_judge

    for name in ("_inject", "_hold_out", "_synthesise", "_split", "_train_stage", "_calibrate", "_bench"):
        monkeypatch.setattr(train_judge, name, lambda *_: {"n": 1})
    write_records(tmp_path / "records.jsonl", [record("a"), record("b")])
    given = [f"videos=[{tmp_path / 'records.jsonl'}]", f"out={tmp_path / 'run'}"]

    def run(*overrides):
        return train_judge.train_judge(read_judge_training("judge_miniature", [*given, *overrides]))

    assert set(run()) == {
        "inject", "hold_out", "synthesise", "split", "stage1", "stage2", "stage3", "calibrate", "bench"
    }  # fmt: skip
    stamp = json.loads((tmp_path / "run" / "stage2" / "step.json").read_text())["made_from"]
    assert stamp["stage2.run.steps"] == 6 and stamp["stage1.lora_rank"] == 32 and stamp["base"] == "miniature"
    assert "stage3.run.steps" not in stamp and "judge.tta" not in stamp
    run("judge.device=cpu", "synthesis.workers=3", "workers=2")
    for override, told in [
        ("stage2.set=[batch=8,run.steps=7]", r"stage2 was made .*stage2\.run\.steps was 6, now 7|stage2\.run\.steps"),
        ("base=elsewhere", "stage1 was made with another recipe .base differ"),
        ("judge.tta=[as_is,later]", "calibrate was made with another recipe .judge.tta differ"),
        ("splits.seed=3", "split was made with another recipe .splits.seed differ"),
        ("seed=3", "inject was made with another recipe .seed differ"),
    ]:
        with pytest.raises(ValueError, match=told):
            run(override)
    write_records(tmp_path / "records.jsonl", [record("a"), record("c")])
    with pytest.raises(ValueError, match="inject was made with another recipe .videos differ"):
        run()


@pytest.mark.slow
def test_stage_2_starts_from_the_base_where_stage_1_has_no_frames(tmp_path, monkeypatch):
    from cac_align.cli import train_judge
    from cac_align.training import sft

    started = []
    monkeypatch.setattr(sft, "train_sft", lambda settings: started.append(settings.model.path))
    out = tmp_path / "run"
    recipe = train_judge.read_judge_training("judge_miniature", [f"videos=[{tmp_path}]", f"out={out}"])
    for folder in ("split", "stage1/final", "stage2/final"):
        (out / folder).mkdir(parents=True)
    for text in ("", "{}\n"):
        (out / "split" / "stage1.jsonl").write_text(text)
        for stage in ("stage1", "stage2"):
            train_judge._train_stage(recipe, stage, out, out / stage)
    assert started == [recipe.base, recipe.base, str(out / "stage1" / "final")]


def test_a_stage_is_trained_in_processes_of_accelerate(tmp_path):
    from cac_align.cli.train_judge import StageChoice, launch_stage
    from tests.support import tiny_stage

    tiny_stage.model_folder(tmp_path / "model", logits=(9.0, 9.0, 9.0, 8.0))
    tiny_stage.data_folder(tmp_path / "data")
    config = tmp_path / "one_process.yaml"
    config.write_text("{compute_environment: LOCAL_MACHINE, distributed_type: 'NO', num_processes: 1, use_cpu: true}\n")
    choice = StageChoice("stage1", [], str(config))
    overrides = [f"model.path={tmp_path / 'model'}", f"data.folder={tmp_path / 'data'}", f"out={tmp_path / 'out'}"]
    launch_stage(choice, "stage1", [*overrides, "run.steps=1", "run.eval_every=0"])
    assert (tmp_path / "out" / "final" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="stage1: `accelerate launch` ended with status"):
        launch_stage(choice, "stage1", [*overrides, "run.steps=1", "data.wording=brief"])  # another run's folder
