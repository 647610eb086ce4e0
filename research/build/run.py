"""Steps that depend on each other: which are done, which are stale, and doing the rest.

Step… → ``stamped`` (the hash of what makes each step) → ``run`` → OUT/<step>/stamp.json, OUT/log.jsonl

The stamp of a step is the sha256 of its part of the recipe, of the stamps of its inputs and of the source code that
makes it (``code_hash``). A step is done when its folder holds its stamp; begun and not done, it goes on in its folder.
A folder with another stamp is stale: nothing is done until it is removed, or made again with ``rebuild``.
"""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cac_align.runs.checkpoint import claim_folder, release_folder
from cac_align.runs.files import atomic_write
from cac_align.runs.metrics_log import JsonlLog, json_values
from cac_align.runs.progress import progress_bar, say

STAMP = "stamp.json"
ROOT = Path(__file__).parents[2]
ROOMS = ("research/training", "research/experiments", "research/build", "cac_align/miniature", "cac_align/training")
"""The rooms whose code decides what a step makes; that of the others (decoding, engines) is held by their tests."""


@dataclass(frozen=True)
class Build:
    """What the folder of a build belongs to; it never changes there."""

    # Times all counts of steps and clips.
    scale: float = 1.0


@dataclass(frozen=True)
class Step:
    """One artefact. name: its folder below OUT. recipe: the values that it is made by. inputs: the steps it reads.
    code: the modules that make it. minutes: its expected cost on two cores. make: does the work in its folder, goes
    on with what lies there, and returns figures for the log.
    """

    name: str
    recipe: Mapping[str, Any]
    inputs: tuple[str, ...]
    code: tuple[str, ...]
    minutes: float
    make: Callable[[Path], Mapping[str, Any]]


def wanted(steps: Sequence[Step], names: Sequence[str]) -> list[Step]:
    """The steps of these names and all that they depend on, in the given order. Raises ``KeyError`` for others."""
    by_name = {step.name: step for step in steps}
    needed, open_names = set[str](), list(names)
    while open_names:
        if (name := open_names.pop()) not in needed:
            needed.add(name)
            open_names += by_name[name].inputs
    return [step for step in steps if step.name in needed]


def stamped(steps: Sequence[Step]) -> dict[str, dict[str, Any]]:
    """What each step is made from, and the hash of it, by the step's name."""
    found: dict[str, dict[str, Any]] = {}
    for step in steps:
        made_from = {
            "recipe": json.loads(json.dumps(step.recipe)),
            "inputs": {name: found[name]["hash"] for name in step.inputs},
            "code": code_hash(step.code),
        }
        found[step.name] = {"hash": _sha(json.dumps(made_from, sort_keys=True)), **made_from}
    return found


def run(
    steps: Sequence[Step], out: Path, build: Build = Build(), *, rebuild: bool = False
) -> dict[str, Mapping[str, Any]]:
    """Do the steps that are not done, in order; returns every step's figures by its name.

    rebuild: remove stale folders and make them again. Raises ``ValueError`` that names the first stale folder
    otherwise, and for a folder of another scale or of a process at work; nothing was done then.
    """
    now = stamped(steps)
    claim_folder(out, "curriculum", build)
    try:
        return _run(steps, out, now, rebuild)
    finally:
        release_folder(out)


def _run(
    steps: Sequence[Step], out: Path, now: Mapping[str, Mapping[str, Any]], rebuild: bool
) -> dict[str, Mapping[str, Any]]:
    if stale := [step.name for step in steps if _differs(out / step.name, now[step.name])]:
        if not rebuild:
            raise ValueError(
                f"{out / stale[0]} was made from something else ({_differs(out / stale[0], now[stale[0]])}); "
                f"--rebuild removes and makes anew: {', '.join(stale)}; or choose another --out"
            )
        for name in stale:
            shutil.rmtree(out / name)
    log = JsonlLog(out / "log.jsonl")
    figures: dict[str, Mapping[str, Any]] = {}
    with progress_bar(round(sum(step.minutes for step in steps)), "building", "min") as bar:
        for number, step in enumerate(steps, 1):
            title, folder = f"[{number}/{len(steps)}] {step.name}", out / step.name
            stamp = read_stamp(folder)
            if stamp is not None and stamp["done"]:
                figures[step.name] = stamp["figures"]
                log.add({"step": step.name, "event": "skipped", "hash": stamp["hash"]})
                say(f"{title}: done before")
            else:
                folder.mkdir(parents=True, exist_ok=True)
                _write(folder, now[step.name], done=False, seconds=0.0, figures={})
                log.add({"step": step.name, "event": "begun" if stamp is None else "resumed"})
                say(f"{title} …")
                began = time.monotonic()
                found = json_values(dict(step.make(folder)))
                seconds = round(time.monotonic() - began, 1)
                _write(folder, now[step.name], done=True, seconds=seconds, figures=found)
                log.add({"step": step.name, "event": "done", "seconds": seconds, "figures": found})
                say(f"{title}: done in {seconds:.0f} s")
                figures[step.name] = found
            bar.update(round(step.minutes))
    return figures


def read_stamp(folder: Path) -> dict[str, Any] | None:
    """The stamp of a step's folder; None where it has not begun."""
    path = folder / STAMP
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _write(folder: Path, made_from: Mapping[str, Any], **state: Any) -> None:
    atomic_write(folder / STAMP, json.dumps({**made_from, **state}, indent=1) + "\n")


def _differs(folder: Path, now: Mapping[str, Any]) -> str:
    """What of a folder's stamp is not as now, in words; empty where nothing is, or nothing lies there."""
    before = read_stamp(folder)
    if before is None or before["hash"] == now["hash"]:
        return ""
    keys = sorted({*before["recipe"], *now["recipe"]})
    changed = [f"recipe key {key}" for key in keys if before["recipe"].get(key) != now["recipe"].get(key)]
    names = sorted({*before["inputs"], *now["inputs"]})
    changed += [f"input {name}" for name in names if before["inputs"].get(name) != now["inputs"].get(name)]
    return ", ".join([*changed, *(["code"] if before["code"] != now["code"] else [])]) + " differs"


# ---- the code behind a step -----------------------------------------------------------------------------------------


def code_hash(modules: Sequence[str]) -> str:
    """The sha256 of these modules' files and of all files of ``ROOMS`` that they import, directly or not."""
    seen: set[Path] = set()
    todo = [path for module in modules if (path := _file(module)) is not None]
    while todo:
        if (path := todo.pop()) not in seen:
            seen.add(path)
            todo += _imports(path)
    named = sorted((path.relative_to(ROOT).as_posix(), path) for path in seen)
    return _sha("\0".join(f"{name}\0{_sha(path.read_text(encoding='utf-8'))}" for name, path in named))


@cache
def _imports(path: Path) -> list[Path]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found += [file for name in names if (file := _file(name)) is not None]
    return [file for file in found if file.relative_to(ROOT).as_posix().startswith(tuple(f"{at}/" for at in ROOMS))]


def _file(module: str) -> Path | None:
    path = ROOT / (module.replace(".", "/") + ".py")
    return path if path.is_file() else None


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
