"""Whose folder a run works in, and the checkpoints from which it goes on exactly where it was.

    out/recipe.json                 the kind of run and its recipe; ``claim_folder`` refuses a run of any other recipe
    out/.lock                       held by the process that works there, released by the system when that process ends
    out/checkpoints/step-000010/    complete checkpoints: each is moved to its place when all of it has been written

Generator states are not stored: every loop draws the random numbers of step n from generators
seeded by (seed, n, …), so a step that was cut short is taken again with the same numbers.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import IO, Any

from cac_align.runs.files import atomic_write, discard_unfinished

_LOCKS: dict[tuple[int, int], IO[str]] = {}
"""Lock files that this process holds, by device and inode. They stay open: closing one releases its
lock.
"""


def recipe_values(recipe: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a recipe (a dataclass) by dotted key, as JSON stores them."""
    values: dict[str, Any] = {}
    for item in fields(recipe):
        value = getattr(recipe, item.name)
        if is_dataclass(value):
            values |= recipe_values(value, f"{prefix}{item.name}.")
        else:
            values[f"{prefix}{item.name}"] = json.loads(json.dumps(value, default=asdict))
    return values


def claim_folder(
    out: Path,
    kind: str,
    recipe: Any,
    *,
    free: Collection[str] = (),
    steps: str = "",
    facts: Mapping[str, Any] | None = None,
    write: bool = True,
) -> dict[str, Any]:
    """Make ``out`` the folder of this run, or make sure that the run found there is this one.

    free: dotted keys, or names of whole sections, that may differ between a run and its
    continuation. steps: dotted key of the number of steps; it may be raised once the run has taken
    them all. facts: what else the run began with; the facts stored at the first claim are
    returned, for the caller to compare. write: create the folder, its ``recipe.json`` and its lock;
    exactly one process of a run must.

    A key that was added to the recipe after the run began counts as its present default. Raises
    ``ValueError`` when the folder belongs to another kind of run, to another recipe, or to a
    process that is still at work.
    """
    path, now = out / "recipe.json", recipe_values(recipe)
    if path.is_file():
        claim = json.loads(path.read_text(encoding="utf-8"))
        if claim.get("kind") != kind:
            found = claim.get("kind", "unknown")
            raise ValueError(f"{out}: holds another kind of run (expected {kind}, found {found}); choose another out=")
        before = recipe_values(type(recipe)()) | claim["recipe"]
        changed = [
            key
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key) and not any(key == name or key.startswith(f"{name}.") for name in free)
        ]
        extended = steps in changed and now[steps] > before[steps] <= _last_step(out)
        if extended:
            changed.remove(steps)
        if changed:
            key = changed[0]
            raise ValueError(
                f"{out}: holds a run of another recipe ({', '.join(changed)} differ; {key} was "
                f"{before.get(key)!r}, now {now.get(key)!r}); choose another out=, or go on with the same recipe"
            )
        facts, claimed = claim["facts"], not extended
    else:
        claimed = False
    if write:
        out.mkdir(parents=True, exist_ok=True)
        _lock(out)
        if not claimed:
            write_claim(out, kind, recipe, facts or {})
    return dict(facts or {})


def write_claim(out: Path, kind: str, recipe: Any, facts: Mapping[str, Any]) -> None:
    """Write ``out/recipe.json``, replacing what was there."""
    claim = {"kind": kind, "recipe": recipe_values(recipe), "facts": dict(facts)}
    atomic_write(out / "recipe.json", json.dumps(claim, indent=1) + "\n")


def _lock(out: Path) -> None:
    """Hold ``out/.lock`` until this process ends or releases it. Raises ``ValueError`` when another process of
    this machine holds it.
    """
    path = out / ".lock"
    path.touch()
    key = (path.stat().st_dev, path.stat().st_ino)
    if key in _LOCKS:
        return
    file = path.open("r+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise ValueError(
            f"{out}: another process is running in this folder; wait for it, or choose another out="
        ) from error
    except OSError:  # a file system without locks
        pass
    _LOCKS[key] = file


def release_folder(out: Path) -> None:
    """Give up the lock of a claimed folder, for a program that goes on when its run has ended."""
    path = out / ".lock"
    if path.exists() and (file := _LOCKS.pop((path.stat().st_dev, path.stat().st_ino), None)):
        file.close()


def save_checkpoint(
    out: Path, step: int, fill: Callable[[Path], Any], *, keep: int = 1, accelerator: Any = None
) -> Path:
    """Make the state after ``step`` steps a checkpoint, and delete all but the ``keep`` newest
    ones.

    fill: writes the files into the folder it is given. accelerator: every process calls this
    function and ``fill``; without it one process does. A checkpoint of this step that is already
    there is kept, for it has the same state. Raises ``OSError`` when the disk is full; nothing of
    the new checkpoint stays then.
    """
    place = out / "checkpoints" / f"step-{step:06d}"
    part = place.with_name(f".{place.name}.part")
    main = accelerator is None or accelerator.is_main_process

    def wait() -> None:
        if accelerator is not None:
            accelerator.wait_for_everyone()

    if place.is_dir():
        return place
    wait()
    try:
        if main:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        wait()
        fill(part)
        wait()
        if main:
            os.replace(part, place)
            for old in checkpoints(out)[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        discard_unfinished(part, error)
        raise
    wait()
    return place


def save_state(out: Path, state: Mapping[str, Any], *, keep: int = 1) -> Path:
    """``save_checkpoint`` for a state that is one dictionary with its ``step``; ``read_state``
    reads it.
    """
    import torch

    return save_checkpoint(out, state["step"], lambda folder: torch.save(state, folder / "state.pt"), keep=keep)


def checkpoints(out: Path) -> list[Path]:
    """The complete checkpoints below ``out``, oldest first."""
    return sorted((out / "checkpoints").glob("step-*"))


def _last_step(out: Path) -> int:
    """The step of the newest checkpoint, 0 without one."""
    found = checkpoints(out)
    return int(found[-1].name.removeprefix("step-")) if found else 0


def read_state(out: Path) -> dict[str, Any] | None:
    """``state.pt`` of the newest checkpoint, on the CPU; None without one. Raises ``ValueError``
    when it is damaged.
    """
    import torch

    folder = next(reversed(checkpoints(out)), None)
    if folder is None:
        return None
    try:
        return torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{folder}: cannot be read ({error}); remove this folder to go on from the checkpoint before it"
        ) from error
