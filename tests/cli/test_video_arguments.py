"""Videos named by folder or pattern, and the prompts that listings beside them state."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from cac_align.cli.main import main
from cac_align.cli.video_arguments import expand_videos, listed_prompts
from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
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


def write_images(folder, shade):
    folder.mkdir(parents=True)
    for number in range(9, 12):
        Image.new("RGB", (16, 16), (shade, number, 0)).save(folder / f"{number}.png")


def test_folders_of_images_and_animated_webp_are_videos(folder, capsys):
    root = folder.parent
    for name, shade in (("x", 40), ("y", 200)):
        write_images(root / "renders" / name, shade)
    assert expand_videos([root / "renders" / "x"]) == [str(root / "renders" / "x")]
    assert expand_videos([root / "renders"]) == [str(root / "renders" / name) for name in "xy"]
    frames = [Image.new("RGB", (16, 16), (n, 0, 0)) for n in range(0, 250, 50)]
    frames[0].save(root / "renders" / "comfy.webp", save_all=True, append_images=frames[1:], duration=62)
    Image.new("RGB", (16, 16)).save(root / "renders" / "cover.webp")
    assert expand_videos([root / "renders"]) == [str(root / "renders" / "comfy.webp")]

    argument = [str(root / "renders" / name) for name in ("x", "y", "comfy.webp")]
    assert main(["score", *argument, "--prompt", "p", "--fps", "8", "--json", *REWARD]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["fps"] for row in rows] == [8, 8, 8] and [row["video"] for row in rows] == argument
    assert [row["score"] for row in rows] == pytest.approx([50 / 765, 210 / 765, 100 / 765], abs=0.01)
    assert main(["score", *argument, "--prompt", "p", "--json", *REWARD]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["score"] is None for row in rows] == [True, True, False]
    assert "pass fps (--fps" in rows[0]["error"] and rows[2]["fps"] == pytest.approx(1000 / 62)


def test_best_of_n_chooses_among_folders_of_images_and_hands_over_an_mp4(folder, capsys):
    given = folder.parent / "given" / "a red ball"
    write_images(given / "0", 40)
    write_images(given / "1", 200)
    (given / "2").mkdir()
    Image.new("RGB", (16, 16)).save(given / "2" / "cover.png")
    Image.new("RGB", (16, 16)).save(given / "2" / "0.png")
    call = ["best-of-n", "--candidates", str(given.parent), *REWARD, "--json", "--out"]
    assert main([*call, str(folder.parent / "out"), "--fps", "8"]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["chosen"] == 1 and [score is None for score in row["scores"]] == [False, False, True]
    assert "cover.png has no number" in row["errors"][2]
    assert (folder.parent / "out" / "report.html").read_text().count("data:video/mp4;base64,") == 2
    (winner,) = (folder.parent / "out" / "chosen").glob("*.mp4")
    assert (video := Video.open(winner)).fps == 8 and len(video) == 3
    assert abs(float(video.frames([0]).pixels[..., 0].mean()) - 200) < 5
    assert main([*call, str(folder.parent / "none")]) == 1
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["chosen"] is None and "pass fps" in row["errors"][0]
    assert main(["best-of-n", "--fps", "8", "--out", str(folder.parent / "x")]) == 2
