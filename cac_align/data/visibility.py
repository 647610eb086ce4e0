"""What the frames shown can show of an annotation: windows cut to them, boxes on them, clips that cover an anomaly whole.

Record's anomalies + frames shown → ``seen`` → the anomalies a perfect answer names · Record → ``cover`` → windows to look into

An anomaly none of whose frames is shown is not seen: a label for it would teach a judge to guess. A clip never cuts an anomaly in two,
because part of a cross-frame event may look ordinary (CaC, arXiv 2605.11723, Appendix C.2); an absence has boxes on its boundary
frames only, and where none of these is shown the nearest one's box stands on the nearest frame shown (Appendix B.1.3).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from cac_align.core.judgement import Anomaly, Window, hull
from cac_align.data.records import Record

_CLOSE_S = 1e-6


def seen(anomalies: Sequence[Anomaly], frames: Sequence[int], times_s: Sequence[float]) -> tuple[Anomaly, ...]:
    """The anomalies that frames ``frames`` (source indices, shown at ``times_s`` seconds) show, in order of time.

    Windows are cut to the frames shown inside them and boxes to the frames shown.
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


def length_s(window: Window, fps: float) -> float:
    """How long a window lasts in seconds, its last frame's display included: end − start + 1 / fps."""
    return window.end_s - window.start_s + 1 / fps


def events(record: Record) -> list[Window]:
    """The stretches of time that hold anomalies: windows that touch are one. Disjoint, in order of time."""
    merged: list[Window] = []
    for window in sorted(anomaly.window for anomaly in record.anomalies if anomaly.window is not None):
        if merged and window.start_s <= merged[-1].end_s + _CLOSE_S:
            merged[-1] = hull([merged[-1], window])
        else:
            merged.append(window)
    return merged


def covers(window: Window, record: Record) -> bool:
    """Whether a window cuts no anomaly of the record: each lies inside it, or outside."""
    for anomaly in record.anomalies:
        inner = anomaly.window
        if inner is None or inner.end_s < window.start_s - _CLOSE_S or inner.start_s > window.end_s + _CLOSE_S:
            continue
        if inner.start_s < window.start_s - _CLOSE_S or inner.end_s > window.end_s + _CLOSE_S:
            return False
    return True


def cover(event: Window, record: Record, *, max_s: float, look_fps: float, draw: random.Random) -> Window:
    """A window around ``event`` that lasts less than ``max_s`` seconds, cuts no other event, and starts a whole number of steps of
    ``look_fps`` before it, so that sampling hits the event's first frame. An event that is longer by itself is its own window.
    """
    step_s = 1 / look_fps
    room_s = max_s - length_s(event, record.fps) - _CLOSE_S
    if room_s <= 0:
        return event
    last_s = (record.num_frames - 1) / record.fps
    lead = draw.randint(0, max(0, min(math.floor(room_s / step_s), math.floor(event.start_s / step_s + _CLOSE_S))))
    tail_s = _on_frames(draw.uniform(0, max(0.0, room_s - lead * step_s)), record.fps)
    for wanted in (
        Window(max(0.0, event.start_s - lead * step_s), min(last_s, event.end_s + tail_s)),
        Window(event.start_s, min(last_s, event.end_s + tail_s)),
    ):
        if covers(wanted, record):
            return wanted
    return event


def _on_frames(seconds: float, fps: float) -> float:
    return math.floor(seconds * fps + _CLOSE_S) / fps
