"""What raters did, kept action by action in SQLite: appended at once, never changed, folded into ratings whenever they are asked for.

key press → add (checked, one transaction on disk) → actions table → fold → Rating per clip → export → our annotation records

Undo is an action like any other (it names the one it takes back), so the table tells the whole story of a rating. A rating counts when
its rater confirmed it (``done``) and nothing is missing from it; everything else is half-written, and counted and named as such.
Several processes and raters may write at once (write-ahead log): an action states the last one its page had seen, and is refused
when another page of the same rater was faster; repeated after a lost answer it is recognised by its ``client`` id and not added twice.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cac_align.data.records import Record, Review
from cac_align.evaluation.pairing import Clip, Fault
from cac_align.judgement import ANOMALY_TYPES, Anomaly, Box, Status, Window

KINDS = ("start", "end", "type", "reason", "region", "saliency", "box", "unbox", "remove", "normal", "done", "undo")
MAX_TEXT = 2000  # characters of a reason; a page that was left open on a keyboard must not fill the disk

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (token TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, content TEXT, UNIQUE (kind, name));
CREATE TABLE IF NOT EXISTS actions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, rater TEXT NOT NULL, task TEXT NOT NULL, clip TEXT NOT NULL,
    kind TEXT NOT NULL, detail TEXT NOT NULL, client TEXT UNIQUE);
CREATE INDEX IF NOT EXISTS actions_of_a_task ON actions (rater, task, id);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS actions_stay BEFORE UPDATE ON actions BEGIN SELECT RAISE(ABORT, 'actions are never changed'); END;
CREATE TRIGGER IF NOT EXISTS actions_remain BEFORE DELETE ON actions BEGIN SELECT RAISE(ABORT, 'actions are never deleted'); END;
"""


class Outdated(ValueError):
    """Another page of the same rater was faster; the caller's view of the task is old."""


@dataclass(frozen=True)
class Action:
    """One thing a rater did. detail: what it needs, e.g. {"anomaly": 0, "frame": 12}; the kinds are ``KINDS``."""

    id: int
    kind: str
    clip: str
    detail: Mapping[str, Any]


@dataclass
class Mark:
    """An anomaly as it is being marked: window ends as frames, anything may still be missing."""

    start: int | None = None
    end: int | None = None
    type: str | None = None
    reason: str = ""
    region: str = ""
    saliency: str | None = None
    boxes: dict[int, list[Box]] = field(default_factory=dict)

    def lacks(self) -> list[str]:
        """What still keeps it from being an annotation, in the rater's words."""
        missing = []
        if self.type is None:
            missing.append("has no type (1–5)")
        if self.start is None or self.end is None:
            missing.append(f"has no {'beginning (i)' if self.start is None else 'end (o)'}")
        elif self.end < self.start:
            missing.append(f"ends (frame {self.end}) before it begins (frame {self.start})")
        else:
            outside = sorted(frame for frame in self.boxes if not self.start <= frame <= self.end)
            if outside:
                missing.append(f"has a box on frame {outside[0]}, outside its window")
        return missing

    def to_json(self) -> dict[str, Any]:
        boxes = {str(frame): [box.to_json() for box in boxes] for frame, boxes in sorted(self.boxes.items())}
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"boxes": boxes, "lacks": self.lacks()}


@dataclass
class Rating:
    """One rater's view of one clip. status: None while undecided."""

    status: Status | None = None
    marks: list[Mark] = field(default_factory=list)

    def lacks(self) -> list[str]:
        if self.status is None:
            return ["not judged yet (x normal, i an anomaly)"]
        return [f"anomaly {number} {what}" for number, mark in enumerate(self.marks, 1) for what in mark.lacks()]

    def to_json(self) -> dict[str, Any]:
        return {"status": self.status, "marks": [mark.to_json() for mark in self.marks], "lacks": self.lacks()}


@dataclass
class TaskState:
    """One rater's work on one task: a rating per clip, whether it was confirmed, and the last action's id (0: none)."""

    ratings: dict[str, Rating]
    done: bool = False
    last: int = 0
    undoable: int | None = None

    @property
    def touched(self) -> bool:
        return self.last > 0 and (self.done or any(rating.status is not None for rating in self.ratings.values()))

    def lacks(self) -> list[str]:
        many = len(self.ratings) > 1
        named = zip("AB", self.ratings.values(), strict=False)
        return [(f"video {side}: " if many else "") + what for side, rating in named for what in rating.lacks()]


