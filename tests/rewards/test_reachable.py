"""A judge's server that does not answer is named before the work: whoever asks the reward, and in one sentence."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cac_align.cli.main import main
from cac_align.plugins.common.host import HostOptions, host_reward


@pytest.fixture
def nobody() -> str:
    """A URL at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


@pytest.fixture
def recipe(tmp_path: Path, nobody: str) -> Path:
    file = tmp_path / "judge.yaml"
    file.write_text(f'components:\n  cac: {{kind: cac, model: "{nobody}", served_model: cac, wording: brief}}\n')
    return file


def test_a_host_is_told_when_its_reward_is_built(recipe: Path, nobody: str) -> None:
    with pytest.raises(ValueError, match=f"cac: {nobody}: no answer.*start the server"):
        host_reward(HostOptions(reward=str(recipe)), "test")


@pytest.mark.parametrize("option", ["--teacher {url} --set teacher.served_model=t", "--recipe {teacher}"])
def test_a_teacher_that_does_not_answer_ends_synthesise_at_once(
    tmp_path: Path, nobody: str, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert main(["world", "--n", "2", "--seed", "3", "--world", "playground", "--out", str(tmp_path / "world")]) == 0
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text(f'synthesis: {{wording: brief}}\nteacher: {{model: "{nobody}", served_model: t}}\n')
    given = option.format(url=nobody, teacher=teacher).split()
    records = str(tmp_path / "world" / "records.jsonl")
    assert main(["data", "synthesise", records, *given, "--out", str(tmp_path / "chains")]) == 2
    assert f"{nobody}: no answer" in capsys.readouterr().err
    assert not (tmp_path / "chains").exists()


def test_serve_says_that_it_is_not_ready_and_waits(recipe: Path, nobody: str) -> None:
    command = [sys.executable, "-m", "cac_align.cli", "serve", "--reward", str(recipe), "--port", "0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    assert server.stderr is not None
    said = ""
    try:
        while "startup complete" not in said and (line := server.stderr.readline()):
            said += line
        assert "not ready before its judge's server answers" in said and f"{nobody}: no answer" in said
        assert server.poll() is None
    finally:
        server.terminate()
        server.communicate(timeout=60)
