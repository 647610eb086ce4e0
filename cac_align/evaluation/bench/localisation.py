"""How well a judgement says when, where and what: temporal, spatial and type IoU (Table S4).

Temporal IoU (Eq. 4) compares sets of frames on the 4-fps grid of the first turn, the same grid for
every judge: the frames inside the windows of the first turn (which the paper rewards; the final
windows where a judgement keeps no turns) with those of the ground truth. Spatial IoU (Eq. 5) is the
mean over the ground truth's boxes on the frames that both have boxed; it is 0 where there is no
common frame. Type IoU is Eq. 3's set IoU.

Table S4 must average over the videos that were judged abnormal: its base model finds 10.2 % of the
anomalous videos and still has 0.235, more than those 10.2 % could give if missed videos counted as
zero. Both averages are reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cac_align.core.iou import spatial_iou, temporal_iou, type_iou
from cac_align.core.judgement import Anomaly, Box, Judgement, Window
from cac_align.data.records import Record
from cac_align.evaluation.statistics import Estimate, mean_interval

GRID_FPS = 4.0


@dataclass(frozen=True)
class Localisation:
    """One judgement's IoUs on one anomalous video, each in [0, 1]; None where the truth lacks
    windows or boxes.
    """

    temporal: float | None
    spatial: float | None
    type: float | None


def first_turn_times_s(record: Record, fps: float = GRID_FPS) -> tuple[float, ...]:
    """Times in seconds of the source frames nearest to k / fps on the record's clock, each once."""
    last = record.num_frames - 1
    count = math.floor(last / record.fps * fps + 1e-6) + 1
    positions = np.arange(count) / fps * record.fps
    # On a tie the earlier frame, as in Video.indices_at.
    frames = np.unique(np.minimum(np.ceil(positions - 0.5 - 1e-9), last))
    return tuple((frames / record.fps).tolist())


def windows_of(anomalies: Sequence[Anomaly]) -> tuple[Window, ...]:
    """The windows of the anomalies that have one."""
    return tuple(anomaly.window for anomaly in anomalies if anomaly.window is not None)


def boxes_by_frame(anomalies: Sequence[Anomaly]) -> dict[int, tuple[Box, ...]]:
    """All boxes of all anomalies, by source frame."""
    merged: dict[int, tuple[Box, ...]] = {}
    for anomaly in anomalies:
        for frame, boxes in anomaly.boxes.items():
            merged[frame] = merged.get(frame, ()) + tuple(boxes)
    return merged


def first_windows(judgement: Judgement) -> tuple[Window, ...]:
    """The windows of the first turn's last attempt, or the final ones where the judgement keeps no
    first turn.
    """
    first = [turn for turn in judgement.turns if turn.number == 1]
    found = windows_of(first[-1].anomalies) if first else ()
    return found or windows_of(judgement.anomalies)


def localise(record: Record, judgement: Judgement) -> Localisation:
    """IoUs of a judgement on an anomalous record; all 0 for a judgement that says normal.

    Raises ``ValueError`` for a normal record.
    """
    if record.status != "abnormal":
        raise ValueError(f"record {record.id}: localise needs an anomalous video, received a normal one")
    return localisation_ious(record.anomalies, judgement, first_turn_times_s(record))


def localisation_ious(truth: Sequence[Anomaly], judgement: Judgement, times_s: Sequence[float]) -> Localisation:
    """IoUs of a judgement with the true anomalies of one video.

    times_s: times of the frames on turn 1's grid, in seconds on the source clock.
    """
    truth_windows, truth_boxes = windows_of(truth), boxes_by_frame(truth)
    predicted = judgement.anomalies if judgement.status == "abnormal" else ()
    predicted_windows = first_windows(judgement) if judgement.status == "abnormal" else ()
    temporal = temporal_iou(predicted_windows, truth_windows, times_s) if truth_windows else None
    spatial = spatial_iou(boxes_by_frame(predicted), truth_boxes) if truth_boxes else None
    kind = type_iou({anomaly.type for anomaly in predicted}, {anomaly.type for anomaly in truth})
    return Localisation(temporal, spatial, kind)


def mean_ious(found: Sequence[Localisation], *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Mean temporal, spatial and type IoU with bootstrap intervals, each over the videos where it
    is defined.
    """
    return {
        name: mean_interval(
            [value for one in found if (value := getattr(one, name)) is not None], resamples=resamples, seed=seed
        )
        for name in ("temporal", "spatial", "type")
    }
