"""A small file is the old one or the new one, and nothing else is left in its folder."""

import pytest

from cac_align.runs import files
from cac_align.runs.files import atomic_write


def test_a_whole_file_leaves_no_part_behind(tmp_path):
    atomic_write(tmp_path / "x.json", "old")
    atomic_write(tmp_path / "x.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"] and (tmp_path / "x.json").read_text() == "new"


def test_text_is_replaced_whole(tmp_path):
    path = tmp_path / "checkpoint.json"
    atomic_write(path, "one")
    atomic_write(path, "two")
    assert path.read_text() == "two" and [found.name for found in tmp_path.iterdir()] == ["checkpoint.json"]


def test_killed_before_the_last_moment_the_old_file_stands(tmp_path, monkeypatch):
    atomic_write(tmp_path / "x.json", "old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "x.json", "new")
    assert (tmp_path / "x.json").read_text() == "old"
