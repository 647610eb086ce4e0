"""What needs no model is checked before one is loaded, in every verb; the doctor sees whether a recipe's judges are up."""

import json

import numpy as np
import pytest

from cac_align.cli.main import main
from cac_align.core.encoding import write_mp4
from cac_align.generation.wan import Wan
from cac_align.vlm.local import LocalVlm
from tests.support.chat_server import Answer, completion

DOWN = "http://127.0.0.1:9"  # nothing listens on the discard port


class Loaded(Exception):
    pass


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A video, prompts, records and recipes, in a folder in which no model can be loaded."""

    def refuse(*arguments, **options):
        raise Loaded

    for owner in (LocalVlm, Wan):
        monkeypatch.setattr(owner, "load", refuse)
    # First the modules that import it by name: imported later, they would keep the refusal beyond this test.
    for module in ("sft", "grpo", "policy"):
        monkeypatch.setattr(f"cac_align.training.{module}.load", refuse)
    monkeypatch.chdir(tmp_path)
    write_mp4(tmp_path / "a.mp4", np.zeros((17, 64, 64, 3), np.uint8), 16)
    (tmp_path / "prompts.txt").write_text("a red ball rolls to the right on grass\n")
    anomaly = {"type": "Object Distortion", "window": {"start_s": 0.0, "end_s": 0.5}, "reason": "it bends", "boxes": {}}
    for name, video in (("records", "a.mp4"), ("gone", "gone.mp4")):
        row = {
            "video": video,
            "prompt": "p",
            "fps": 16.0,
            "num_frames": 17,
            "width": 64,
            "height": 64,
            "review": "audited",
        }
        rows = [{**row, "id": "n", "status": "normal", "anomalies": []}]
        rows += [{**row, "id": "a", "status": "abnormal", "anomalies": [anomaly]}]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({**one, "annotator": "x"}) + "\n" for one in rows))
    served = f"components: {{cac: {{kind: cac, model: '{DOWN}', served_model: cac}}, unified: {{kind: unified}}}}"
    (tmp_path / "served.yaml").write_text(served)
    (tmp_path / "a_file").write_text("x")
    return tmp_path


SCORE = ["score", "a.mp4", "--prompt", "p"]
BEST = ["best-of-n", "--prompts", "prompts.txt", "--out", "out"]
ALIGN = ["align", "align/miniature"]
WRONG = [
    (["score", "no.mp4", "--prompt", "p"], "no such file"),
    ([*SCORE, "--fps", "0"], "--fps must be a positive number"),
    ([*SCORE, "--reward", "nowhere.yaml"], "no such recipe file"),
    ([*SCORE, "--reward", "served.yaml"], DOWN),
    ([*SCORE, "--ledger", "a_file/ledger.jsonl"], "a_file"),
    ([*SCORE, "--ledger", "a.mp4"], "a.mp4"),
    ([*SCORE, "--html", "a_file/page.html"], "a_file"),
    ([*SCORE, "--set", "components.cac.tta=[sideways]"], "sideways"),
    ([*SCORE, "--set", "components.cac.wording=nowhere"], "nowhere"),
    ([*SCORE, "--set", "components.cac.model=nowhere"], "no such folder"),
    ([*SCORE, "--set", "normalise=somehow"], "normalise must be one of"),
    (["score", "a.mp4", "--prompts", "nowhere.txt"], "nowhere.txt"),
    ([*BEST, "--n", "0"], "--n"),
    ([*BEST, "--reward", "nowhere"], "no such recipe file"),
    ([*BEST, "--reward", "served.yaml"], DOWN),
    ([*BEST, "--set", "generator.model=./nowhere"], "no such folder"),
    ([*BEST, "--set", "generator.lora=nowhere"], "no such folder"),
    (["best-of-n", "--prompts", "prompts.txt", "--out", "a_file"], "is a file"),
    (["best-of-n", "--prompts", "prompts.txt", "--out", "a_file/out"], "a_file"),
    ([*ALIGN, "--set", "reward=nowhere"], "no such recipe file"),
    ([*ALIGN, "--set", "reward=served.yaml"], DOWN),
    ([*ALIGN, "--set", "eval.reward=nowhere"], "no such recipe file"),
    ([*ALIGN, "--set", "prompts=nowhere.txt"], "nowhere.txt"),
    ([*ALIGN, "--set", "model=./nowhere"], "no such folder"),
    ([*ALIGN, "--set", "out=a_file"], "is a file"),
    (["train", "stage1", "train/stage1", "--set", "out=a_file"], "is a file"),
    (["train", "stage3", "train/stage3", "--set", "model.path=./nowhere"], "no such folder"),
    (["evaluate", "bench", "gone.jsonl"], "none of its 2 videos is there"),
    (["evaluate", "bench", "records.jsonl", "--reward", "reward/miniature", "--reward", "nowhere"], "no such recipe"),
    (["evaluate", "bench", "records.jsonl", "--reward", "served.yaml"], DOWN),
    (["evaluate", "bench", "records.jsonl", "--threshold", "7"], "threshold"),
    (["evaluate", "bench", "records.jsonl", "--out", "a_file"], "a_file"),
    (["evaluate", "bench", "records.jsonl", "--ledger", "a_file/l.jsonl"], "a_file"),
    (["evaluate", "calibrate", "gone.jsonl"], "none of its 2 videos is there"),
    (["evaluate", "calibrate", "records.jsonl", "--reward", "nowhere"], "no such recipe"),
    (["evaluate", "calibrate", "records.jsonl", "--ledger", "a_file/l.jsonl"], "a_file"),
    (["data", "synthesise", "records.jsonl", "--teacher", "reward/miniature_cac.yaml", "--out", "a_file"], "is a file"),
    (["data", "split", "folder", "--out", "a_file"], "is a file"),
    (["world", "--n", "2", "--out", "a_file"], "is a file"),
    (["report", "a.mp4", "--out", "a_file/page.html"], "a_file"),
    (["demo", "--out", "a_file"], "is a file"),
    (["demo", "--n", "0"], "--n"),
    (["serve", "--host", "0.0.0.0"], "set a token"),
    (["serve", "--root", "nowhere"], "is not a folder"),
    (["serve", "--ledger", "a_file/l.jsonl"], "a_file"),
    (["serve", "--fps", "0"], "--fps"),
]


@pytest.mark.parametrize(
    ("command", "told"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_wrong_input_is_told_before_a_model_is_loaded(command, told, files, capsys, monkeypatch):
    monkeypatch.delenv("CAC_ALIGN_TOKEN", raising=False)
    assert main(command) == 2
    said = capsys.readouterr()
    assert told in said.err and said.out == ""


@pytest.mark.parametrize("command", [SCORE, BEST, ALIGN, ["evaluate", "bench", "records.jsonl"]], ids=" ".join)
def test_right_input_comes_to_loading(command, files):
    with pytest.raises(Loaded):
        main(command)


# ---- the doctor ----------------------------------------------------------------------------------------------------


def test_the_doctor_names_the_judge_that_is_down_and_how_to_start_it(files, capsys):
    (files / "remote.yaml").write_text(f"group_size: 4\nreward: {DOWN}\n")
    assert main(["doctor", "remote.yaml", "--json"]) == 1
    (check,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert DOWN in check["text"] and "cac-align serve --reward RECIPE --port 9" in check["fix"]
    for recipe in ("served.yaml", "align.yaml", "best.yaml"):
        (files / "align.yaml").write_text("group_size: 4\nreward: served.yaml\n")
        (files / "best.yaml").write_text(
            "generator: {model: miniature}\nreward:\n  " + (files / "served.yaml").read_text()
        )
        assert main(["doctor", recipe, "--json"]) == 1
        checks = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        (wrong,) = [check for check in checks if check["ok"] is False]
        assert DOWN in wrong["text"] and "vllm serve" in wrong["fix"] and "cac" in wrong["check"]


def test_the_doctor_sees_a_judge_that_is_up_and_one_that_serves_another_model(files, capsys, serve):
    server = serve(lambda body, number: Answer(completion("normal")))  # it serves "cac" and "other"
    text = f"components: {{cac: {{kind: cac, model: '{server.url}', served_model: NAME}}}}"
    (files / "up.yaml").write_text(text.replace("NAME", "cac"))
    assert main(["doctor", "up.yaml"]) == 0
    (files / "other.yaml").write_text(text.replace("NAME", "another"))
    assert main(["doctor", "--reward", "other.yaml"]) == 1
    assert "not 'another'" in capsys.readouterr().out


def test_the_doctor_of_a_recipe_whose_judges_run_here_is_right_and_of_no_recipe_refuses(files, capsys):
    assert main(["doctor", "reward/miniature"]) == 0
    assert main(["doctor", "miniature_ur"]) == 0  # the name of an alignment as well
    (files / "eval.yaml").write_text("group_size: 4\nreward: reward/miniature\neval: {reward: nowhere.yaml}\n")
    assert main(["doctor", "eval.yaml"]) == 1 and "eval.reward" in capsys.readouterr().out
    assert main(["doctor", "prompts.txt"]) == 2 and "no recipe" in capsys.readouterr().err
