"""The recipes that ship with the package, and how a recipe is found by its path or by its name.

"reward/miniature.yaml", "recipes/reward/miniature.yaml", "reward/miniature" or a unique
"qwen3vl_8b_server" → find_recipe → a file
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path


def recipes_folder() -> Path:
    """Where the shipped recipes lie: inside the installed package, or beside the package in a
    checkout.
    """
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Every shipped file by its path within the recipes' folder, sorted."""
    folder = recipes_folder()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): path for path in files}


def shipped_recipe(name: str | os.PathLike[str], folder: str = "") -> Path | None:
    """The shipped recipe of this name; None where there is none. Raises ``ValueError`` for a name
    that several have, unless one of them lies in ``folder``.

    name: a path within the recipes' folder, ``recipes/`` before it or not, its suffix left out or
    not; or the file's name without suffix.
    """
    wanted = Path(name).as_posix().removeprefix("recipes/")
    found = shipped_recipes()
    if wanted in found:
        return found[wanted]
    named = [key for key in found if _bare(key) == wanted] or [key for key in found if Path(key).stem == wanted]
    if len(own := [key for key in named if key.startswith(f"{folder}/")]) == 1:
        named = own
    if len(named) > 1:
        raise ValueError(
            f"{name}: several recipes that ship have this name: {', '.join(named)}; give the folder as well"
        )
    return found[named[0]] if named else None


def find_recipe(name_or_path: str | os.PathLike[str], folder: str = "") -> Path:
    """The file behind a recipe's path, or behind the name of one that ships. A file that is there
    goes before a name, and of equal names the one in ``folder``.

    Raises ``ValueError`` that names what is nearest.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = shipped_recipe(name_or_path, folder)
    if shipped is not None:
        return shipped
    near = _near(path.as_posix().removeprefix("recipes/"), list(shipped_recipes()))
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(
        f"{name_or_path}: no such recipe file, looked for from {Path.cwd()}, and none that ships has this name; "
        f"{meant}`cac-align recipes list` names those that ship"
    )


def _bare(key: str) -> str:
    """A key without its file's suffix: names hold dots of their own."""
    return key.removesuffix(Path(key).suffix)


def _near(wanted: str, keys: Sequence[str]) -> list[str]:
    """Up to three keys whose whole path or whose file's name is nearly this one, the nearest first."""
    file = wanted.rpartition("/")[2]
    file = file.removesuffix(".yaml").removesuffix(".yml")

    def nearness(key: str) -> float:
        pairs = ((wanted, key), (wanted, _bare(key)), (file, Path(key).stem))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return sorted((key for key in keys if nearness(key) >= 0.6), key=nearness, reverse=True)[:3]
