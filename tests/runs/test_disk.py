"""A full disk is recognised, said in one sentence, and leaves no half file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cac_align.cli import main as command
from cac_align.runs.disk import disk_full_message
from cac_align.runs.files import atomic_write


def full(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_atomic_write_names_the_file_and_its_size_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "recipe.json"
    atomic_write(path, "former")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError) as caught:
        atomic_write(path, "é" * 500)
    said = disk_full_message(caught.value, None, "cac-align world")
    assert (
        said is not None
        and str(path) in said
        and "at least 1000 are needed" in said
        and said.endswith("cac-align world")
    )
    assert path.read_text() == "former" and os.listdir(tmp_path) == ["recipe.json"]


def test_other_errors_are_no_full_disk(tmp_path: Path) -> None:
    for error in (ValueError("x"), RuntimeError("x"), FileNotFoundError(errno.ENOENT, "x", "y")):
        assert disk_full_message(error, tmp_path, "c") is None


def test_what_tensor_libraries_say_of_a_full_disk_is_understood(tmp_path: Path) -> None:
    class SafetensorError(Exception):
        """safetensors' own is no OSError and has no number."""

    written = "Error while serializing: I/O error: No space left on device (os error 28)"
    short = "[enforce fail at inline_container.cc:664] . unexpected pos 128 vs 22"
    ended = "basic_ios::clear: iostream error"
    for error in (SafetensorError(written), RuntimeError(short), RuntimeError(ended)):
        said = disk_full_message(error, tmp_path / "run", "cac-align train")
        assert said is not None and str(tmp_path / "run") in said and said.endswith("cac-align train")
    assert disk_full_message(SafetensorError("invalid header"), tmp_path, "c") is None


@pytest.mark.parametrize("wrap", [False, True])
def test_the_command_line_says_path_space_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrap: bool
) -> None:
    def run(options: object) -> int:
        try:
            full()
        except OSError as error:
            if wrap:
                raise ValueError("the writer failed") from error
            raise
        return 0

    arguments = ["world", "--n", "1", "--out", str(tmp_path / "a b")]
    parsed = command.parse(arguments)
    parsed.run = run
    monkeypatch.setattr(command, "parse", lambda given: parsed)
    assert command.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(tmp_path) in said and "bytes are free" in said
    assert said.rstrip().endswith(f"cac-align world --n 1 --out '{tmp_path / 'a b'}'")
