"""Judging beside the training: one thread scores a batch while the next one is sampled, and every advantage finds its way to the ledger.

prompts, videos → ``Judging.submit`` → (thread) reward → Verdict per video → gathered over processes → advantages → ledger ``extra`` rows

Clips are written in a second thread; what goes wrong there is said at the next step, or at the end, when all are finished.
A video that could not be made, and every video of a batch whose reward raised, has no score and says why; a ledger that cannot be written
(full disk) ends the run instead, for nothing that was judged may be lost.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from cac_align.align.local_advantages import Grid, mask_of
from cac_align.core.video import Video
from cac_align.rewards.combine import Combined
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.motion import motion
from cac_align.rewards.reward import Reward, Score

_LOG = logging.getLogger(__name__)

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)


Judged = tuple[Score, float]
"""A video's score and its motion (NaN where there is no video)."""


@dataclass(frozen=True)
class Verdict:
    """What one video's advantage is made from; small enough to send to every process. mask: for local credit only."""

    value: float
    parts: Mapping[str, float]
    error: str | None
    motion: float
    mask: Bool[np.ndarray, "t h w"] | None = None


class Judging:
    """A reward in a thread of its own. busy_s: how long it has worked; waited_s: how long anybody had to wait for it.

    ``with judging:`` ends in ``close``, whose error is only logged where the block has raised one already.
    """

    def __init__(self, reward: Reward, ledger: Ledger | None, *, overlap: bool = True) -> None:
        self.plain, self.ledger = reward, ledger
        self.reward = reward if ledger is None else ledger.wrap(reward)
        self.overlap = overlap
        self.busy_s = self.waited_s = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judging")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writing")
        self._writes: deque[Future[Any]] = deque()

    @property
    def components(self) -> dict[str, float]:
        """The reward's components and their weights; of a single reward itself."""
        if isinstance(self.plain, Combined):
            return dict(self.plain.weights)
        return {self.plain.name: 1.0}

    def submit(self, prompts: Sequence[str], videos: Sequence[Video | None]) -> Future[list[Judged]]:
        """Judge these videos, all of a prompt in one call, and measure their motion; done later (without overlap: at once)."""
        future = self._thread.submit(self._judge, list(prompts), list(videos))
        if not self.overlap:
            self.wait(future)
        return future

    def wait(self, future: Future[list[Judged]]) -> list[Judged]:
        """The scores and motions, once they are there. Raises what a ledger that cannot be written raised."""
        began = time.perf_counter()
        try:
            return future.result()
        finally:
            self.waited_s += time.perf_counter() - began

    def also(self, work: Any, *arguments: Any) -> None:
        """Do something else beside the training: write clips. What it raises, ``settle`` or ``close`` raises."""
        self._writes.append(self._writer.submit(work, *arguments))

    def settle(self) -> None:
        """Raise the first error of what ``also`` was given and is done by now."""
        while self._writes and self._writes[0].done():
            self._writes.popleft().result()

    def close(self) -> None:
        """End the threads: judging that has not begun is dropped, what ``also`` got is finished. Raises what that raised."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._writer.shutdown(wait=True)
        self.settle()

    def __enter__(self) -> Judging:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            self.close()
        except Exception as late:
            if error is None:
                raise
            _LOG.warning("beside the error that ends the run: %s: %s", type(late).__name__, late)

    def _judge(self, prompts: list[str], videos: list[Video | None]) -> list[Judged]:
        began = time.perf_counter()
        try:
            moved = [math.nan if video is None else motion(video) for video in videos]
            return list(zip(score_all(self.reward, prompts, videos), moved, strict=True))
        finally:
            self.busy_s += time.perf_counter() - began

    def link(self, prompt: str, video: Video, score: Score, facts: Mapping[str, Any]) -> None:
        """Add what became of a video (step, group, advantage) to the row of this score of it in the ledger, once."""
        if self.ledger is None:
            return
        try:
            key = self.reward.filed_under(prompt, video, score)
        except ValueError as error:
            _LOG.warning("%s: what became of it is not in the ledger: %s", video.name, error)
            return
        if dict(facts) not in self.ledger.extra(key):
            self.ledger.annotate(key, **facts)


def score_all(reward: Reward, prompts: Sequence[str], videos: Sequence[Video | None]) -> list[Score]:
    """One Score per video, in order; videos that are None, and all whose reward raised, have none and say why.

    Raises ``OSError`` when the ledger cannot be written.
    """
    scores = [Score.missing("the model's output is not finite; there is no video to judge")] * len(videos)
    present = [number for number, video in enumerate(videos) if video is not None]
    if not present:
        return scores
    try:
        fresh = reward([prompts[n] for n in present], [videos[n] for n in present])
        if len(fresh) != len(present):
            raise ValueError(f"returned {len(fresh)} scores for {len(present)} videos; expected one each")
    except (
        Exception
    ) as error:  # a dead server raises whatever its client raises; no failure may end a night's run by itself
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        fresh = [Score.missing(f"reward {reward.name} failed: {type(error).__name__}: {error}")] * len(present)
    for number, score in zip(present, fresh, strict=True):
        scores[number] = score
    return scores


def verdict(judged: Judged, video: Video | None, grid: Grid | None) -> Verdict:
    """The part of a score that advantages need. grid: for local credit."""
    score, moved = judged
    mask = None if grid is None or video is None else mask_of(score.evidence, video, grid)
    if grid is not None and mask is None:
        mask = np.ones(grid.shape, bool)
    return Verdict(score.value, dict(score.parts), score.error, moved, mask)
