"""Calls in a thread of their own, so that a loop goes on meanwhile.

function, arguments → ``BackgroundThread.submit`` → future → ``BackgroundThread.wait`` → result

One thread takes the calls in the order in which they were submitted, so what they compute does not
depend on timing. Alignment scores videos in it while it samples others, Best-of-N judges one prompt
while it generates the next, and fine-tuning reads the next step's videos.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_T = TypeVar("_T")


class BackgroundThread:
    """One thread that takes calls in order.

    name: of the thread, as debuggers show it. overlap: False makes ``submit`` wait for each call.
    busy_s: seconds that the calls have taken; waited_s: seconds that callers have waited for them.
    As a context manager it ends with ``close``.
    """

    def __init__(self, name: str, *, overlap: bool = True) -> None:
        self.overlap = overlap
        self.busy_s = self.waited_s = 0.0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    def submit(self, function: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Call ``function`` after all calls submitted before. Without overlap it is waited for, and
        what it raises is raised here.
        """
        future = self._executor.submit(self._timed, function, *arguments)
        if not self.overlap:
            self.wait(future)
        return future

    def wait(self, future: Future[_T]) -> _T:
        """The result of a call, once it is there. Raises what the call raised."""
        began = time.perf_counter()
        try:
            return future.result()
        finally:
            self.waited_s += time.perf_counter() - began

    def close(self) -> None:
        """End the thread: the call at work is finished, those that have not begun are dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> BackgroundThread:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _timed(self, function: Callable[..., _T], *arguments: Any) -> _T:
        began = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            self.busy_s += time.perf_counter() - began