# ---- folding ------------------------------------------------------------------------------------------------------


def fold(actions: Sequence[Action], lengths: Mapping[str, int]) -> TaskState:
    """What the actions of one rater on one task amount to. lengths: number of frames by clip of the task.

    Raises ``ValueError`` when an action does not fit what came before it.
    """
    standing: list[Action] = []
    for action in actions:
        if action.kind == "undo":
            if not standing or standing[-1].id != action.detail.get("action"):
                raise ValueError("there is nothing to undo here" if not standing else "undo takes back the last action only")
            standing.pop()
        else:
            standing.append(action)
    state = TaskState({clip: Rating() for clip in lengths})
    for action in standing:
        if action.kind == "done":
            if missing := state.lacks():
                raise ValueError("; ".join(missing))
            state.done = True
        elif action.clip not in lengths:
            raise ValueError(f"clip {action.clip!r} does not belong to this task")
        elif action.kind not in _APPLY:
            raise ValueError(f"action must be one of {', '.join(KINDS)}; received {action.kind!r}")
        else:
            # Whoever changes a confirmed rating has to confirm it again.
            state.done = False
            _APPLY[action.kind](state.ratings[action.clip], action.detail, lengths[action.clip])
    state.last = actions[-1].id if actions else 0
    state.undoable = standing[-1].id if standing else None
    return state


def _mark(rating: Rating, detail: Mapping[str, Any]) -> Mark:
    """The anomaly an action is about; the number after the last one begins another."""
    number = _whole(detail, "anomaly", len(rating.marks))
    if number == len(rating.marks):
        rating.marks.append(Mark())
    rating.status = "abnormal"
    return rating.marks[number]


def _whole(detail: Mapping[str, Any], name: str, largest: int) -> int:
    value = detail.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
        raise ValueError(f"{name} must be a whole number in [0, {largest}], received {value!r}")
    return value


def _text(detail: Mapping[str, Any]) -> str:
    value = detail.get("text")
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"text must be at most {MAX_TEXT} characters, received {str(value)[:40]!r}")
    return value.strip()


