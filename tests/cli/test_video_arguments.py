"""Videos named by folder or pattern, and the prompts that listings beside them state."""

import csv
import io
import json

import numpy as np
import pytest

from cac_align.cli.main import main
from cac_align.cli.video_arguments import expand_videos, listed_prompts
from cac_align.core.encoding import write_mp4
from tests.cli.test_cli import REWARD


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clips").mkdir()
    for name in "ab":
        write_mp4(tmp_path / "clips" / f"{name}.mp4", np.full((4, 16, 16, 3), 128, np.uint8), fps=16)
    return tmp_path / "clips"


def test_folders_and_patterns_stand_for_their_videos(folder):
    files = [str(folder / "a.mp4"), str(folder / "b.mp4")]
    assert expand_videos([folder]) == expand_videos([f"{folder}/*.mp4"]) == expand_videos([str(folder.parent)]) == files
    assert expand_videos([files[1], folder]) == [files[1], *files] and expand_videos(["none.mp4"]) == ["none.mp4"]
    with pytest.raises(ValueError, match="no file matches"):
        expand_videos([f"{folder}/*.webm"])
    (folder.parent / "empty").mkdir()
    with pytest.raises(ValueError, match="no videos in it"):
        expand_videos([folder.parent / "empty"])


def test_a_folder_is_scored_with_the_prompts_that_it_lists_as_csv(folder, capsys):
    assert listed_prompts(expand_videos([folder])) is None
    assert main(["score", str(folder), *REWARD]) == 2
    rows = [{"video": f"{name}.mp4", "prompt": f"prompt, {name}"} for name in "ab"]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert main(["score", str(folder), "--csv", *REWARD]) == 0
    read = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["prompt"] for row in read] == ["prompt, a", "prompt, b"]
    assert all(0.4 < float(row["score"]) < 0.6 and row["verdict"] == row["error"] == "" for row in read)
