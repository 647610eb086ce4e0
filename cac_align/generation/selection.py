"""Choosing among scored candidates: the highest score wins, and a reason in plain sentences says
why.

candidates → ``score_candidates`` (one call of the reward: they are a group) → ``choose`` → ``Selection``

A candidate without a score loses to any score. When no candidate has one, the prompt is undecided
and nothing is chosen. Scores within ``QUANTUM`` are equal, and the lowest index wins; a lead below
``TIE`` is called a tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cac_align.core.video import Video
from cac_align.generation.candidates import Candidate
from cac_align.rewards.domain import domain_name
from cac_align.rewards.normalise import TIE, quantise
from cac_align.rewards.reward import Reward, Score


@dataclass(frozen=True)
class Selection:
    """What was chosen for one prompt, and why.

    chosen: index into ``candidates``; None when undecided. candidates: paths or names, in order.
    scores: one per candidate. seeds: one per generated candidate; empty for given ones. reason:
    plain sentences. video: the chosen one.
    """

    prompt: str
    chosen: int | None
    candidates: tuple[str, ...]
    scores: tuple[Score, ...]
    seeds: tuple[int, ...]
    reason: str
    video: Video | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """A line of ``selection.jsonl``; null stands for a missing score or error.

        The ledger has the evidence.
        """
        return {
            "prompt": self.prompt,
            "chosen": self.chosen,
            "candidates": list(self.candidates),
            "scores": [score.value if score.scored else None for score in self.scores],
            "errors": [score.error for score in self.scores],
            "seeds": list(self.seeds),
            "reason": self.reason,
            "domain": next((name for score in self.scores if (name := domain_name(score.provenance))), None),
        }


def select(prompt: str, videos: Sequence[Video], reward: Reward) -> Selection:
    """The best of these videos. Nothing is written."""
    candidates = [Candidate(video.name, video, None) for video in videos]
    return choose(prompt, candidates, score_candidates(reward, prompt, candidates), ())


def score_candidates(reward: Reward, prompt: str, candidates: Sequence[Candidate]) -> list[Score]:
    """One score per candidate.

    All that have a video go to the reward in one call, as the prompt's group.
    """
    videos = {index: candidate.video for index, candidate in enumerate(candidates) if candidate.video is not None}
    scores = [Score.missing(candidate.error or "no video") for candidate in candidates]
    if videos:
        fresh = reward([prompt] * len(videos), list(videos.values()))
        if len(fresh) != len(videos):
            raise ValueError(
                f"reward {reward.name!r} returned {len(fresh)} scores for {len(videos)} videos; expected one each"
            )
        for index, score in zip(videos, fresh, strict=True):
            scores[index] = score
    return scores


def choose(prompt: str, candidates: Sequence[Candidate], scores: Sequence[Score], seeds: tuple[int, ...]) -> Selection:
    """The selection for one prompt, from the candidates' scores."""
    names = tuple(candidate.name for candidate in candidates)
    ranking = sorted(
        (i for i, score in enumerate(scores) if score.scored), key=lambda i: (-quantise(scores[i].value), i)
    )
    chosen = ranking[0] if ranking else None
    video = candidates[chosen].video if chosen is not None else None
    reason = explain(ranking, scores, 0.0 if video is None else 1 / video.fps)
    return Selection(prompt, chosen, names, tuple(scores), seeds, reason, video)


def explain(ranking: Sequence[int], scores: Sequence[Score], frame_s: float = 0.0) -> str:
    """Why the first candidate of the ranking won, in plain sentences. ranking: candidates with a
    score, best first. frame_s: how long one frame lasts; no window is told shorter.
    """
    unscored = [index for index, score in enumerate(scores) if not score.scored]
    if not scores:
        return "Undecided: there is no candidate for this prompt."
    if not ranking:
        errors = "; ".join(f"candidate {index}: {_shorten(scores[index].error or '')}" for index in unscored)
        many = f"none of the {len(scores)} candidates has a" if len(scores) > 1 else "its one candidate has no"
        return f"Undecided: {many} score ({errors})."
    best = ranking[0]
    sentences = []
    if len(ranking) == 1:
        sentences.append(f"Candidate {best} ({scores[best].value:.4g}) is the only one with a score.")
    else:
        ties = [i for i in ranking[1:] if quantise(scores[best].value) - quantise(scores[i].value) < TIE]
        second = ranking[len(ties) + 1] if len(ranking) > len(ties) + 1 else None
        if ties:
            others = ", ".join(str(i) for i in ties)
            sentences.append(
                f"Candidate {best} is tied with candidate{'s' if len(ties) > 1 else ''} {others} at "
                f"{scores[best].value:.4g}; " + _why_of_ties(best, ties, scores)
            )
        if second is not None:
            margin = quantise(scores[best].value) - quantise(scores[second].value)
            sentence = f"Candidate {best} ({scores[best].value:.4g}) beats candidate {second} by {margin:.4g}"
            sentences.append(sentence + _differing_parts(scores[best], scores[second]) + ".")
    others_anomalies = [f"candidate {i}: {text}" for i in ranking[1:] if (text := _anomaly_words(scores[i], frame_s))]
    if others_anomalies:
        sentences.append("Anomalies seen in the others: " + "; ".join(others_anomalies) + ".")
    if anomaly := _anomaly_words(scores[best], frame_s):
        sentences.append(f"The chosen one is not clean either: {anomaly}.")
    if unscored:
        errors = "; ".join(f"candidate {index}: {_shorten(scores[index].error or '')}" for index in unscored)
        sentences.append(f"Without a score: {errors}.")
    return " ".join(sentences)


def _why_of_ties(best: int, ties: Sequence[int], scores: Sequence[Score]) -> str:
    """Why the best one of these ties is taken: its score is higher by less than counts, or its
    index is the lowest.
    """
    lead = quantise(scores[best].value) - max(quantise(scores[i].value) for i in ties)
    return f"it is ahead by {lead:.2g}, less than {TIE:g}." if lead > 0 else "the lowest index wins."


def _differing_parts(best: Score, second: Score) -> str:
    """The parts in which two scores differ, as ": unified 3.9 against 3.2, …"; raw values of
    components.
    """
    names = [name for name in best.parts if "/" not in name and name in second.parts]
    moved = [name for name in names if quantise(best.parts[name]) != quantise(second.parts[name])]
    return (
        ": " + ", ".join(f"{name} {best.parts[name]:.3g} against {second.parts[name]:.3g}" for name in moved)
        if moved
        else ""
    )


def _anomaly_words(score: Score, frame_s: float) -> str:
    """The first anomaly of an abnormal verdict in a few words, or an empty text."""
    if score.evidence is None or score.evidence.status != "abnormal":
        return ""
    if not score.evidence.anomalies:
        return "judged abnormal"
    anomaly, more = score.evidence.anomalies[0], len(score.evidence.anomalies) - 1
    window = anomaly.window and anomaly.window.lasting(frame_s)
    when = f" at {window.start_s:.2f}–{window.end_s:.2f} s" if window else ""
    why = f" ({_shorten(anomaly.reason)})" if anomaly.reason.strip() else ""
    return f"{anomaly.type}{when}{why}" + (f" and {more} more" if more else "")


def _shorten(text: str, limit: int = 120) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
