"""Annotation records: JSON Lines, one object per video. Written by `cac-align world`, the rating
page and the loaders.

{"id", "video" (path relative to the file), "prompt", "fps", "num_frames", "width", "height",
"status", "anomalies": [...], "annotator", "review", "extra"}; an anomaly is
``Anomaly.to_json()``: type, window (seconds), reason, region, boxes by source frame (integers in
[0, 1000]), saliency. The conventions are those of the paper's Appendix B.1.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cac_align.core.judgement import Anomaly, Status
from cac_align.core.whole_file import whole_file

Review = Literal["draft", "returned", "accepted", "audited"]


@dataclass(frozen=True)
class Record:
    """One annotated video. ``video`` is a path relative to the records file, or absolute. ``extra``
    is free-form.
    """

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
    """Stream the records of a JSON Lines file. Raises ``ValueError`` with file, line and reason for
    a line that is no record.
    """
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
    """The records of a JSON Lines file. Raises ``ValueError`` as ``read_records`` does, and for a
    file without records.
    """
    records = list(read_records(path))
    if not records:
        raise ValueError(f"{path}: holds no records")
    return records


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write records as JSON Lines and return their number; the file appears when it is whole."""
    count = 0
    with whole_file(path) as part, open(part, "w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")
            count += 1
    return count


def moved_record(record: Record, root: Path, out: Path) -> Record:
    """The record for a file in folder ``out`` instead of ``root``: a relative video path is
    adapted.
    """
    if Path(record.video).is_absolute():
        return record
    return replace(record, video=os.path.relpath((root / record.video).resolve(), out.resolve()))


@dataclass(frozen=True)
class LoadedRecords:
    """What a file or data set became.

    left_out: reason by their name for each video that is no record. unverified: what nobody could
    check about the format.
    """

    records: tuple[Record, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    unverified: tuple[str, ...] = ()

    def summary(self) -> str:
        """One sentence: number of records by class, and of videos left out by reason."""
        classes = Counter(record.status for record in self.records)
        reasons = Counter(reason.split(":")[0] for reason in self.left_out.values())
        out = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        return (
            f"{len(self.records)} records ({classes['abnormal']} abnormal, {classes['normal']} normal), "
            f"{len(self.left_out)} left out{f' ({out})' if out else ''}"
        )


def loaded_records(
    records: Sequence[Record], left_out: Mapping[str, str], where: str, unverified: tuple[str, ...] = ()
) -> LoadedRecords:
    """``LoadedRecords``. Raises ``ValueError`` when nothing could be used, which means a wrong
    folder.
    """
    if not records:
        first = next(iter(left_out.values()), "the file is empty")
        raise ValueError(
            f"{where}: none of {len(left_out)} videos became a record; the first was left out because: {first}"
        )
    return LoadedRecords(tuple(records), left_out, unverified)
