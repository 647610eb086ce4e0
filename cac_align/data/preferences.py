"""Preference pairs with a mask from a repair run: (repaired, what it was made from), which differ in the mask alone.

``attempts.jsonl`` of `cac-align repair` → ``preference_pairs`` → ``write_preferences`` → JSON Lines

A row is what local DPO (arXiv 2601.04068) takes: prompt, chosen and rejected video, and the mask to
which the loss is confined. The mask is an npz file: ``weights`` in [0, 1] per cell of the latent grid
(t, h, w), and ``strides`` (source frames after the first per latent frame, pixels per cell). Only
repairs that judge and guards accepted are pairs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cac_align.runs.files import atomic_write
from cac_align.runs.metrics_log import read_rows


@dataclass(frozen=True)
class PreferencePair:
    """Two videos of one prompt. chosen_score, rejected_score: the judge's."""

    prompt: str
    chosen: Path
    rejected: Path
    mask: Path
    windows: tuple[Mapping[str, float], ...]
    chosen_score: float
    rejected_score: float

    def to_json(self, folder: Path) -> dict[str, Any]:
        """A row of the file, with paths relative to ``folder``."""
        paths = {
            name: os.path.relpath(getattr(self, name).resolve(), folder) for name in ("chosen", "rejected", "mask")
        }
        scores = {"chosen_score": self.chosen_score, "rejected_score": self.rejected_score}
        return {"prompt": self.prompt, **paths, "windows": [dict(window) for window in self.windows], **scores}


def preference_pairs(repairs: Path) -> tuple[list[PreferencePair], dict[str, str]]:
    """The pairs of a repair run's folder, and what is left out with its reason.

    Raises ``ValueError`` for a folder without ``attempts.jsonl``.
    """
    log = repairs / "attempts.jsonl"
    if not log.is_file():
        raise ValueError(f"{repairs}: no attempts.jsonl; expected the --out of `cac-align repair`")
    last = {row["key"]: row for row in read_rows(log) if "key" in row}
    pairs, left_out = [], {}
    for row in last.values():
        if not row.get("accepted"):
            continue
        paths = {name: Path(row[key]) for name, key in (("chosen", "path"), ("rejected", "base"), ("mask", "mask"))}
        missing = next((path for path in paths.values() if not path.is_file()), None)
        if missing is not None:
            left_out[row["path"]] = f"{missing} is gone"
            continue
        scores = {"chosen_score": row["after"]["score"], "rejected_score": row["before"]["score"]}
        pairs.append(PreferencePair(row["prompt"], **paths, windows=tuple(row["windows"]), **scores))
    return pairs, left_out


def write_preferences(pairs: Sequence[PreferencePair], out: Path) -> None:
    """Write the pairs as JSON Lines, atomically; paths are relative to the file's folder."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.parent.resolve()
    lines = [json.dumps(pair.to_json(folder), ensure_ascii=True) for pair in pairs]
    atomic_write(out, "".join(line + "\n" for line in lines))
