"""What frames can show of an annotation: windows and boxes cut to them, and clips that contain an
anomaly whole.

An anomaly of which no frame is shown is not visible: a label for it would teach a judge to guess. A
clip never cuts an anomaly in two, because part of a multi-frame event may look ordinary (CaC, arXiv
2605.11723, Appendix C.2). An absence has boxes on its boundary frames only; where none of these is
shown, the nearest one's box is placed on the nearest frame shown (Appendix B.1.3).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from cac_align.core.judgement import Anomaly, Window, hull
from cac_align.data.records import Record

_CLOSE_S = 1e-6


def visible_anomalies(
    anomalies: Sequence[Anomaly], frames: Sequence[int], times_s: Sequence[float]
) -> tuple[Anomaly, ...]:
    """The anomalies that the given frames show, in order of time.

    Windows are cut to the frames shown inside them, boxes to the frames shown. frames: source
    indices. times_s: their times in seconds.
    """
    found = []
    for anomaly in anomalies:
        if anomaly.window is None:
            continue
        inside = [t for t in times_s if anomaly.window.start_s - _CLOSE_S <= t <= anomaly.window.end_s + _CLOSE_S]
        if inside:
            found.append(replace(_with_shown_boxes(anomaly, frames), window=Window(inside[0], inside[-1])))
    return tuple(sorted(found, key=lambda anomaly: (anomaly.window, anomaly.type, anomaly.reason)))


def _with_shown_boxes(anomaly: Anomaly, frames: Sequence[int]) -> Anomaly:
    shown = {frame: boxes for frame, boxes in anomaly.boxes.items() if frame in set(frames)}
    if anomaly.boxes and not shown:
        source, frame = min(
            ((s, f) for s in anomaly.boxes for f in frames), key=lambda pair: (abs(pair[0] - pair[1]), pair)
        )
        shown = {frame: anomaly.boxes[source]}
    return replace(anomaly, boxes=shown)


def window_duration_s(window: Window, fps: float) -> float:
    """How long a window lasts in seconds, including its last frame's display: end − start + 1 /
    fps.
    """
    return window.end_s - window.start_s + 1 / fps


def anomaly_spans(record: Record) -> list[Window]:
    """The disjoint spans of time that contain anomalies, in order; windows that touch are merged."""
    merged: list[Window] = []
    for window in sorted(anomaly.window for anomaly in record.anomalies if anomaly.window is not None):
        if merged and window.start_s <= merged[-1].end_s + _CLOSE_S:
            merged[-1] = hull([merged[-1], window])
        else:
            merged.append(window)
    return merged


def cuts_no_anomaly(window: Window, record: Record) -> bool:
    """Whether each anomaly of the record lies entirely inside or entirely outside the window."""
    for anomaly in record.anomalies:
        inner = anomaly.window
        if inner is None or inner.end_s < window.start_s - _CLOSE_S or inner.start_s > window.end_s + _CLOSE_S:
            continue
        if inner.start_s < window.start_s - _CLOSE_S or inner.end_s > window.end_s + _CLOSE_S:
            return False
    return True


def covering_window(span: Window, record: Record, *, max_s: float, look_fps: float, draw: random.Random) -> Window:
    """A window around ``span`` that is shorter than ``max_s`` seconds and cuts no anomaly.

    It starts a whole number of steps of ``look_fps`` before the span, so that sampling hits the
    span's first frame. A span that is too long is its own window.
    """
    step_s = 1 / look_fps
    room_s = max_s - window_duration_s(span, record.fps) - _CLOSE_S
    if room_s <= 0:
        return span
    last_s = (record.num_frames - 1) / record.fps
    lead = draw.randint(0, max(0, min(math.floor(room_s / step_s), math.floor(span.start_s / step_s + _CLOSE_S))))
    tail_s = _on_frames(draw.uniform(0, max(0.0, room_s - lead * step_s)), record.fps)
    for wanted in (
        Window(max(0.0, span.start_s - lead * step_s), min(last_s, span.end_s + tail_s)),
        Window(span.start_s, min(last_s, span.end_s + tail_s)),
    ):
        if cuts_no_anomaly(wanted, record):
            return wanted
    return span


def _on_frames(seconds: float, fps: float) -> float:
    return math.floor(seconds * fps + _CLOSE_S) / fps
