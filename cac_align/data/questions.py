"""What is asked about a record: the whole video (scan), clips around its anomalies (look), single frames (frame).

records → plan → Question (record, task, window or frame, donors) → shown → Frames → conversation (as the judge's) → teacher

scan: turn 1, at 4 fps. look: turn 2, at 8 fps, told what turn 1 wrote; clips shorter than a second where the anomaly is, so
that no anomaly is cut. A normal video is looked at where an anomalous one (its donor) is, and told the answer to that one's
scan. A share of the looks at anomalous videos is told another's too, all of whose anomalies lie inside the window. Neither the
words, nor their length, nor how they fit the clip may give the verdict away. frame: frames that show a single-frame category by
themselves (stage 1). single: windows and boxes at once, at 4 fps (the single-turn formulation; only where asked for). Every
choice is drawn from (seed, record id): files in another order give the same questions.

Source: CaC (arXiv 2605.11723) Sec. 3.1-3.2, Appendices B.2 and C.2.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from cac_align.answer import read_answer, write_answer
from cac_align.cac.prompts import single_turn_conversation, turn_one_conversation, turn_two_conversation
from cac_align.data.prompts import filled
from cac_align.data.records import Record
from cac_align.data.truth import cover, events, length_s, seen
from cac_align.judgement import SINGLE_FRAME_TYPES, Anomaly, Turn, Window, hull
from cac_align.video import Frames, Video
from cac_align.vlm.protocol import Conversation, Message

Task = Literal["scan", "look", "frame", "single"]
TASKS: tuple[Task, ...] = ("scan", "look", "frame")
ALL_TASKS: tuple[Task, ...] = (*TASKS, "single")
SCAN_FPS, LOOK_FPS = 4.0, 8.0


@dataclass(frozen=True)
class Question:
    """One thing to ask about a record. window (seconds) for look, frame (source index) for frame, else None.

    donors: for look, looks at other records, one of which lends the answer to its scan (``suspected``), the best first. Without
    donors an abnormal record's look is told its own scan's; a normal one's cannot be asked, and its window is None.
    """

    record: Record
    task: Task
    window: Window | None = None
    frame: int | None = None
    donors: tuple[Question, ...] = ()

    @property
    def number(self) -> Literal[1, 2]:
        """Which turn's answer format it has: a single frame is answered with boxes, like turn 2."""
        return 1 if self.whole else 2

    @property
    def whole(self) -> bool:
        """Whether the whole video is shown, at 4 fps."""
        return self.task in ("scan", "single")

    @property
    def boxed(self) -> bool:
        """Whether its answer holds boxes."""
        return self.task != "scan"

    @property
    def key(self) -> str:
        """What its attempts are filed under: question and annotations (donors' too), so that corrected ones are asked anew."""
        asked = [self.record.to_json(), self.task, self.window and self.window.to_json(), self.frame]
        asked.append([donor.record.to_json() for donor in self.donors] or None)
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:20]


# ---- which questions ----------------------------------------------------------------------------------------------


def plan(
    records: Sequence[Record],
    *,
    tasks: Sequence[Task] = TASKS,
    frames_per_video: int = 2,
    max_clip_s: float = 1.0,
    foreign_suspicion: float = 0.5,
    seed: int = 0,
) -> dict[str, list[Question]]:
    """The questions of every record, by record id; scan before look, because look is told what scan found.

    frames_per_video: at most so many single frames (2: the paper's 20 K frames are 10 K anomalous ones of 5 K videos, and as many
    normal ones). max_clip_s: clips last less than this, in seconds. foreign_suspicion: share of abnormal looks that have donors,
    where any fit.
    """
    anomalous = sorted((record for record in records if record.status == "abnormal"), key=lambda record: record.id)
    looks = {record.id: _own_looks(record, max_clip_s, seed) for record in anomalous}
    lenders = [(_words(look.record.prompt), look) for own in looks.values() for look in own]
    questions: dict[str, list[Question]] = {}
    for record in records:
        asked: list[Question] = []
        if "scan" in tasks:
            asked.append(Question(record, "scan"))
        if "look" in tasks:
            if record.status == "normal":
                asked.append(_false_alarm(record, lenders, max_clip_s, seed))
            else:
                asked += [_doubted(look, lenders, foreign_suspicion, seed) for look in looks[record.id]]
        if "frame" in tasks:
            asked += [Question(record, "frame", frame=frame) for frame in _frames(record, frames_per_video, seed)]
        if "single" in tasks:
            asked.append(Question(record, "single"))
        questions[record.id] = asked
    return questions


