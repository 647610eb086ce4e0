"""The README tells the truth: its Python blocks run, its commands parse, its recipes and make targets exist."""

import re
import shlex
from pathlib import Path

import pytest

from cac_align.cli.main import build_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.S))
def test_python_blocks_run_and_print_what_they_say(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed == re.findall(r"#> (.*)", block)


@pytest.mark.parametrize("page", ["README.md", "docs/full_size.md"])
def test_commands_of_a_page_parse_and_their_recipes_exist(page):
    commands = re.findall(r"^\s*(?:\.venv/bin/)?cac-align ([^#\n]+)", (ROOT / page).read_text(), re.M)
    assert len(commands) >= 5
    for command in commands:
        words = [word for word in shlex.split(command) if word not in ("&",)]
        build_parser().parse_args(words)
        assert [word for word in words if word.startswith("recipes/") and not (ROOT / word).is_file()] == []


def test_every_make_target_in_the_readme_exists():
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z0-9-]+)`", README)) <= targets
