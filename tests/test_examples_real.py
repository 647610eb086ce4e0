"""The examples for real video run here with the shipped small judge behind a server that speaks the served one's protocol."""

import importlib.util
import json
import os
import re
import stat
import subprocess
import sys

import numpy as np
import pytest
import yaml

from cac_align import Video
from cac_align.plugins.doctor.hosts.flow_factory import check_flow_factory
from cac_align.plugins.trl import VideoReward
from tests.support.hosting import scripted, serving
from tests.support.openai_judge import judge_server
from tests.support.tracked import ROOT
from tests.upstream.hosts import PYTHON, checkout, need

REAL = ROOT / "examples" / "real"
CLIPS = ROOT / "examples" / "clips"
ASKED = {"wording": "brief", "max_new_tokens": 400, "margin_s": 0.25}


@pytest.fixture(scope="module")
def url():
    with judge_server() as running:
        yield running


def run(command, timeout=200, **environment):
    """What a command prints. ``cac-align`` in it is this package's."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def load(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", REAL / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_served_judge_is_checked_and_scores_a_folder(url, tmp_path):
    command = tmp_path / "bin" / "cac-align"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cac_align.cli "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    asked = ", ".join(f"{key}: {value}" for key, value in {**ASKED, "temperature": 11.877}.items())
    out = tmp_path / "out"
    text = run(
        ["sh", str(REAL / "served_judge.sh"), str(CLIPS)],
        PATH=f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        JUDGE_URL=url,
        OUT=str(out),
        ASKED=asked,
    )
    for name in ("server", "frames", "time stamps", "structured output", "continuation", "log-probabilities"):
        assert re.search(rf"^ok +{name}:", text, re.M), name
    rows = [json.loads(line) for line in (out / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = sorted((row["score"], row["judgement"]["status"]) for row in rows if row["kind"] == "score")
    assert [status for _, status in scores] == ["abnormal", "normal"] and scores[0][0] < 0.5 < scores[1][0]
    assert (out / "scores.html").is_file()
    # The same numbers as in the header, which a real vLLM gave.
    header = (REAL / "served_judge.sh").read_text(encoding="utf-8")
    stored = {float(value) for value in re.findall(r"^# +(0\.\d{4}) ", header, re.M)}
    assert sorted(stored) == pytest.approx([value for value, _ in scores], abs=0.005)


def test_an_api_judge_counts_votes_and_says_what_it_costs(url, monkeypatch, capsys):
    keys = [f"--set={key}={value}" for key, value in ASKED.items()]
    command = ["api_judge.py", str(CLIPS), "--url", f"{url}/v1", "--model", "cac", "--votes=3", *keys]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setenv("JUDGE_API_KEY", "none")
    load("api_judge").main()
    text = capsys.readouterr().out
    assert "2 videos: at least 6 requests with 30 frames" in text  # 5 frames each at 4 fps
    assert "normal.mp4: 1.00, 3 of 3" in text and "anomalous.mp4: 0.00, 0 of 3" in text
    start, end = map(float, re.search(r"Motion Anomalies, ([\d.]+) to ([\d.]+) s", text).groups())
    assert 0 <= start < end <= 1.1


@pytest.mark.parametrize("miniature", [False, True])
def test_the_config_of_flow_factory_is_what_the_doctor_wants(tmp_path, miniature):
    with serving(scripted()) as (service, _):
        load("flow_factory").write_run(tmp_path, "a cyan box falls on sand\n", service, miniature=miniature)
        config = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
        checks = list(check_flow_factory(config))
    assert [(check.name, check.text) for check in checks if check.ok is False] == []
    assert config["rewards"][0]["reward"] == service and len(config["rewards"]) == 1
    if miniature:  # one whole group per epoch, on the shipped Wan, whose size it keeps
        assert config["train"]["group_size"] == config["rewards"][0]["batch_size"] == 4
        own = json.loads((ROOT / "cac_align/miniature/weights/wan/cac_align.json").read_text(encoding="utf-8"))
        train = config["train"]
        assert [*train["resolution"], train["num_frames"]] == [own["height"], own["width"], own["num_frames"]]


def test_the_miniature_changes_only_values_that_it_must():
    """Every key of the changes is one of the full config, but for those that only a CPU needs."""
    full, small = (
        yaml.safe_load((REAL / f"flow_factory{part}.yaml").read_text(encoding="utf-8")) for part in ("", "_miniature")
    )
    added = {
        f"{section}.{key}"
        for section, values in small.items()
        if isinstance(values, dict)
        for key in set(values) - set(full[section][0] if isinstance(full[section], list) else full[section])
    }
    cpu = {"latent_storage_dtype", "ref_param_device", "ema_decay", "ema_device"}
    assert added == {"data.dataloader_num_workers", *(f"train.{key}" for key in cpu)}
    assert set(small) <= set(full)


def test_trl_scores_the_videos_of_rewritten_prompts_against_the_wish():
    asked = []

    def wan(prompt, seed):
        asked.append((prompt, seed))
        return Video.open(np.full((17, 32, 48, 3), 40 * len(prompt), np.uint8), fps=16)

    class Judge(VideoReward):
        def __call__(self, prompts, completions=None, **columns):
            judged.extend(prompts)
            return super().__call__(prompts, completions, **columns)

    judged = []
    judge = Judge(reward="tests.support.hosting:brightness")
    reward = load("trl_prompt_writer").PromptReward(wan, judge, group_size=2)
    texts = ["ab", "", [{"role": "assistant", "content": "abcd"}], " abc "]
    values = reward(["x"] * 4, texts, ["wish", "wish", "other", "other"], completion_ids=[[1]] * 4)
    assert asked == [("ab", 0), ("wish", 1), ("abcd", 0), ("abc", 1)]
    assert judged == ["wish", "wish", "other", "other"]
    assert values == pytest.approx([80 / 255, 160 / 255, 160 / 255, 120 / 255], abs=1e-3)


@pytest.mark.upstream
@pytest.mark.timeout(1800)
def test_flow_factory_itself_takes_a_step(tmp_path):
    home = checkout("FLOW_FACTORY_DIR", "X-GenGroup/Flow-Factory", "src/flow_factory/train.py")
    need("datasets", "imageio", "ftfy")
    path = f"{ROOT}{os.pathsep}{home / 'src'}"
    command = [PYTHON, str(REAL / "flow_factory.py"), "--miniature", "--out", str(tmp_path)]
    text = run(command, timeout=1700, PYTHONPATH=path, HF_HUB_OFFLINE="1", WANDB_MODE="disabled")
    assert "Training completed successfully" in text and "unified+cac: 4 videos scored" in text


def test_trl_itself_takes_two_steps(tmp_path):
    """Its trainer, a random writer, the shipped Wan and judge; trl is no dependency of the tests."""
    pytest.importorskip("trl")
    text = run([sys.executable, str(REAL / "trl_prompt_writer.py"), "--miniature", "--out", str(tmp_path)])
    steps = re.findall(r"^step (\d): \{'reward': ([\d.]+), 'reward_std': ([\d.]+), 'grad_norm': ([\d.]+)", text, re.M)
    assert [step for step, *_ in steps] == ["1", "2"]
    assert all(0 < float(mean) < 1 and float(std) > 0 and float(norm) > 0 for _, mean, std, norm in steps)
    values = [float(value) for value in re.findall(r"^ +([\d.]+)  ", text, re.M)]
    assert [np.mean(values[:4]), np.mean(values[4:])] == pytest.approx([float(row[1]) for row in steps], abs=2e-3)
