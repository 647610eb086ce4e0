"""`cac-align recipes list | show | copy`: the recipes that ship, with and without a checkout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cac_align.cli.options import add_verb
from cac_align.core.shipped_recipes import find_recipe, shipped_recipe, shipped_recipes
from cac_align.core.whole_file import whole_file


def add_recipes(verbs: Any) -> None:
    """The options of `cac-align recipes`."""
    about = "the recipes that ship with the package: list them, show one, copy one to edit it"
    kinds = add_verb(verbs, "recipes", None, about).add_subparsers(dest="kind", required=True, metavar="list|show|copy")
    add_verb(kinds, "list", run_list, "list every recipe by name, with its first line")
    name = "for example reward/miniature; a file's name without suffix is enough where only one recipe has it"
    add_verb(kinds, "show", run_show, "print one recipe").add_argument("name", help=name)
    copy = add_verb(kinds, "copy", run_copy, "copy one recipe to a file or into a folder, to edit it")
    copy.add_argument("name", help=name)
    copy.add_argument("dest", type=Path, metavar="DEST", help="a new file, or an existing folder")


def run_list(options: argparse.Namespace) -> int:
    """One line per recipe: its name, and what its first line says."""
    found = shipped_recipes()
    width = max(map(len, found), default=0)
    for name, path in found.items():
        print(f"{name:<{width}}  {_about(path)}".rstrip())
    return 0


def run_show(options: argparse.Namespace) -> int:
    """Print one recipe's text."""
    sys.stdout.write(_shipped(options.name).read_text(encoding="utf-8"))
    return 0


def run_copy(options: argparse.Namespace) -> int:
    """Write a copy; an existing file is never overwritten.

    Recipes that the copy names are still found among the shipped.
    """
    source = _shipped(options.name)
    target = options.dest / source.name if options.dest.is_dir() else options.dest
    if target.exists():
        raise ValueError(f"{target} exists already; give another name, or move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    text = source.read_bytes()
    with whole_file(target, len(text)) as part:
        part.write_bytes(text)
    print(target)
    return 0


def _shipped(name: str) -> Path:
    return shipped_recipe(name) or find_recipe(name)


def _about(path: Path) -> str:
    """The first line that is for people: not for a shell ("#!") and not for Hydra ("# @")."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next((line for line in lines if not line.startswith(("#!", "# @"))), "")
    return first.strip().strip('#"').strip()
