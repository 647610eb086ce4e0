"""A reward that looks into a ledger before it scores, and writes what it scored.

reward, ledger → cached → reward;  prompts, videos → keys
    → found in the ledger | scored and written, batch by batch → Scores
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cac_align.core.video import Video, VideoInput, as_pairs
from cac_align.rewards.checked import checked_scores, reward_provenance
from cac_align.rewards.combine import Combined, compares_videos
from cac_align.rewards.ledger import Ledger, score_key, unreadable_key
from cac_align.rewards.reward import Reward, Score
from cac_align.rewards.wrapped import WrappedReward
from cac_align.vlm.protocol import served


def cached(reward: Reward, ledger: Ledger, *, videos_at_once: int = 16) -> CachedReward | CachedCombination:
    """The same reward (name, provenance, bounds), which scores only what the ledger does not hold
    yet.

    Of a combination the components are cached, and their combined scores are written as rows of
    kind ``combined``. So are those of a reward that compares the videos of a prompt: it is asked
    each time. videos_at_once: how many videos the reward is given per call. Each batch is
    written as soon as it is scored, so a killed process loses one batch at most.
    """
    if isinstance(reward, Combined):
        components = {
            name: cached(component, ledger, videos_at_once=videos_at_once)
            for name, component in reward.components.items()
        }
        return CachedCombination(reward.with_components(components), ledger)
    if compares_videos(reward):
        return CachedCombination(reward, ledger)
    return CachedReward(reward, ledger, videos_at_once)


@dataclass(frozen=True)
class _WithLedger(WrappedReward):
    """A reward and its ledger."""

    ledger: Ledger


@dataclass(frozen=True)
class CachedReward(_WithLedger):
    """A single reward with its ledger. Made by ``cached``."""

    videos_at_once: int = 16

    def __call__(self, prompts: str | Sequence[str], videos: VideoInput | Sequence[VideoInput]) -> list[Score]:
        """One Score per video, in order. Equal videos with equal prompts are scored once."""
        prompts, videos = as_pairs(prompts, videos)
        provenance = reward_provenance(self.reward)
        keys = [_key(prompt, video, provenance) for prompt, video in zip(prompts, videos, strict=True)]
        scores: dict[str, Score] = {}
        for key in keys:
            if key not in scores and (hit := self.ledger.find(key)) is not None:
                scores[key] = hit
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        todo = sorted(index for key, index in first.items() if key not in scores)
        for start in range(0, len(todo), self.videos_at_once):
            batch = todo[start : start + self.videos_at_once]
            returned = self.reward([prompts[index] for index in batch], [videos[index] for index in batch])
            fresh = checked_scores(self.name, returned, len(batch))
            fresh = [_checked_against(provenance, score) for score in fresh]
            rows = []
            for index, score in zip(batch, fresh, strict=True):
                kind = "score" if score.scored else "missing"
                rows.append((keys[index], kind, prompts[index], videos[index], self.name, score))
            self.ledger.record(rows)
            scores |= {keys[index]: score for index, score in zip(batch, fresh, strict=True)}
        return [scores[key] for key in keys]

    def ledger_key(self, prompt: str, video: Video, score: Score) -> str:
        """The key under which this score stands in the ledger.

        Which checkpoint gave it is read from the score, because the server may run another one by
        now.
        """
        return _key(prompt, video, {**self.reward.provenance, **served(score.provenance)})


def _checked_against(provenance: Mapping[str, str], score: Score) -> Score:
    """The score, or a missing one when a server's checkpoint is not the one that ``provenance``
    names.
    """
    if not score.scored or all(
        provenance.get(name, value) == value for name, value in served(score.provenance).items()
    ):
        return score
    reason = (
        "the server's checkpoint changed since this call began, so its score cannot be filed under the former one; "
        "score this video again"
    )
    return Score.missing(reason, parts=score.parts, evidence=score.evidence, provenance=score.provenance)


@dataclass(frozen=True)
class CachedCombination(_WithLedger):
    """A combination of cached components, or a reward that compares videos, that writes its scores.
    Made by ``cached``.
    """

    def __call__(self, prompts: str | Sequence[str], videos: VideoInput | Sequence[VideoInput]) -> list[Score]:
        prompts, videos = as_pairs(prompts, videos)
        scores = self.reward(prompts, videos)
        rows = []
        for prompt, video, score in zip(prompts, videos, scores, strict=True):
            key = self.ledger_key(prompt, video, score)
            former = self.ledger.combined(key)
            if former is None or former.to_json() != score.to_json():  # a resumed run writes no second copy
                rows.append((key, "combined", prompt, video, self.name, score))
        self.ledger.record(rows)
        return scores

    def ledger_key(self, prompt: str, video: Video, score: Score) -> str:
        """The key under which this combined score stands in the ledger."""
        return _key(prompt, video, score.provenance)


def _key(prompt: str, video: Video, provenance: Mapping[str, str]) -> str:
    """``score_key``, or for a video whose bytes cannot be read a key of its own, which is never
    found again.
    """
    try:
        return score_key(prompt, video, provenance)
    except (ValueError, OSError):
        return unreadable_key(video.name, prompt, provenance)
