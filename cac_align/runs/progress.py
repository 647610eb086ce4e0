"""Progress on stderr: a bar on a terminal, and elsewhere a line every half minute.

``progress_bar(total, "judging")`` → ``update`` as the work goes on → ``close``

Nothing is shown of work that takes less than two seconds (without a terminal: half a minute), nor
after ``silence``. Results go to stdout, on which nothing is written here.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

_TERMINAL_DELAY_S, _TERMINAL_INTERVAL_S = 2.0, 1.0
_LINE_INTERVAL_S = 30.0
_LONGEST_NOTE = 60

_silent = False


class _Bar(tqdm):
    """tqdm's bar that also moves while a single step takes long: a thread draws it again.

    delay_s: before it is drawn at all. every_s: between two drawings without an update.
    """

    def __init__(self, *arguments: Any, delay_s: float, every_s: float, **options: Any) -> None:
        self._ended = threading.Event()
        self._shown = False
        self.start_t = self.delay = float("inf")  # until tqdm has set them
        super().__init__(*arguments, **options, delay=delay_s, miniters=1)
        if not self.disable:
            threading.Thread(target=self._draw, args=(delay_s, every_s), name="progress", daemon=True).start()

    def _draw(self, delay_s: float, every_s: float) -> None:
        wait_s = delay_s
        while not self._ended.wait(wait_s):
            self.refresh()
            wait_s = every_s

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        hidden = time.time() < self.start_t + self.delay or self._ended.is_set()
        if hidden and not self._shown:
            return None
        self._shown = self._shown or msg is None
        return super().display(msg, pos)

    def close(self) -> None:
        self._ended.set()
        super().close()


class _Lines(_Bar):
    """The same as lines, one every half minute, for files and pipes."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Nothing: what changes is told with the next line."""

    def _draw(self, delay_s: float, every_s: float) -> None:
        wait_s = delay_s
        while not self._ended.wait(wait_s):
            self._shown, wait_s = True, every_s
            print(self, file=self.fp, flush=True)

    def close(self) -> None:
        if not self.disable and not self._ended.is_set() and self._shown:
            print(self, file=self.fp, flush=True)
        self._ended.set()
        self.leave = False
        super().close()


def silence() -> None:
    """Show no progress from now on in this process, as ``--quiet`` asks."""
    global _silent
    _silent = True


def progress_bar(
    total: int | None, about: str, unit: str = "video", *, initial: int = 0, shown: bool = True
) -> tqdm[Any]:
    """A bar with ``update``, ``set_postfix_str`` and ``close``, also as a context manager.

    total: the number of steps, where it is known. about: its label. unit: what is counted, in the
    singular. initial: steps that were done before, which count neither as speed nor for the time that
    is left. shown: False in every process but the first.
    """
    return _made(total=total, initial=initial, desc=about or None, unit=unit, shown=shown)


@contextmanager
def working(about: str) -> Iterator[None]:
    """Show for how long something has been at work that has no steps, such as loading a model."""
    with _made(desc=about, bar_format="{desc}, {elapsed}", leave=False, shown=True):
        yield


def _made(*, shown: bool, **options: Any) -> tqdm[Any]:
    terminal = sys.stderr.isatty()
    kind = _Bar if terminal else _Lines
    delay_s, every_s = (_TERMINAL_DELAY_S, _TERMINAL_INTERVAL_S) if terminal else (_LINE_INTERVAL_S, _LINE_INTERVAL_S)
    return kind(
        **options,
        file=sys.stderr,
        disable=_silent or not shown,
        mininterval=0.1 if terminal else float("inf"),
        dynamic_ncols=terminal,
        delay_s=delay_s,
        every_s=every_s,
    )


def progress_callback(unit: str = "video") -> Callable[[str, int, int], None]:
    """A bar per name, as a callback of (name, done, total)."""
    bars: dict[str, tqdm[Any]] = {}

    def show(name: str, done: int, total: int) -> None:
        if name not in bars:
            bars[name] = progress_bar(total, name or "judging", unit)
        bar = bars[name]
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return show


def show_note(bar: tqdm[Any], note: str) -> None:
    """Write what is being done behind the bar, shortened; it is drawn with the next drawing."""
    short = note if len(note) <= _LONGEST_NOTE else f"{note[: _LONGEST_NOTE - 1]}…"
    bar.set_postfix_str(short, refresh=False)


def say(line: str) -> None:
    """Print a line on stderr above whatever bars are drawn there."""
    if sys.stderr.isatty():
        tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)
