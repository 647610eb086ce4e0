"""A run of several steps, each in a folder of its own, that goes on where it was interrupted.

RunStep… → ``run_steps`` → out/<step>/step.json (what the step is made from; its figures once it is done)
    → out/log.jsonl (a row per beginning, end and skipped step) and a line per step on stderr
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cac_align.runs.files import atomic_write
from cac_align.runs.metrics_log import JsonlLog, json_values
from cac_align.runs.progress import say

STAMP = "step.json"


@dataclass(frozen=True)
class RunStep:
    """One step. made_from: values, by recipe key, that this step depends on beyond those of the
    steps before it. run: does the step's work in its folder, resuming what it finds there, and
    returns figures for the log.
    """

    name: str
    made_from: Mapping[str, Any]
    run: Callable[[Path], Mapping[str, Any]]


def run_steps(out: Path, steps: Sequence[RunStep]) -> dict[str, Mapping[str, Any]]:
    """Do the steps that are not done yet, in order, and return every step's figures by its name.

    Before any work, each folder's stamp is compared with what its step is made from now, the steps
    before it included. Raises ``ValueError`` that names the keys that differ; nothing was done then.
    """
    made_from: dict[str, Any] = {}
    stamps = []
    for step in steps:
        made_from |= json.loads(json.dumps(step.made_from))
        stamp = _read(out / step.name / STAMP)
        _check_same(out / step.name, stamp, made_from)
        stamps.append((dict(made_from), stamp))
    log = JsonlLog(out / "log.jsonl")
    figures: dict[str, Mapping[str, Any]] = {}
    for number, (step, (made_of, stamp)) in enumerate(zip(steps, stamps, strict=True), 1):
        title, folder = f"[{number}/{len(steps)}] {step.name}", out / step.name
        if stamp is not None and stamp["done"]:
            figures[step.name] = stamp["figures"]
            log.add({"step": step.name, "event": "skipped", "time": _now()})
            say(f"{title}: done before: {_line(stamp['figures'])}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, made_of, done=False, figures={}, seconds=0.0)
        log.add({"step": step.name, "event": "begun", "time": _now()})
        say(f"{title} …")
        began = time.monotonic()
        found = json_values(dict(step.run(folder)))
        seconds = round(time.monotonic() - began, 2)
        _write(folder, made_of, done=True, figures=found, seconds=seconds)
        log.add({"step": step.name, "event": "done", "time": _now(), "seconds": seconds, "figures": found})
        say(f"{title}: {_line(found)}, {seconds:.0f} s")
        figures[step.name] = found
    return figures


def is_done(folder: Path) -> bool:
    """Whether the step of this folder has been done."""
    stamp = _read(folder / STAMP)
    return stamp is not None and stamp["done"]


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _write(folder: Path, made_from: Mapping[str, Any], **state: Any) -> None:
    atomic_write(folder / STAMP, json.dumps({"made_from": made_from, **state}, indent=1) + "\n")


def _check_same(folder: Path, stamp: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` where a folder was made from other values. A key that a release added
    after that says nothing.
    """
    if stamp is None:
        return
    before = stamp["made_from"]
    if differ := sorted(key for key in before.keys() & now.keys() if before[key] != now[key]):
        key = differ[0]
        raise ValueError(
            f"{folder} was made with another recipe ({', '.join(differ)} differ; {key} was {before[key]!r}, now "
            f"{now[key]!r}); choose another out=, or remove this folder and those of the later steps"
        )


def _line(figures: Mapping[str, Any]) -> str:
    """The figures that are numbers or words, as one line."""
    plain = {name: value for name, value in figures.items() if isinstance(value, (int, float, str))}
    return ", ".join(f"{name} {value}" for name, value in plain.items()) or "done"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")  # noqa: UP017 (a client on Python 3.10)
