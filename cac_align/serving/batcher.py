"""The service's engine: a bounded queue and one worker thread that scores whatever waits, together.

accepted videos → queue (bounded) → worker: up to ``batch_size`` of one reward, waiting a few ms for company → reward → futures

A video that waits or is being scored already, for the same prompt and reward, is not scored a second time: a client that gave up
waiting and asks again joins its own first request. A full queue refuses at once (``Full``, with how long to wait). A reward that raises for a batch is asked again video by video, so that
one bad video fails alone. Stopping finishes what was accepted.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from cac_align.core.video import Video
from cac_align.rewards.reward import Reward, Score

log = logging.getLogger(__name__)


class Full(Exception):
    """The queue cannot take these videos now. retry_after_s: when it probably can."""

    def __init__(self, retry_after_s: int, stopping: bool = False) -> None:
        super().__init__("stopping" if stopping else "the queue is full")
        self.retry_after_s, self.stopping = retry_after_s, stopping


Answer = tuple[Score, Video]
"""A score, and the object it was read from: of several that hold the same video, the one that was accepted first."""

_Key = tuple[str, str, str, float]


@dataclass(eq=False)
class _Job:
    reward: str
    prompt: str
    video: Video
    waiting: list[Future[Answer]] = field(default_factory=list)

    @property
    def key(self) -> _Key:
        """Reward, prompt, content hash, frames per second: the same for requests that have one answer."""
        return self.reward, self.prompt, self.video.content_hash, self.video.fps

    def join(self) -> Future[Answer]:
        self.waiting.append(Future())
        return self.waiting[-1]


class Scoring:
    """rewards: by name. batch_size: videos per call of a reward. wait_s: how long a batch waits for company.

    observe: called after each batch with (reward name, number of videos, seconds).
    """

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        *,
        batch_size: int = 16,
        wait_s: float = 0.005,
        max_queued: int = 256,
        observe: Callable[[str, int, float], None] = lambda name, count, seconds: None,
    ) -> None:
        self.rewards, self.batch_size, self.wait_s, self.max_queued, self.observe = (
            rewards,
            batch_size,
            wait_s,
            max_queued,
            observe,
        )
        self._queue: deque[_Job] = deque()
        self._open: dict[_Key, _Job] = {}  # those that wait and those being scored
        self._changed = threading.Condition()
        self._stopping = False
        self._busy_since: float | None = None
        self._seconds_per_video = 0.0
        self._worker = threading.Thread(target=self._work, name="cac-align-scoring", daemon=True)
        self._worker.start()

    @property
    def queued(self) -> int:
        """Videos that wait; those being scored are not among them."""
        return len(self._queue)

    @property
    def stopping(self) -> bool:
        return self._stopping

    @property
    def busy_s(self) -> float:
        """How long the batch in work has been in work; 0 when none is."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def retry_after_s(self, videos: int) -> int:
        """Whole seconds until this many videos have probably left the queue, in [1, 60]."""
        return min(60, max(1, math.ceil(videos * self._seconds_per_video)))

    def submit(self, reward: str, prompts: Sequence[str], videos: Sequence[Video]) -> list[Future[Answer]]:
        """Accept all of these videos or none. A video whose futures are all cancelled while it waits leaves the queue.

        Raises ``Full`` when they do not fit, or the service is stopping; ``ValueError`` when a video's bytes cannot be read.
        """
        asked = [_Job(reward, prompt, video) for prompt, video in zip(prompts, videos, strict=True)]
        keys = [job.key for job in asked]  # hashed outside the lock
        with self._changed:
            if self._stopping:
                raise Full(5, stopping=True)
            fresh: dict[_Key, _Job] = {}
            for key, job in zip(keys, asked, strict=True):
                if key not in self._open:
                    fresh.setdefault(key, job)
            if len(self._queue) + len(fresh) > self.max_queued:
                over = len(self._queue) + len(fresh) - self.max_queued
                raise Full(self.retry_after_s(over))
            self._open |= fresh
            self._queue.extend(fresh.values())
            self._changed.notify_all()
            return [self._open[key].join() for key in keys]

    def close(self, timeout_s: float) -> bool:
        """Accept nothing more, finish what was accepted. False when that took longer than ``timeout_s``."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._worker.join(timeout_s)
        return not self._worker.is_alive()

    # ---- the worker ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            if not batch:
                continue
            started = self._busy_since = time.monotonic()
            scores = self._score(batch)
            seconds = time.monotonic() - started
            self._busy_since = None
            # A running mean: Retry-After only has to be of the right order.
            self._seconds_per_video += 0.2 * (seconds / len(batch) - self._seconds_per_video)
            for job, score in zip(batch, scores, strict=True):
                self._answer(job, score)
            self.observe(batch[0].reward, len(batch), seconds)

    def _answer(self, job: _Job, score: Score) -> None:
        with self._changed:
            del self._open[job.key]
        for future in job.waiting:  # nobody joins any more
            if future.set_running_or_notify_cancel():
                future.set_result((score, job.video))

    def _next(self) -> list[_Job] | None:
        """The next batch, all for one reward; None when the service stopped and nothing is left."""
        with self._changed:
            while not self._queue:
                if self._stopping:
                    return None
                self._changed.wait()
            ends = time.monotonic() + self.wait_s
            while len(self._queue) < self.batch_size and not self._stopping and (left := ends - time.monotonic()) > 0:
                self._changed.wait(left)
            name = self._queue[0].reward if self._queue else ""
            taken = [job for job in self._queue if job.reward == name][: self.batch_size]
            chosen = set(map(id, taken))
            self._queue = deque(job for job in self._queue if id(job) not in chosen)
            wanted = [job for job in taken if not all(future.cancelled() for future in job.waiting)]
            for job in taken:
                if job not in wanted:
                    del self._open[job.key]
        return wanted

    def _score(self, batch: list[_Job]) -> list[Score]:
        reward = self.rewards[batch[0].reward]
        try:
            scores = list(reward([job.prompt for job in batch], [job.video for job in batch]))
            if len(scores) != len(batch):
                raise ValueError(f"reward {batch[0].reward!r} returned {len(scores)} scores for {len(batch)} videos")
            return scores
        except Exception as error:
            # Not swallowed: it becomes the reason of exactly the videos it belongs to.
            log.exception("reward %s raised for %d videos", batch[0].reward, len(batch))
            if len(batch) == 1:
                return [Score.missing(f"reward {batch[0].reward!r} raised {type(error).__name__}: {error}")]
            return [self._score([job])[0] for job in batch]
