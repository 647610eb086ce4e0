"""What is asked about a record: the whole video (scan), clips around its anomalies (look), single frames (frame).

records → plan → Question (record, task, window or frame, alarms) → shown → Frames → conversation (as the judge's) → teacher

scan: turn 1, at 4 fps. look: turn 2, at 8 fps, told what turn 1 wrote; clips shorter than a second where the anomaly is, so
that no anomaly is cut. A normal video is looked at where an anomalous one (its donor) is, and told a false alarm: a mistaken scan
of the normal video itself, which suspects there what was found in the donor. A share of the looks at anomalous videos is told a
mistaken scan of their own video too. Neither the words, nor their length, nor how they fit the clip may give the verdict away: at
inference turn 1 always writes about the video that is shown. frame: frames that show a single-frame category by themselves
(stage 1). single: windows and boxes at once, at 4 fps (the single-turn formulation; only where asked for). Every choice is drawn
from (seed, record id): files in another order give the same questions, and a record more or less changes its neighbours' alone.

Source: CaC (arXiv 2605.11723) Sec. 3.1-3.2, Appendices B.2 and C.2.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from cac_align.cac.prompts import single_turn_conversation, turn_one_conversation, turn_two_conversation
from cac_align.core.answer import read_answer, write_answer
from cac_align.core.judgement import SINGLE_FRAME_TYPES, Anomaly, Turn, Window, hull
from cac_align.core.video import Frames, Video
from cac_align.data.records import VARIABLE, Record, off_clock, variable
from cac_align.data.synthesis.prompts import filled
from cac_align.data.visibility import cover, events, length_s, seen
from cac_align.vlm.protocol import Conversation, Message


class Unreadable(ValueError):
    """A video's frames cannot be had: the file is damaged, or does not reach as far as its record says."""


Task = Literal["scan", "look", "frame", "single"]
TASKS: tuple[Task, ...] = ("scan", "look", "frame")
ALL_TASKS: tuple[Task, ...] = (*TASKS, "single")
SCAN_FPS, LOOK_FPS = 4.0, 8.0
LENT = 3
"""Donors per look at most: each that a teacher does not manage to retell costs all its rounds."""


@dataclass(frozen=True)
class Question:
    """One thing to ask about a record. window (seconds): of a look, else None; frame (source index): for frame, else None.

    supposed: what a mistaken scan (an alarm) suspects, found in the record ``donor``; its window is that of the look it is for.
    alarms: for look, mistaken scans of its own video, one of whose answers it is told; the best first. Without alarms an abnormal
    record's look is told the answer to its scan; a normal one's cannot be asked, and its window is None.
    """

    record: Record
    task: Task
    window: Window | None = None
    frame: int | None = None
    supposed: tuple[Anomaly, ...] = ()
    donor: str = ""
    alarms: tuple[Question, ...] = ()

    @property
    def label(self) -> str:
        """What teacher and log call it: the task, or "alarm" for a mistaken scan."""
        return "alarm" if self.supposed else self.task

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
        """What its attempts are filed under: question and annotations (borrowed too), so that corrected ones are asked anew. What
        is neither shown nor compared does not count: where the file lies, who annotated and reviewed it, saliency."""
        of = self.record
        asked = [of.id, of.prompt, of.fps, of.num_frames, of.width, of.height, of.status]
        asked += [self.task, self.window and self.window.to_json(), self.frame, [alarm.key for alarm in self.alarms]]
        asked += [
            [replace(one, saliency=None).to_json() for one in of_whom] for of_whom in (of.anomalies, self.supposed)
        ]
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
    normal ones). max_clip_s: clips last less than this, in seconds. foreign_suspicion: share of abnormal looks that have alarms,
    where any donor fits.
    """
    anomalous = sorted((record for record in records if record.status == "abnormal"), key=lambda record: record.id)
    looks = {record.id: _own_looks(record, max_clip_s, seed) for record in anomalous}
    lenders = _ring([look for own in looks.values() for look in own])
    questions: dict[str, list[Question]] = {}
    for record in records:
        asked: list[Question] = []
        if "scan" in tasks:
            asked.append(Question(record, "scan"))
        if "look" in tasks:
            if record.status == "normal":
                asked.append(_false_alarm(record, lenders, max_clip_s, seed))
            else:
                asked += [_doubted(look, lenders, foreign_suspicion, max_clip_s, seed) for look in looks[record.id]]
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


def _short(look: Question, max_clip_s: float) -> bool:
    assert look.window is not None
    return length_s(look.window, look.record.fps) < max_clip_s


Lenders = Sequence[tuple[str, set[str], Question]]
"""Looks at anomalous records: each one's place on a ring (a hash), its prompt's words, the look; in the order of the places."""


def _place(*of: object) -> str:
    return hashlib.sha256("|".join(map(str, of)).encode()).hexdigest()


def _ring(looks: Sequence[Question]) -> Lenders:
    placed = [(_place(look.record.id, look.window), _words(look.record.prompt), look) for look in looks]
    return sorted(placed, key=lambda lender: lender[0])


def _false_alarm(record: Record, lenders: Lenders, max_clip_s: float, seed: int) -> Question:
    """A normal record's look: where a donor is looked at, as far as that is a short clip inside this video too."""
    last_s = (record.num_frames - 1) / record.fps

    def fits(other: Question) -> bool:
        assert other.window is not None
        return other.window.end_s <= last_s + 1e-6 and _short(other, max_clip_s)

    donors = _donors(record, lenders, fits, _place(seed, "look", record.id))
    alarms = tuple(_alarm(record, donor, donor.window, donor.record.anomalies) for donor in donors)
    return Question(record, "look", alarms[0].window if alarms else None, alarms=alarms)


