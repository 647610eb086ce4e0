"""The state of a running service: its rewards, the queue in front of them, its limits and its
metrics.

prompts, video parts → opened videos (in threads) → batcher → one score per video

A video that fails, fails alone: its score is missing and says why. Every wait is bounded by
``timeout_s``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cac_align.core.video import Video
from cac_align.rewards.build import reward_choices
from cac_align.rewards.reachable import check_reachable
from cac_align.rewards.reward import Reward, Score
from cac_align.serving.batcher import Batcher, QueueFull
from cac_align.serving.frame_plan import frame_plan_of
from cac_align.serving.incoming import open_part
from cac_align.serving.video_parts import SentFrames
from cac_align.serving.wire import Limits, VideoPart


@dataclass(frozen=True)
class ServiceSettings:
    """How the service runs. Raises ``ValueError`` for an fps that is no positive number."""

    # Demanded from every caller; None demands none.
    token: str | None = None
    # Folders whose files a caller may name by path.
    roots: tuple[Path, ...] = ()
    # Frame rate of videos that come without one: UniRL's files state a wrong rate, Flow-Factory's frames none.
    fps: float = 16.0
    # Seconds from the acceptance of a request to its answer.
    timeout_s: float = 600.0
    # Seconds that stopping may take to finish accepted work.
    drain_s: float = 600.0
    # Videos per call of a reward, and how long, in seconds, a batch waits for more videos.
    batch_size: int = 16
    wait_s: float = 0.005
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps must be a positive number of frames per second, received {self.fps}")


class ServiceMetrics:
    """The counters that GET /metrics shows."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "cac_align_requests", "Requests by path and HTTP status", ["path", "status"], registry=registry
        )
        self.videos = Counter(
            "cac_align_videos", "Videos by reward and outcome", ["reward", "outcome"], registry=registry
        )
        self.batch_seconds = Histogram(
            "cac_align_batch_seconds", "Seconds per call of the reward", ["reward"], registry=registry
        )
        self.batch_videos = Histogram(
            "cac_align_batch_videos", "Videos per call", ["reward"], buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self.queued = Gauge("cac_align_queued_videos", "Videos that wait", registry=registry)
        self.busy = Gauge("cac_align_busy_seconds", "How long the batch in work has run", registry=registry)

    def watch(self, batcher: Batcher) -> None:
        """Read the queue's length and the running batch's time from this batcher."""
        self.queued.set_function(lambda: batcher.queued)
        self.busy.set_function(lambda: batcher.busy_s)

    def count_batch(self, reward: str, num_videos: int, seconds: float) -> None:
        """Count one call of a reward."""
        self.batch_seconds.labels(reward).observe(seconds)
        self.batch_videos.labels(reward).observe(num_videos)


class Service:
    """A reward and its components behind a queue.

    ledger: a JSONL file that keeps every judgement and answers repeated requests. Raises
    ``ValueError`` for a reward that normalises within a prompt's group, or that has no provenance.
    """

    def __init__(self, reward: Reward, settings: ServiceSettings, ledger: Path | None = None) -> None:
        self.settings = settings
        self.rewards: Mapping[str, Reward] = reward_choices(reward)
        self.default = next(iter(self.rewards))
        self.frame_plans = {name: frame_plan_of(each) for name, each in self.rewards.items()}
        for each in self.rewards.values():
            _ = each.provenance  # raises where there is none; read again for every answer, as a server may be exchanged
        if ledger is not None:
            from cac_align.rewards.cached import cached
            from cac_align.rewards.ledger import Ledger

            kept = Ledger(ledger)
            self.rewards = {name: cached(each, kept) for name, each in self.rewards.items()}
        self.metrics = ServiceMetrics()
        self.batcher = Batcher(
            self.rewards,
            batch_size=settings.batch_size,
            wait_s=settings.wait_s,
            max_queued=settings.limits.max_queued,
            observe=self.metrics.count_batch,
        )
        self.metrics.watch(self.batcher)
        # POST requests that are being read, decoded or judged. They are limited as well, so that a burst of requests
        # does not fill the memory before its videos reach the queue.
        self.posts_in_work = 0

    async def judge(
        self, name: str, prompts: Sequence[str], parts: Sequence[VideoPart]
    ) -> list[tuple[Score, tuple[int, ...]]]:
        """(score, source indices of frames that were asked for and not sent) per video, in order.

        Raises ``HTTPException``: 400 for an unknown reward, 413 for too many videos, 422 where the
        numbers of prompts and videos differ, 429 when the queue is full, 503 when the service is
        stopping.
        """
        limits, timeout_s = self.settings.limits, self.settings.timeout_s
        if name not in self.rewards:
            raise HTTPException(400, f"unknown reward {name!r}; this service offers {', '.join(self.rewards)}")
        if len(prompts) != len(parts):
            raise HTTPException(
                422, f"expected one prompt per video, received {len(prompts)} prompts and {len(parts)} videos"
            )
        if len(parts) > limits.max_items:
            raise HTTPException(413, f"{len(parts)} videos in one request, at most {limits.max_items} are accepted")
        opened = await asyncio.gather(
            *(asyncio.to_thread(open_or_missing_score, part, self.settings) for part in parts)
        )
        videos = {index: video for index, video in enumerate(opened) if isinstance(video, Video)}
        scores = {index: score for index, score in enumerate(opened) if isinstance(score, Score)}
        try:
            futures = self.batcher.submit(name, [prompts[index] for index in videos], list(videos.values()))
        except QueueFull as full:
            raise HTTPException(
                503 if full.stopping else 429, str(full), headers={"Retry-After": str(full.retry_after_s)}
            ) from full
        waiting = [asyncio.wrap_future(future) for future in futures]
        if waiting:
            await asyncio.wait(waiting, timeout=timeout_s)
        for index, future in zip(list(videos), waiting, strict=True):
            if future.done():
                scores[index], videos[index] = future.result()
            else:
                future.cancel()  # leaves the queue if it still waits there and no other request waits for it
                scores[index] = Score.missing(f"timed out: the service gave it {timeout_s:g} s")
        for index in range(len(parts)):
            self.metrics.videos.labels(name, "scored" if scores[index].scored else "unscored").inc()
        return [(scores[index], missing_frames(videos.get(index))) for index in range(len(parts))]

    def unready(self) -> dict[str, str]:
        """Per reward whose judges' servers do not all answer within two seconds, why; asked together."""
        reasons: dict[str, str] = {}

        def ask(item: tuple[str, Reward]) -> None:
            try:
                check_reachable(item[1])
            except ValueError as error:
                reasons[item[0]] = str(error)

        with ThreadPoolExecutor(len(self.rewards)) as pool:
            list(pool.map(ask, self.rewards.items()))
        return {name: reasons[name] for name in self.rewards if name in reasons}

    async def provenance_of(self, name: str) -> dict[str, str]:
        """What identifies the scores of one reward now; a server may have to be asked.

        Raises ``HTTPException`` 503.
        """
        try:
            return await asyncio.to_thread(lambda: dict(self.rewards[name].provenance))
        except ValueError as error:
            raise HTTPException(503, str(error), headers={"Retry-After": "5"}) from error


def open_or_missing_score(part: VideoPart, settings: ServiceSettings) -> Video | Score:
    """The video, or the missing score that says why it cannot be opened."""
    try:
        video = open_part(part, settings.roots, settings.limits)
        _ = video.content_hash  # the queue needs it; computed here, in a thread, and kept by the video
        return video
    except ValueError as error:
        return Score.missing(str(error))


def missing_frames(video: Video | None) -> tuple[int, ...]:
    """Source indices of frames that the reward asked for and the client had not sent."""
    source = video._source if video is not None else None
    return tuple(sorted(set(source.missing))) if isinstance(source, SentFrames) else ()


def scores_of_one_judge(
    scores: Sequence[Score], before: dict[str, str], after: dict[str, str]
) -> tuple[list[Score], dict[str, str]]:
    """(the scores, the one provenance that holds for all of them).

    before, after: the provenances read before and after judging. Where they differ, a judge was
    exchanged meanwhile. The scores' own provenances then tell which of the two it is, and a score
    with another one becomes missing.
    """
    stated = [dict(score.provenance) for score in scores if score.scored]
    provenance = after if before == after else next((each for each in (after, before) if each in stated), after)
    lost = Score.missing("the judge was exchanged while it scored; ask again", provenance=provenance)
    wrong = [before != after and score.scored and dict(score.provenance) != provenance for score in scores]
    return [lost if other else score for score, other in zip(scores, wrong, strict=True)], provenance
