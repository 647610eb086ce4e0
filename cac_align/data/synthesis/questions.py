"""What is asked about a record, and how: the whole video, clips around its anomalies, single
frames.

- scan: turn 1, the whole video at 4 fps.
- look: turn 2, a clip at 8 fps, given turn 1's answer.
- frame: a single frame that shows a single-frame category by itself (stage 1).
- single: windows and boxes at once, at 4 fps (the single-turn formulation; only on request).

Source: CaC (arXiv 2605.11723) Sec. 3.1-3.2, Appendices B.2 and C.2.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from cac_align.cac.prompts import single_turn_conversation, turn_one_conversation, turn_two_conversation
from cac_align.core.answer import read_answer
from cac_align.core.judgement import Anomaly, Turn, Window
from cac_align.core.video import Frames, Video
from cac_align.data.records import Record
from cac_align.data.synthesis.prompts import filled
from cac_align.data.visibility import visible_anomalies
from cac_align.vlm.protocol import Conversation, Message


class UnreadableVideo(ValueError):
    """A video's frames cannot be read: the file is damaged, or shorter than its record says."""


Task = Literal["scan", "look", "frame", "single"]
TASKS: tuple[Task, ...] = ("scan", "look", "frame")
ALL_TASKS: tuple[Task, ...] = (*TASKS, "single")
SCAN_FPS, LOOK_FPS = 4.0, 8.0


@dataclass(frozen=True)
class RecordQuestion:
    """One question about a record.

    window: of a look, in seconds; None for other tasks.
    frame: source index for task frame; None for other tasks.
    suspected: for a mistaken scan (a false alarm): the anomalies that it wrongly suspects, which
        belong to the record ``donor``. Its window is that of the look it is made for.
    alarms: for a look: false alarms on its own video, best first; the look is given the answer to
        one of them. Without alarms, the look of an abnormal record is given the answer to its own
        scan; that of a normal record cannot be asked, and its window is None.
    """

    record: Record
    task: Task
    window: Window | None = None
    frame: int | None = None
    suspected: tuple[Anomaly, ...] = ()
    donor: str = ""
    alarms: tuple[RecordQuestion, ...] = ()

    @property
    def label(self) -> str:
        """The name in prompts and logs: the task, or "alarm" for a mistaken scan."""
        return "alarm" if self.suspected else self.task

    @property
    def number(self) -> Literal[1, 2]:
        """The turn whose answer format applies. A single frame is answered with boxes, like turn 2."""
        return 1 if self.shows_whole_video else 2

    @property
    def shows_whole_video(self) -> bool:
        """Whether the whole video is shown, at 4 fps."""
        return self.task in ("scan", "single")

    @property
    def boxed(self) -> bool:
        """Whether the answer contains boxes."""
        return self.task != "scan"

    @property
    def key(self) -> str:
        """The hash under which its attempts are logged.

        It covers the question and the annotations (a donor's too), so that corrected ones are asked
        again. It leaves out what is neither shown nor compared: the file's place, annotator and
        reviewer, saliency.
        """
        of = self.record
        asked = [of.id, of.prompt, of.fps, of.num_frames, of.width, of.height, of.status]
        asked += [self.task, self.window and self.window.to_json(), self.frame, [alarm.key for alarm in self.alarms]]
        asked += [
            [replace(one, saliency=None).to_json() for one in of_whom] for of_whom in (of.anomalies, self.suspected)
        ]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:20]


def question_frames(question: RecordQuestion, video: Video) -> Frames:
    """The frames that judge and teacher see, decoded when their pixels are first read.

    Raises ``UnreadableVideo``, at once or when the pixels are read.
    """
    if question.shows_whole_video:
        return scan_frames(video)
    if question.task == "look":
        assert question.window is not None
        with as_unreadable():
            return _undecoded_frames(video, video.indices_at(LOOK_FPS, question.window), LOOK_FPS)
    assert question.frame is not None
    if question.frame >= len(video):
        raise UnreadableVideo(f"{video.name}: frame {question.frame} is asked for, the last one is {len(video) - 1}")
    return _undecoded_frames(video, (question.frame,), LOOK_FPS)


def scan_frames(video: Video) -> Frames:
    """The frames of a scan, decoded when their pixels are first read."""
    return _undecoded_frames(video, video.indices_at(SCAN_FPS), SCAN_FPS)


@contextmanager
def as_unreadable() -> Iterator[None]:
    """Turn a decoding error into ``UnreadableVideo``."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UnreadableVideo(str(error)) from error


@dataclass(frozen=True, eq=False)
class _Undecoded:
    """Frames of a video that are not decoded yet, as ``Frames.undecoded`` takes them."""

    video: Video
    indices: tuple[int, ...]
    jpegs: None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.indices), self.video.height, self.video.width, 3

    def decode(self) -> Any:
        with as_unreadable():
            return self.video.frames(self.indices).pixels


def _undecoded_frames(video: Video, indices: tuple[int, ...], fps: float) -> Frames:
    times_s = tuple(video.times_s[index] for index in indices)
    return Frames.undecoded(_Undecoded(video, indices), indices, times_s, fps, len(video))


def expected_anomalies(question: RecordQuestion, frames: Frames) -> tuple[Anomaly, ...]:
    """What a right answer to these frames names: what they show of the annotation, or of what a
    false alarm suspects.
    """
    return visible_anomalies(question.suspected or question.record.anomalies, frames.indices, frames.times_s)


def question_conversation(
    question: RecordQuestion, frames: Frames, *, claim: Turn | None = None, wording: str = "full"
) -> Conversation:
    """The question as the judge itself is asked. claim: turn 1's answer, which a look needs."""
    prompt = question.record.prompt
    if question.task == "scan":
        return turn_one_conversation(prompt, frames, wording=wording)
    if question.task == "single":
        return single_turn_conversation(prompt, frames, wording=wording)
    if question.task == "look":
        assert claim is not None
        return turn_two_conversation(prompt, frames, claim, wording=wording)
    return (Message("user", filled("frame", prompt=prompt), frames, as_images=True),)


def read_first_turn(text: str, scanned: Frames) -> Turn:
    """Turn 1's answer as turn 2 is given it."""
    return read_answer(text, number=1, frames=scanned.indices, times_s=scanned.times_s)


def sample_row(question: RecordQuestion, answer: str, **more: Any) -> dict[str, Any]:
    """A line of a sample file (chains.jsonl and the stages' files)."""
    window = None if question.window is None else [question.window.start_s, question.window.end_s]
    row = {
        "record": question.record.id,
        "task": question.task,
        "window": window,
        "frame": question.frame,
        "answer": answer,
    }
    return {**row, **more}
