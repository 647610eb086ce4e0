"""``chosen/``: one file per decided prompt, the last decision's, and a listing with the prompts."""

import json

import numpy as np

from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
from cac_align.evaluation.pairing import read_folder, video_files
from cac_align.generation.candidates import file_stem
from cac_align.generation.chosen import write_chosen
from cac_align.generation.selection import Selection
from cac_align.rewards.reward import Score


def selection(prompt, chosen, video=None):
    return Selection(prompt, chosen, ("a", "b"), (Score(0.1), Score(0.2)), (), "", video)


def test_winners_are_named_by_prompt_and_follow_the_last_decision(tmp_path):
    videos = {}
    for name, level in (("a", 50), ("b", 200)):
        write_mp4(tmp_path / f"{name}.mp4", np.full((4, 16, 16, 3), level, np.uint8), 16)
        videos[name] = Video.open(tmp_path / f"{name}.mp4")
    in_memory = Video.open(np.full((4, 16, 16, 3), 9, np.uint8), fps=16)
    folder = write_chosen([selection("p", 0, videos["a"]), selection("q", 1, in_memory)], tmp_path)
    assert (folder / f"{file_stem('p')}.mp4").read_bytes() == (tmp_path / "a.mp4").read_bytes()
    assert {clip.prompt for clip in read_folder(folder).clips} == {"p", "q"}
    write_chosen([selection("p", 1, videos["b"])], tmp_path)
    assert (folder / f"{file_stem('p')}.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    write_chosen([selection("p", None)], tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == sorted([f"{file_stem('q')}.mp4", "prompts.jsonl"])
    assert [json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").read_text().splitlines()] == ["q"]


def test_the_copies_are_no_further_videos_of_the_best_of_ns_folder(tmp_path):
    for place in ("videos", "chosen"):
        (tmp_path / place).mkdir()
        write_mp4(tmp_path / place / "a.mp4", np.full((4, 16, 16, 3), 50, np.uint8), 16)
    assert len(video_files(tmp_path)) == 2
    (tmp_path / "selection.jsonl").write_text("")
    assert [path.parent.name for path in video_files(tmp_path)] == ["videos"]