def _draw(record: Record, about: str, seed: int) -> random.Random:
    return random.Random(f"{seed}|{about}|{record.id}")


def _clip(record: Record, event: Window, max_clip_s: float, seed: int) -> Window:
    draw = _draw(record, f"clip {event.start_s:.6f}", seed)
    return cover(event, record, max_s=max_clip_s, look_fps=LOOK_FPS, draw=draw)


def _own_looks(record: Record, max_clip_s: float, seed: int) -> list[Question]:
    windows = dict.fromkeys(_clip(record, event, max_clip_s, seed) for event in events(record))
    return [Question(record, "look", window) for window in windows]


Lenders = Sequence[tuple[set[str], Question]]
"""Looks at anomalous records with the words of their prompts."""


def _false_alarm(record: Record, lenders: Lenders, max_clip_s: float, seed: int) -> Question:
    """A normal record's look: where a donor is looked at, as far as that is a short clip inside this video too."""
    last_s = (record.num_frames - 1) / record.fps

    def fits(other: Question) -> bool:
        assert other.window is not None
        return other.window.end_s <= last_s + 1e-6 and length_s(other.window, record.fps) < max_clip_s

    donors = _donors(record, lenders, fits, _draw(record, "look", seed))
    return Question(record, "look", donors[0].window if donors else None, donors=donors)


def _doubted(look: Question, lenders: Lenders, share: float, seed: int) -> Question:
    """An abnormal record's look, in ``share`` of cases with donors: those whose anomalies all lie in its window."""
    window = look.window
    assert window is not None
    draw = _draw(look.record, f"foreign {window.start_s:.6f}", seed)
    if draw.random() >= share:
        return look

    def fits(other: Question) -> bool:
        inside = (each.window is not None and hull([window, each.window]) == window for each in other.record.anomalies)
        return other.record.id != look.record.id and all(inside)

    return replace(look, donors=_donors(look.record, lenders, fits, draw))


def _donors(record: Record, lenders: Lenders, fits: Callable[[Question], bool], draw: random.Random) -> tuple[Question, ...]:
    """At most eight looks drawn from those that fit: first where the video lasts as long, then by words shared with the prompt."""
    drawn = draw.sample(lenders, min(256, len(lenders)))
    offered = list(islice((lender for lender in drawn if fits(lender[1])), 8))
    words = _words(record.prompt)
    offered.sort(key=lambda lender: (_scan_frames(lender[1].record) != _scan_frames(record), -len(words & lender[0])))
    return tuple(look for _, look in offered)


def _scan_frames(record: Record) -> int:
    return int((record.num_frames - 1) / record.fps * SCAN_FPS + 1e-6) + 1


def _frames(record: Record, most: int, seed: int) -> list[int]:
    """Frames that show what is wrong by themselves: boxed ones of single-frame categories, outside every cross-frame event."""
    if record.status == "normal":
        open_to = list(range(record.num_frames))
    else:
        open_to = []
        for frame in sorted({frame for anomaly in record.anomalies for frame in anomaly.boxes}):
            there = seen(record.anomalies, (frame,), (frame / record.fps,))
            if there and all(anomaly.type in SINGLE_FRAME_TYPES for anomaly in there):
                boxed = [a for a in record.anomalies if frame in a.boxes and a.type in SINGLE_FRAME_TYPES]
                if len(boxed) == len(there):
                    open_to.append(frame)
    return sorted(_draw(record, "frame", seed).sample(open_to, min(most, len(open_to))))


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{3,}", text.lower()))


# ---- how they are asked -------------------------------------------------------------------------------------------


def shown(question: Question, video: Video) -> Frames:
    """The frames that judge and teacher see. Raises ``ValueError`` when the video does not hold them."""
    if question.whole:
        return video.sample(SCAN_FPS)
    if question.task == "look":
        assert question.window is not None
        return video.clip(question.window, LOOK_FPS)
    assert question.frame is not None
    return video.frames((question.frame,), fps=LOOK_FPS)


def truth(question: Question, frames: Frames) -> tuple[Anomaly, ...]:
    """What a perfect answer to these frames names."""
    return seen(question.record.anomalies, frames.indices, frames.times_s)


