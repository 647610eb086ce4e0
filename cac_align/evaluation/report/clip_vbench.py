"""VBench values of clips, given as rows or read from ``vbench.jsonl``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from cac_align.evaluation.pairing import Fault, json_rows
from cac_align.evaluation.report.clip_record import ClipRecord, existing_files
from cac_align.evaluation.vbench.run import VBenchRow, row_value


def add_vbench(
    clip_records: Sequence[ClipRecord], folders: Sequence[Path], rows: Sequence[VBenchRow] | None, faults: list[Fault]
) -> None:
    """Enter VBench values. rows: None reads the folders' ``vbench.jsonl``, whose rows are matched
    by the file's sha256 and prompt.
    """
    if rows is not None:
        by_path: dict[Path, list[ClipRecord]] = {}
        for clip_record in clip_records:
            by_path.setdefault(clip_record.clip.path.resolve(), []).append(clip_record)
        for row in rows:
            _enter(by_path.get(Path(row.video).resolve(), ()), row.dimension, row.value, row.error, faults)
        return
    stored = existing_files(folders, "vbench.jsonl")
    if not stored:
        return
    by_hash: dict[str, list[ClipRecord]] = {}
    for clip_record in clip_records:
        by_hash.setdefault(hashlib.sha256(clip_record.clip.path.read_bytes()).hexdigest(), []).append(clip_record)
    for path in stored:
        for number, row in json_rows(path, faults):
            try:
                value, error = row_value(row)
                judge = {name: str(row[name]) for name in ("version", "imaging_mode") if name in row}
                found = by_hash.get(row["sha256"], ())
                about = [
                    each
                    for each in found
                    if None in (each.clip.prompt, row.get("prompt")) or each.clip.prompt == row["prompt"]
                ]
                _enter(about, row["dimension"], value, error, faults, judge)
            except (KeyError, TypeError) as fault:
                faults.append(
                    Fault("unreadable line", f"{path.parent.name}/{path.name}:{number}", f"not a VBench row: {fault}")
                )


def _enter(
    clip_records: Sequence[ClipRecord],
    dimension: str,
    value: float | None,
    error: str | None,
    faults: list[Fault],
    judge: Mapping[str, str] | None = None,
) -> None:
    """Enter one value for these clips, or name the reason why there is none."""
    for clip_record in clip_records:
        if value is not None:
            clip_record.vbench[dimension] = value
            clip_record.judges[f"vbench/{dimension}"] = judge or {}
        else:
            faults.append(
                Fault("no VBench value", f"{clip_record.clip.group}/{clip_record.clip.name}", f"{dimension}: {error}")
            )
