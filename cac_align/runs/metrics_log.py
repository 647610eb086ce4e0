"""What a run writes down: one JSON row per step, the watched readings, and the same numbers for TensorBoard or Weights & Biases.

row → log.jsonl (+ tracker)        on resume: rows of steps that will be taken again are dropped first

Numbers that do not exist (no video scored, no spread) are null or left out, never 0.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cac_align.runs.files import write_whole


class Rows:
    """A JSON Lines file of rows with a ``step``; a line torn by a kill is dropped. before: keep rows of earlier steps only."""

    def __init__(self, path: Path, before: int | None = None) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    row = json.loads(line)
                    if before is None or row["step"] < before:
                        self.rows.append(row)
                except (ValueError, KeyError, TypeError):
                    continue
            write_whole(path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row with one write."""
        row = plain(row)
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")


def plain(value: Any) -> Any:
    """JSON without NaN: null; floats to 8 digits."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value


def numbers_of(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a row with their path as name, {"seconds": {"step": 2.0}} → {"seconds/step": 2.0}."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= numbers_of(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{prefix}{name}"] = float(value)
    return found


def open_tracker(kind: str, out: Path, step: int) -> Any:
    """A TensorBoard SummaryWriter in ``out``, a W&B run that continues, or None for an empty kind.

    Raises ``ValueError`` when the tracker is not installed.
    """
    if not kind:
        return None
    try:
        if kind == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            return SummaryWriter(str(out / "tensorboard"), purge_step=step)
        import wandb

        known = (
            out / "wandb-id.txt"
        )  # a run of its own, whatever other folders are called; the same one when it goes on
        if not known.is_file():
            write_whole(known, secrets.token_hex(8))
        return wandb.init(
            project="cac-align", name=out.name, id=known.read_text(encoding="utf-8"), dir=str(out), resume="allow"
        )
    except ImportError as error:
        raise ValueError(
            f"track={kind} needs the package {kind}: in its checkout: pip install -c constraints.txt -e '.[{kind}]' ({error})"
        ) from error


def track(tracker: Any, row: Mapping[str, Any]) -> None:
    """Send a row's numbers to the tracker."""
    if tracker is None:
        return
    numbers = numbers_of({name: value for name, value in row.items() if name != "step"}, "align/")
    if hasattr(tracker, "add_scalar"):
        for name, value in numbers.items():
            tracker.add_scalar(name, value, row["step"])
    else:
        tracker.log({**numbers, "align_step": row["step"]})


def seconds_of(step_s: float, seconds: Mapping[str, float], judge_s: float, wait_s: float) -> dict[str, float]:
    """Where a step's time went. saved: judging that nobody waited for. other: all beyond model, VAE, optimizer and waiting for scores."""
    parts = {name: seconds.get(name, 0.0) for name in ("model", "vae", "backward", "optimizer")}
    other = step_s - sum(parts.values()) - wait_s
    return {
        "step": step_s,
        **parts,
        "judge": judge_s,
        "wait": wait_s,
        "saved": max(judge_s - wait_s, 0.0),
        "other": other,
    }


def line_of(row: Mapping[str, Any], step: int, steps: int) -> str:
    """A row in one line for people. step: how many are done."""
    shown = " ".join(
        f"{name} {row[name]:.4f}"
        for name in ("score", "loss", "ratio", "motion", "grad_norm")
        if row.get(name) is not None
    )
    return (
        f"step {step}/{steps}  {shown}  dead {row.get('zero_std_groups', 0)} unscored {row.get('unscored', 0)}  "
        f"{row['seconds']['step']:.1f} s" + (f"  skipped: {row['skipped']}" if row.get("skipped") else "")
    )
