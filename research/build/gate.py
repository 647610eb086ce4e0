"""Whether new weights may replace those that ship, and replacing them.

figures + research/recipes/expected.json → ``refusals`` → none: ``install``; else nothing is touched

``expected.json`` holds what each figure should be, with its interval. A figure passes at or above the lower end of
that interval; one that has a right value (``within``) passes inside it. A figure that could not be measured fails.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MIN_HEAD_SIZE = 32
"""Numbers in a head of the language model that a vLLM on a CPU takes; it refuses 24 (in the image encoder it takes
them). ``research.build.wider_heads`` widens a judge that has fewer.
"""
MAX_MEGABYTES = 20.0
"""Of all weights together."""


def read_expected(path: Path) -> dict[str, dict[str, Any]]:
    """The figures of ``expected.json`` by name. Raises ``ValueError`` for one without a value inside its interval."""
    expected = json.loads(path.read_text(encoding="utf-8"))["figures"]
    for name, row in expected.items():
        if not row["low"] <= row["value"] <= row["high"]:
            raise ValueError(f"{path}: {name} is not inside its own interval")
    return expected


def refusals(figures: Mapping[str, Mapping[str, Any]], expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One sentence for each figure that falls short; none where the weights may ship."""
    found = []
    for name, row in expected.items():
        value = figures.get(name, {}).get("value")
        wanted = f"[{row['low']:.3f}, {row['high']:.3f}]"
        if value is None:
            found.append(f"{name}: could not be measured, expected {row['value']:.3f} {wanted}")
        elif value < row["low"] or (row.get("within") and value > row["high"]):
            where = "outside" if row.get("within") else "below"
            found.append(f"{name}: {_with_interval(figures[name])} lies {where} the expected {wanted}")
    return found


def _with_interval(figure: Mapping[str, Any]) -> str:
    low, high = figure.get("low"), figure.get("high")
    return f"{figure['value']:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def misfits(folders: Mapping[str, Path]) -> list[str]:
    """One sentence for weights that are too large together, and for heads that a real vLLM does not take.

    folders: by the names under which they would ship.
    """
    files = [file for folder in folders.values() for file in folder.rglob("*.safetensors")]
    stored = sum(file.stat().st_size for file in files) / 1e6
    found = [f"the weights have {stored:.1f} MB, at most {MAX_MEGABYTES:g} ship"] if stored > MAX_MEGABYTES else []
    for name in ("cac", "unified"):
        config = json.loads((folders[name] / "config.json").read_text(encoding="utf-8"))
        if (size := config["text_config"]["head_dim"]) < MIN_HEAD_SIZE:
            found.append(f"{name}: its attention heads have {size} numbers, a vLLM on a CPU wants {MIN_HEAD_SIZE}")
    return found


def install(folders: Mapping[str, Path]) -> Path:
    """Copy these folders over the weights that ship and write their manifest; returns its path.

    folders: "cac", "unified" and "wan". The domain that the shipped judges state stays.
    """
    from cac_align.core.weights import ship, weights_folder, write_manifest

    shutil.copytree(folders["wan"], weights_folder() / "wan", dirs_exist_ok=True)
    for name in ("cac", "unified"):
        ship(name, folders[name])
    return write_manifest()
