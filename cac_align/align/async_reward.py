"""The reward in a thread of its own: it scores some videos while the next ones are sampled.

prompts, videos → ``AsyncReward.submit`` → (thread) reward → one ``RewardSample`` per video →
advantages → ledger

The normal-flow speed of the videos is measured in a second thread, beside the reward, and a third
one writes video files. An error of writing is raised at the next step, or by ``close`` at the end.
A video that could not be made, and every video of a call in which the reward raised, has no score
and carries the reason. Only a ledger that cannot be written (a full disk, for example) ends the
run, because scores would be lost.
"""

from __future__ import annotations

import errno
import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from cac_align.core.video import Video
from cac_align.generation.latent_masks import LatentGrid, anomaly_mask
from cac_align.rewards.cached import cached
from cac_align.rewards.combine import Combined
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.normal_flow_speed import normal_flow_speed
from cac_align.rewards.reward import Reward, Score
from cac_align.runs.background import BackgroundThread

_LOG = logging.getLogger(__name__)

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)


ScoreAndSpeed = tuple[Score, float]
"""A video's score, and its normal-flow speed in frame heights per second (NaN where there is no video)."""


@dataclass(frozen=True, eq=False)
class PendingScores:
    """Videos that were given to the reward together: their scores and speeds, once they are
    there.
    """

    scores: Future[list[Score]]
    speeds: Future[list[float]]


@dataclass(frozen=True)
class RewardSample:
    """What a video's advantage is computed from; every process gets those of all videos.

    value: the score, NaN without one. parts: the score's components. error: why there is no score.
    normal_flow_speed: in frame heights per second. mask: the anomalous latent positions, for local
    advantages only.
    """

    value: float
    parts: Mapping[str, float]
    error: str | None
    normal_flow_speed: float
    mask: Bool[np.ndarray, "t h w"] | None = None


class AsyncReward:
    """A reward in a thread of its own.

    ledger: where scores are stored and looked up; None for nowhere. overlap: False makes ``submit``
    wait for the scores.

    As a context manager it ends with ``close``, whose error is only logged when the block itself
    raised one.
    """

    def __init__(self, reward: Reward, ledger: Ledger | None, *, overlap: bool = True) -> None:
        self.reward, self.ledger = reward, ledger
        self._cached = None if ledger is None else cached(reward, ledger)
        self._scoring = BackgroundThread("reward", overlap=overlap)
        self._measuring = BackgroundThread("normal-flow speed")
        self._writer = BackgroundThread("writing")
        self._writes: deque[Future[Any]] = deque()

    @property
    def busy_s(self) -> float:
        """Seconds that the reward has worked."""
        return self._scoring.busy_s

    @property
    def waited_s(self) -> float:
        """Seconds that callers have waited for scores and speeds."""
        return self._scoring.waited_s + self._measuring.waited_s

    @property
    def components(self) -> dict[str, float]:
        """The weight of each component of the reward; a reward that is not a combination is its own
        only component.
        """
        if isinstance(self.reward, Combined):
            return dict(self.reward.weights)
        return {self.reward.name: 1.0}

    def submit(self, prompts: Sequence[str], videos: Sequence[Video | None]) -> PendingScores:
        """Score these videos in one call of the reward, and measure their speed beside it."""
        speeds = self._measuring.submit(_speeds, list(videos))
        scores = self._scoring.submit(score_all, self._cached or self.reward, list(prompts), list(videos))
        return PendingScores(scores, speeds)

    def wait(self, pending: PendingScores) -> list[ScoreAndSpeed]:
        """The scores and speeds, once they are there.

        Raises ``OSError`` when the ledger could not be written.
        """
        scores = self._scoring.wait(pending.scores)
        return list(zip(scores, self._measuring.wait(pending.speeds), strict=True))

    def run_later(self, work: Any, *arguments: Any) -> None:
        """Call ``work`` in the writing thread.

        ``raise_write_errors`` or ``close`` raises what it raised.
        """
        self._writes.append(self._writer.submit(work, *arguments))

    def raise_write_errors(self) -> None:
        """Raise the first error of the calls given to ``run_later`` that have ended by now."""
        while self._writes and self._writes[0].done():
            self._writes.popleft().result()

    def close(self) -> None:
        """End the threads: scoring that has not begun is dropped, files are still written.

        Raises what that raised.
        """
        for thread in (self._scoring, self._measuring):
            thread.close()
        wait(self._writes)
        self._writer.close()
        self.raise_write_errors()

    def __enter__(self) -> AsyncReward:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            self.close()
        except Exception as late:
            if error is None:
                raise
            _LOG.warning("another error while the run was ending: %s: %s", type(late).__name__, late)

    def annotate(self, prompt: str, video: Video, score: Score, facts: Mapping[str, Any]) -> None:
        """Add facts about a video (step, group, advantage) to the ledger's row of its score, once."""
        if self.ledger is None or self._cached is None:
            return
        try:
            key = self._cached.ledger_key(prompt, video, score)
        except ValueError as error:
            _LOG.warning("%s: its advantage could not be added to the ledger: %s", video.name, error)
            return
        if dict(facts) not in self.ledger.extra(key):
            self.ledger.annotate(key, **facts)


def _speeds(videos: Sequence[Video | None]) -> list[float]:
    """The normal-flow speed of each video; NaN where there is none."""
    return [math.nan if video is None else normal_flow_speed(video) for video in videos]


def score_all(reward: Reward, prompts: Sequence[str], videos: Sequence[Video | None]) -> list[Score]:
    """One Score per video, in order. A video that is None, and all videos when the reward raises,
    have none and the reason.

    Raises ``OSError`` when the ledger cannot be written.
    """
    scores = [Score.missing("the model's output is not finite; there is no video to judge")] * len(videos)
    present = {number: video for number, video in enumerate(videos) if video is not None}
    if not present:
        return scores
    try:
        fresh = reward([prompts[n] for n in present], list(present.values()))
        if len(fresh) != len(present):
            raise ValueError(f"returned {len(fresh)} scores for {len(present)} videos; expected one each")
    except Exception as error:  # whatever a client raises; the run ends when too many videos have no score
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        fresh = [Score.missing(f"reward {reward.name} failed: {type(error).__name__}: {error}")] * len(present)
    for number, score in zip(present, fresh, strict=True):
        scores[number] = score
    return scores


def reward_sample(scored: ScoreAndSpeed, video: Video | None, grid: LatentGrid | None) -> RewardSample:
    """What advantages need of a score. grid: the video's latent grid, for local advantages only."""
    score, speed = scored
    mask = None if grid is None or video is None else anomaly_mask(score.evidence, video, grid)
    if grid is not None and mask is None:
        mask = np.ones(grid.shape, bool)
    return RewardSample(score.value, dict(score.parts), score.error, speed, mask)
