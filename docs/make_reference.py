"""Writes the reference pages of the docs site from the code (a hook of mkdocs): nothing in them is typed by hand.

The public Python names, the command line with its defaults, the keys of every recipe, the files that commands write,
and the tree with its imports.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import cac_align
from cac_align.cli.main import build_parser

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cac_align"


def api_page() -> str:
    """One directive of mkdocstrings per public name."""
    names = [name for name in cac_align.__all__ if name != "__version__"]
    modules = cac_align._MODULES
    return "# Python\n\n" + "\n\n".join(f"::: {modules[name]}.{name}" for name in names) + "\n"


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its verbs, in order."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


def cli_page() -> str:
    """The help text of every verb."""
    text = "# Command line\n"
    for parser in parsers(build_parser()):
        text += f"\n## {parser.prog}\n\n```text\n{parser.format_help()}```\n"
    return text


def recipe_classes() -> Iterator[tuple[str, ast.ClassDef, list[str]]]:
    """Module, class and source lines of every dataclass that holds a recipe's keys."""
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if not re.search(r"^class \w+Recipe\b", source, re.MULTILINE):  # parsing every file takes longest of all
            continue
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Recipe"):
                yield path.relative_to(ROOT).as_posix(), node, source.splitlines()


def comment_above(lines: list[str], line: int) -> str:
    """The comment lines above a line of code (counted from 1), as one text."""
    found: list[str] = []
    while line >= 2 and lines[line - 2].strip().startswith("#"):
        found.insert(0, lines[line - 2].strip().lstrip("# "))
        line -= 1
    return " ".join(found)


def cell(text: str) -> str:
    """A text as the cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def recipes_page() -> str:
    """The keys of every recipe with type, default and meaning."""
    text = "# Recipe keys\n\nA recipe is a YAML file. Every key can be changed by `--set key=value`.\n"
    for path, node, lines in recipe_classes():
        text += f"\n## {node.name}\n\n{cell(ast.get_docstring(node) or '')}\n\nDefined in `{path}`.\n\n"
        text += "| key | type | default | meaning |\n|---|---|---|---|\n"
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                default = "" if field.value is None else f"`` {cell(ast.unparse(field.value))} ``"
                kind = f"`` {cell(ast.unparse(field.annotation))} ``"
                meaning = cell(comment_above(lines, field.lineno))
                text += f"| `{field.target.id}` | {kind} | {default} | {meaning} |\n"
    return text


def files_page() -> str:
    """What each verb writes: the docstrings of the modules that read and write the formats."""
    modules = ("data/records.py", "rewards/ledger.py", "core/judgement.py", "rewards/reward.py", "serving/wire.py")
    text = "# File formats\n\nJSON and JSON Lines, UTF-8. A missing score is `null`, never 0.\n"
    for name in modules:
        path = PACKAGE / name
        if path.is_file():
            text += f"\n## {name}\n\n{ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''}\n"
    return text


def imports_of(room: Path) -> set[str]:
    """The rooms of the package that a room's files import."""
    found: set[str] = set()
    for path in [room] if room.is_file() else room.rglob("*.py"):
        found.update(re.findall(r"^ *from cac_align\.(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    return found


def architecture_page() -> str:
    """The rooms, what each is for, and which rooms it imports."""
    text = "# Architecture\n\nImports point down: a room knows only rooms below it, and a test holds that.\n\n"
    text += "| room | what it is | imports |\n|---|---|---|\n"
    for room in sorted([*PACKAGE.glob("*/__init__.py"), PACKAGE / "config.py"]):
        place, name = (room, "config") if room.name == "config.py" else (room.parent, room.parent.name)
        about = (ast.get_docstring(ast.parse(room.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        rooms = ", ".join(sorted(imports_of(place) - {name}))
        text += f"| `{name}` | {cell(about)} | {rooms} |\n"
    tracked = subprocess.run(
        ["git", "ls-files", "cac_align/*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    text += "\n## The tree\n\n```text\n" + tracked.stdout + "```\n"
    return text


PAGES = {
    "reference/api.md": api_page,
    "reference/cli.md": cli_page,
    "reference/recipes.md": recipes_page,
    "reference/files.md": files_page,
    "reference/architecture.md": architecture_page,
}


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages (called by mkdocs)."""
    for name, page in PAGES.items():
        files.append(File.generated(config, name, content=page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """The README is this site's home: links of a page to it lead there (called by mkdocs)."""
    return markdown.replace("](../README.md)", "](index.md)")
