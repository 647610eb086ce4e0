"""One clip as the report shows it: frames, boxes, timeline, a small embedded video."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import UInt8

from cac_align.core.encoding import REPEATABLE
from cac_align.core.judgement import Anomaly
from cac_align.core.video import Video
from cac_align.evaluation.pages.page import (
    TYPE_COLOURS,
    Picture,
    TimelineSpan,
    confirmed_anomalies,
    frame_strip,
    lasting_a_frame,
    timeline_spans,
)
from cac_align.evaluation.pairing import Fault
from cac_align.evaluation.report.clip_record import ClipRecord, is_counted
from cac_align.evaluation.report.luminance import PREVIEW_PX, luminance_change, shrink_frames
from cac_align.evaluation.report.measure import COMPONENT_TITLES

SMALLER_PX = 224
"""Longest side of a preview whose first version (``PREVIEW_PX``) does not fit."""


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
        anomalies=lasting_a_frame(anomalies, video),
        expert_anomalies=lasting_a_frame(by_experts, video),
        verdict=_verdict(clip_record),
        pictures=pictures,
        spans=timeline_spans(video, anomalies),
        expert_spans=timeline_spans(video, by_experts),
        duration_s=video.duration_s,
        shape=f"{video.width}×{video.height}, {len(video)} frames, {video.fps:g} fps"
        + (f", seed {clip.seed}" if clip.seed is not None else ""),
        video=_preview(pixels, video.times_s, video.fps, left),
        overlay=_overlay(video, drawn),
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


def _overlay(video: Video, anomalies: Sequence[Anomaly]) -> str:
    """JSON for the page's script: per box [start_s, end_s, xmin, ymin, xmax, ymax, colour]. A box
    stays until the next one.
    """
    rows = []
    for anomaly in anomalies:
        frames = sorted(frame for frame in anomaly.boxes if frame < len(video))
        last_s = anomaly.window.end_s + 1 / video.fps if anomaly.window else video.duration_s
        for frame, following in zip(frames, [*frames[1:], None], strict=True):
            until_s = (
                video.times_s[following] if following is not None else max(last_s, video.times_s[frame] + 1 / video.fps)
            )
            for box in anomaly.boxes[frame]:
                rows.append(
                    [round(video.times_s[frame], 4), round(until_s, 4), *box.to_json(), TYPE_COLOURS[anomaly.type]]
                )
    return json.dumps(rows)


def _preview(pixels: UInt8[np.ndarray, "T H W 3"], times_s: Sequence[float], fps: float, max_bytes: int) -> str | None:
    """The video as a data URI of at most ``max_bytes``; None when even the smaller version does not
    fit.
    """
    for crf, side_px in ((20 if max(pixels.shape[1:3]) <= 128 else 27, PREVIEW_PX), (33, SMALLER_PX)):
        tried = pixels if side_px >= max(pixels.shape[1:3]) else shrink_frames(Video.open(pixels, fps=1.0), side_px)
        uri = "data:video/mp4;base64," + base64.b64encode(_mp4(tried, times_s, fps, crf)).decode()
        if len(uri) <= max_bytes:
            return uri
    return None


def _mp4(pixels: UInt8[np.ndarray, "T H W 3"], times_s: Sequence[float], fps: float, crf: int) -> bytes:
    """H.264 that every browser plays, in memory, with the source's own time stamps (to the
    millisecond).
    """
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = pixels.shape[2], pixels.shape[1], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = {"crf": str(crf), "preset": "veryfast", **REPEATABLE}
        for time_s, image in zip(times_s, pixels, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = round(1000 * time_s), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()
