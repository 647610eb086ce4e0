"""Records from and to other formats: COCO-style boxes with videos and tracks, and several people's
ratings of a video.

COCO knows pixels, images and categories, but no time. As in TAO, ``videos`` and ``tracks`` add it:

    videos       {id, file_name (relative to the JSON), prompt, status, fps, num_frames, width, height}
    images       {id, video_id, frame_index (source frame)}          categories   {id, name}
    annotations  {id, image_id, category_id, bbox [x, y, w, h] in pixels, track_id}
    tracks       {id, video_id, category_id, window [start_s, end_s], reason, region, saliency}: one anomaly each

A file without ``tracks`` gives one anomaly per video, category and run of boxed frames. What cannot
be used is left out with its reason. A video without boxes is normal only where the file or the
caller says so.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

from cac_align.core.judgement import ANOMALY_TYPES, Anomaly, Box, Window
from cac_align.core.video import Video
from cac_align.data.records import LoadedRecords, Record, loaded_records

# ---- COCO ---------------------------------------------------------------------------------------------------------


def to_coco(records: Iterable[Record]) -> dict[str, Any]:
    """A COCO dictionary of the records; ``from_coco`` reads equal records back."""
    categories = [{"id": number, "name": name} for number, name in enumerate(ANOMALY_TYPES, 1)]
    coco: dict[str, Any] = {"videos": [], "images": [], "annotations": [], "tracks": [], "categories": categories}
    for video_id, record in enumerate(records, 1):
        kept = ("prompt", "fps", "num_frames", "width", "height", "status", "annotator", "review")
        video = {
            "id": video_id,
            "name": record.id,
            "file_name": record.video,
            **{name: getattr(record, name) for name in kept},
        }
        video["extra"] = dict(record.extra)
        coco["videos"].append(video)
        images: dict[int, int] = {}
        for anomaly in record.anomalies:
            track = {
                "id": len(coco["tracks"]) + 1,
                "video_id": video_id,
                "category_id": ANOMALY_TYPES.index(anomaly.type) + 1,
                "window": None if anomaly.window is None else [anomaly.window.start_s, anomaly.window.end_s],
                **{name: getattr(anomaly, name) for name in ("reason", "region", "saliency")},
            }
            coco["tracks"].append(track)
            for frame, boxes in sorted(anomaly.boxes.items()):
                if frame not in images:
                    images[frame] = len(coco["images"]) + 1
                    size = {"width": record.width, "height": record.height}
                    coco["images"].append({"id": images[frame], "video_id": video_id, "frame_index": frame, **size})
                for box in boxes:
                    left, top, right, bottom = box.to_pixels(record.width, record.height)
                    coco["annotations"].append(
                        {
                            "id": len(coco["annotations"]) + 1,
                            "image_id": images[frame],
                            "category_id": track["category_id"],
                            "track_id": track["id"],
                            "bbox": [left, top, right - left, bottom - top],
                            "area": (right - left) * (bottom - top),
                            "iscrowd": 0,
                        }
                    )
    return coco


def from_coco(
    path: str | Path,
    *,
    videos: str | Path | None = None,
    labels: Mapping[str, str | None] | None = None,
    unannotated: str = "leave out",
) -> LoadedRecords:
    """Read a COCO file.

    videos: the folder that its file names are relative to (default: the file's own).
    labels: by category name one of our five types, or None to drop it.
    unannotated: what a video without boxes and without a stated status is: "normal" or "leave out".

    Raises ``ValueError`` for another structure, an unknown category, an id without target, or when
    nothing can be used.
    """
    path = Path(path)
    if unannotated not in ("normal", "leave out"):
        raise ValueError(f"unannotated must be 'normal' or 'leave out', received {unannotated!r}")
    coco = _read_json(path)
    kinds = {
        row["id"]: _type_of(row["name"], labels or {}, path) for row in _rows(coco, "categories", ("id", "name"), path)
    }
    sources = {row["id"]: row for row in _rows(coco, "videos", ("id", "file_name"), path)}
    images = {row["id"]: row for row in _rows(coco, "images", ("id", "video_id", "frame_index"), path)}
    boxed: dict[Any, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    for row in _rows(coco, "annotations", ("id", "image_id", "category_id", "bbox"), path):
        image = _look_up(images, row["image_id"], "image_id", row, path)
        _look_up(kinds, row["category_id"], "category_id", row, path)
        boxed[_look_up(sources, image["video_id"], "video_id", image, path)["id"]].append((image["frame_index"], row))
    tracks: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for row in _rows(coco, "tracks", ("id", "video_id", "category_id"), path, needed=False):
        _look_up(kinds, row["category_id"], "category_id", row, path)
        tracks[_look_up(sources, row["video_id"], "video_id", row, path)["id"]].append(row)
    records, left_out = [], {}
    for source in sources.values():
        made = _record(
            source, boxed[source["id"]], tracks[source["id"]], kinds, Path(videos or path.parent), unannotated
        )
        if isinstance(made, str):
            left_out[str(source["file_name"])] = made
        else:
            records.append(made)
    return loaded_records(records, left_out, str(path))


def _record(
    source: Mapping[str, Any],
    boxed: Sequence[tuple[int, Mapping[str, Any]]],
    tracks: Sequence[Mapping[str, Any]],
    kinds: Mapping[Any, str | None],
    root: Path,
    unannotated: str,
) -> Record | str:
    """The record of one video, or why there is none."""
    file = root / source["file_name"]
    if not file.is_file():
        return f"video missing: expected {file}"
    try:
        video = Video.open(file, fps=source.get("fps"))
        anomalies = tuple(_anomalies(video, boxed, tracks, kinds))
    except (ValueError, OSError, TypeError) as error:
        return f"cannot be used: {error}"
    stated = source.get("status")
    if not anomalies and (boxed or tracks):
        return "no anomaly of ours: all its categories are dropped"
    if stated not in (None, "normal", "abnormal") or (stated is not None and (stated == "abnormal") != bool(anomalies)):
        return f"contradiction: status {stated!r} with {len(anomalies)} anomalies"
    if not anomalies and stated is None and unannotated != "normal":
        return "no boxes and no status: whether it is normal is not known"
    return Record(
        id=str(source.get("name", Path(source["file_name"]).with_suffix(""))),
        video=str(file.resolve()),
        prompt=source.get("prompt", ""),
        fps=video.fps,
        num_frames=len(video),
        width=video.width,
        height=video.height,
        status="abnormal" if anomalies else "normal",
        anomalies=anomalies,
        annotator=source.get("annotator", "coco"),
        review=source.get("review", "accepted"),
        extra=source.get("extra", {}),
    )


def _anomalies(
    video: Video,
    boxed: Sequence[tuple[int, Mapping[str, Any]]],
    tracks: Sequence[Mapping[str, Any]],
    kinds: Mapping[Any, str | None],
) -> Iterable[Anomaly]:
    def boxes(rows: Iterable[tuple[int, Mapping[str, Any]]]) -> dict[int, tuple[Box, ...]]:
        found: dict[int, tuple[Box, ...]] = {}
        for frame, row in rows:
            if not (isinstance(frame, int) and 0 <= frame < len(video)):
                raise ValueError(
                    f"annotation {row['id']}: frame {frame!r} is outside the video, which has frames 0-{len(video) - 1}"
                )
            left, top, width, height = row["bbox"]
            if (
                width <= 0
                or height <= 0
                or left < -1
                or top < -1
                or left + width > video.width + 1
                or top + height > video.height + 1
            ):
                raise ValueError(
                    f"annotation {row['id']}: bbox {row['bbox']} does not lie in a frame of "
                    f"{video.width}x{video.height} px"
                )
            box = Box.from_pixels(left, top, left + width, top + height, video.width, video.height)
            found[frame] = found.get(frame, ()) + (box,)
        return dict(sorted(found.items()))

    for track in tracks:
        if (kind := kinds[track["category_id"]]) is None:
            continue
        own = boxes((frame, row) for frame, row in boxed if row.get("track_id") == track["id"])
        ends = track.get("window")
        if ends is None and not own:
            raise ValueError(f"track {track['id']} has neither a window nor boxes")
        window = Window(*ends) if ends is not None else Window(video.times_s[min(own)], video.times_s[max(own)])
        if window.end_s > video.times_s[-1] + 1e-6:
            raise ValueError(
                f"track {track['id']}: window ends at {window.end_s:g} s, the last frame is at {video.times_s[-1]:g} s"
            )
        yield Anomaly(kind, window, track.get("reason", ""), track.get("region", ""), own, track.get("saliency"))
    named = {track["id"] for track in tracks}
    loose: dict[str, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    for frame, row in boxed:
        if row.get("track_id") not in named and (kind := kinds[row["category_id"]]) is not None:
            loose[kind].append((frame, row))
    for kind, rows in loose.items():
        for run in _runs(sorted({frame for frame, _ in rows})):
            own = boxes((frame, row) for frame, row in rows if run[0] <= frame <= run[-1])
            yield Anomaly(kind, Window(video.times_s[run[0]], video.times_s[run[-1]]), boxes=own)


def _runs(frames: Sequence[int]) -> list[list[int]]:
    """Sorted frames cut where a gap is wider than the narrowest one (annotators may have used every
    fourth frame only).
    """
    step = min((b - a for a, b in pairwise(frames)), default=1)
    runs: list[list[int]] = []
    for frame in frames:
        if runs and frame - runs[-1][-1] <= step:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    return runs


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        coco = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as COCO JSON: {error}") from error
    if not isinstance(coco, dict):
        raise ValueError(
            f"{path}: expected a JSON object with images, annotations and categories, received {type(coco).__name__}"
        )
    return coco


def _rows(
    coco: Mapping[str, Any], section: str, fields: Sequence[str], path: Path, *, needed: bool = True
) -> list[Mapping[str, Any]]:
    rows = coco.get(section, None if needed else [])
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list under {section!r}, found {', '.join(sorted(coco)) or 'nothing'}")
    for number, row in enumerate(rows):
        missing = [name for name in fields if not isinstance(row, dict) or name not in row]
        if missing:
            raise ValueError(f"{path}: {section}[{number}]: missing {missing}; expected {', '.join(fields)}")
    return rows


def _look_up(table: Mapping[Any, Any], key: Any, name: str, row: Mapping[str, Any], path: Path) -> Any:
    if key not in table:
        raise ValueError(f"{path}: {name} {key!r} of id {row.get('id')!r} points nowhere")
    return table[key]


def _type_of(name: str, labels: Mapping[str, str | None], path: Path) -> str | None:
    if name in labels:
        return labels[name]
    ours = {kind.lower(): kind for kind in ANOMALY_TYPES}
    if name.lower() in ours:
        return ours[name.lower()]
    near = get_close_matches(name.lower(), ours, n=1, cutoff=0.0)
    raise ValueError(
        f"{path}: unknown category {name!r}; map it to a type, e.g. {name!r} → {ours[near[0]]!r}, or to nothing"
    )


# ---- ratings ------------------------------------------------------------------------------------------------------

_RANK = {"audited": 0, "accepted": 1, "draft": 2}


def merge_ratings(ratings: Sequence[Record], *, review: str | None = None) -> LoadedRecords:
    """One record per video from several people's ratings: kept where all agree on the status, else
    left out.

    Of those who agree, the annotation with the highest review state is taken (audited, accepted,
    draft; then the first by name). Returned ratings do not count.

    review: sets this review state, for example "accepted" after a second person's check.
    """
    by_video: dict[str, list[Record]] = defaultdict(list)
    for rating in ratings:
        by_video[rating.video].append(rating)
    records, left_out = [], {}
    for video, everyone in by_video.items():
        rated = sorted((r for r in everyone if r.review in _RANK), key=lambda r: (_RANK[r.review], r.annotator))
        statuses = Counter(rating.status for rating in rated)
        if not rated:
            left_out[video] = "returned: no rating of it stands"
        elif len(statuses) > 1:
            left_out[video] = f"disagreement: {statuses['abnormal']} of {len(rated)} raters call it abnormal"
        else:
            chosen = rated[0]
            extra = {**chosen.extra, "raters": sorted({rating.annotator for rating in rated})}
            name = chosen.id.rsplit("#", 1)[0]
            records.append(replace(chosen, id=name, review=review or chosen.review, extra=extra))
    return loaded_records(records, left_out, "ratings")
