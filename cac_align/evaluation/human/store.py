"""What raters did, kept action by action in SQLite: appended at once, never changed, folded into ratings whenever they are asked for.

key press → add (checked, one transaction on disk) → actions table → fold → Rating per clip → export → our annotation records

Undo is an action like any other (it names the one it takes back), so the table tells the whole story of a rating. A rating counts when
its rater confirmed it (``done``) and nothing is missing from it; everything else is half-written, and counted and named as such.
What was ever rated here stays in the export whatever is served now: the file describes every task that it was opened with.
Several processes and raters may write at once (write-ahead log): an action states the last one its page had seen, and is refused
when another page of the same rater was faster; repeated after a lost answer it is recognised by its ``client`` id and not added twice.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cac_align.core.judgement import Anomaly, Window
from cac_align.core.video import Video
from cac_align.data.records import Record, Review
from cac_align.evaluation.human.rating import KINDS, Action, Mark, Rating, TaskState, fold
from cac_align.evaluation.pairing import Fault, FolderClip

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (token TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, content TEXT, UNIQUE (kind, name));
CREATE TABLE IF NOT EXISTS actions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, rater TEXT NOT NULL, task TEXT NOT NULL, clip TEXT NOT NULL,
    kind TEXT NOT NULL, detail TEXT NOT NULL, client TEXT UNIQUE);
CREATE INDEX IF NOT EXISTS actions_of_a_task ON actions (rater, task, id);
CREATE TABLE IF NOT EXISTS served (task TEXT PRIMARY KEY, about TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS actions_stay BEFORE UPDATE ON actions BEGIN SELECT RAISE(ABORT, 'actions are never changed'); END;
CREATE TRIGGER IF NOT EXISTS actions_remain BEFORE DELETE ON actions BEGIN SELECT RAISE(ABORT, 'actions are never deleted'); END;
"""


