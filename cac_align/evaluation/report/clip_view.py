"""One clip as the report shows it: frames, boxes, timeline, a small embedded video."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cac_align.core.judgement import Anomaly
from cac_align.core.video import Video
from cac_align.evaluation.pages.page import (
    COMPONENT_TITLES,
    Picture,
    TimelineSpan,
    confirmed_anomalies,
    frame_strip,
    lasting_a_frame,
    timeline_spans,
)
from cac_align.evaluation.pages.player import PREVIEW_PX, box_overlay, preview_uri, shrink_frames
from cac_align.evaluation.pairing import Fault
from cac_align.evaluation.report.clip_record import ClipRecord, is_counted
from cac_align.evaluation.report.luminance import luminance_change


@dataclass(frozen=True)
class ClipView:
    """What the template shows of one clip. video: a data URI; None where it did not fit."""

    record: ClipRecord
    title: str
    anomalies: tuple[Anomaly, ...]
    expert_anomalies: tuple[Anomaly, ...]
    verdict: str
    pictures: tuple[Picture, ...]
    spans: tuple[TimelineSpan, ...]
    expert_spans: tuple[TimelineSpan, ...]
    duration_s: float
    shape: str
    video: str | None
    overlay: str
    numbers: tuple[tuple[str, float], ...]


def view_clip(clip_record: ClipRecord, max_bytes: int, faults: list[Fault]) -> ClipView:
    """The clip's view. max_bytes: what its frames and its video may take on the page."""
    clip, video = clip_record.clip, clip_record.clip.video
    pixels = shrink_frames(video, PREVIEW_PX)
    if clip_record.luminance_change is None:
        measure_luminance(clip_record, faults, pixels)
    small = Video(video.fps, video.times_s, pixels.shape[1], pixels.shape[2], video.name, pixels)
    anomalies = confirmed_anomalies(clip_record.judgement)
    ratings = [record for record in clip_record.ratings if is_counted(record)]
    by_experts = tuple(anomaly for record in ratings for anomaly in record.anomalies)
    drawn = anomalies or by_experts
    pictures = frame_strip(small, drawn, count=6, width_px=168)
    left = max_bytes - sum(len(picture.uri) for picture in pictures)
    return ClipView(
        record=clip_record,
        title=clip.group,
        anomalies=lasting_a_frame(anomalies, video.fps),
        expert_anomalies=lasting_a_frame(by_experts, video.fps),
        verdict=_verdict(clip_record),
        pictures=pictures,
        spans=timeline_spans(video, anomalies),
        expert_spans=timeline_spans(video, by_experts),
        duration_s=video.duration_s,
        shape=f"{video.width}×{video.height}, {len(video)} frames, {video.fps:g} fps"
        + (f", seed {clip.seed}" if clip.seed is not None else ""),
        video=preview_uri(pixels, video.times_s, video.fps, left),
        overlay=box_overlay(video, drawn),
        numbers=tuple((COMPONENT_TITLES.get(key, key), value) for key, value in clip_record.values.items()),
    )


def measure_luminance(clip_record: ClipRecord, faults: list[Fault], pixels: np.ndarray | None = None) -> None:
    """Enter the clip's luminance change, or name the reason why it has none."""
    try:
        clip_record.luminance_change = luminance_change(clip_record.clip.video, pixels)
    except ValueError as error:
        faults.append(Fault("no luminance change", f"{clip_record.clip.group}/{clip_record.clip.name}", str(error)))
        return
    if clip_record.luminance_change is None:
        faults.append(
            Fault("no luminance change", f"{clip_record.clip.group}/{clip_record.clip.name}", "it has a single frame")
        )


def _verdict(clip_record: ClipRecord) -> str:
    verdicts = []
    if clip_record.judged_abnormal is not None:
        verdicts.append(f"CaC: {'abnormal' if clip_record.judged_abnormal else 'normal'}")
    ratings = [record for record in clip_record.ratings if is_counted(record)]
    if ratings:
        abnormal = sum(record.status == "abnormal" for record in ratings)
        verdicts.append(f"{abnormal} of {len(ratings)} rater{'s' if len(ratings) > 1 else ''}: abnormal")
    return " · ".join(verdicts)
