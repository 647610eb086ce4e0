"""A bounded queue, and one worker thread that scores waiting videos together.

accepted videos → queue → worker: up to ``batch_size`` videos of one reward → reward → futures

A video that waits or is being scored, for the same prompt and reward, is not scored a second time:
a client that gave up waiting and asks again joins its own first request. A full queue refuses at
once. When a reward raises for a batch, it is asked again video by video, so that one bad video
fails alone. Stopping finishes what was accepted.
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
from cac_align.rewards.checked import checked_scores
from cac_align.rewards.reward import Reward, Score

log = logging.getLogger(__name__)


class QueueFull(Exception):
    """The queue cannot take these videos now.

    retry_after_s: after how many seconds it probably can. stopping: whether the service is ending.
    """

    def __init__(self, retry_after_s: int, stopping: bool = False) -> None:
        super().__init__("stopping" if stopping else "the queue is full")
        self.retry_after_s, self.stopping = retry_after_s, stopping


ScoredVideo = tuple[Score, Video]
"""A score, and the object it was read from: of several with the same content, the first accepted."""

_Key = tuple[str, str, str, float]


@dataclass(eq=False)
class _Job:
    reward: str
    prompt: str
    video: Video
    waiting: list[Future[ScoredVideo]] = field(default_factory=list)

    @property
    def key(self) -> _Key:
        """Reward, prompt, content hash, frames per second: equal for requests with one answer."""
        return self.reward, self.prompt, self.video.content_hash, self.video.fps

    def add_waiter(self) -> Future[ScoredVideo]:
        self.waiting.append(Future())
        return self.waiting[-1]


class Batcher:
    """Scores videos in batches, in one thread.

    rewards: by name. batch_size: videos per call of a reward. wait_s: how many seconds a batch
    waits for more videos. max_queued: how many videos may wait. observe: called after each batch
    with (reward name, number of videos, seconds).
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
        self.rewards, self.observe = rewards, observe
        self.batch_size, self.wait_s, self.max_queued = batch_size, wait_s, max_queued
        self._queue: deque[_Job] = deque()
        self._unfinished: dict[_Key, _Job] = {}  # videos that wait and videos being scored
        self._changed = threading.Condition()
        self._stopping = False
        self._busy_since: float | None = None
        self._seconds_per_video = 0.0
        self._worker = threading.Thread(target=self._work, name="cac-align-scoring", daemon=True)
        self._worker.start()

    @property
    def queued(self) -> int:
        """How many videos wait, without those being scored."""
        return len(self._queue)

    @property
    def stopping(self) -> bool:
        """Whether nothing more is accepted."""
        return self._stopping

    @property
    def busy_s(self) -> float:
        """How long the current batch has been in work, in seconds; 0 when there is none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def retry_after_s(self, videos: int) -> int:
        """Whole seconds until this many videos have probably left the queue, in [1, 60]."""
        return min(60, max(1, math.ceil(videos * self._seconds_per_video)))

    def submit(self, reward: str, prompts: Sequence[str], videos: Sequence[Video]) -> list[Future[ScoredVideo]]:
        """Accept all of these videos or none.

        Returns one future per video. A video whose futures are all cancelled while it waits leaves
        the queue. Raises ``QueueFull`` when they do not fit or the service is stopping, and
        ``ValueError`` when a video's bytes cannot be read.
        """
        jobs = [_Job(reward, prompt, video) for prompt, video in zip(prompts, videos, strict=True)]
        keys = [job.key for job in jobs]  # hashed outside the lock
        with self._changed:
            if self._stopping:
                raise QueueFull(5, stopping=True)
            fresh: dict[_Key, _Job] = {}
            for key, job in zip(keys, jobs, strict=True):
                if key not in self._unfinished:
                    fresh.setdefault(key, job)
            if len(self._queue) + len(fresh) > self.max_queued:
                over = len(self._queue) + len(fresh) - self.max_queued
                raise QueueFull(self.retry_after_s(over))
            self._unfinished |= fresh
            self._queue.extend(fresh.values())
            self._changed.notify_all()
            return [self._unfinished[key].add_waiter() for key in keys]

    def close(self, timeout_s: float) -> bool:
        """Accept nothing more and finish what was accepted; False when ``timeout_s`` was too short."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._worker.join(timeout_s)
        return not self._worker.is_alive()

    # ---- the worker ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
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
            del self._unfinished[job.key]
        for future in job.waiting:  # no request can join it any more
            if future.set_running_or_notify_cancel():
                future.set_result((score, job.video))

    def _next_batch(self) -> list[_Job] | None:
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
                    del self._unfinished[job.key]
        return wanted

    def _score(self, batch: list[_Job]) -> list[Score]:
        reward = self.rewards[batch[0].reward]
        try:
            returned = reward([job.prompt for job in batch], [job.video for job in batch])
            return checked_scores(batch[0].reward, returned, len(batch))
        except Exception as error:
            # The error becomes the reason of exactly those videos that it belongs to.
            if isinstance(error, ValueError):  # a video or prompt that cannot be used, such as a broken JPEG
                log.warning("reward %s: no score of %d videos together: %s", batch[0].reward, len(batch), error)
                log.debug("", exc_info=error)
            else:
                log.exception("reward %s raised for %d videos", batch[0].reward, len(batch))
            if len(batch) == 1:
                return [Score.missing(f"reward {batch[0].reward!r} raised {type(error).__name__}: {error}")]
            return [self._score([job])[0] for job in batch]
