"""The command line: what goes to stdout, what to stderr, exit statuses, and hostile or broken input."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cac_align.cac.judge_settings import read_two_turn, write_settings
from cac_align.cli import annotate, serve
from cac_align.cli import main as main_module
from cac_align.cli.evaluate import judge_names
from cac_align.cli.main import build_parser, main
from cac_align.cli.score import chunks, scale_texts, score_files, score_table, video_prompts
from cac_align.core.encoding import write_mp4
from cac_align.core.weights import shipped
from cac_align.rewards.cac import CaC
from cac_align.rewards.combine import combine
from cac_align.rewards.domain import Domain
from cac_align.rewards.reward import Score
from cac_align.rewards.unified import UnifiedReward
from cac_align.vlm.scripted import ScriptedVlm
from tests.support.two_processes import run_two


class Brightness:
    """A real, small reward: the mean brightness, no model behind it."""

    name, bounds = "brightness", (0.0, 1.0)

    @property
    def provenance(self):
        return {"reward": "brightness"}

    def __call__(self, prompts, videos):
        return [Score(float(video.sample(4).pixels.mean()) / 255, provenance=self.provenance) for video in videos]


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    write_mp4(path, np.full((17, 32, 32, 3), 128, np.uint8), fps=16)
    return path


REWARD = ["--reward", f"{__name__}:Brightness"]


def test_score_prints_one_json_object_per_video_and_nothing_else(clip, capsys):
    assert main(["score", str(clip), str(clip), "--prompt", "p", "--json", *REWARD]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["video"] for row in rows] == [str(clip)] * 2
    keys = {"video", "prompt", "fps", "score", "parts", "judgement", "error", "provenance", "domain"}
    assert set(rows[0]) == keys and rows[0]["fps"] == 16
    assert rows[0]["score"] == pytest.approx(0.5, abs=0.02) and rows[0]["error"] is None


class Levels(Brightness):
    """A clip's name is its value in per cent."""

    bounds = (0.0, 1.0)

    def __call__(self, prompts, videos):
        return [Score(int(Path(video.name).stem) / 100, provenance=self.provenance) for video in videos]


def ranked():
    return combine({"levels": Levels()}, normalise="rank")


