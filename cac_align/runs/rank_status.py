"""What each process of a run is doing, in one small file each, so that a process that dies can be
named with its sample.

RankStatus.report("step 3: sampling 'a red ball …' (seed 17)") → folder/rank-1.json

When one process dies, the exchange of the others with it fails (``ProcessLost``), or the launcher
ends them; both ways they print its rank, what it was doing and why it ended. The next start of the
same command prints where the former one ended.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from cac_align.runs.files import atomic_write

_LOG = logging.getLogger(__name__)

PATIENCE_S = 3.0
"""How long a process whose exchange with the others failed waits until one of them is seen to be
gone.
"""


class ProcessLost(ValueError):
    """Another process of this run is gone. The message names its rank, what it was doing and why it
    ended.
    """


class RankStatus:
    """What this process (``rank`` of ``processes``) is doing, in ``folder/rank-<rank>.json``.

    Raises ``OSError`` when that file cannot be written.
    """

    def __init__(self, folder: Path, rank: int = 0, processes: int = 1) -> None:
        self.folder, self.rank, self.processes = folder, rank, processes
        self.listener: Callable[[str], None] | None = None
        self._guarded = self._made = False
        self._facts: dict[str, Any] = {"rank": rank, "pid": os.getpid(), "host": socket.gethostname()}

    def report(self, doing: str) -> None:
        """Write down what this process does from now on: the step and the sample. Outside ``guard``
        nothing is written. ``listener``, where there is one, is called with it as well.
        """
        if self.listener is not None:
            self.listener(doing)
        if self._guarded:
            self._write(doing=doing, ended=None)

    def lost(self) -> list[str]:
        """A sentence for every other process that is gone, with the error it ended with where it
        could still write it.
        """
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
        """Around all of a process's work.

        A clean end removes the file, and so does wrong input (``ValueError``) of a single process.
        Any other error is written into it. An error that came about because other processes are
        gone is raised as ``ProcessLost``. When a former process of this rank did not end well, a
        warning says where.
        """
        self._made = not self.folder.parent.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        former = _read(self._path)
        if former is not None and not _runs(former):
            _LOG.warning("the former run's %s; going on from what is kept", _sentence(former))
        self._guarded = True
        self.report("starting")
        try:
            with self._sigterm_handled():
                yield
        except (ProcessLost, KeyboardInterrupt, SystemExit):
            self._remove()
            raise
        except Exception as error:
            # A RuntimeError may be a failed exchange with a process that is gone, and that one's error is the cause.
            lost = self._wait_for_lost() if self.processes > 1 and isinstance(error, RuntimeError) else []
            if lost:
                self._remove()
                raise ProcessLost(_resumable(lost)) from error
            if self.processes == 1 and isinstance(error, ValueError):  # wrong input, which the caller reports
                self._remove()
            else:
                self._write(ended=f"{type(error).__name__}: {error}")
            raise
        finally:
            self._guarded = False
        self._remove()

    def _wait_for_lost(self) -> list[str]:
        until = time.monotonic() + PATIENCE_S
        while not (lost := self.lost()) and time.monotonic() < until:
            time.sleep(0.05)
        return lost

    @contextmanager
    def _sigterm_handled(self) -> Iterator[None]:
        """On SIGTERM: write down that it was asked to end, or, on several processes, where a launcher
        that lost one ends the others so, print which one it was; then end by the signal.

        Nothing is raised, because an exception out of a signal handler can surface in any line,
        where a library or code that turns errors into missing candidates may swallow it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def leave(number: int, frame: object) -> None:
            signal.signal(number, signal.SIG_IGN)
            if self.processes == 1:
                self._write(ended="it was asked to end (SIGTERM)")
            else:
                if lost := self._wait_for_lost():
                    os.write(
                        2, f"{_resumable(lost)}\n".encode()
                    )  # the logger may be in the middle of a line of its own
                self._remove()
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
        atomic_write(self._path, json.dumps(self._facts) + "\n")

    def _remove(self) -> None:
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
    """Whether that process still runs. One on another machine is taken to run until its file names
    an error.
    """
    if facts["host"] != socket.gethostname():
        return facts["ended"] is None
    try:
        return facts["ended"] is None and psutil.Process(facts["pid"]).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _sentence(facts: dict[str, Any]) -> str:
    cause = (
        facts["ended"]
        or "it was killed without an error message (out of memory? the launcher and the system's log name the signal)"
    )
    return f"process {facts['rank']} (pid {facts['pid']} on {facts['host']}) ended at {facts['doing']}: {cause}"


def _resumable(lost: list[str]) -> str:
    return f"{'; '.join(lost)}. Remove the cause and run the same command: it resumes"
