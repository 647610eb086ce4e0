"""The docs site: its menu names pages that exist, and the commands of its page of commands parse."""

import re
import shlex

import yaml

from cac_align.cli.main import build_parser
from tests.support.tracked import ROOT, tracked


def pages(menu):
    """Every page that a part of the menu names."""
    if isinstance(menu, str):
        return [menu]
    parts = menu.values() if isinstance(menu, dict) else menu
    return [page for part in parts for page in pages(part)]


def test_the_menu_names_every_page_once_and_no_other():
    """Pages below reference/ are written by docs/make_reference.py; those of the lab stand in its own index."""
    named = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    generated = set(re.findall(r'^    "(reference/\w+\.md)":', (ROOT / "docs/make_reference.py").read_text(), re.M))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in tracked("docs", "*.md")}
    expected = {name for name in written if not name.startswith("lab/") or name == "lab/index.md"}
    assert len(named) == len(set(named)) and set(named) == expected | generated and generated


def test_every_command_of_the_page_of_commands_parses():
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\s*cac-align ([^#\n]+)", text, re.M)
    assert len(commands) > 30
    for command in commands:
        words = shlex.split(command)
        build_parser().parse_args(words)
        assert [word for word in words if word.startswith("recipes/") and not (ROOT / word).is_file()] == []
