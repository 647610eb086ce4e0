"""Prompt files: what is no prompt never becomes one."""

import pytest

from cac_align.core.prompts import read_prompts


def written(tmp_path, text):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(text.encode())
    return file


def prompts(tmp_path, text):
    return [row["prompt"] for row in read_prompts(written(tmp_path, text))]


def test_lines_and_json_lines(tmp_path):
    assert prompts(tmp_path, "one\r\n\n  two  \n") == ["one", "two"]
    assert prompts(tmp_path, "{x} %s\na sign saying {}\n") == ["{x} %s", "a sign saying {}"]  # braces of a prompt's own
    assert prompts(tmp_path, '{"prompt": " A "}\n\n{"prompt": "B", "seed": 3}') == ["A", "B"]
    assert read_prompts(written(tmp_path, '{"prompt": "B", "seed": 3}')) == [{"prompt": "B", "seed": 3}]


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path):
    """With it the first line does not begin with a brace, and the JSON text itself would be judged as the prompt."""
    assert prompts(tmp_path, '\ufeff{"prompt": "A"}\n') == ["A"] and prompts(tmp_path, "\ufeffone\n") == ["one"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('# a comment\n{"prompt": "A"}\n', 1),
        ('{"prompt": "A"}\n\na red ball\n', 3),
        ('{"prompt": "A"}\n{"prompt": "B"\n', 2),
        ('{"prompt": "A"}\n{"video": 1}\n', 2),
        ('{"prompt": null}\n', 1),
        ('{"prompt": 3}\n', 1),
        ('{"prompt": "  "}\n', 1),
        ('{"prompt": "A"\n', 1),
    ],
)
def test_half_json_is_refused_with_its_line(tmp_path, text, line):
    with pytest.raises(ValueError, match=f"prompts.jsonl:{line}: expected a JSON object with a prompt"):
        read_prompts(written(tmp_path, text))


def test_nothing_in_it_and_no_file(tmp_path):
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(written(tmp_path, "\n\n"))
    with pytest.raises(ValueError, match="nowhere.txt: cannot be read as prompts"):
        read_prompts(tmp_path / "nowhere.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"latin.txt: cannot be read as prompts: 'utf-8' codec"):
        read_prompts(tmp_path / "latin.txt")
