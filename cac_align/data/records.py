"""Annotation records: one JSON object per line, one video each. Written by `cac-align world`, the rating page and the loaders.

{"id", "video" (path relative to the file), "prompt", "fps", "num_frames", "width", "height", "status", "anomalies": [...],
 "annotator", "review", "extra"}; an anomaly is ``Anomaly.to_json()``: type, window (seconds), reason, region, boxes by source
frame ([0, 1000] integers), saliency. The conventions are the paper's Appendix B.1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cac_align.core.judgement import Anomaly, Status
from cac_align.core.video import Video

Review = Literal["draft", "returned", "accepted", "audited"]


@dataclass(frozen=True)
class Record:
    """One annotated video. ``video`` is a path relative to the records file (or absolute). ``extra`` is free-form provenance."""

    id: str
    video: str
    prompt: str
    fps: float
    num_frames: int
    width: int
    height: int
    status: Status
    anomalies: tuple[Anomaly, ...] = ()
    annotator: str = ""
    review: Review = "accepted"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in ("normal", "abnormal"):
            raise ValueError(f"record {self.id}: status must be 'normal' or 'abnormal', received {self.status!r}")
        if (self.status == "abnormal") != bool(self.anomalies):
            raise ValueError(f"record {self.id}: status {self.status} does not go with {len(self.anomalies)} anomalies")

    def to_json(self) -> dict[str, Any]:
        row = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**row, "anomalies": [anomaly.to_json() for anomaly in self.anomalies], "extra": dict(self.extra)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Record:
        unknown = set(row) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(
                f"record {row.get('id')}: unknown fields {sorted(unknown)}; free-form data belongs under 'extra'"
            )
        return cls(**{**row, "anomalies": tuple(Anomaly.from_json(item) for item in row.get("anomalies", ()))})


def read_records(path: str | Path) -> Iterator[Record]:
    """Stream the records of a JSONL file. Raises ``ValueError`` naming the file, the line and what is wrong with it."""
    if Path(path).is_dir() or not Path(path).exists():
        raise ValueError(
            f"{path}: expected a records file (JSONL), found {'a folder' if Path(path).is_dir() else 'nothing'} there"
        )
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield Record.from_json(json.loads(line.decode("utf-8")))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: not a record: {error}") from error


def all_records(path: str | Path) -> list[Record]:
    """The records of a JSONL file, at least one. Raises ``ValueError`` as ``read_records`` does, and for a file without any."""
    records = list(read_records(path))
    if not records:
        raise ValueError(f"{path}: holds no records")
    return records


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write records as JSONL, one per line; returns how many."""
    count = 0
    with open(path, "w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")
            count += 1
    return count


VARIABLE = "variable frame rate: re-encode at a constant rate"


def off_clock(video: Video, fps: float) -> float:
    """By how many frames a time stamp of the video lies off the even clock index / fps, on which judges learn and are tested."""
    return max(abs(time_s * fps - index) for index, time_s in enumerate(video.times_s))


def variable(video: Video, fps: float) -> bool:
    """Whether the video's own time stamps lie more than half a frame off any even clock: ``fps``, and that of its own mean rate.

    ``video`` is on the container's clock: opened without fps.
    """
    if off_clock(video, fps) <= 0.5:
        return False
    return off_clock(video, (len(video) - 1) / video.times_s[-1]) > 0.5


def moved(record: Record, root: Path, out: Path) -> Record:
    """The record for a file in folder ``out`` instead of ``root``: its video's path follows. An absolute path stays."""
    if Path(record.video).is_absolute():
        return record
    return replace(record, video=os.path.relpath((root / record.video).resolve(), out.resolve()))
