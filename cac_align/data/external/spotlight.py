"""Spotlight (arXiv 2511.18102) as records: 600 generated videos with 1,604 typed, timed and
explained errors, no boxes.

test/metadata.jsonl: one row per prompt and generator → the row's video test/spotlight/<generator>/<pid>.mp4
    → its list of errors, found by what it holds → records

Four of the six error types have a counterpart in CaC's taxonomy. Prompt adherence and logic have none: such errors
enter no record's anomalies, so they are no part of CaC's recall, and are listed in the record's ``extra`` instead. A
video with no others is left out, because it is neither normal nor anomalous in our sense. A global error lasts from the
first frame to the last. Compare judges with ``matching.match_errors``. The data's licence (CC BY-NC 4.0) allows
evaluation, not the training of a judge that is sold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cac_align.core.judgement import Anomaly, Window
from cac_align.core.video import Video
from cac_align.data.external import map_label, open_or_reason, record_of
from cac_align.data.records import LoadedRecords, Record, loaded_records

_UNVERIFIED = (
    "The key of a row's error list, and the keys inside an error, could not be read: the list is found by what it "
    "holds, and a file that leaves two readings is refused.",
    "Spotlight's own metric definitions could not be read; matching.match_errors is our protocol, not its "
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
"""Their error types, in the spellings of paper and page → our types; None: out of scope. Upper and lower case do not
matter.
"""

_KNOWN = ("pid", "video_from", "prompt", "orig_dataset", "source_data", "refvideo_exists")
_KIND_KEYS = ("type", "error_type", "category", "label")
_REASON_KEYS = ("explanation", "description", "reason", "comment")
_STARTS, _ENDS = ("start", "start_s", "start_time"), ("end", "end_s", "end_time")
_SEGMENT_KEYS = ("segments", "time_segments", "intervals", "timestamps")
_SCOPE_KEYS = ("scope", "extent")


def load(
    path: str | Path, *, videos: str | Path | None = None, table: Mapping[str, str | None] = SPOTLIGHT_LABELS
) -> LoadedRecords:
    """Read ``metadata.jsonl``.

    path: the file, or the folder that holds it or its ``test`` folder. videos: the folder with a sub-folder per
    generator; None takes ``spotlight`` beside the file. Raises ``ValueError`` where the error list cannot be told, for
    an unknown type of error, or for a segment that does not lie in its video.
    """
    source = _metadata_file(Path(path))
    folder = Path(videos) if videos is not None else source.parent / "spotlight"
    rows = list(_rows(source))
    key = error_list_key([row for _, row in rows], table, str(source))
    records: list[Record] = []
    left_out: dict[str, str] = {}
    for where, row in rows:
        name = f"{row['video_from']}/{row['pid']}.mp4"
        if any(record.id == name for record in records) or name in left_out:
            raise ValueError(f"{where}: {name} has a row already; expected one row per prompt and generator")
        errors = _error_list(row, key, where)
        kinds = [_kind(error, table, where) for error in errors]
        video = open_or_reason(folder / name)
        if isinstance(video, str):
            left_out[name] = video
            continue
        anomalies: list[Anomaly] = []
        outside: list[dict[str, Any]] = []
        for error, (label, kind) in zip(errors, kinds, strict=True):
            windows = _windows(error, video, where)
            reason = str(_first(error, _REASON_KEYS) or "")
            if kind is None:
                outside.append({"type": label, "windows": [w.to_json() for w in windows], "explanation": reason})
            else:
                anomalies += [Anomaly(kind, window, reason, label) for window in windows]
        if outside and not anomalies:
            left_out[name] = f"out of scope: {sorted({each['type'] for each in outside})}"
            continue
        extra = {"generator": row["video_from"], "source": row.get("orig_dataset", ""), "out_of_scope": outside}
        records.append(
            record_of(
                video,
                id=name,
                prompt=str(row["prompt"]),
                anomalies=tuple(anomalies),
                annotator="Spotlight",
                extra={**extra, **_source_data(row, where)},
            )
        )
    return loaded_records(records, left_out, str(source), _UNVERIFIED)


def _metadata_file(path: Path) -> Path:
    for found in (path, path / "metadata.jsonl", path / "test" / "metadata.jsonl"):
        if found.is_file():
            return found
    raise ValueError(f"{path}: expected Spotlight's metadata.jsonl, or the folder with test/metadata.jsonl in it")


def _rows(source: Path) -> list[tuple[str, dict[str, Any]]]:
    """(file and line, row) of every line."""
    found = []
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{source}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON: {error}; expected one object per line") from error
        missing = [name for name in ("pid", "video_from", "prompt") if not isinstance(row, dict) or name not in row]
        if missing:
            seen = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{where}: missing {missing}; expected one row per prompt and generator, received {seen}")
        found.append((where, row))
    return found


def error_list_key(rows: Sequence[Mapping[str, Any]], table: Mapping[str, str | None], where: str) -> str:
    """The key whose values are lists of errors: objects with a type of Spotlight's in one of their texts.

    ``source_data`` (a JSON text) is what the prompts came from, and is not searched. Raises ``ValueError`` naming the
    keys that were seen where no key or several fit.
    """
    names = {_folded(label) for label in table}
    fitting: dict[str, int] = {}
    for row in rows:
        for key, value in row.items():
            items = _as_list(value) if key not in _KNOWN else None
            if items and all(isinstance(item, dict) for item in items):
                typed = sum(any(_folded(text) in names for text in item.values()) for item in items)
                fitting[key] = fitting.get(key, 0) + typed
    found = [key for key, count in fitting.items() if count]
    if len(found) == 1:
        return found[0]
    seen = sorted({key for row in rows for key in row})
    if found:
        raise ValueError(f"{where}: the keys {sorted(found)} all hold lists of errors; leave one of them in the file")
    objects = sorted({name for row in rows for value in row.values() for item in _objects(value) for name in item})
    raise ValueError(
        f"{where}: no key holds a list of objects with one of the types {', '.join(table)}; the rows have the keys "
        f"{seen}, the objects in them {objects}"
    )


def _as_list(value: Any) -> list[Any] | None:
    """A list, or one that is written as a JSON text; else None."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, list) else None


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in _as_list(value) or () if isinstance(item, dict)]