class Outdated(ValueError):
    """Another page of the same rater was faster; the caller's view of the task is old."""


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
            raise ValueError(
                f"{path}: cannot be used as the database of ratings: {error}; give a writable file"
            ) from error

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
                raise Outdated(
                    "this video was changed in another window of yours; what you see now is its present state"
                )
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
        undone = [
            task for task in tasks if last.get(task.token) == "undo"
        ]  # may have taken back what came after ``done``
        return done | {task.token for task in undone if self.state(rater, task.token, task.lengths).done}

    def raters(self) -> list[str]:
        """Everyone who did anything, in order of their names."""
        with self._lock:
            return [rater for (rater,) in self._db.execute("SELECT DISTINCT rater FROM actions ORDER BY rater")]

    def everything(self) -> dict[tuple[str, str], list[Action]]:
        """All actions by (rater, task), in one query: raters in order of their names, a rater's tasks as they were last touched."""
        with self._lock:
            rows = self._db.execute("SELECT rater, task, id, kind, clip, detail FROM actions ORDER BY id").fetchall()
        found: dict[tuple[str, str], list[Action]] = {}
        for rater, task, number, kind, clip, detail in rows:
            actions = found[rater, task] = found.pop((rater, task), [])
            actions.append(Action(number, kind, clip, json.loads(detail)))
        return dict(sorted(found.items(), key=lambda item: item[0][0]))

    def names(self, kind: str) -> dict[str, str]:
        """The names of all clips or tasks, by token."""
        with self._lock:
            return dict(self._db.execute("SELECT token, name FROM tokens WHERE kind = ?", (kind,)))

    def apart(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks, those under another name whose name was rated with other clips (``pair/a.mp4`` of other folders)."""
        worked: dict[str, list[list[Action]]] = {}
        for (_, token), actions in self.everything().items():
            worked.setdefault(token, []).append(actions)
        return [
            task if all(task.fits(each) for each in worked.get(task.token, ())) else self._renamed(task)
            for task in tasks
        ]

    def _renamed(self, task: Task) -> Task:
        name = f"{task.name} ({', '.join(f'{member.clip.group}/{member.clip.name}' for member in task.members)})"
        return Task(self.token("task", name), name, task.members)

    def describe(self, tasks: Sequence[Task]) -> None:
        """Keep what records need beside the ratings of these tasks, so that they can be exported when they are not served."""
        rows = [(task.token, json.dumps(task.to_json(self.path.parent), ensure_ascii=False)) for task in tasks]
        with self._writing() as db:
            db.executemany("INSERT OR REPLACE INTO served VALUES (?, ?)", rows)

    def described(self) -> dict[str, Task]:
        """Every task that was ever described, by token. Its clips' videos have a clock and a size, but no frames."""
        with self._lock:
            rows = self._db.execute("SELECT task, about FROM served").fetchall()
        return {token: Task.from_json(token, json.loads(about), self.path.parent) for token, about in rows}


# ---- export -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A clip of a task and where it belongs: group → id of its pair (None without one). A clip may stand in two groups."""

    token: str
    clip: FolderClip
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

    def fits(self, actions: Sequence[Action]) -> bool:
        """Whether these actions can have been done on these clips."""
        try:
            fold(actions, self.lengths)
        except ValueError:
            return False
        return True

    def to_json(self, folder: Path) -> dict[str, Any]:
        """All that its records need; paths relative to ``folder``."""
        members = []
        for member in self.members:
            clip, video = member.clip, member.clip.video
            about = {"token": member.token, "groups": dict(member.groups), "path": os.path.relpath(clip.path, folder)}
            about |= {"name": clip.name, "group": clip.group, "prompt": clip.prompt, "fps": video.fps}
            members.append({**about, "times_s": video.times_s, "height": video.height, "width": video.width})
        return {"name": self.name, "members": members}

    @classmethod
    def from_json(cls, token: str, about: Mapping[str, Any], folder: Path) -> Task:
        members = []
        for row in about["members"]:
            video = Video(row["fps"], tuple(row["times_s"]), row["height"], row["width"], row["name"], None)
            clip = FolderClip(folder / row["path"], row["name"], row["group"], video, row["prompt"])
            members.append(Member(row["token"], clip, row["groups"]))
        return cls(token, about["name"], tuple(members))


@dataclass(frozen=True)
class Export:
    """Records of confirmed ratings, and every rating that was begun but is no record yet."""

    records: tuple[Record, ...]
    half_written: tuple[Fault, ...]


def export(store: AnnotationStore, tasks: Sequence[Task], folder: Path, *, review: Review = "draft") -> Export:
    """Everyone's ratings as annotation records; ``video`` is relative to ``folder``, where the records file will stand.

    tasks: those served now; what was rated of others that the store describes is exported as well. Where a rater judged a clip in two
    tasks (alone and in a pair), the one they touched last counts, and the other is named.
    A record's ``extra`` holds group, pair (None without one) and task; its id is ``<group>/<video>#<rater>``.
    """
    by_token = {**store.described(), **{task.token: task for task in tasks}}
    records: dict[str, Record] = {}
    half: list[Fault] = []
    for (rater, token), actions in store.everything().items():
        if token not in by_token:
            half.append(
                Fault("rated, not there", rater, f"rated something that is not among these videos (task {token})")
            )
            continue
        task = by_token[token]
        state = fold(actions, task.lengths)
        if not state.touched:
            continue  # everything was undone again
        if not state.done:
            why = "; ".join(state.lacks()) or "complete, but not confirmed with n"
            half.append(Fault("half-written rating", f"{rater}: {task.name}", why))
            continue
        for member in task.members:
            for record in _records(member, state.ratings[member.token], rater, task.name, folder, review):
                if (former := records.pop(record.id, None)) is not None:
                    why = f"{rater} rated it again in {task.name}; the later rating counts"
                    half.append(Fault("rated twice", f"{rater}: {former.extra['task']}", why))
                records[record.id] = record
    return Export(tuple(records.values()), tuple(half))


def check_described(store: AnnotationStore) -> None:
    """Raise ``ValueError`` for a file of an earlier release that holds confirmed ratings of tasks that it does not describe: an
    export without them would be less than what was rated."""
    known = store.described()
    lost = []
    for (rater, token), actions in store.everything().items():
        if token not in known and fold(actions, {action.clip: sys.maxsize for action in actions}).done:
            lost.append((rater, token))
    if lost:
        names = store.names("task")
        raters = len({rater for rater, _ in lost})
        raise ValueError(
            f"{store.path}: {len(lost)} confirmed ratings of {raters} rater{'s' if raters > 1 else ''} belong to other folders than "
            f"these (first: {names.get(lost[0][1], lost[0][1])}), and an earlier release did not keep what videos these are: the "
            "export would lose them. Open it once with the folders that were rated (from then on any others will do), or give "
            "another --database and the report the former export, with --ratings"
        )


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