def test_a_prompts_videos_are_ranked_together(tmp_path, capsys):
    videos = []
    for n in range(20):
        write_mp4(tmp_path / f"{n:02}.mp4", np.full((2, 16, 16, 3), 10 * n, np.uint8), fps=16)
        videos.append(str(tmp_path / f"{n:02}.mp4"))
    assert main(["score", *videos, "--prompt", "one", "--json", "--reward", f"{__name__}:ranked"]) == 0
    values = [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()]
    assert values == pytest.approx(
        [n / 19 for n in range(20)], abs=1e-6
    )  # in chunks of 16: n / 15, then 0, 1/3, 2/3, 1
    # Two prompts in turn, through a ledger: ten ranks each, rows still in the order given.
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("even\nodd\n" * 10)
    options = [
        "--prompts",
        str(prompts),
        "--json",
        "--ledger",
        str(tmp_path / "l.jsonl"),
        "--reward",
        f"{__name__}:ranked",
    ]
    assert main(["score", *videos, *options]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["video"] for row in rows] == videos and [row["prompt"] for row in rows[:2]] == ["even", "odd"]
    assert [row["score"] for row in rows] == pytest.approx([n // 2 / 9 for n in range(20)], abs=1e-6)


def test_chunks_part_a_prompt_only_where_its_videos_are_not_compared():
    prompts = ["a"] * 20 + ["b"] * 3 + ["c"] * 14 + ["b"]
    assert list(map(len, chunks(prompts, whole_prompts=False))) == [16, 16, 6]
    assert list(chunks(prompts, whole_prompts=True)) == [[*range(20)], [20, 21, 22, 37], [*range(23, 37)]]
    assert list(chunks([], whole_prompts=True)) == []


def test_broken_files_cost_only_themselves_and_the_exit_status_says_so(clip, tmp_path, capsys):
    empty, text, short = tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "short.mp4"
    empty.write_bytes(b"")
    text.write_text("not a video")
    short.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    missing = tmp_path / "nowhere.mp4"
    videos = [str(path) for path in (empty, clip, text, missing, short)]
    assert main(["score", *videos, "--prompt", "p", "--json", *REWARD]) == 1
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [row["score"] is None for row in rows] == [True, False, True, True, True]
    assert all(row["error"].startswith("video:") for row in rows if row["score"] is None)
    assert "4 of 5 videos have no score" in captured.err


def test_the_ledger_serves_a_second_run(clip, tmp_path, capsys):
    ledger = tmp_path / "scores.jsonl"
    command = ["score", str(clip), "--prompt", "p", "--json", "--ledger", str(ledger), *REWARD]
    assert main(command) == 0 and main(command) == 0
    assert len(ledger.read_text().splitlines()) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert json.loads(first)["score"] == json.loads(second)["score"]


def test_hostile_prompts_pass_through(clip):
    hostile = 'a {prompt} "quoted" <script>\u2028' + "x" * 50_000
    (row,) = score_files(Brightness(), [str(clip)], [hostile], None)
    assert json.loads(json.dumps(row))["prompt"] == hostile


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["score", "a.mp4"], "pass either --prompt TEXT or --prompts FILE"),
        (["score", "a.mp4", "--prompt", "p", "--reward", "no.yaml"], "no such recipe file"),
        (["score", "a.mp4", "--prompt", "p", "--set", "normalize=range"], "did you mean 'normalise'"),
        (["best-of-n", "--prompts", "nowhere.txt", "--out", "x"], "nowhere.txt: cannot be read as prompts"),
        (["doctor", "--host", "nobody"], "unknown host 'nobody'"),
        (["evaluate", "experts", "nowhere.jsonl"], "nowhere.jsonl"),
        (["report", "nowhere"], "nowhere: no such file or folder"),
        (["report", ".", "nowhere"], "nowhere: no such file or folder"),
        (["report", ".", ".", "--set", "a=1"], "--set a=1 overrides a recipe's key; give the recipe with --reward"),
        (["annotate", "nowhere"], "nowhere: no such folder"),
        (
            ["evaluate", "bench", "r.jsonl", "--stored", "s.jsonl", "--reward", "r.yaml"],
            "--stored reads scores made before",
        ),
        (["evaluate", "bench", __file__, "--stored", "nowhere.jsonl"], "test_cli.py:1: not a record"),
        (
            ["score", "a.mp4", "--prompt", "p", "--reward", "json:dumps"],
            "json:dumps cannot be called without arguments",
        ),
        (
            ["score", "a.mp4", "--prompt", "p", "--reward", "collections:Counter"],
            "returns a Counter, which is no reward",
        ),
        (
            ["score", "a.mp4", "--prompt", "p", "--reward", "a:B", "--set", "c=1"],
            "c=1 would not be read, because a:B is called without arguments",
        ),
        (["world", "--n", "2", "--out", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").write_text("not a video")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith(f"cac-align {arguments[0]}") and "Traceback" not in error


@pytest.mark.parametrize("verb", ["annotate .", "serve"])
@pytest.mark.parametrize("port", ["99999", "-1", "http"])
def test_a_port_that_there_is_not(verb, port, capsys):
    with pytest.raises(SystemExit):
        main([*verb.split(), "--port", port])
    assert f"{port} is not a port; expected a number from 0 to 65535" in capsys.readouterr().err or port == "-1"


def test_a_run_is_reported_by_its_ledger_alone(tmp_path, capsys):
    (tmp_path / "ledger.jsonl").touch()
    assert main(["report", str(tmp_path), "--reward", "r.yaml"]) == 2
    assert "leave out --reward and --ratings" in capsys.readouterr().err


def test_given_candidates_are_judged_by_the_named_reward_and_the_winners_are_handed_over(tmp_path, capsys):
    (tmp_path / "a red ball").mkdir()
    for level in (20, 90, 50):
        write_mp4(tmp_path / "a red ball" / f"{level}.mp4", np.full((4, 16, 16, 3), level, np.uint8), fps=16)
    given = ["--candidates", str(tmp_path), "--reward", f"{__name__}:Levels"]
    (tmp_path / "p.txt").write_text("A red ball.\n")
    assert main(["best-of-n", "--prompts", str(tmp_path / "p.txt"), *given, "--out", str(tmp_path / "all")]) == 0
    (winner,) = (tmp_path / "all" / "chosen").glob("*.mp4")
    assert winner.read_bytes() == (tmp_path / "a red ball" / "90.mp4").read_bytes()
    assert "Best of 3" in (tmp_path / "all" / "report.html").read_text()
    # --n takes the first ones; where there are fewer, the terminal says for which prompt
    assert main(["best-of-n", *given, "--n", "2", "--out", str(tmp_path / "two"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["scores"] == [0.2, 0.5] and "fewer than" not in err
    assert main(["best-of-n", *given, "--n", "5", "--out", str(tmp_path / "five")]) == 0
    assert "3 candidates, fewer than --n 5: a red ball" in capsys.readouterr().err
    assert main(["best-of-n", "--out", str(tmp_path / "x")]) == 2


def test_settings_of_a_named_reward_apply_to_it_and_not_to_the_recipes(tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a red ball rolls to the right on grass\n")
    shared = ["best-of-n", "--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "out")]
    assert main([*shared, "--reward", "reward/miniature_ur", "--set", "reward.components.cac.tta=[later]"]) == 2
    assert "no component 'cac'" in capsys.readouterr().err


def test_the_prompt_of_every_video(tmp_path):
    lines = tmp_path / "prompts.txt"
    lines.write_text("one\n\n  two  \n")
    rows = tmp_path / "prompts.jsonl"
    rows.write_text('{"video": "b.mp4", "prompt": "B"}\n{"video": "a.mp4", "prompt": "A"}\n')
    assert video_prompts(["x/a.mp4", "b.mp4"], None, rows) == ["A", "B"]
    with pytest.raises(ValueError, match=re.escape("has no prompt for c.mp4")):
        video_prompts(["c.mp4"], None, rows)
    with pytest.raises(ValueError, match="holds 2 prompts for 1 videos"):
        video_prompts(["a.mp4"], None, lines)
    rows.write_text('{"video": "before/0.mp4", "prompt": "A"}\n{"video": "after/0.mp4", "prompt": "B"}\n')
    assert video_prompts(["after/0.mp4", "before/0.mp4"], None, rows) == ["B", "A"]
    with pytest.raises(
        ValueError, match=r"several videos called 0.mp4, with different prompts, and none of them as x/after/0.mp4"
    ):
        video_prompts(["before/0.mp4", "x/after/0.mp4"], None, rows)
    rows.write_text('{"video": "before/0.mp4", "prompt": "A"}\n{"video": "after/0.mp4", "prompt": "A"}\n')
    assert video_prompts(["x/0.mp4"], None, rows) == ["A"]  # one prompt, whichever of the two it is
    rows.write_text('{"video": "b.mp4", "prompt": "B"}\n{"file": "a.mp4", "prompt": "A"}\n')
    with pytest.raises(ValueError, match="names the video of some prompts, but not that of 'A'; name all or none"):
        video_prompts(["a.mp4", "b.mp4"], None, rows)
    rows.write_text('{"video": "b.mp4", "prompt": "B"}\n{"video": "b.mp4", "prompt": "A"}\n')
    with pytest.raises(ValueError, match="has two prompts for b.mp4: 'B' and 'A'"):
        video_prompts(["b.mp4"], None, rows)


def test_the_table_shows_reasons_for_people():
    judged = {
        "status": "abnormal",
        "anomalies": [
            {"type": "Object Distortion", "window": {"start_s": 0.5, "end_s": 1.0}, "reason": "the ball melts"}
        ],
    }
    rows = [
        {"video": "a.mp4", "score": 0.25, "parts": {"p_normal": 0.2}, "error": None, "judgement": judged},
        {"video": "b.mp4", "score": None, "parts": {}, "error": "no server", "judgement": None},
    ]
    table = score_table(rows)
    assert "0.2500" in table and "abnormal 0.50-1.00 s Object Distortion: the ball melts" in table
    assert "none no score: no server" in table and " 0.0" not in table.split("b.mp4")[0].splitlines()[-1]


def test_the_table_has_the_verdict_the_components_and_their_scales():
    """Columns are raw values under their own names; the head says where the verdict's cut lies."""
    cac = CaC(ScriptedVlm(["unused"]), temperature=10.0, threshold=9.8)
    scales = scale_texts(combine({"unified": UnifiedReward(ScriptedVlm(["unused"])), "cac": cac}))
    assert scales["score"] == "0 to 1" and scales["unified"] == "1 to 5" and "up to 0.727" in scales["cac"]
    window = {"start_s": 0.75, "end_s": 0.75}
    anomaly = {"type": "Motion Anomalies", "window": window, "reason": "it vanishes"}
    row = {
        "video": "a.mp4",
        "fps": 16.0,
        "score": 0.6222,
        "parts": {"unified": 3.9, "cac": 0.51, "normalised/unified": 0.725, "normalised/cac": 0.51},
        "error": None,
        "judgement": {"status": "abnormal", "anomalies": [anomaly]},
    }
    head, titles, line = score_table([row], scales).splitlines()
    assert "unified: 1 to 5" in head and titles.split() == ["score", "unified", "cac", "video", "verdict"]
    assert line.split() == [
        "0.6222",
        "3.9000",
        "0.5100",
        "a.mp4",
        *["abnormal", "0.75-0.81", "s", "Motion", "Anomalies:", "it", "vanishes"],
    ]
    second = {**anomaly, "type": "Object Distortion"}
    row["judgement"]["anomalies"].append(second)
    *_, line, further = score_table([row], scales).splitlines()
    assert further.index("0.75-0.81 s Object Distortion") == line.index("abnormal")


class Toy(Brightness):
    """A reward that states a domain of its own."""

    domain = Domain("toyland", num_frames=(17,))

    @property
    def provenance(self):
        return {"reward": "toy", "domain": "toyland"}


def test_the_domain_is_said_before_and_after_and_stands_in_every_row(clip, capsys):
    assert main(["score", str(clip), "--prompt", "p", "--json", "--reward", f"{__name__}:Toy"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("toyland") == 2 and "qwen3vl_8b_server" in captured.err
    assert json.loads(captured.out)["domain"] == "toyland"
    assert main(["score", str(clip), "--prompt", "p", "--json", *REWARD]) == 0
    captured = capsys.readouterr()
    assert "note:" not in captured.err and json.loads(captured.out)["domain"] is None


VERBS = {
    "align",
    "annotate",
    "best-of-n",
    "data",
    "demo",
    "doctor",
    "evaluate",
    "recipes",
    "repair",
    "report",
    "score",
    "serve",
    "train",
    "vbench-env",
    "world",
}


def test_the_verbs_are_these():
    """Adding a verb is a conscious act."""
    choices = next(action.choices for action in build_parser()._actions if action.dest == "verb")
    assert set(choices) == VERBS


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0 and "usage: cac-align" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_a_verbs_cpu_threads_sleep_while_they_wait_unless_told_otherwise(given, policy):
    code = "import os, sys; from cac_align.cli.main import main; print('torch' in sys.modules); main(['score', 'none.mp4', '--prompt', 'x'])"
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"} | given
    shown = environment | {
        "OMP_DISPLAY_ENV": "TRUE"
    }  # the OpenMP runtime itself says what it was told when it was loaded
    done = subprocess.run([sys.executable, "-c", code + "; import torch"], env=shown, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "False" and f"OMP_WAIT_POLICY = '{policy}'" in done.stderr, done.stderr[
        -2000:
    ]


def test_score_judges_a_real_mp4_with_the_shipped_qwen3_vl_through_its_real_processor(tmp_path, capsys):
    from cac_align.miniature.world.settings import STUDIO
    from cac_align.miniature.world.world import make_clip

    paths = []
    for seed in (2_000_000, 2_000_001):
        made = make_clip(seed, STUDIO)
        paths.append(tmp_path / f"{seed}.mp4")
        write_mp4(paths[-1], made.pixels, fps=16)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(make_clip(seed, STUDIO).prompt for seed in (2_000_000, 2_000_001)))
    status = main(["score", *map(str, paths), "--prompts", str(prompts), "--json", "--set", "allow_out_of_domain=true"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert status == (1 if any(row["score"] is None for row in rows) else 0)
    for row in rows:
        assert (row["score"] is None) == bool(row["error"])
        judgement = row["judgement"]
        assert judgement["turns"] and judgement["turns"][0]["frames"] == list(
            range(0, 33, 4)
        )  # 33 frames at 16 fps, 4 fps
        assert (
            any(key.startswith("cac/vlm/") for key in row["provenance"]) and row["provenance"]["cac/wording"] == "brief"
        )
        if row["score"] is not None:
            # range: the mean of (UR - 1) / 4 and CaC
            expected = ((row["parts"]["unified"] - 1) / 4 + row["parts"]["cac"]) / 2
            assert row["score"] == pytest.approx(expected, abs=1e-6)


def test_judges_of_one_comparison_have_names_of_their_own():
    assert judge_names([None, "runs/a.yaml", "mine:Reward"]) == ["miniature", "a", "mine:Reward"]
    assert judge_names(["runs/a/reward.yaml", "runs/b/reward.yaml", "c.yaml"]) == [
        "runs/a/reward.yaml",
        "runs/b/reward.yaml",
        "c",
    ]
    with pytest.raises(ValueError, match="--reward c.yaml is given 2 times"):
        judge_names(["c.yaml", "c.yaml"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "bench", "RECORDS"],
        ["evaluate", "calibrate", "RECORDS"],
        ["data", "export", "coco", "RECORDS", "OUT"],
        ["data", "synthesise", "RECORDS", "--teacher", "miniature", "--out", "OUT"],
    ],
)
def test_records_that_are_not_there_are_named(arguments, tmp_path, capsys):
    places = {"RECORDS": str(tmp_path / "nowhere.jsonl"), "OUT": str(tmp_path / "out")}
    assert main([places.get(word, word) for word in arguments]) == 2
    assert "nowhere.jsonl: expected a records file (JSONL), found nothing there" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [(b"", ": holds no records"), (b"\n\n", ": holds no records"), (b"\x00ftyp\xff", ":1: not a record")],
)
@pytest.mark.parametrize("verb", ["evaluate bench", "evaluate calibrate", "data synthesise"])
def test_records_that_are_none_are_named(verb, content, message, tmp_path, capsys):
    file = tmp_path / "mine.jsonl"
    file.write_bytes(content)
    more = ["--teacher", "miniature", "--out", str(tmp_path / "out")] if verb.startswith("data") else []
    assert main([*verb.split(), str(file), *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"cac-align {verb}: ") and f"mine.jsonl{message}" in error


def test_a_judge_is_calibrated_on_annotated_records(tmp_path, capsys):
    """The real judge on real files: what is fitted stands in its folder, and the next load takes it."""
    from cac_align.miniature.world.settings import PLAYGROUND
    from cac_align.miniature.world.world import write_world
    from cac_align.rewards.cac import CaC

    folder = tmp_path / "judge"
    shutil.copytree(shipped("cac"), folder)
    write_settings(folder, read_two_turn(shipped("cac")))
    records = write_world(16, 1_460_000, tmp_path / "world", PLAYGROUND)
    judge = ["--set", f"components.cac.model={folder}", "--set", "components.cac.tta=[as_is,later]"]
    again = ["evaluate", "calibrate", str(records), *judge, "--ledger", str(tmp_path / "ledger.jsonl")]
    assert main([*again, "--write", str(folder), "--json"]) == 0
    fit = json.loads(capsys.readouterr().out)
    assert (fit["n"], fit["abnormal"], fit["tta"]) == (16, 0.5, ["as_is", "later"]) and fit["loss"] < fit["loss_before"]
    made = CaC.load(str(folder), tta=("as_is", "later"))
    assert (made.temperature, made.threshold) == (fit["temperature"], fit["threshold"]) != (1.0, 0.0)
    # A damaged video costs itself and is counted; a folder that is no judge's, and a recipe without CaC, are named before anything runs.
    video = next((tmp_path / "world" / "videos").iterdir())
    video.write_bytes(b"no video")
    assert main(again) == 1
    said = capsys.readouterr()
    assert (
        "temperature: " in said.out
        and "threshold: " in said.out
        and f"cannot be opened and are unscored: {video.stem}" in said.err
    )
    assert "fitted on 15 videos" in said.err and "1 videos have no score" in said.err
    assert main([*again, "--write", str(tmp_path / "world")]) == 2 and "has no config.json" in capsys.readouterr().err
    normal = tmp_path / "world" / "normal.jsonl"
    normal.write_text("".join(line + "\n" for line in records.read_text().splitlines() if '"status": "normal"' in line))
    assert main(["evaluate", "calibrate", str(normal)]) == 2
    assert "normal.jsonl: expected normal and abnormal videos, all 8 are normal" in capsys.readouterr().err
    wrong = ["evaluate", "calibrate", str(records), "--set", "components.cac.mode=readout"]
    assert (
        main(wrong) == 2
        and "expected one component of kind cac, mode two_turn, received none" in capsys.readouterr().err
    )


def test_one_judges_scores_in_two_files_are_not_dropped(tmp_path, capsys):
    record = {
        "id": "a",
        "video": "a.mp4",
        "prompt": "x",
        "fps": 16.0,
        "num_frames": 17,
        "width": 64,
        "height": 64,
        "status": "normal",
    }
    (tmp_path / "records.jsonl").write_text(json.dumps(record) + "\n")
    for name, value in (("one", 0.9), ("two", 0.1)):
        row = {"id": "a", "prompt": "x", "reward": "mine", **Score(value, {}, None, None, {}).to_json()}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    stored = [f"--stored={tmp_path / name}.jsonl" for name in ("one", "two")]
    assert main(["evaluate", "bench", str(tmp_path / "records.jsonl"), *stored]) == 2
    assert "two.jsonl: scores of 'mine' stand in another --stored file as well" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb, missing, extra",
    [("serve", "uvicorn", "serve"), ("annotate", "fastapi", "evaluate"), ("serve", "uvicorn.config", "serve")],
)
def test_a_package_of_an_extra_that_is_missing_is_named_with_it(verb, missing, extra, monkeypatch, capsys):
    def run(options):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(serve, "run_serve", run)
    monkeypatch.setattr(annotate, "run_annotate", run)
    arguments = {"serve": ["serve"], "annotate": ["annotate", "folder"]}[verb]
    assert main(arguments) == 2
    assert (
        f"cac-align {verb} needs the package {missing}: in its checkout: pip install -c constraints.txt -e '.[{extra}]'"
        in capsys.readouterr().err
    )


def test_a_module_of_our_own_that_is_missing_is_a_fault_and_shown_whole(monkeypatch):
    def run(options):
        raise ModuleNotFoundError("No module named 'cac_align.gone'", name="cac_align.gone")

    monkeypatch.setattr(serve, "run_serve", run)
    with pytest.raises(ModuleNotFoundError):
        main(["serve"])


ENDS = """
import atexit, os, sys
import torch
from torch.nn.parallel import DistributedDataParallel
from cac_align.cli.main import program
torch.distributed.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(2, 2))  # keeps the group, and gloo's threads, whatever is destroyed
atexit.register(print, "at the exit")
class Late:
    def __del__(self):
        print("taken apart")
kept = sys.kept = Late()
sys.argv[1:] = ["world", "--n", "2", "--out", sys.argv[1] + os.environ["RANK"]]
program()
"""


def test_a_program_on_several_processes_ends_before_the_interpreter_is_taken_apart(tmp_path):
    """A gloo thread that asks for an interpreter that is gone aborts the process now and then: the launcher reports a whole run as failed."""
    (tmp_path / "ends.py").write_text(ENDS)
    done = run_two([str(tmp_path / "ends.py"), str(tmp_path / "clips")], {})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("at the exit") == 2 and "taken apart" not in done.stdout
    assert all((tmp_path / f"clips{rank}" / "records.jsonl").is_file() for rank in (0, 1))


def test_an_exit_status_is_the_verbs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cac-align", "align", "nowhere.yaml"])
    with pytest.raises(SystemExit) as ended:
        main_module.program()
    assert ended.value.code == 2 and "nowhere.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["score", "CLIP", "--prompt", " "], "--prompt is empty"),
        (["score", "nowhere.mp4", "--prompt", "p"], "nowhere.mp4: no such file"),
        (["score", "CLIP", "--prompt", "p", "--fps", "0"], "--fps must be a positive number, received 0"),
        (["score", "CLIP", "--prompts", "TABLE"], "a table is no prompt file"),
        (["best-of-n", "--prompts", "TABLE", "--out", "out"], "a table is no prompt file"),
        (["best-of-n", "--prompts", "TABLE", "--out", "out", "--n", "0"], "--n must be a positive number, received 0"),
        (["demo", "--out", "out", "--n", "0"], "--n must be a positive number, received 0"),
        (["demo", "--out", "out", "--prompts", "-1"], "--prompts must be a positive number, received -1"),
    ],
)
def test_wrong_input_is_said_before_a_model_is_loaded(arguments, message, clip, tmp_path, monkeypatch, capsys):
    def loaded(*_, **__):
        raise AssertionError("a model was loaded first")

    monkeypatch.setattr("cac_align.rewards.build.load_reward", loaded)
    monkeypatch.setattr("cac_align.miniature.demo.load_reward", loaded)
    monkeypatch.setattr("cac_align.miniature.demo.load_generator", loaded)
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "prompts.csv"
    table.write_text("video,prompt\nclip.mp4,a red ball bounces on grass\n")
    given = [{"CLIP": str(clip), "TABLE": str(table)}.get(argument, argument) for argument in arguments]
    assert main(given) == 2
    assert message in capsys.readouterr().err


def test_a_second_interrupt_while_threads_finish_is_one_line(tmp_path):
    code = (
        "import os, signal, sys, threading, time\n"
        "from cac_align.cli import main as verbs\n"
        "def work(): time.sleep(1); os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "def run(options): threading.Thread(target=work).start(); raise KeyboardInterrupt\n"
        "verbs.parse = lambda arguments: type('Options', (), {'verb': 'score', 'run': staticmethod(run)})()\n"
        "verbs.program()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert ended.returncode == 130 and "Traceback" not in ended.stderr
    assert [line for line in ended.stderr.splitlines() if line] == [
        "cac-align score: interrupted; the same command resumes",
        "cac-align: ended at once; the same command resumes",
    ]


def test_an_unknown_option_of_a_recipe_key_names_set(capsys):
    with pytest.raises(SystemExit):
        main(["align", "recipes/align/miniature.yaml", "--lr", "3"])
    assert "write --set lr=3" in capsys.readouterr().err


def test_lines_of_libraries_for_programmers_do_not_reach_the_terminal(tmp_path):
    code = (
        "import sys, warnings\n"
        "from cac_align.cli import main as verbs\n"
        "def run(options):\n"
        "    import logging, huggingface_hub, transformers\n"
        "    warnings.warn('old', FutureWarning)\n"
        "    for name in ('huggingface_hub.utils._http', 'transformers.modeling_utils'):\n"
        "        logging.getLogger(name).warning('Retrying in 1s')\n"
        "    from cac_align.core.weights import shipped\n"
        "    from cac_align.vlm.local import LocalVlm\n"
        "    LocalVlm.load(str(shipped('cac')), device='cpu')\n"
        "    from cac_align.generation.wan import Wan\n"
        "    Wan.load(shipped('wan'), device='cpu')\n"
        "    return 0\n"
        "verbs.parse = lambda arguments: type('Options', (), {'verb': 'score', 'run': staticmethod(run)})()\n"
        "verbs.program()\n"
    )
    quiet = {name: value for name, value in os.environ.items() if not name.endswith("_VERBOSITY")}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=quiet)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
