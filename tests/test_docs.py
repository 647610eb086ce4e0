"""The docs site: its menu names pages that exist, and the commands of its pages parse."""

import re
import shlex
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from cac_align.cli.main import build_parser
from cac_align.core.shipped_recipes import find_recipe
from cac_align.rewards.build import load_reward
from tests.support.hosting import serving
from tests.support.tracked import ROOT, tracked


def pages(menu):
    """Every page that a part of the menu names."""
    if isinstance(menu, str):
        return [menu]
    parts = menu.values() if isinstance(menu, dict) else menu
    return [page for part in parts for page in pages(part)]


def test_the_menu_names_every_page_once_and_no_other():
    """Pages below reference/ are written by docs/make_reference.py, the walkthrough by docs/make_walkthrough.py; those
    of the lab stand in its own index.
    """
    named = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    generated = set(re.findall(r'^    "(reference/\w+\.md)":', (ROOT / "docs/make_reference.py").read_text(), re.M))
    generated |= set(re.findall(r'^PAGE = "(\w+\.md)"$', (ROOT / "docs/make_walkthrough.py").read_text(), re.M))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in tracked("docs", "*.md")}
    expected = {name for name in written if not name.startswith("lab/") or name == "lab/index.md"}
    assert len(named) == len(set(named)) and set(named) == expected | generated and generated


def commands_of(page):
    """The words of every `cac-align …` that stands in an indented block of a page; a backslash joins lines."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(command) for command in re.findall(r"^ {4}(?:\$ )?cac-align ([^#\n]+)", text, re.M)]


WITH_COMMANDS = [
    page for page in tracked("docs", "*.md") if "lab" not in page.relative_to(ROOT).parts and commands_of(page)
]


def test_the_guides_and_the_page_of_commands_have_commands():
    names = {page.relative_to(ROOT / "docs").as_posix(): len(commands_of(page)) for page in WITH_COMMANDS}
    assert names["commands.md"] > 30
    guides = {page.relative_to(ROOT / "docs").as_posix() for page in tracked("docs/guides", "*.md")}
    assert guides <= set(names) and len(guides) >= 5


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.relative_to(ROOT / "docs").as_posix())
def test_every_command_of_a_page_parses_and_its_recipes_exist(page):
    for words in commands_of(page):
        build_parser().parse_args(words)
        assert [word for word in words if word.startswith("recipes/") and not (ROOT / word).is_file()] == []
        for option, value in pairwise(words):
            if option in ("--reward", "--recipe") and re.fullmatch(r"[\w./]*\w", value) and "." not in Path(value).name:
                find_recipe(value)


@pytest.mark.parametrize("name", ["score", "serve"])
def test_the_python_block_of_a_guide_prints_what_it_says(name, monkeypatch, capsys):
    """A number may differ by the rounding of another CPU."""
    text = (ROOT / "docs" / "guides" / f"{name}.md").read_text(encoding="utf-8")
    ((block, said),) = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", text, re.M | re.S)
    monkeypatch.chdir(ROOT)
    with serving(load_reward("reward/miniature_cac")) if name == "serve" else nullcontext((None, None)) as (url, _):
        exec(block.replace("http://127.0.0.1:8000", url) if url else block, {})
    printed, stored = capsys.readouterr().out.split(), said.split()
    assert printed[1:] == stored[1:] and float(printed[0]) == pytest.approx(float(stored[0]), abs=0.03)


@pytest.mark.parametrize("page", tracked("docs/guides", "*.md"), ids=lambda page: page.stem)
def test_a_guide_is_short(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert 40 <= len(lines) <= 120 and max(map(len, lines)) <= 120
