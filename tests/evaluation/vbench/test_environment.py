"""VBench's environment: found, created, or named with the command that creates it."""

import sys
from pathlib import Path

import pytest

from cac_align.cli.main import main
from cac_align.evaluation.vbench import environment as module
from cac_align.evaluation.vbench.environment import find_python, vbench_env


def test_a_missing_environment_gives_the_command(tmp_path, monkeypatch):
    monkeypatch.delenv(module.PYTHON_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"cac-align vbench-env ~/\.cache/cac-align/vbench-env"):
        find_python()
    monkeypatch.setenv(module.PYTHON_VARIABLE, sys.executable)
    assert find_python() == Path(sys.executable)


def test_a_failing_step_of_the_environment_is_shown(tmp_path):
    (tmp_path / "file").write_text("in the way")
    said = []
    with pytest.raises(ValueError, match=r"failed at\n.* -m venv (.|\n)*file"):
        vbench_env(tmp_path / "file" / "env", progress=said.append)
    assert len(said) == 1


def test_the_environment_is_made_where_it_is_looked_for(monkeypatch, capsys):
    made = []
    monkeypatch.setattr(module, "vbench_env", lambda folder, progress: made.append(folder) or folder)
    monkeypatch.delenv(module.PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(module, "DEFAULT_ENVIRONMENT", Path("/nowhere/vbench"))
    assert main(["vbench-env"]) == 0 and made == [Path("/nowhere/vbench")]
    with pytest.raises(ValueError, match="no VBench environment at /nowhere/vbench/bin/python"):
        find_python()
    with pytest.raises(ValueError, match="--python names /nowhere/python, which is no file"):
        find_python("/nowhere/python")
    monkeypatch.setenv(module.PYTHON_VARIABLE, "/nowhere/else")
    with pytest.raises(ValueError, match=f"{module.PYTHON_VARIABLE} names /nowhere/else, which is no file"):
        find_python()
