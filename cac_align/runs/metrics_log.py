"""What a run writes down: JSON rows with their step, and the same numbers for TensorBoard or
Weights & Biases.

row → log.jsonl (+ tracker); on resume, rows of steps that will be taken again are dropped first. Numbers that do not
exist (no video was scored, no gradient was taken) are null or left out, never 0.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cac_align.runs.files import append_lines, atomic_write

TRACKERS = ("", "tensorboard", "wandb")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file, without a line that a kill tore; none when there is no file."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def cut_rows(path: Path, before: int | None = None) -> list[dict[str, Any]]:
    """Rewrite a JSON Lines file so that it holds whole rows with a ``step`` (below ``before``)
    alone, and return them.
    """
    rows = [row for row in read_rows(path) if "step" in row and (before is None or row["step"] < before)]
    if path.is_file():
        atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


class JsonlLog:
    """A JSON Lines file of rows with a ``step``.

    before: on opening, keep rows of earlier steps only. digits: significant digits of a float
    (None: all of them).
    """

    def __init__(self, path: Path, before: int | None = None, digits: int | None = 8) -> None:
        self.path, self.digits = path, digits
        self.rows = cut_rows(path, before)

    def add(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Append a row with one write, and return it as it was written. Raises ``OSError`` when it cannot
        be written whole.
        """
        plain = json_values(row, self.digits)
        self.rows.append(plain)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_lines(self.path, json.dumps(plain, allow_nan=False) + "\n")
        return plain


def json_values(value: Any, digits: int | None = 8) -> Any:
    """The value as JSON can hold it: floats to ``digits`` significant digits, NaN and infinity as
    null.
    """
    if isinstance(value, Mapping):
        return {name: json_values(item, digits) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(item, digits) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return value if digits is None else float(f"{value:.{digits}g}")
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


def open_tracker(kind: str, out: Path, step: int, config: Mapping[str, Any] | None = None) -> Any:
    """A TensorBoard SummaryWriter in ``out``, a W&B run that continues, or None for an empty kind.

    step: the first one that will be tracked; what TensorBoard holds of it and later ones is hidden.
    config: the recipe that W&B shows. Raises ``ValueError`` when the tracker is not installed.
    """
    if not kind:
        return None
    try:
        if kind == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            return SummaryWriter(str(out / "tensorboard"), purge_step=step)
        import wandb

        # The id belongs to the folder, so a resumed run continues its curves and folders of one name do not share them.
        known = out / "wandb-id.txt"
        if not known.is_file():
            atomic_write(known, secrets.token_hex(8))
        run_id = known.read_text(encoding="utf-8")
        return wandb.init(
            project="cac-align", name=out.name, id=run_id, dir=str(out), resume="allow", config=dict(config or {})
        )
    except ImportError as error:
        raise ValueError(
            f"track={kind} needs the package {kind}; in a checkout: "
            f"pip install -c constraints.txt -e '.[{kind}]' ({error})"
        ) from error


def track(tracker: Any, row: Mapping[str, Any], section: str = "align") -> None:
    """Send a row's numbers to the tracker (None: nowhere), named ``section/…``."""
    if tracker is None:
        return
    numbers = numbers_of({name: value for name, value in row.items() if name != "step"}, f"{section}/")
    if hasattr(tracker, "add_scalar"):
        for name, value in numbers.items():
            tracker.add_scalar(name, value, row["step"])
        tracker.flush()
    else:
        tracker.log({**numbers, f"{section}_step": row["step"]})
