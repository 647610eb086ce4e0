"""Where and when, not only whether: temporal, spatial and type IoU of a judgement against the ground truth (Table S4).

Record, Judgement → Localisation(temporal, spatial, type) · Record → its group in CaC-Bench-Hard · errors matched → Matching

Temporal IoU (Eq. 4) compares sets of frames on the 4-fps grid of the first turn, the same grid for every judge: the frames inside
the windows of the *first* turn (what the paper rewards; the final windows where a judgement has no turns) with the ground truth's. Spatial IoU (Eq. 5) is the mean
over the ground truth's boxes on the frames that both have boxed; 0 where there is no common frame. Type IoU is Eq. 3's set IoU.
Table S4 must average over the videos that were judged abnormal: its base model finds 10.2 % of the anomalous videos and
still shows 0.235, more than 10.2 % of the videos could give if the missed ones counted as zero. Both averages are reported.
Hard's duration = end − start + 1/fps of the hull of the ground truth's windows; "short" is < 1 s. Its area = mean over the boxed
frames of the union of that frame's boxes, as a share of the frame; "small" is < 20 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from cac_align.core.iou import spatial_iou, temporal_iou, type_iou
from cac_align.core.judgement import BOX_MAX, Anomaly, Box, Judgement, Window, hull
from cac_align.data.records import Record
from cac_align.evaluation.statistics import Estimate, mean_interval, share

THRESHOLDS = (0.3, 0.5, 0.7)
GRID_FPS = 4.0
SHORT_S = 1.0
SMALL_AREA = 0.2
SPLITS: tuple[str, ...] = ("short_small", "short_large", "long_small", "long_large")
"""Hard's four difficulty groups in the order of Fig. 4: duration < / ≥ 1 s × area < / ≥ 20 % of the frame."""


@dataclass(frozen=True)
class Localisation:
    """How well one judgement points at one anomalous video's defects, each in [0, 1]; None where the truth says nothing."""

    temporal: float | None
    spatial: float | None
    type: float | None


def grid_s(record: Record, fps: float = GRID_FPS) -> tuple[float, ...]:
    """Times of the frames that ``fps`` sampling shows, on the record's own clock: the source frames nearest to k / fps, once each."""
    last = record.num_frames - 1
    count = math.floor(last / record.fps * fps + 1e-6) + 1
    wanted = np.arange(count) / fps * record.fps
    frames = np.unique(
        np.minimum(np.ceil(wanted - 0.5 - 1e-9), last)
    )  # the earlier frame on a tie, as Video.indices_at does
    return tuple((frames / record.fps).tolist())


def windows_of(anomalies: Sequence[Anomaly]) -> tuple[Window, ...]:
    return tuple(anomaly.window for anomaly in anomalies if anomaly.window is not None)


def boxes_by_frame(anomalies: Sequence[Anomaly]) -> dict[int, tuple[Box, ...]]:
    """All boxes of all anomalies, by source frame."""
    merged: dict[int, tuple[Box, ...]] = {}
    for anomaly in anomalies:
        for frame, boxes in anomaly.boxes.items():
            merged[frame] = merged.get(frame, ()) + tuple(boxes)
    return merged


def first_windows(judgement: Judgement) -> tuple[Window, ...]:
    """The windows the first turn proposed (its last attempt), or the final ones where the judgement keeps no first turn."""
    first = [turn for turn in judgement.turns if turn.number == 1]
    found = windows_of(first[-1].anomalies) if first else ()
    return found or windows_of(judgement.anomalies)


def localise(record: Record, judgement: Judgement) -> Localisation:
    """IoUs of a judgement on an anomalous record. A judgement that says normal points at nothing: every IoU is 0.

    Raises ``ValueError`` for a normal record, which has nothing to find.
    """
    if record.status != "abnormal":
        raise ValueError(f"record {record.id}: localise needs an anomalous video, received a normal one")
    return overlaps(record.anomalies, judgement, grid_s(record))


def overlaps(truth: Sequence[Anomaly], judgement: Judgement, times_s: Sequence[float]) -> Localisation:
    """IoUs of a judgement with the true anomalies of one video. times_s: the frames of turn 1's grid (seconds, source clock)."""
    truth_windows, truth_boxes = windows_of(truth), boxes_by_frame(truth)
    said = judgement.anomalies if judgement.status == "abnormal" else ()
    said_windows = first_windows(judgement) if judgement.status == "abnormal" else ()
    temporal = temporal_iou(said_windows, truth_windows, times_s) if truth_windows else None
    spatial = spatial_iou(boxes_by_frame(said), truth_boxes) if truth_boxes else None
    kind = type_iou({anomaly.type for anomaly in said}, {anomaly.type for anomaly in truth})
    return Localisation(temporal, spatial, kind)


