"""Asks the reward under audit, once per video, or once per comparison where it compares.

cases (each some videos that are scored against each other) → Asker.ask → Scores, and what they cost
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cac_align.core.video import Video
from cac_align.rewards.checked import checked_scores
from cac_align.rewards.combine import compares_videos
from cac_align.rewards.metered import UsageMeter, metered
from cac_align.rewards.reward import Reward, Score

_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class AuditQuestion:
    """A prompt and a video."""

    prompt: str
    video: Video


@dataclass(frozen=True)
class Spent:
    """What ``videos`` scored videos took. tokens: None where a judge does not say."""

    videos: int
    seconds: float
    cpu_seconds: float
    calls: int
    tokens: int | None


class Asker:
    """One reward, asked for an audit.

    A reward that scores each video by itself is asked once for each (prompt, video), whatever the
    number of cases it belongs to. One that compares is asked case by case, because there a score
    depends on the others of the call. ``spent`` counts everything.
    """

    def __init__(self, reward: Reward, progress: Callable[[int], object] | None = None) -> None:
        self.reward, self.compares = reward, compares_videos(reward) is not None
        self._meter = UsageMeter()
        self._metered = metered(reward, self._meter)
        self._known: dict[tuple[str, str], Score] = {}
        self._progress = progress or (lambda done: None)
        self._videos, self._seconds, self._cpu = 0, 0.0, 0.0
        # Why a video had no score: the first reason.
        self.first_error: str | None = None

    def ask(self, cases: Sequence[Sequence[AuditQuestion]], *, again: bool = False) -> list[list[Score]]:
        """The scores of every case, in order. again: ask anew, for a measure of repeatability."""
        if self.compares:
            return [self._scores(case) for case in cases]
        keys = [[(question.prompt, question.video.content_hash) for question in case] for case in cases]
        known = {} if again else self._known
        flat = {key: q for row, case in zip(keys, cases, strict=True) for key, q in zip(row, case, strict=True)}
        missing = [key for key in flat if key not in known]
        for first in range(0, len(missing), _AT_ONCE):
            part = missing[first : first + _AT_ONCE]
            known.update(zip(part, self._scores([flat[key] for key in part]), strict=True))
        return [[known[key] for key in row] for row in keys]

    @property
    def spent(self) -> Spent:
        used = self._meter.since((0, 0, 0))
        return Spent(self._videos, self._seconds, self._cpu, used.calls, used.tokens)

    def _scores(self, questions: Sequence[AuditQuestion]) -> list[Score]:
        began, cpu = time.perf_counter(), time.process_time()
        returned = self._metered([q.prompt for q in questions], [q.video for q in questions])
        self._seconds += time.perf_counter() - began
        self._cpu += time.process_time() - cpu
        self._progress(len(questions))
        scores = checked_scores(self.reward.name, returned, len(questions))
        self._videos += sum(score.scored for score in scores)
        self.first_error = self.first_error or next((score.error for score in scores if score.error), None)
        return scores
