"""Raters' actions in SQLite: appended at once, never changed, folded into ratings when they are
asked for.

Undo is an action that names the one it takes back. A rating counts when its rater confirmed it
(``done``) and nothing is missing from it. The file describes every task that it was opened with,
so that ratings stay in the export whatever is served now. Several processes and raters may write
at once: an action states the last one that its page knew, and is refused when another page of
the same rater was faster. A repeated action is recognised by its ``client`` id.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cac_align.evaluation.human.rating import ACTION_KINDS, Action, TaskState, fold
from cac_align.evaluation.human.tasks import RatingTask

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (
    token TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, content TEXT, UNIQUE (kind, name));
CREATE TABLE IF NOT EXISTS actions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, rater TEXT NOT NULL, task TEXT NOT NULL,
    clip TEXT NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL, client TEXT UNIQUE);
CREATE INDEX IF NOT EXISTS actions_of_a_task ON actions (rater, task, id);
CREATE TABLE IF NOT EXISTS served (task TEXT PRIMARY KEY, about TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS actions_stay BEFORE UPDATE ON actions BEGIN
    SELECT RAISE(ABORT, 'actions are never changed'); END;
CREATE TRIGGER IF NOT EXISTS actions_remain BEFORE DELETE ON actions BEGIN
    SELECT RAISE(ABORT, 'actions are never deleted'); END;
"""


class Outdated(ValueError):
    """Another page of the same rater was faster; the caller's view of the task is old."""


class AnnotationStore:
    """An SQLite file of actions, created when it does not exist. Thread-safe; several processes may
    open it.

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
        """A value that is fixed when this file is first opened, for example the seed of the order."""
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", (name, default))
            return db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()[0]

    def token(self, kind: str, name: str) -> str:
        """The random id of a clip or task, the same for the life of this file."""
        return self.tokens(kind, {name: None})[name]

    def tokens(self, kind: str, contents: Mapping[str, str | None]) -> dict[str, str]:
        """Random ids of many names at once, stored with the hash of their content.

        Raises ``ValueError`` when a name's content differs from the content that was rated before.
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
                        f"{name} is another video than the one rated in {self.path}; use another database for the "
                        f"new videos"
                    )
        return {name: known[name][0] for name in contents}

    def actions(self, rater: str, task: str) -> list[Action]:
        """Everything that this rater did on this task, in order."""
        with self._lock:
            return self._actions(rater, task)

    def _actions(self, rater: str, task: str) -> list[Action]:
        rows = self._db.execute(
            "SELECT id, kind, clip, detail FROM actions WHERE rater = ? AND task = ? ORDER BY id", (rater, task)
        )
        return [Action(number, kind, clip, json.loads(detail)) for number, kind, clip, detail in rows]

    def state(self, rater: str, task: str, lengths: Mapping[str, int]) -> TaskState:
        """The state of a rater's work on a task. lengths: number of frames by clip."""
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
        last_known: int,
        client: str,
    ) -> TaskState:
        """Check an action, store it on disk and return the new state.

        last_known: id of the last action that the page knew (0: none).
        client: random id of this action; the same id again adds nothing.

        Raises ``Outdated`` when there are newer actions than ``last_known``, ``ValueError`` when
        the action does not fit.
        """
        if kind not in ACTION_KINDS:
            raise ValueError(f"action must be one of {', '.join(ACTION_KINDS)}; received {kind!r}")
        with self._writing() as db:
            before = self._actions(rater, task)
            if db.execute("SELECT 1 FROM actions WHERE client = ?", (client,)).fetchone():
                return fold(before, lengths)
            last = before[-1].id if before else 0
            if last != last_known:
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
            assert number is not None
            return fold([*before, Action(number, kind, clip, detail)], lengths)

    def finished(self, rater: str, tasks: Sequence[RatingTask]) -> set[str]:
        """Tokens of the tasks that this rater confirmed and has not changed since."""
        with self._lock:
            last = dict(
                self._db.execute(
                    "SELECT task, kind FROM actions WHERE id IN (SELECT max(id) FROM actions WHERE rater = ? GROUP "
                    "BY task)",
                    (rater,),
                )
            )
        done = {task.token for task in tasks if last.get(task.token) == "done"}
        undone = [
            task for task in tasks if last.get(task.token) == "undo"
        ]  # may have taken back what came after ``done``
        return done | {task.token for task in undone if self.state(rater, task.token, task.lengths).done}

    def raters(self) -> list[str]:
        """The names of all raters, sorted."""
        with self._lock:
            return [rater for (rater,) in self._db.execute("SELECT DISTINCT rater FROM actions ORDER BY rater")]

    def everything(self) -> dict[tuple[str, str], list[Action]]:
        """All actions by (rater, task): raters by name, a rater's tasks in the order of their last
        action.
        """
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

    def apart(self, tasks: Sequence[RatingTask]) -> list[RatingTask]:
        """The tasks, renamed where their name was rated with other clips (``pair/a.mp4`` of other
        folders).
        """
        worked: dict[str, list[list[Action]]] = {}
        for (_, token), actions in self.everything().items():
            worked.setdefault(token, []).append(actions)
        return [
            task if all(task.fits(each) for each in worked.get(task.token, ())) else self._renamed(task)
            for task in tasks
        ]

    def _renamed(self, task: RatingTask) -> RatingTask:
        name = f"{task.name} ({', '.join(f'{member.clip.group}/{member.clip.name}' for member in task.members)})"
        return RatingTask(self.token("task", name), name, task.members)

    def describe(self, tasks: Sequence[RatingTask]) -> None:
        """Store what the records of these tasks need, so that they can be exported when they are
        not served.
        """
        rows = [(task.token, json.dumps(task.to_json(self.path.parent), ensure_ascii=False)) for task in tasks]
        with self._writing() as db:
            db.executemany("INSERT OR REPLACE INTO served VALUES (?, ?)", rows)

    def described(self) -> dict[str, RatingTask]:
        """Every task that was described, by token. Its clips' videos have a clock and a size, but
        no frames.
        """
        with self._lock:
            rows = self._db.execute("SELECT task, about FROM served").fetchall()
        return {token: RatingTask.from_json(token, json.loads(about), self.path.parent) for token, about in rows}