def averages(found: Sequence[Localisation], *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Mean temporal, spatial and type IoU with bootstrap intervals, each over the videos where it is defined."""
    return {
        name: mean_interval(
            [value for one in found if (value := getattr(one, name)) is not None], resamples=resamples, seed=seed
        )
        for name in ("temporal", "spatial", "type")
    }


# ---- Hard's splits ------------------------------------------------------------------------------------------------


def union_area(boxes: Sequence[Box]) -> float:
    """Share of the frame that the boxes cover together, in [0, 1]; overlaps count once (exact, by coordinate compression)."""
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
    """Seconds the defects are on screen: hull of the windows, plus the last frame's own display time. None without a window."""
    windows = windows_of(anomalies)
    if not windows:
        return None
    whole = hull(windows)
    return whole.end_s - whole.start_s + 1 / fps


def mean_area(anomalies: Sequence[Anomaly]) -> float | None:
    """Mean over boxed frames of the union area of the frame's boxes, in (0, 1]. None without a box."""
    by_frame = boxes_by_frame(anomalies)
    if not by_frame:
        return None
    return sum(union_area(boxes) for boxes in by_frame.values()) / len(by_frame)


def split_of(record: Record) -> str | None:
    """The record's group among ``SPLITS``; None for a normal video or one whose truth lacks windows or boxes."""
    if record.status == "normal":
        return None
    duration, area = duration_s(record.anomalies, record.fps), mean_area(record.anomalies)
    if duration is None or area is None:
        return None
    # 16 frames at 16 fps last exactly one second: rounding must not make it a short one.
    short, small = duration < SHORT_S - 1e-6, area < SMALL_AREA - 1e-9
    return f"{'short' if short else 'long'}_{'small' if small else 'large'}"


# ---- one-to-one matching of single errors (Spotlight; our protocol) -------------------------------------------------


@dataclass(frozen=True)
class Matching:
    """Errors found and named, at one temporal-IoU threshold. Our protocol: Spotlight's own definitions could not be read."""

    threshold: float
    precision: Estimate
    recall: Estimate
    f1: float | None
    mean_iou: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            "threshold": self.threshold,
            "precision": self.precision.to_json(),
            "recall": self.recall.to_json(),
            "f1": self.f1,
            "mean_iou": self.mean_iou,
        }


def window_iou(a: Window, b: Window) -> float:
    """IoU of two windows as lengths of time; two equal instants overlap fully, different ones not at all."""
    union = max(a.end_s, b.end_s) - min(a.start_s, b.start_s)
    if union <= 0:
        return 1.0
    return max(0.0, min(a.end_s, b.end_s) - max(a.start_s, b.start_s)) / union


def match_errors(
    truth: Mapping[str, Sequence[Anomaly]],
    said: Mapping[str, Sequence[Anomaly]],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
) -> tuple[Matching, ...]:
    """Match predicted to true errors one to one inside a type of a video, by temporal IoU ≥ threshold (Hungarian, scipy).

    truth, said: anomalies by video id; every anomaly needs a window. Videos missing from ``said`` count as nothing found, so
    leave out of ``truth`` the videos that have no judgement, and count them.
    Raises ``ValueError`` for an anomaly without a window, or a video in ``said`` that ``truth`` lacks.
    """
    from scipy.optimize import linear_sum_assignment

    extra = sorted(set(said) - set(truth))
    if extra:
        raise ValueError(
            f"match_errors: judged videos {extra[:3]} have no ground truth; pass truth for every judged video"
        )
    for name, rows in (("truth", truth), ("said", said)):
        for video, anomalies in rows.items():
            if any(anomaly.window is None for anomaly in anomalies):
                raise ValueError(
                    f"match_errors: {name}[{video!r}] holds an anomaly without a window; errors are matched in time"
                )
    total_truth = sum(len(rows) for rows in truth.values())
    total_said = sum(len(rows) for rows in said.values())
    results = []
    for threshold in thresholds:
        matched: list[float] = []
        for video, anomalies in truth.items():
            guesses = said.get(video, ())
            for kind in sorted({anomaly.type for anomaly in anomalies}):
                real = [a.window for a in anomalies if a.type == kind]
                guess = [a.window for a in guesses if a.type == kind]
                if not guess:
                    continue
                overlap = np.array([[window_iou(r, g) for g in guess] for r in real])
                # A pair below the threshold is worth nothing, so that it cannot displace a pair that counts.
                rows, columns = linear_sum_assignment(np.where(overlap >= threshold, 1 + overlap, 0.0), maximize=True)
                matched += [float(v) for v in overlap[rows, columns] if v >= threshold]
        hits = len(matched)
        results.append(
            Matching(
                threshold,
                share(hits, total_said),
                share(hits, total_truth),
                2 * hits / (total_said + total_truth) if total_said + total_truth else None,
                float(np.mean(matched)) if matched else None,
            )
        )
    return tuple(results)
