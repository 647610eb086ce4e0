"""The README tells the truth: its tree equals the disk, its Python blocks run, its commands exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from cac_align.cli.main import build_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENTRY = re.compile(r"^((?:[│ ]   )*)(?:├── |└── )(\S+)\s+(\S.*)$")


def tree_paths(text: str) -> dict[str, str]:
    """{path: purpose} of the tree block: the first code block that holds a branch."""
    block = next(part for part in text.split("```") if "├── " in part)
    stack: list[str] = []
    found = {}
    for line in block.splitlines():
        match = ENTRY.match(line)
        if match is None:
            continue
        depth = len(match.group(1)) // 4
        stack = [*stack[:depth], match.group(2).rstrip("/")]
        found["/".join(stack)] = match.group(3)
    return found


def on_disk() -> set[str]:
    """Every Python file of the package, every folder of it, and everything at the top level that git tracks."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [Path(line) for line in listed.stdout.splitlines() if (ROOT / line).is_file()]
    shown = {path.parts[0] for path in files}
    for path in files:
        if path.parts[0] == "cac_align" and path.suffix == ".py" and path.name != "__init__.py":
            shown.add(str(path))
            shown.update(str(parent) for parent in path.parents if str(parent) != ".")
    return {name for name in shown if not name.startswith(".")}


def test_the_tree_equals_the_disk():
    paths, disk = set(tree_paths(README)), on_disk()
    assert sorted(disk - paths) == [], "missing in README's tree"
    gone = [path for path in paths if not (ROOT / path).exists()]
    assert gone == [], "in README's tree but not on disk"


def test_every_entry_of_the_tree_has_a_purpose():
    assert all(len(purpose) > 8 for purpose in tree_paths(README).values())


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
