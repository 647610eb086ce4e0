"""GeneVA (16,356 generated videos with per-frame artefact boxes, labels, descriptions and ratings)
as records.

Input is a JSON list or JSON Lines with one object per video. Boxes with one label and
description form one anomaly; a video without boxes is normal. The data set's address was a
placeholder on its own page, so its keys, label names and box order are settings: ``Fields``
names the keys, ``table`` (no default) maps the labels, ``boxes`` says how a box is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cac_align.core.judgement import ANOMALY_TYPES, Anomaly, Box, Window
from cac_align.core.video import Video
from cac_align.data.external import check_fields, map_label, open_or_reason, record_of
from cac_align.data.records import LoadedRecords, Record, loaded_records

BoxForm = Literal["xyxy_px", "xywh_px", "xyxy_fraction", "xywh_fraction"]

_UNVERIFIED = (
    "No file of GeneVA was available (the project page linked to a placeholder): keys, label names, box order and "
    "whether frames "
    "count from 0 are all settings of this loader, not facts.",
    "That a video without boxes is free of artefacts is assumed from the page's text.",
)


@dataclass(frozen=True)
class Fields:
    """The data set's keys: three per video, then four per box. ``ratings`` are kept in ``extra``."""

    video: str = "video"
    prompt: str = "prompt"
    annotations: str = "annotations"
    frame: str = "frame"
    box: str = "bbox"
    label: str = "label"
    description: str = "description"
    ratings: tuple[str, ...] = ("quality", "alignment", "model")


def load(
    path: str | Path,
    *,
    videos: str | Path,
    table: Mapping[str, str | None],
    fields: Fields = Fields(),
    boxes: BoxForm = "xyxy_px",
    first_frame: int = 0,
) -> LoadedRecords:
    """Read GeneVA annotations.

    table: by label one of our five types, or None to drop it. first_frame: the number of the first
    frame. Raises ``ValueError`` for a table with other types, an unknown field or label, a frame
    outside the video, or a bad box.
    """
    strange = sorted({kind for kind in table.values() if kind is not None} - set(ANOMALY_TYPES))
    if strange:
        raise ValueError(f"table maps to {strange}, expected values among {', '.join(ANOMALY_TYPES)} or None")
    records: list[Record] = []
    left_out: dict[str, str] = {}
    for number, row in enumerate(_rows(Path(path))):
        where = f"{path}[{number}]"
        check_fields(
            row, required=(fields.video, fields.prompt, fields.annotations), optional=fields.ratings, where=where
        )
        name = row[fields.video]
        for item in row[fields.annotations]:
            check_fields(
                item, required=(fields.frame, fields.box, fields.label), optional=(fields.description,), where=where
            )
        kinds = [map_label(item[fields.label], table, where=where) for item in row[fields.annotations]]
        video = open_or_reason(Path(videos) / name)
        if isinstance(video, str):
            left_out[name] = video
            continue
        kept = [(item, kind) for item, kind in zip(row[fields.annotations], kinds, strict=True) if kind]
        if row[fields.annotations] and not kept:
            left_out[name] = f"no anomaly of ours: {sorted({item[fields.label] for item in row[fields.annotations]})}"
            continue
        groups: dict[tuple[str, str, str], dict[int, tuple[Box, ...]]] = {}
        for item, kind in kept:
            frame = item[fields.frame] - first_frame
            if not 0 <= frame < len(video):
                raise ValueError(
                    f"{where}: frame {item[fields.frame]} is not in a video of {len(video)} frames; is first_frame "
                    f"right?"
                )
            key = (kind, item[fields.label], item.get(fields.description, ""))
            frames = groups.setdefault(key, {})
            frames[frame] = (*frames.get(frame, ()), _box(item[fields.box], video, boxes, where))
        anomalies = tuple(
            Anomaly(
                kind,
                Window(video.times_s[min(frames)], video.times_s[max(frames)]),
                words,
                label,
                dict(sorted(frames.items())),
            )
            for (kind, label, words), frames in groups.items()
        )
        records.append(
            record_of(
                video,
                id=name,
                prompt=row[fields.prompt],
                anomalies=anomalies,
                annotator="GeneVA",
                extra={key: row[key] for key in fields.ratings if key in row},
            )
        )
    return loaded_records(records, left_out, str(path), _UNVERIFIED)


def _rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    rows = (
        json.loads(text)
        if text.lstrip().startswith("[")
        else [json.loads(line) for line in text.split("\n") if line.strip()]
    )
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected one object per video")
    return rows


def _box(corners: list[float], video: Video, form: BoxForm, where: str) -> Box:
    if len(corners) != 4:
        raise ValueError(f"{where}: expected a box of four numbers, received {corners}")
    left, top, third, fourth = map(float, corners)
    right, bottom = (left + third, top + fourth) if form.startswith("xywh") else (third, fourth)
    width, height = (1, 1) if form.endswith("fraction") else (video.width, video.height)
    if not (0 <= left < right <= width * 1.001 and 0 <= top < bottom <= height * 1.001):
        raise ValueError(
            f"{where}: box {corners} is empty or leaves the frame {width}×{height} as {form}; is `boxes` right?"
        )
    return Box.from_pixels(left, top, right, bottom, width, height)
