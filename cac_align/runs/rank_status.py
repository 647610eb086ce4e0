"""Where each process of a run is, in one small file each: when one dies, the others and the next start can name it and its sample.

work begins → RankStatus.at("step 3: sampling 'a red ball …' (seed 17)") → folder/rank-1.json
a process is gone → the others' exchange fails (``ProcessLost``), or the launcher ends them: they say rank, work and cause
the same command again → says where the former process ended, and goes on from the checkpoint
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from cac_align.runs.files import write_whole

_LOG = logging.getLogger(__name__)

PATIENCE_S = 3.0
"""How long a process whose exchange with the others failed waits for one of them to be seen as gone."""


class ProcessLost(ValueError):
    """Another process of this run is gone. The sentence names its rank, what it was doing and why it ended; the run can be resumed."""


class RankStatus:
    """What this process (``rank`` of ``processes``) works on, in ``folder/rank-<rank>.json``. A path that cannot be written raises ``OSError``."""

    def __init__(self, folder: Path, rank: int = 0, processes: int = 1) -> None:
        self.folder, self.rank, self.processes = folder, rank, processes
        self._guarded = self._made = False
        self._facts: dict[str, Any] = {"rank": rank, "pid": os.getpid(), "host": socket.gethostname()}

    def at(self, doing: str) -> None:
        """From now on this process is doing this: name the step and the sample. Outside ``guard`` nobody asks, and nothing is written."""
        if self._guarded:
            self._write(doing=doing, ended=None)

    def lost(self) -> list[str]:
        """A sentence for every other process that is gone: with its own words where it could still write them."""
        found = []
        for path in sorted(self.folder.glob("rank-*.json")):
            facts = _read(path)
            if facts is None or facts["rank"] == self.rank or facts["rank"] >= self.processes:
                continue
            if facts["ended"] is not None or not _runs(facts):
                found.append(_sentence(facts))
        return found

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Around the work. A clean end removes the file, and so does wrong input (``ValueError``) of a single process; another error is
        written into it; an error because others are gone becomes ``ProcessLost``.

        Says (as a warning) where a former process of this rank ended, if it did not end well.
        """
        self._made = not self.folder.parent.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        former = _read(self._path)
        if former is not None and not _runs(former):
            _LOG.warning("the former run's %s; going on from what is kept", _sentence(former))
        self._guarded = True
        self.at("starting")
        try:
            with self._told_to_stop():
                yield
        except (ProcessLost, KeyboardInterrupt, SystemExit):
            self._gone()
            raise
        except Exception as error:
            # What only this process met is its own fault; a failed exchange may be another's, whose words are worth more.
            lost = self._awaited() if self.processes > 1 and isinstance(error, RuntimeError) else []
            if lost:
                self._gone()
                raise ProcessLost(_resumable(lost)) from error
            if self.processes == 1 and isinstance(
                error, ValueError
            ):  # wrong input, told to the caller: nothing to remember
                self._gone()
            else:
                self._write(ended=f"{type(error).__name__}: {error}")
            raise
        finally:
            self._guarded = False
        self._gone()

    def _awaited(self) -> list[str]:
        until = time.monotonic() + PATIENCE_S
        while not (lost := self.lost()) and time.monotonic() < until:
            time.sleep(0.05)
        return lost

    @contextmanager
    def _told_to_stop(self) -> Iterator[None]:
        """A launcher that lost one process ends the others with SIGTERM: say which one it was, then end by the signal as ever.

        Nothing is raised: an exception out of a signal handler lands anywhere, and a library, or whoever turns an error into a missing
        candidate, may swallow it.
        """
        if self.processes == 1 or threading.current_thread() is not threading.main_thread():
            yield
            return

        def leave(number: int, frame: object) -> None:
            signal.signal(number, signal.SIG_IGN)
            if lost := self._awaited():
                os.write(2, f"{_resumable(lost)}\n".encode())  # the logger may be in the middle of a line of its own
            self._gone()
            signal.signal(number, former)
            os.kill(os.getpid(), number)

        former = signal.signal(signal.SIGTERM, leave) or signal.SIG_DFL  # None: a handler that Python does not know
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, former)

    @property
    def _path(self) -> Path:
        return self.folder / f"rank-{self.rank}.json"

    def _write(self, **facts: Any) -> None:
        self._facts |= facts
        write_whole(self._path, json.dumps(self._facts) + "\n")

    def _gone(self) -> None:
        self._path.unlink(missing_ok=True)
        with suppress(OSError):  # others are still at work, or something was made
            self.folder.rmdir()
            if self._made:
                self.folder.parent.rmdir()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _runs(facts: dict[str, Any]) -> bool:
    """Whether that process is still there. One on another machine is taken to be: it writes its own end unless it was killed."""
    if facts["host"] != socket.gethostname():
        return facts["ended"] is None
    try:
        return facts["ended"] is None and psutil.Process(facts["pid"]).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _sentence(facts: dict[str, Any]) -> str:
    cause = (
        facts["ended"]
        or "it was killed without a word (out of memory? the launcher and the system's log say by which signal)"
    )
    return f"process {facts['rank']} (pid {facts['pid']} on {facts['host']}) ended at {facts['doing']}: {cause}"


def _resumable(lost: list[str]) -> str:
    return f"{'; '.join(lost)}. Mend the cause and run the same command: it resumes"
