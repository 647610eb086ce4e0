"""What only the teacher is given: the annotated anomalies, and enlarged frames of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from cac_align.core.answer import write_answer
from cac_align.core.judgement import Anomaly, hull
from cac_align.core.video import Frames, Video
from cac_align.data.records import Record
from cac_align.data.synthesis.prompts import filled
from cac_align.data.synthesis.questions import RecordQuestion, as_unreadable, expected_anomalies
from cac_align.vlm.protocol import Conversation, Message


def teacher_context(question: RecordQuestion, frames: Frames, video: Video, *, close_ups: bool) -> Conversation:
    """The messages before the question: the annotated anomalies and, for a whole video, the anomaly
    enlarged.

    For a false alarm they state what it suspects. Raises ``UnreadableVideo``.
    """
    name = "mistaken" if question.suspected else "hints"
    text = filled(name, record=question.record.id, task=question.label, found=expected_findings(question, frames))
    close_up = (
        _close_up(question.record, video)
        if close_ups and question.shows_whole_video and not question.suspected
        else None
    )
    if close_up is None:
        return (Message("system", text),)
    about = filled("close_up", first_s=f"{close_up.times_s[0]:.2f}", last_s=f"{close_up.times_s[-1]:.2f}")
    return (Message("system", text), Message("user", about, close_up, as_images=True))


def expected_findings(question: RecordQuestion, frames: Frames) -> str:
    """``expected_anomalies`` as the answer's JSON writes them, in the numbers of the frames shown,
    without a chain of thought.
    """
    meant: Sequence[Anomaly] = expected_anomalies(question, frames)
    text = write_answer(
        chain_of_thought="",
        anomalies=meant,
        number=question.number,
        frames=frames.indices,
        times_s=frames.times_s,
        boxed=question.boxed,
    )
    return json.dumps({name: value for name, value in json.loads(text).items() if name != "COT"}, ensure_ascii=False)


def _close_up(record: Record, video: Video, most: int = 8) -> Frames | None:
    """At most ``most`` frames of the anomaly, cut out with half its size around it; None without
    boxes or window.
    """
    boxes = [
        box for anomaly in record.anomalies for expected_findings in anomaly.boxes.values() for box in expected_findings
    ]
    windows = [anomaly.window for anomaly in record.anomalies if anomaly.window is not None]
    if not boxes or not windows:
        return None
    with as_unreadable():
        indices = video.indices_at(8.0, hull(windows))
        frames = video.frames(indices[:: -(-len(indices) // most)], fps=8.0)
    corners = [box.to_pixels(video.width, video.height) for box in boxes]
    left, top = min(corner[0] for corner in corners), min(corner[1] for corner in corners)
    right, bottom = max(corner[2] for corner in corners), max(corner[3] for corner in corners)
    beside, above = max((right - left) / 4, 16), max((bottom - top) / 4, 16)
    rows = slice(max(0, int(top - above)), min(video.height, int(bottom + above) + 1))
    columns = slice(max(0, int(left - beside)), min(video.width, int(right + beside) + 1))
    return replace(frames, pixels=frames.pixels[:, rows, columns])