def _start(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    frame = _whole(detail, "frame", length - 1)
    _mark(rating, detail).start = frame


def _end(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    frame = _whole(detail, "frame", length - 1)
    _mark(rating, detail).end = frame


def _type(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    if detail.get("type") not in ANOMALY_TYPES:
        raise ValueError(f"type must be one of {', '.join(ANOMALY_TYPES)}; received {detail.get('type')!r}")
    _mark(rating, detail).type = detail["type"]


def _reason(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    text = _text(detail)
    _mark(rating, detail).reason = text


def _region(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    text = _text(detail)
    _mark(rating, detail).region = text


def _saliency(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    if detail.get("saliency") not in ("salient", "non-salient"):
        raise ValueError(f"saliency must be 'salient' or 'non-salient', received {detail.get('saliency')!r}")
    _mark(rating, detail).saliency = detail["saliency"]


def _box(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    frame = _whole(detail, "frame", length - 1)
    corners = detail.get("box")
    if not isinstance(corners, list) or len(corners) != 4:
        raise ValueError(f"box must be [xmin, ymin, xmax, ymax], received {corners!r}")
    box = Box(*corners)
    _mark(rating, detail).boxes.setdefault(frame, []).append(box)


def _unbox(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    mark = rating.marks[_whole(detail, "anomaly", len(rating.marks) - 1)]
    frame = _whole(detail, "frame", length - 1)
    if not mark.boxes.get(frame):
        raise ValueError(f"there is no box on frame {frame} to remove")
    mark.boxes[frame].pop()
    if not mark.boxes[frame]:
        del mark.boxes[frame]


def _remove(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    del rating.marks[_whole(detail, "anomaly", len(rating.marks) - 1)]
    if not rating.marks:
        rating.status = None


def _normal(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    rating.status, rating.marks = "normal", []


_APPLY: Mapping[str, Callable[[Rating, Mapping[str, Any], int], None]] = {
    "start": _start, "end": _end, "type": _type, "reason": _reason, "region": _region, "saliency": _saliency,
    "box": _box, "unbox": _unbox, "remove": _remove, "normal": _normal,
}  # fmt: skip


# ---- the store ----------------------------------------------------------------------------------------------------


class AnnotationStore:
    """An SQLite file of actions, made when it does not exist. Thread-safe; several processes may have it open.

    Raises ``ValueError`` when the path cannot be such a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=10, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ValueError(f"{path}: cannot be used as the database of ratings: {error}; give a writable file") from error

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that holds the file's write lock from its beginning."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def setting(self, name: str, default: str) -> str:
        """A value that the first opening of this file fixes, e.g. the seed of the order."""
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", (name, default))
            return db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()[0]

    def token(self, kind: str, name: str) -> str:
        """The opaque id of a clip or task, the same as long as this file lives. It is random: nobody can tell the name from it."""
        return self.tokens(kind, {name: None})[name]

    def tokens(self, kind: str, contents: Mapping[str, str | None]) -> dict[str, str]:
        """Opaque ids of many names at once, kept with the hash of their content.

        Raises ``ValueError`` when a name's content is another than the one that was rated before.
        """
        with self._writing() as db:
            known = {name: (token, content) for token, name, content in db.execute(
                "SELECT token, name, content FROM tokens WHERE kind = ?", (kind,))}  # fmt: skip
            for name, content in contents.items():
                if name not in known:
                    known[name] = (secrets.token_urlsafe(12), content)
                    db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?)", (known[name][0], kind, name, content))
                elif known[name][1] != content:
                    raise ValueError(
                        f"{name} is another video than the one rated in {self.path}; use another database for the new videos"
                    )
        return {name: known[name][0] for name in contents}

    def actions(self, rater: str, task: str) -> list[Action]:
        """Everything this rater did on this task, in order."""
        with self._lock:
            return self._actions(rater, task)

    def _actions(self, rater: str, task: str) -> list[Action]:
        rows = self._db.execute(
            "SELECT id, kind, clip, detail FROM actions WHERE rater = ? AND task = ? ORDER BY id", (rater, task)
        )
        return [Action(number, kind, clip, json.loads(detail)) for number, kind, clip, detail in rows]

    def state(self, rater: str, task: str, lengths: Mapping[str, int]) -> TaskState:
        return fold(self.actions(rater, task), lengths)

    def add(
        self,
        *,
        rater: str,
        task: str,
        lengths: Mapping[str, int],
        clip: str,
        kind: str,
        detail: Mapping[str, Any],
        seen: int,
        client: str,
    ) -> TaskState:
        """Check an action against what stands and keep it; on return it is on disk. Returns the new state.

        seen: id of the last action the page knew (0: none). client: a random id of this action; the same one again adds nothing.
        Raises ``Outdated`` when there are newer actions than ``seen``, ``ValueError`` when the action does not fit.
        """
        if kind not in KINDS:
            raise ValueError(f"action must be one of {', '.join(KINDS)}; received {kind!r}")
        with self._writing() as db:
            before = self._actions(rater, task)
            if db.execute("SELECT 1 FROM actions WHERE client = ?", (client,)).fetchone():
                return fold(before, lengths)
            last = before[-1].id if before else 0
            if last != seen:
                raise Outdated("this video was changed in another window of yours; what you see now is its present state")
            if kind == "undo":
                undoable = fold(before, lengths).undoable
                if undoable is None:
                    raise ValueError("there is nothing to undo here")
                detail = {"action": undoable}
            fold([*before, Action(last + 1, kind, clip, detail)], lengths)  # raises when it does not fit
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            row = (now, rater, task, clip, kind, json.dumps(dict(detail), ensure_ascii=False), client)
            number = db.execute(
                "INSERT INTO actions (time, rater, task, clip, kind, detail, client) VALUES (?, ?, ?, ?, ?, ?, ?)", row
            ).lastrowid
            return fold([*before, Action(number, kind, clip, detail)], lengths)

    def finished(self, rater: str, tasks: Sequence[Task]) -> set[str]:
        """Tokens of the tasks that this rater confirmed and has not changed since."""
        with self._lock:
            last = dict(
                self._db.execute(
                    "SELECT task, kind FROM actions WHERE id IN (SELECT max(id) FROM actions WHERE rater = ? GROUP BY task)",
                    (rater,),
                )
            )
        done = {task.token for task in tasks if last.get(task.token) == "done"}
        undone = [task for task in tasks if last.get(task.token) == "undo"]  # may have taken back what came after ``done``
        return done | {task.token for task in undone if self.state(rater, task.token, task.lengths).done}

    def raters(self) -> list[str]:
        """Everyone who did anything, in order of their names."""
        with self._lock:
            return [rater for (rater,) in self._db.execute("SELECT DISTINCT rater FROM actions ORDER BY rater")]

    def rated(self, rater: str) -> list[str]:
        """Tokens of the tasks this rater touched."""
        with self._lock:
            return [task for (task,) in self._db.execute("SELECT DISTINCT task FROM actions WHERE rater = ?", (rater,))]


# ---- export -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A clip of a task and where it belongs: group → id of its pair (None without one). A clip may stand in two groups."""

    token: str
    clip: Clip
    groups: Mapping[str, str | None]


@dataclass(frozen=True)
class Task:
    """What is judged in one go: one clip, or the two of a pair. name: stable over restarts; token: what the page sees."""

    token: str
    name: str
    members: tuple[Member, ...]

    @property
    def lengths(self) -> dict[str, int]:
        return {member.token: len(member.clip.video) for member in self.members}


@dataclass(frozen=True)
class Export:
    """Records of confirmed ratings, and every rating that was begun but is no record yet."""

    records: tuple[Record, ...]
    half_written: tuple[Fault, ...]


def export(store: AnnotationStore, tasks: Sequence[Task], folder: Path, *, review: Review = "draft") -> Export:
    """Everyone's ratings as annotation records; ``video`` is relative to ``folder``, where the records file will stand.

    A record's ``extra`` holds group, pair (None without one) and task; its id is ``<group>/<video>#<rater>``.
    """
    by_token = {task.token: task for task in tasks}
    records: list[Record] = []
    half: list[Fault] = []
    for rater in store.raters():
        for token in sorted(store.rated(rater), key=lambda token: by_token[token].name if token in by_token else ""):
            if token not in by_token:
                half.append(Fault("rated, not there", rater, f"rated something that is not among these videos (task {token})"))
                continue
            task = by_token[token]
            state = store.state(rater, token, task.lengths)
            if not state.touched:
                continue  # everything was undone again
            if not state.done:
                why = "; ".join(state.lacks()) or "complete, but not confirmed with n"
                half.append(Fault("half-written rating", f"{rater}: {task.name}", why))
                continue
            for member in task.members:
                records += _records(member, state.ratings[member.token], rater, task.name, folder, review)
    return Export(tuple(records), tuple(half))


def _records(member: Member, rating: Rating, rater: str, task: str, folder: Path, review: Review) -> Iterator[Record]:
    clip, video = member.clip, member.clip.video
    assert rating.status is not None  # fold accepts ``done`` for complete ratings only
    anomalies = tuple(_anomaly(mark, video.times_s) for mark in rating.marks)
    for group, pair in member.groups.items():
        yield Record(
            id=f"{group}/{clip.name}#{rater}",
            video=os.path.relpath(clip.path, folder),
            prompt=clip.prompt or "",
            fps=video.fps,
            num_frames=len(video),
            width=video.width,
            height=video.height,
            status=rating.status,
            anomalies=anomalies,
            annotator=rater,
            review=review,
            extra={"group": group, "pair": pair, "task": task},
        )


def _anomaly(mark: Mark, times_s: Sequence[float]) -> Anomaly:
    assert mark.type is not None and mark.start is not None and mark.end is not None
    window = Window(times_s[mark.start], times_s[mark.end])
    boxes = {frame: tuple(boxes) for frame, boxes in sorted(mark.boxes.items())}
    return Anomaly(mark.type, window, mark.reason, mark.region, boxes, mark.saliency)
