"""Given candidates: tables of several kinds, sub-folders per prompt, and sources that leave it open."""

import pytest

from cac_align.generation.candidates import file_stem
from cac_align.generation.given_candidates import read_candidates

BALL, BOX = "a red ball rolls, slowly", "a blue box falls"


def names(found):
    return {prompt: [path.parent.name + "/" + path.name for path in paths] for prompt, paths in found.items()}


def fill(folder, *files):
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_bytes(b"")


@pytest.mark.parametrize("table, sign", [("candidates.csv", ","), ("my clips.csv", ","), ("videos.tsv", "\t")])
def test_any_folder_with_a_table(tmp_path, table, sign):
    text = f'video{sign}prompt\nclips/1.mp4{sign}"{BALL}"\nclips/2.mp4{sign}"{BALL}"\nclips/3.mp4{sign}{BOX}\n'
    (tmp_path / table).write_text(text)
    expected = {BALL: ["clips/1.mp4", "clips/2.mp4"], BOX: ["clips/3.mp4"]}
    assert names(read_candidates(tmp_path)) == names(read_candidates(tmp_path / table)) == expected
    assert names(read_candidates(tmp_path, [BOX])) == {BOX: ["clips/3.mp4"]}


def test_a_ledger_is_no_table_of_candidates_and_two_tables_leave_it_open(tmp_path):
    row = '{"prompt": "p", "video": "v.mp4"}\n'
    (tmp_path / "ledger.jsonl").write_text(row)
    (tmp_path / "records.jsonl").write_text(row)
    assert list(read_candidates(tmp_path)) == ["p"]
    (tmp_path / "more.csv").write_text("prompt,video\np,w.mp4\n")
    with pytest.raises(ValueError, match=r"more\.csv, records\.jsonl"):
        read_candidates(tmp_path)


def test_a_sub_folder_per_prompt_by_its_words_its_stem_or_a_prompt_file(tmp_path):
    fill(tmp_path / "A_red_ball-rolls slowly", "10.mp4", "2.mp4", "notes.txt")
    fill(tmp_path / file_stem(BOX), "x.webm")
    fill(tmp_path / "run7", "y.mp4")
    (tmp_path / "run7" / "prompt.txt").write_text("a dog\n")
    fill(tmp_path / "others", "z.mp4")
    found = names(read_candidates(tmp_path, [BALL, BOX, "a dog"]))
    assert found == {
        BALL: ["A_red_ball-rolls slowly/2.mp4", "A_red_ball-rolls slowly/10.mp4"],
        BOX: [f"{file_stem(BOX)}/x.webm"],
        "a dog": ["run7/y.mp4"],
    }
    assert set(read_candidates(tmp_path)) == {"A_red_ball-rolls slowly", "a dog"}


def test_numbered_sub_folders_go_with_the_prompts_in_order_where_they_are_as_many(tmp_path):
    for number in (0, 1, 10):
        fill(tmp_path / str(number), "a.mp4")
    assert names(read_candidates(tmp_path, ["p", "q", "r"])) == {"p": ["0/a.mp4"], "q": ["1/a.mp4"], "r": ["10/a.mp4"]}
    with pytest.raises(ValueError, match="one sub-folder per prompt"):
        read_candidates(tmp_path, ["p", "q"])
