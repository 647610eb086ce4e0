"""Audit pairs from files: an injected defect with measured truth, its sham, and what cannot be used."""

import json

import numpy as np
import pytest

from cac_align.cli.main import main
from cac_align.core.encoding import write_mp4
from cac_align.evaluation.audit.real_pairs import pairs_from_videos

SEES = "tests.evaluation.audit.test_audit:Sees"
SILENT = "tests.evaluation.audit.test_audit:Silent"


def crossing(path, seed, frames=33):
    """A square that crosses a textured ground."""
    rng = np.random.default_rng(seed)
    pixels = np.repeat(rng.integers(90, 120, (1, 96, 128, 3), np.uint8), frames, 0)
    for t in range(frames):
        left = 4 + round(t * 98 / frames)
        pixels[t, 30:50, left : left + 20] = rng.permutation([60, 150, 200]) if t == 0 else pixels[0, 30, 5]
    write_mp4(path, pixels, 16.0)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    paths = [crossing(folder / f"{seed}.mp4", seed) for seed in range(2)]
    rows = [{"video": path.name, "prompt": "a square moves"} for path in paths]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_pairs_of_files_differ_inside_their_window_only(folder):
    paths = sorted(folder.glob("*.mp4"))
    pairs = pairs_from_videos(paths, ["a square moves"] * 2, 3, seed=1)
    assert len(pairs) == 3
    for pair in pairs:
        clean, defect = (one.frames(range(len(one))).pixels.astype(int) for one in (pair.clean, pair.defect.video))
        changed = np.flatnonzero(np.abs(defect - clean).max((1, 2, 3)) > 24) / pair.clean.fps
        window = pair.defect.anomaly.window
        assert window.start_s - 0.1 <= changed[0] and changed[-1] <= window.end_s + 0.1
        assert pair.original is not None and pair.moved_in_space is not None and pair.prompt == "a square moves"
        if pair.moved_in_time is not None:
            earlier = window.start_s - pair.moved_in_time.anomaly.window.start_s
            assert len(pair.defect.video) - len(pair.moved_in_time.video) == round(earlier * pair.clean.fps)


def test_videos_without_a_pair_are_named(tmp_path):
    write_mp4(tmp_path / "still.mp4", np.full((33, 96, 128, 3), 90, np.uint8), 16.0)
    with pytest.raises(ValueError, match="none of the 1 videos gives a pair.*nothing moves"):
        pairs_from_videos([tmp_path / "still.mp4"], [""], 2)
    with pytest.raises(ValueError, match="no videos"):
        pairs_from_videos([], [], 2)


def test_the_verb_writes_what_align_reads_and_says_whether_the_judge_passes(folder, tmp_path, capsys):
    status = main(
        ["evaluate", "reward", "--reward", SEES, "--videos", str(folder), "--n", "2", "--out", str(tmp_path), "--json"]
    )
    printed, stored = json.loads(capsys.readouterr().out), json.loads((tmp_path / "audit.json").read_text())
    assert printed == stored and status == (0 if printed["passes"] else 1)
    assert printed["localisation"]["localises"] is False and printed["pairs"] == 2
    assert printed["groups"]["groups"] == 1  # both files have one prompt
    assert (tmp_path / "audit.html").is_file() and (tmp_path / "audit.md").is_file()


def test_bad_input_ends_with_a_sentence_and_without_a_number(folder, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, said in (
        (["--videos", str(empty)], "empty"),
        (["--videos", str(folder), "--miniature"], None),
        (["--videos", str(folder), "--n", "1", "--reward", SILENT], "no score at all"),
        (["--n", "0"], "--n"),
        (["--reward", "nowhere.yaml"], "no such recipe"),
    ):
        if said is None:
            with pytest.raises(SystemExit):
                main(["evaluate", "reward", *arguments])
            continue
        assert main(["evaluate", "reward", *arguments]) == 2
        streams = capsys.readouterr()
        assert said in streams.err and streams.out == ""