def suspected(
    look: Question, scanned: Frames, own: str, scan_of: Callable[[Record], str | None]
) -> tuple[Question, dict[str, str]]:
    """The look as it is asked, and what its sample says of the suspicion: "claim", an answer to turn 1, and "donor", the id of
    the other record that this was written about. Empty: a normal record, and no donor's answer is to be had.

    scanned: the frames of the record's own scan, own: the answer to it. scan_of: a record's accepted answer, or None. A normal
    record is looked at where the donor is, so that the claim is about what is shown.
    """
    for donor in look.donors:
        claim = scan_of(donor.record)
        if claim is not None and not read_claim(claim, scanned).faults:
            window = donor.window if look.record.status == "normal" else look.window
            return replace(look, window=window, donors=(donor,)), {"claim": claim, "donor": donor.record.id}
    return replace(look, donors=()), {} if look.record.status == "normal" else {"claim": own}


def conversation(question: Question, frames: Frames, *, claim: Turn | None = None, wording: str = "full") -> Conversation:
    """The question as the judge itself is asked; a look needs ``claim``, turn 1's answer as read."""
    prompt = question.record.prompt
    if question.task == "scan":
        return turn_one_conversation(prompt, frames, wording=wording)
    if question.task == "single":
        return single_turn_conversation(prompt, frames, wording=wording)
    if question.task == "look":
        assert claim is not None
        return turn_two_conversation(prompt, frames, claim, wording=wording)
    return (Message("user", filled("frame", prompt=prompt), frames, as_images=True),)


def read_claim(text: str, scanned: Frames) -> Turn:
    """Turn 1's answer as turn 2 is told it."""
    return read_answer(text, number=1, frames=scanned.indices, times_s=scanned.times_s)


# ---- what only the teacher is told ---------------------------------------------------------------------------------


def told(question: Question, frames: Frames, video: Video, *, close_ups: bool) -> Conversation:
    """What comes before the question when a teacher is asked: the findings, and for a whole video the anomaly enlarged."""
    text = filled("hints", record=question.record.id, task=question.task, found=found(question, frames))
    close_up = _close_up(question.record, video) if close_ups and question.whole else None
    if close_up is None:
        return (Message("system", text),)
    about = filled("close_up", first_s=f"{close_up.times_s[0]:.2f}", last_s=f"{close_up.times_s[-1]:.2f}")
    return (Message("system", text), Message("user", about, close_up, as_images=True))


def found(question: Question, frames: Frames) -> str:
    """The annotation in the numbers of the frames shown, as the answer's own JSON writes it; without a chain of thought."""
    meant: Sequence[Anomaly] = truth(question, frames)
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
    """At most ``most`` frames of the anomaly, cut out with half its size around it; None where there is nothing boxed."""
    boxes = [box for anomaly in record.anomalies for found in anomaly.boxes.values() for box in found]
    windows = [anomaly.window for anomaly in record.anomalies if anomaly.window is not None]
    if not boxes or not windows:
        return None
    indices = video.indices_at(8.0, hull(windows))
    frames = video.frames(indices[:: -(-len(indices) // most)], fps=8.0)
    corners = [box.to_pixels(video.width, video.height) for box in boxes]
    left, top = min(corner[0] for corner in corners), min(corner[1] for corner in corners)
    right, bottom = max(corner[2] for corner in corners), max(corner[3] for corner in corners)
    beside, above = max((right - left) / 4, 16), max((bottom - top) / 4, 16)
    rows = slice(max(0, int(top - above)), min(video.height, int(bottom + above) + 1))
    columns = slice(max(0, int(left - beside)), min(video.width, int(right + beside) + 1))
    return replace(frames, pixels=frames.pixels[:, rows, columns])


# ---- samples and videos ---------------------------------------------------------------------------------------------


def open_video(record: Record, root: Path) -> Video:
    """The record's video on the record's own clock. Raises ``ValueError`` when it cannot be read or is not what the record states."""
    path = root / record.video
    if not path.is_file():
        raise ValueError(f"record {record.id}: video missing: expected {path}")
    video = Video.open(path)
    if (len(video), video.height, video.width) != (record.num_frames, record.height, record.width):
        raise ValueError(
            f"record {record.id}: states {record.num_frames} frames of {record.width}x{record.height}, {path.name} has "
            f"{len(video)} of {video.width}x{video.height}; correct the record or the file"
        )
    return video if abs(video.fps - record.fps) <= 0.01 * record.fps else video.with_fps(record.fps)


def as_sample(question: Question, answer: str, **more: Any) -> dict[str, Any]:
    """A line of a stage's sample file."""
    window = None if question.window is None else [question.window.start_s, question.window.end_s]
    row = {"record": question.record.id, "task": question.task, "window": window, "frame": question.frame, "answer": answer}
    return {**row, **more}