def _error_list(row: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    """The row's errors. A row without the key is refused: it may have no errors, or not be annotated."""
    errors = _as_list(row.get(key))
    if errors is None or not all(isinstance(error, dict) for error in errors):
        raise ValueError(f"{where}: {key!r} must be a list of errors (empty where there are none), as in other rows")
    return errors


def _folded(text: object) -> str:
    return text.strip().casefold() if isinstance(text, str) else ""


def _kind(error: Mapping[str, Any], table: Mapping[str, str | None], where: str) -> tuple[str, str | None]:
    """(the type as it is spelled in our table, our type)."""
    folded = {_folded(label): label for label in table}
    keys = [key for key in _KIND_KEYS if isinstance(error.get(key), str)]
    keys = keys or [key for key, text in error.items() if _folded(text) in folded]
    if not keys:
        raise ValueError(
            f"{where}: an error without a type; expected one of the keys {_KIND_KEYS}, has {sorted(error)}"
        )
    written = str(error[keys[0]])
    label = folded.get(_folded(written), written)
    return label, map_label(label, table, where=where)


def _source_data(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the prompt came from; Spotlight keeps it as a JSON text in each row."""
    value = row.get("source_data")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"{where}: source_data is no JSON text: {error}") from error
    return {"source_data": value} if value else {}


def _first(error: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((error[key] for key in keys if error.get(key) is not None), None)


def _windows(error: Mapping[str, Any], video: Video, where: str) -> list[Window]:
    """The error's windows, cut at the last frame."""
    last = video.times_s[-1]
    scope = _first(error, _SCOPE_KEYS)
    if scope is not None and _folded(scope) not in ("local", "global"):
        raise ValueError(f"{where}: the scope must be 'local' or 'global', received {scope!r}")
    if _folded(scope) == "global":
        return [Window(0.0, last)]
    segments = _first(error, _SEGMENT_KEYS)
    start, end = _first(error, _STARTS), _first(error, _ENDS)
    if segments is None and start is not None and end is not None:
        segments = [[start, end]]
    if not isinstance(segments, list) or not segments:
        raise ValueError(
            f"{where}: an error needs a start and an end, a list of segments, or the scope 'global'; "
            f"received the keys {sorted(error)}"
        )
    if len(segments) == 2 and not any(isinstance(each, (list, dict)) for each in segments):
        segments = [segments]  # one pair of numbers
    return [_window(segment, video, where) for segment in segments]


def _window(segment: Any, video: Video, where: str) -> Window:
    if isinstance(segment, dict):
        segment = [_first(segment, _STARTS), _first(segment, _ENDS)]
    if not isinstance(segment, list) or len(segment) != 2:
        raise ValueError(f"{where}: a segment is a pair of seconds, received {segment!r}")
    try:
        start, end = (float(value) for value in segment)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: a segment is a pair of seconds, received {segment!r}") from None
    if not (math.isfinite(end) and 0 <= start <= end) or start > video.duration_s or end > video.duration_s + 1:
        raise ValueError(f"{where}: segment [{start}, {end}] s does not lie in a video of {video.duration_s:.2f} s")
    last = video.times_s[-1]
    return Window(min(start, last), min(end, last))
