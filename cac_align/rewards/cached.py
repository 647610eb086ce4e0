"""A reward that looks into a ledger before it scores: what ``Ledger.wrap`` makes of a reward, and of a combination.

prompts, videos → keys → found in the ledger | scored and filed, a batch at a time → Scores in order
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cac_align.core.video import Video
from cac_align.rewards.combine import bounds_of
from cac_align.rewards.ledger import Ledger, score_key, unreadable_key
from cac_align.rewards.reward import Reward, Score, check_pairs
from cac_align.vlm.protocol import served


@dataclass(frozen=True)
class _Filing:
    """A reward beside the ledger that it files in: its own name, provenance and bounds."""

    reward: Reward
    ledger: Ledger

    @property
    def name(self) -> str:
        return self.reward.name

    @property
    def provenance(self) -> Mapping[str, str]:
        return self.reward.provenance

    @property
    def bounds(self) -> tuple[float, float] | None:
        return bounds_of(self.reward)


@dataclass(frozen=True)
class Remembered(_Filing):
    """A reward that looks into a ledger before it scores. Made by ``Ledger.wrap``."""

    videos_at_once: int = 16

    def __call__(self, prompts: Sequence[str], videos: Sequence[Video]) -> list[Score]:
        """One Score per video, in order; equal videos with equal prompts are scored once."""
        check_pairs(prompts, videos)
        provenance = dict(self.reward.provenance)
        keys = [key_of(prompt, video, provenance) for prompt, video in zip(prompts, videos, strict=True)]
        scores: dict[str, Score] = {}
        for key in keys:
            if key not in scores and (hit := self.ledger.find(key)) is not None:
                scores[key] = hit
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        todo = sorted(index for key, index in first.items() if key not in scores)
        for start in range(0, len(todo), self.videos_at_once):
            batch = todo[start : start + self.videos_at_once]
            fresh = self.reward([prompts[index] for index in batch], [videos[index] for index in batch])
            if len(fresh) != len(batch):
                raise ValueError(
                    f"reward {self.name!r} returned {len(fresh)} scores for {len(batch)} videos; expected one each"
                )
            fresh = [_of_judge(provenance, score) for score in fresh]
            self.ledger.record(
                [
                    (
                        keys[index],
                        "score" if score.scored else "missing",
                        prompts[index],
                        videos[index],
                        self.name,
                        score,
                    )
                    for index, score in zip(batch, fresh, strict=True)
                ]
            )
            scores |= {keys[index]: score for index, score in zip(batch, fresh, strict=True)}
        return [scores[key] for key in keys]

    def filed_under(self, prompt: str, video: Video, score: Score) -> str:
        """The key of this score. Which checkpoint gave it the score knows: a server may be busy, gone or another one by now."""
        return key_of(prompt, video, {**self.reward.provenance, **served(score.provenance)})


def _of_judge(provenance: Mapping[str, str], score: Score) -> Score:
    """The score, where no other checkpoint made it than its key says: a server may be exchanged in the middle of a call."""
    if not score.scored or all(
        provenance.get(name, value) == value for name, value in served(score.provenance).items()
    ):
        return score
    why = "the judge was exchanged since this call began, so its score is not filed under the former one; score this video again"
    return Score.missing(why, parts=score.parts, evidence=score.evidence, provenance=score.provenance)


@dataclass(frozen=True)
class Logged(_Filing):
    """A combination over remembered components that files what it made of them. Made by ``Ledger.wrap``."""

    def __call__(self, prompts: Sequence[str], videos: Sequence[Video]) -> list[Score]:
        scores = self.reward(prompts, videos)
        entries = []
        for prompt, video, score in zip(prompts, videos, scores, strict=True):
            key = self.filed_under(prompt, video, score)
            filed = self.ledger.combined(key)
            if filed is None or filed.to_json() != score.to_json():  # a resumed run adds no second copy
                entries.append((key, "combined", prompt, video, self.name, score))
        self.ledger.record(entries)
        return scores

    def filed_under(self, prompt: str, video: Video, score: Score) -> str:
        """The key of this combined score."""
        return key_of(prompt, video, score.provenance)


def key_of(prompt: str, video: Video, provenance: Mapping[str, str]) -> str:
    """``score_key``, or for a video whose bytes cannot be read a key of its own: its row is for audit and is never a hit."""
    try:
        return score_key(prompt, video, provenance)
    except (ValueError, OSError):
        return unreadable_key(video.name, prompt, provenance)
