"""CaC-Bench-Hard's four groups: by the duration and the area of a video's anomalies (Fig. 4).

Duration = end − start + 1 / fps of the hull of the ground truth's windows; "short" is below 1 s.
Area = mean over the boxed frames of the union of the frame's boxes, as a share of the frame;
"small" is below 20 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from cac_align.core.judgement import BOX_MAX, Anomaly, Box, hull
from cac_align.data.records import Record
from cac_align.evaluation.bench.localisation import boxes_by_frame, windows_of

SHORT_S = 1.0


SMALL_AREA = 0.2


SPLITS: tuple[str, ...] = ("short_small", "short_large", "long_small", "long_large")
"""Hard's groups in the order of Fig. 4: duration < / ≥ 1 s × area < / ≥ 20 % of the frame."""
_TITLES = ("< 1 s, < 20 %", "< 1 s, ≥ 20 %", "≥ 1 s, < 20 %", "≥ 1 s, ≥ 20 %")
SPLIT_TITLES = dict(zip(SPLITS, _TITLES, strict=True))


def union_area(boxes: Sequence[Box]) -> float:
    """Share of the frame that the boxes cover together, in [0, 1]; overlaps count once (exact)."""
    if len(boxes) == 1:
        return boxes[0].area
    xs = sorted({x for box in boxes for x in (box.xmin, box.xmax)})
    ys = sorted({y for box in boxes for y in (box.ymin, box.ymax)})
    covered = 0
    for left, right in pairwise(xs):
        for top, bottom in pairwise(ys):
            if any(b.xmin <= left and right <= b.xmax and b.ymin <= top and bottom <= b.ymax for b in boxes):
                covered += (right - left) * (bottom - top)
    return covered / BOX_MAX**2


def duration_s(anomalies: Sequence[Anomaly], fps: float) -> float | None:
    """Seconds from the first window's start to the end of the last window's last frame; None
    without a window.
    """
    windows = windows_of(anomalies)
    if not windows:
        return None
    span = hull(windows)
    return span.end_s - span.start_s + 1 / fps


def mean_area(anomalies: Sequence[Anomaly]) -> float | None:
    """Mean over the boxed frames of the union area of the frame's boxes, in (0, 1]; None without a
    box.
    """
    by_frame = boxes_by_frame(anomalies)
    if not by_frame:
        return None
    return sum(union_area(boxes) for boxes in by_frame.values()) / len(by_frame)


def split_of(record: Record) -> str | None:
    """The record's group among ``SPLITS``; None for a normal video and for one without windows or
    boxes.
    """
    if record.status == "normal":
        return None
    duration, area = duration_s(record.anomalies, record.fps), mean_area(record.anomalies)
    if duration is None or area is None:
        return None
    # 16 frames at 16 fps last exactly one second: rounding must not make it a short one.
    short, small = duration < SHORT_S - 1e-6, area < SMALL_AREA - 1e-9
    return f"{'short' if short else 'long'}_{'small' if small else 'large'}"
