"""Folders become pairs: by prompt and seed, by name; and whatever does not fit is named."""

import json

import numpy as np
import pytest

from cac_align.core.encoding import write_mp4
from cac_align.evaluation.pairing import pair_selection, pair_up, read_folder


def clip(path, count=8, *, fps=8.0, size=32, level=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, np.full((count, size, size, 3), level, np.uint8), fps)


def prompts(folder, *rows):
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_prompt_and_seed_win_over_file_names(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    for name in ("a", "b"):
        clip(before / f"{name}.mp4")
        clip(after / f"{name}.mp4")
    prompts(before, *({"video": f"{n}.mp4", "prompt": "a cat", "seed": s} for n, s in (("a", 1), ("b", 2))))
    prompts(after, *({"video": f"{n}.mp4", "prompt": "a cat", "seed": s} for n, s in (("a", 2), ("b", 1))))
    made = pair_up(read_folder(before), read_folder(after))
    assert [(pair.before.name, pair.after.name, pair.matched_by) for pair in made.pairs] == [
        ("a.mp4", "b.mp4", "prompt and seed"),
        ("b.mp4", "a.mp4", "prompt and seed"),
    ]
    assert made.faults == ()


def test_everything_that_does_not_fit_is_named(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    for name in ("same", "longer", "faster", "wider", "alone", "other"):
        clip(before / f"{name}.mp4")
    clip(after / "same.mp4")
    clip(after / "longer.mp4", 12)
    clip(after / "faster.mp4", 16, fps=16.0)
    clip(after / "wider.mp4", size=48)
    clip(after / "other.mp4")
    (after / "broken.mp4").write_bytes((after / "same.mp4").read_bytes()[:200])
    known = ["same", "longer", "faster", "wider", "alone"]
    prompts(before, *({"video": f"{n}.mp4", "prompt": n} for n in known), {"video": "other.mp4", "prompt": "one thing"})
    prompts(after, {"video": "other.mp4", "prompt": "another thing"}, {"video": "gone.mp4", "prompt": "x"})
    with open(after / "prompts.jsonl", "a") as lines:
        lines.write('{"video": "same.mp4", "pro')
    made = pair_up(read_folder(before), read_folder(after))
    assert sorted(pair.id for pair in made.pairs) == ["faster.mp4", "longer.mp4", "same.mp4", "wider.mp4"]
    assert {(fault.kind, fault.name) for fault in made.faults} == {
        ("unreadable video", "after/broken.mp4"),
        ("unreadable line", "prompts.jsonl:3"),
        ("listed, not there", "gone.mp4"),
        ("another length", "longer.mp4"),
        ("another frame rate", "faster.mp4"),
        ("another size", "wider.mp4"),
        ("unpaired video", "before/alone.mp4"),
        ("unpaired video", "before/other.mp4"),  # the same name, another prompt: no pair
        ("unpaired video", "after/other.mp4"),
    }


def test_no_pair_at_all_is_an_error_that_says_what_was_found(tmp_path):
    clip(tmp_path / "one" / "a.mp4")
    clip(tmp_path / "two" / "b.mp4")
    with pytest.raises(ValueError, match="no pair of videos.*'a.mp4' and 'b.mp4'"):
        pair_up(read_folder(tmp_path / "one"), read_folder(tmp_path / "two"))
    with pytest.raises(ValueError, match="no videos in it"):
        read_folder(_empty(tmp_path))
    with pytest.raises(ValueError, match="expected a folder of videos, found a file"):
        read_folder(tmp_path / "one" / "a.mp4")


def _empty(tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_a_selection_is_compared_with_a_random_candidate_of_the_same_prompt(tmp_path):
    rows = []
    for number in range(30):
        names = [f"videos/p{number}-{seed}.mp4" for seed in range(3)]
        for seed, name in enumerate(names):
            clip(tmp_path / name, 2, level=seed)
        rows.append(
            {"prompt": f"prompt {number}", "chosen": 1 if number else None, "candidates": names, "seeds": [0, 1, 2]}
        )
    (tmp_path / "selection.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = pair_selection(tmp_path, seed=3)
    assert all(pair.after.name.endswith("-1.mp4") and pair.prompt == pair.after.prompt for pair in made.pairs)
    assert {pair.before.seed for pair in made.pairs} == {0, 1, 2}  # the chosen one may be drawn too
    assert [pair.before.name for pair in made.pairs] == [
        pair.before.name for pair in pair_selection(tmp_path, seed=3).pairs
    ]
    assert ("undecided prompt", "prompt 0") in {(fault.kind, fault.name) for fault in made.faults} and len(
        made.pairs
    ) == 29


def test_the_listings_one_folder_up_say_what_best_of_n_made_its_videos_from(tmp_path):
    run = tmp_path / "run"
    clip(run / "videos" / "a-1.mp4")
    clip(run / "videos" / "b-1.mp4")
    lines = [
        {"prompt": "a cat", "candidates": [str(run / "videos" / "a-1.mp4"), "videos/gone.mp4"], "seeds": [1, 2]},
        {"prompt": "of another folder", "candidates": ["others/b-1.mp4"], "seeds": [1]},
    ]
    (run / "selection.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"prompt": "torn')
    (run / "prompts.jsonl").write_text('{"prompt": "a list of prompts, which names no video"}\n')
    found = read_folder(run / "videos")
    assert [(one.prompt, one.seed) for one in found.clips] == [("a cat", 1), (None, None)]
    assert [(fault.kind, fault.name) for fault in found.faults] == [("unreadable line", "selection.jsonl:3")]
    prompts(run / "videos", {"video": "a-1.mp4", "prompt": "a dog", "seed": 3})  # the folder's own word comes first
    assert [(one.prompt, one.seed) for one in read_folder(run / "videos").clips] == [("a dog", 3), (None, None)]
