"""Scores that were computed before, read from JSON Lines, so that a bench needs no model and no
video.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cac_align.data.records import Record
from cac_align.rewards.reward import Score


def stored_scores(path: str | Path, records: Iterable[Record]) -> dict[str, dict[str, Score]]:
    """Read scores from JSON Lines: by judge's name, then by record id.

    Accepted are the rows that `cac-align score --json` prints and those of a ledger:
    ``Score.to_json()`` plus ``id`` or ``video`` (the record's id, its video path or that path's
    file name), and the judge's name in ``reward`` (the file's name where it is missing).

    - A row made with another prompt is skipped.
    - One reward with several provenances (two checkpoints, two samplings) becomes several judges,
      named ``name@digest``.
    - The last score of a video counts; a failed attempt counts only where no score was ever made.
    - An unfinished last line, from an interrupted process, is skipped.

    Raises ``ValueError`` naming the line for any other line that is no score, and for a name that
    two records share.
    """
    prompts: dict[str, str] = {}
    ids: dict[str, str] = {}
    shared: set[str] = set()
    for record in records:
        prompts[record.id] = record.prompt
        for name in {record.id, record.video, Path(record.video).name}:
            if ids.setdefault(name, record.id) != record.id:
                shared.add(name)
    found: dict[tuple[str, str], dict[str, Score]] = {}
    failed: dict[str, dict[str, Score]] = {}
    for number, row in _rows(path):
        name = next((key for key in _names(row) if key in ids), None)
        if name is None or row.get("prompt", prompts[ids[name]]) != prompts[ids[name]]:
            continue
        if name in shared:
            raise ValueError(f"{path}:{number}: {name!r} fits more than one record; give scores the record's id")
        judge, score = str(row.get("reward") or Path(path).stem), Score.from_json(row)
        if score.scored:
            digest = hashlib.sha256(json.dumps(dict(score.provenance), sort_keys=True).encode()).hexdigest()[:8]
            found.setdefault((judge, digest), {})[ids[name]] = score
        else:
            failed.setdefault(judge, {})[ids[name]] = score
    versions = Counter(judge for judge, _ in found)
    named = {
        judge if versions[judge] == 1 else f"{judge}@{digest}": scores for (judge, digest), scores in found.items()
    }
    for judge, scores in failed.items():
        for title in [name for name in named if name == judge or name.startswith(f"{judge}@")] or [judge]:
            named[title] = {**scores, **named.get(title, {})}
    return named


_SCORE_KEYS = {"score", "parts", "judgement", "error", "provenance"}


def _rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and row of every score in a JSON Lines file. A ledger's ``extra`` rows (facts
    added later) are skipped.
    """
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                if not line.endswith("\n"):
                    return  # a process was cut off while appending: that score was never finished
                raise ValueError(f"{path}:{number}: not JSON: {error}") from error
            if isinstance(row, dict) and row.get("kind") == "extra":
                continue
            if not isinstance(row, dict) or not set(row) >= _SCORE_KEYS:
                raise ValueError(
                    f"{path}:{number}: expected a score with {sorted(_SCORE_KEYS)}, received {line[:80]!r}"
                )
            yield number, row


def _names(row: Mapping[str, Any]) -> list[str]:
    given = [str(row[key]) for key in ("id", "video", "name") if row.get(key)]
    return given + [Path(name).name for name in given]
