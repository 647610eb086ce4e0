"""BrokenVideos (3,254 generated videos with pixel masks of broken regions) as records.

The connected components of each frame's mask become boxes, runs of masked frames become anomalies.
Masks carry no label, so every anomaly gets the type that the caller names. The set has no normal
videos: use it for recall and localisation, or together with others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from cac_align.core.judgement import Anomaly, Box, Window
from cac_align.core.video import VIDEO_SUFFIXES, Video
from cac_align.data.external import open_or_reason
from cac_align.data.records import LoadedRecords, Record, loaded_records

_UNVERIFIED = (
    "The archive was not available: that masks are named like their video, as a mask video or a folder of numbered "
    "PNGs with one mask "
    "per source frame, is assumed. The project page only says that each clip comes with a mask-annotated version.",
    "Whether masks are binary is unknown; a pixel counts as broken where its brightness exceeds 127.",
)


def load(
    videos: str | Path,
    masks: str | Path,
    *,
    kind: str = "Object Distortion",
    smallest_area: float = 5e-4,
    largest_gap_frames: int = 2,
) -> LoadedRecords:
    """Read a folder of videos and a folder of masks with the same names.

    kind: our type for every anomaly.
    smallest_area: components below this share of the frame count as compression noise and are
        dropped (their number is kept in ``extra``).
    largest_gap_frames: masked frames no farther apart than this belong to one anomaly.

    Raises ``ValueError`` for masks that differ from their video in number or shape, or a folder
    without videos.
    """
    root, mask_root = Path(videos), Path(masks)
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    records: list[Record] = []
    left_out: dict[str, str] = {}
    for path in files:
        name = path.relative_to(root).with_suffix("").as_posix()
        video = open_or_reason(path)
        if isinstance(video, str):
            left_out[name] = video
            continue
        masks_or_reason = read_masks(mask_root / name, video)
        if isinstance(masks_or_reason, str):
            left_out[name] = masks_or_reason
            continue
        found = [mask_boxes(mask, smallest_area) for mask in masks_or_reason]
        boxes = {frame: kept for frame, (kept, _) in enumerate(found) if kept}
        if not boxes:
            left_out[name] = "mask empty: no broken region is marked"
            continue
        anomalies = tuple(
            Anomaly(
                kind,
                Window(video.times_s[run[0]], video.times_s[run[-1]]),
                "",
                "",
                {frame: boxes[frame] for frame in run},
            )
            for run in runs(sorted(boxes), largest_gap_frames)
        )
        records.append(
            Record(
                id=name,
                video=str(path.absolute()),
                prompt="",
                fps=video.fps,
                num_frames=len(video),
                width=video.width,
                height=video.height,
                status="abnormal",
                anomalies=anomalies,
                annotator="BrokenVideos",
                extra={"speckles_dropped": sum(dropped for _, dropped in found)},
            )
        )
    return loaded_records(records, left_out, str(root), _UNVERIFIED)


def read_masks(place: Path, video: Video) -> Bool[np.ndarray, "T H W"] | str:
    """One mask per source frame, from a mask video or a folder of numbered PNGs; or why there is
    none.

    Raises ``ValueError`` when their number or size is not the video's.
    """
    if place.is_dir():
        files = sorted(place.glob("*.png"), key=lambda path: _number(path))
        if not files:
            return f"mask missing: {place} holds no PNG"
        frames = [_png(path) for path in files]
    else:
        file = next(
            (
                place.with_name(place.name + suffix)
                for suffix in VIDEO_SUFFIXES
                if place.with_name(place.name + suffix).is_file()
            ),
            None,
        )
        if file is None:
            return f"mask missing: expected {place}.mp4 or a folder {place}"
        source = open_or_reason(file)
        if isinstance(source, str):
            return f"mask {source}"
        frames = list(source.frames(range(len(source))).pixels.max(axis=-1))
    if len(frames) != len(video):
        raise ValueError(
            f"{place}: {len(frames)} masks for a video of {len(video)} frames; expected one mask per source frame"
        )
    sizes = {frame.shape for frame in frames}
    if sizes != {(video.height, video.width)}:
        raise ValueError(
            f"{place}: masks of size {sorted(sizes)} for a video of ({video.height}, {video.width}); expected the same"
        )
    return np.stack(frames) > 127


def _number(path: Path) -> int:
    digits = re.findall(r"\d+", path.stem)
    if not digits:
        raise ValueError(f"{path}: expected the frame's number in the mask's name, such as 00012.png")
    return int(digits[-1])


def _png(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def mask_boxes(mask: Bool[np.ndarray, "H W"], smallest_area: float) -> tuple[tuple[Box, ...], int]:
    """Boxes of a mask's 8-connected components, and the number of components dropped as too small.

    smallest_area: share of the mask.
    """
    from scipy.ndimage import find_objects, label

    height, width = mask.shape
    labelled: Any = label(mask, structure=np.ones((3, 3), dtype=int))
    regions, count = labelled
    sizes = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    boxes = [
        Box.from_pixels(columns.start, rows.start, columns.stop, rows.stop, width, height)
        for size, (rows, columns) in zip(sizes, find_objects(regions), strict=True)
        if size >= smallest_area * mask.size
    ]
    return tuple(boxes), count - len(boxes)


def runs(frames: Sequence[int], largest_gap: int) -> list[list[int]]:
    """Split increasing frame numbers where more than ``largest_gap`` frames lie between two of
    them.
    """
    found: list[list[int]] = []
    for frame in frames:
        if found and frame - found[-1][-1] - 1 <= largest_gap:
            found[-1].append(frame)
        else:
            found.append([frame])
    return found
