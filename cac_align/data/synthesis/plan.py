"""Choose the questions of every record.

Every choice is drawn from (seed, record id). Records in another order give the same questions, and
one record more or less changes only the questions of its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

from cac_align.core.judgement import SINGLE_FRAME_TYPES, Window
from cac_align.data.records import Record
from cac_align.data.synthesis.false_alarms import draw_for, normal_look, place_donors, with_false_alarms
from cac_align.data.synthesis.questions import LOOK_FPS, TASKS, RecordQuestion
from cac_align.data.visibility import anomaly_spans, covering_window, visible_anomalies


def plan_questions(
    records: Sequence[Record],
    *,
    tasks: Sequence[str] = TASKS,
    frames_per_video: int = 2,
    max_clip_s: float = 1.0,
    false_alarm_share: float = 0.5,
    seed: int = 0,
) -> dict[str, list[RecordQuestion]]:
    """The questions of every record, by record id; a scan comes before the looks that are given its
    answer.

    frames_per_video: maximum number of single frames. The paper's 20 K frames are 10 K anomalous
        ones of 5 K videos, and as many normal ones.
    max_clip_s: clips are shorter than this, in seconds.
    false_alarm_share: share of abnormal looks that are given a false alarm, where a donor fits.
    """
    anomalous = sorted((record for record in records if record.status == "abnormal"), key=lambda record: record.id)
    looks = {record.id: _looks(record, max_clip_s, seed) for record in anomalous}
    donors = place_donors([look for own in looks.values() for look in own])
    questions: dict[str, list[RecordQuestion]] = {}
    for record in records:
        asked: list[RecordQuestion] = []
        if "scan" in tasks:
            asked.append(RecordQuestion(record, "scan"))
        if "look" in tasks:
            if record.status == "normal":
                asked.append(normal_look(record, donors, max_clip_s, seed))
            else:
                asked += [
                    with_false_alarms(look, donors, false_alarm_share, max_clip_s, seed) for look in looks[record.id]
                ]
        if "frame" in tasks:
            asked += [RecordQuestion(record, "frame", frame=frame) for frame in _frames(record, frames_per_video, seed)]
        if "single" in tasks:
            asked.append(RecordQuestion(record, "single"))
        questions[record.id] = asked
    return questions


def _looks(record: Record, max_clip_s: float, seed: int) -> list[RecordQuestion]:
    windows = dict.fromkeys(_clip(record, event, max_clip_s, seed) for event in anomaly_spans(record))
    return [RecordQuestion(record, "look", window) for window in windows]


def _clip(record: Record, event: Window, max_clip_s: float, seed: int) -> Window:
    draw = draw_for(record, f"clip {event.start_s:.6f}", seed)
    return covering_window(event, record, max_s=max_clip_s, look_fps=LOOK_FPS, draw=draw)


def _frames(record: Record, most: int, seed: int) -> list[int]:
    """Frames that show a defect by themselves: boxed in single-frame categories, outside every
    multi-frame anomaly.
    """
    if record.status == "normal":
        open_to = list(range(record.num_frames))
    else:
        open_to = []
        for frame in sorted({frame for anomaly in record.anomalies for frame in anomaly.boxes}):
            there = visible_anomalies(record.anomalies, (frame,), (frame / record.fps,))
            if there and all(anomaly.type in SINGLE_FRAME_TYPES for anomaly in there):
                boxed = [a for a in record.anomalies if frame in a.boxes and a.type in SINGLE_FRAME_TYPES]
                if len(boxed) == len(there):
                    open_to.append(frame)
    return sorted(draw_for(record, "frame", seed).sample(open_to, min(most, len(open_to))))
