"""Spotlight (arXiv 2511.18102) as records: 600 generated videos with 1,604 typed, timed and
explained errors, no boxes.

Prompt adherence and logic are outside CaC's scope: such errors are dropped, and a video with no
others is left out, because it is neither normal nor anomalous in our sense. A global error lasts
from the first frame to the last. Compare judges with ``matching.match_errors``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cac_align.core.judgement import Anomaly, Window
from cac_align.core.video import Video
from cac_align.data.external import check_fields, map_label, open_or_reason, record_of
from cac_align.data.records import LoadedRecords, Record, loaded_records

_UNVERIFIED = (
    "Neither the files nor their address could be found: the JSON layout below is ours (one object per video: "
    "video, prompt, model, "
    "errors; an error has type, explanation, and either start_s and end_s, segments, or scope 'global'). Convert to "
    "it.",
    "Spotlight's own metric definitions could not be read; localisation.match_errors is our protocol, not its "
    "leaderboard's.",
    "The label names follow the paper's summary and the project page; the files may spell them otherwise and will "
    "then be refused.",
)

SPOTLIGHT_LABELS: Mapping[str, str | None] = {
    "Physics": "Physical Violations",
    "Physical Violations": "Physical Violations",
    "Motion": "Motion Anomalies",
    "Appearance/Disappearance": "Motion Anomalies",
    "Anatomy": "Human Distortion",
    "Body pose": "Human Distortion",
    "Anatomy/Body pose": "Human Distortion",
    "Adherence": None,
    "Logical": None,
}
"""Their error types, in the spellings of paper and page → our types; None: out of scope."""


def load(path: str | Path, *, videos: str | Path, table: Mapping[str, str | None] = SPOTLIGHT_LABELS) -> LoadedRecords:
    """Read the JSON list. Raises ``ValueError`` for an unknown field or label, or a segment outside
    its video.
    """
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    records: list[Record] = []
    left_out: dict[str, str] = {}
    for number, row in enumerate(rows):
        where = f"{path}[{number}]"
        check_fields(row, required=("video", "prompt", "errors"), optional=("model",), where=where)
        name = row["video"]
        for error in row["errors"]:
            optional = ("start_s", "end_s", "segments", "scope", "difficulty")
            check_fields(error, required=("type", "explanation"), optional=optional, where=where)
        kinds = [map_label(error["type"], table, where=where) for error in row["errors"]]
        video = open_or_reason(Path(videos) / name)
        if isinstance(video, str):
            left_out[name] = video
            continue
        anomalies = tuple(
            Anomaly(kind, window, error["explanation"], error["type"])
            for error, kind in zip(row["errors"], kinds, strict=True)
            if kind is not None
            for window in _windows(error, video, where)
        )
        if row["errors"] and not anomalies:
            left_out[name] = f"out of scope: {sorted({error['type'] for error in row['errors']})}"
            continue
        records.append(
            record_of(
                video,
                id=name,
                prompt=row["prompt"],
                anomalies=anomalies,
                annotator="Spotlight",
                extra={"model": row.get("model", ""), "dropped": sum(kind is None for kind in kinds)},
            )
        )
    return loaded_records(records, left_out, str(path), _UNVERIFIED)


def _windows(error: Mapping[str, Any], video: Video, where: str) -> list[Window]:
    """The error's windows, cut at the last frame."""
    if error.get("scope", "local") not in ("local", "global"):
        raise ValueError(f"{where}: scope must be 'local' or 'global', received {error['scope']!r}")
    if error.get("scope") == "global":
        return [Window(0.0, video.times_s[-1])]
    if "segments" in error:
        segments = error["segments"]
    elif "start_s" in error and "end_s" in error:
        segments = [[error["start_s"], error["end_s"]]]
    else:
        raise ValueError(
            f"{where}: an error needs start_s and end_s, segments, or scope 'global'; received {sorted(error)}"
        )
    last = video.times_s[-1]
    for start, end in segments:
        if not 0 <= start <= end or start > last or end > video.duration_s + 1:
            raise ValueError(f"{where}: segment [{start}, {end}] s does not lie in a video of {video.duration_s:.2f} s")
    return [Window(start, min(end, last)) for start, end in segments]