def _doubted(look: Question, lenders: Lenders, share: float, max_clip_s: float, seed: int) -> Question:
    """An abnormal record's look, in ``share`` of cases with alarms, at the very times at which something else is wrong.

    Donors have as many findings, so that a false claim is no longer or shorter than a right one, and of other types only.
    """
    record, window = look.record, look.window
    assert window is not None
    about = f"foreign {window.start_s:.6f}"
    if _draw(record, about, seed).random() >= share:
        return look
    types = {anomaly.type for anomaly in record.anomalies}

    def fits(other: Question) -> bool:
        lent = other.record.anomalies
        mistaken = len(lent) == len(record.anomalies) and types.isdisjoint(anomaly.type for anomaly in lent)
        return mistaken and _short(other, max_clip_s) == _short(look, max_clip_s)

    donors = _donors(record, lenders, fits, _place(seed, about, record.id))
    return replace(look, alarms=tuple(_alarm(record, donor, window, record.anomalies) for donor in donors))


def _alarm(record: Record, donor: Question, window: Window | None, when: Sequence[Anomaly]) -> Question:
    """The mistaken scan that suspects the donor's findings at the times of ``when``, for a look at ``window``."""
    lent = zip(donor.record.anomalies, when, strict=True)
    supposed = tuple(replace(anomaly, window=at.window, boxes={}, saliency=None) for anomaly, at in lent)
    return Question(record, "scan", window, supposed=supposed, donor=donor.record.id)


def _donors(record: Record, lenders: Lenders, fits: Callable[[Question], bool], start: str) -> list[Question]:
    """At most ``LENT`` of eight looks that fit, by how alike their prompts' words are to the record's (Jaccard index: the number
    of words shared would favour long prompts, and so the kinds of anomaly that these have). The eight are the first on the ring from
    ``start`` on, among 256: another lender more or less changes only those near it."""
    first = bisect_left(lenders, start, key=lambda lender: lender[0])
    passed = (lenders[place] for place in islice(chain(range(first, len(lenders)), range(first)), 256))
    offered = list(islice((lender for lender in passed if fits(lender[2])), 8))
    words = _words(record.prompt)

    def alike(lender: tuple[str, set[str], Question]) -> float:
        return len(words & lender[1]) / max(1, len(words | lender[1]))

    return [look for _, _, look in sorted(offered, key=alike, reverse=True)[:LENT]]


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
    """The frames that judge and teacher see, decoded when their pixels are first read. Raises ``Unreadable``, here or then."""
    if question.whole:
        return whole(video)
    if question.task == "look":
        assert question.window is not None
        with _reading():
            return _later(video, video.indices_at(LOOK_FPS, question.window), LOOK_FPS)
    assert question.frame is not None
    if question.frame >= len(video):
        raise Unreadable(f"{video.name}: frame {question.frame} is asked for, the last one is {len(video) - 1}")
    return _later(video, (question.frame,), LOOK_FPS)


def whole(video: Video) -> Frames:
    """What a scan shows, decoded when its pixels are first read."""
    return _later(video, video.indices_at(SCAN_FPS), SCAN_FPS)


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise Unreadable(str(error)) from error


@dataclass(frozen=True, eq=False)
class _Undecoded:
    """Frames of a video as ``Frames.undecoded`` takes them."""

    video: Video
    indices: tuple[int, ...]
    jpegs: None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.indices), self.video.height, self.video.width, 3

    def decode(self) -> Any:
        with _reading():
            return self.video.frames(self.indices).pixels


def _later(video: Video, indices: tuple[int, ...], fps: float) -> Frames:
    times_s = tuple(video.times_s[index] for index in indices)
    return Frames.undecoded(_Undecoded(video, indices), indices, times_s, fps, len(video))


def truth(question: Question, frames: Frames) -> tuple[Anomaly, ...]:
    """What the answer to these frames is to name: what they show of the annotation, or of what a mistaken scan suspects."""
    return seen(question.supposed or question.record.anomalies, frames.indices, frames.times_s)


def conversation(
    question: Question, frames: Frames, *, claim: Turn | None = None, wording: str = "full"
) -> Conversation:
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
    """What comes before the question when a teacher is asked: the findings, and for a whole video the anomaly enlarged; for a
    mistaken scan what it suspects. Raises ``Unreadable``."""
    name = "mistaken" if question.supposed else "hints"
    text = filled(name, record=question.record.id, task=question.label, found=found(question, frames))
    close_up = _close_up(question.record, video) if close_ups and question.whole and not question.supposed else None
    if close_up is None:
        return (Message("system", text),)
    about = filled("close_up", first_s=f"{close_up.times_s[0]:.2f}", last_s=f"{close_up.times_s[-1]:.2f}")
    return (Message("system", text), Message("user", about, close_up, as_images=True))


def found(question: Question, frames: Frames) -> str:
    """``truth`` in the numbers of the frames shown, as the answer's own JSON writes it; without a chain of thought."""
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
    with _reading():
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


def open_video(record: Record, root: Path, *, clocked: bool = True) -> Video:
    """The record's video, its time stamps within half a frame of the record's own clock (clocked=False: for its pixels alone).

    Raises ``ValueError`` when it cannot be read, is not what the record states, or has a variable frame rate.
    """
    path = root / record.video
    if not path.is_file():
        raise ValueError(f"record {record.id}: video missing: expected {path}")
    video = Video.open(path)
    if (len(video), video.height, video.width) != (record.num_frames, record.height, record.width):
        raise ValueError(
            f"record {record.id}: states {record.num_frames} frames of {record.width}x{record.height}, {path.name} has "
            f"{len(video)} of {video.width}x{video.height}; correct the record or the file"
        )
    if clocked and variable(video, record.fps):
        raise ValueError(f"record {record.id}: {path.name}: {VARIABLE}")
    close = abs(video.fps - record.fps) <= 0.01 * record.fps and off_clock(video, record.fps) <= 0.5
    return video if close else video.with_fps(record.fps)


def as_sample(question: Question, answer: str, **more: Any) -> dict[str, Any]:
    """A line of a stage's sample file."""
    window = None if question.window is None else [question.window.start_s, question.window.end_s]
    row = {
        "record": question.record.id,
        "task": question.task,
        "window": window,
        "frame": question.frame,
        "answer": answer,
    }
    return {**row, **more}
