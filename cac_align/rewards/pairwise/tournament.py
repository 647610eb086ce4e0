"""A judge that only compares, as a Reward: every prompt's videos play a tournament.

prompts, videos → groups of equal prompts → rounds of pairs, asked in both orders
    → p per pair → Bradley-Terry strengths → Score(expected win rate, parts)

A value is the mean probability of being better than another video of the group: in (0, 1), 0.5 on
average in every group, so values of different prompts cannot be compared. A comparison that failed
has no p and leaves the group's graph. Videos without any answer have no score; when the pairs that
were answered do not connect the others, none of the group has one. A group in which the judge
prefers nothing gets 0.5 for all (a group of zero spread), never a forced ranking.

The parts of a score: ``win_rate`` (the mean of its p), ``comparisons``, ``ties`` and ``failed`` of
this video, and of its group ``group/position_bias``, ``group/cycles``, ``group/significance`` and
``group/questions`` (``diagnostics``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cac_align.core.video import Video, VideoInput, as_pairs
from cac_align.rewards.combine import pointwise_remedy
from cac_align.rewards.normalise import quantise
from cac_align.rewards.pairwise.bradley_terry import PRIOR, IndexPair, components, expected_win_rates, fit_strengths
from cac_align.rewards.pairwise.comparison import Comparator, Comparison, checked_comparisons
from cac_align.rewards.pairwise.diagnostics import (
    cycle_share,
    position_bias,
    significance,
    significance_of_agreement,
)
from cac_align.rewards.pairwise.schedules import PAIR_SCHEDULES, PairSchedule, next_pairs
from cac_align.rewards.reward import Score
from cac_align.vlm.protocol import Vlm, checkpoint_uncertainty

# With fewer pairs than this, directions cannot be told from chance at 0.05 however clear they are.
_PAIRS_TO_TEST = 15


@dataclass(frozen=True)
class Tournament:
    """A comparator as a Reward. It compares the videos of one prompt within one call.

    Raises ``ValueError`` for an unknown schedule or a number outside its range.
    """

    comparator: Comparator
    # round_robin, anchor or seeded (see ``schedules``).
    schedule: PairSchedule = "round_robin"
    # How many videos the others are compared with; for the schedule anchor.
    anchors: int = 2
    # A pair with |p − 0.5| up to this is a tie, and a group of ties has no spread.
    epsilon: float = 0.05
    # A group whose preferences could be chance at this level has no spread (``diagnostics``). Groups of fewer than 15
    # answered pairs are not tested, because there no order can be significant. 0: no test.
    alpha: float = 0.05
    # Half wins and half losses of every video against a phantom, > 0.
    prior: float = PRIOR

    def __post_init__(self) -> None:
        if self.schedule not in PAIR_SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(PAIR_SCHEDULES)}, received {self.schedule!r}")
        if self.anchors < 1 or not 0 <= self.epsilon < 0.5 or not 0 <= self.alpha < 1 or not self.prior > 0:
            raise ValueError(
                "expected anchors >= 1, 0 <= epsilon < 0.5, 0 <= alpha < 1 and prior > 0; "
                f"received {self.anchors}, {self.epsilon}, {self.alpha}, {self.prior}"
            )

    @property
    def name(self) -> str:
        return self.comparator.name

    def with_vlms(self, wrap: Callable[[Vlm], Vlm]) -> Tournament:
        """The same reward, with the comparator's model wrapped where it has one, e.g. to count its tokens."""
        comparator: Any = copy.copy(self.comparator)
        if hasattr(comparator, "vlm"):
            comparator.vlm = wrap(comparator.vlm)
        return replace(self, comparator=comparator)

    @property
    def bounds(self) -> tuple[float, float]:
        return 0.0, 1.0

    @property
    def compares_videos(self) -> str:
        """What makes the value of a video depend on the other videos of the call."""
        return f"{self.comparator.name} compares pairs of videos"

    @property
    def provenance(self) -> Mapping[str, str]:
        schedule = f"anchor, {self.anchors}" if self.schedule == "anchor" else self.schedule
        return {
            "reward": f"tournament of {self.comparator.name}, expected win rate",
            "schedule": f"{schedule}; both orders",
            "strengths": f"Bradley-Terry, prior {self.prior:g}; ties to {self.epsilon:g}, level {self.alpha:g}",
            **{name: value for name, value in self.comparator.provenance.items() if name != "reward"},
        }

    def __call__(self, prompts: str | Sequence[str], videos: VideoInput | Sequence[VideoInput]) -> list[Score]:
        """One Score per video, in order. It does not depend on the order of the videos.

        Raises ``ValueError`` when ``prompts`` and ``videos`` differ in length.
        """
        prompts, videos = as_pairs(prompts, videos)
        before = self.comparator.provenance
        provenance = dict(self.provenance)
        groups: dict[str, dict[str, list[int]]] = {}  # places in the call, by prompt and content
        scores: dict[int, Score] = {}
        for index, (prompt, video) in enumerate(zip(prompts, videos, strict=True)):
            try:
                groups.setdefault(prompt, {}).setdefault(video.content_hash, []).append(index)
            except (ValueError, OSError) as error:
                scores[index] = Score.missing(f"the video cannot be read: {error}", provenance=provenance)
        matches = [_Match(prompt, members, videos) for prompt, members in groups.items() if members]
        self._play(matches)
        reason = checkpoint_uncertainty(before, self.comparator.provenance)
        for match in matches:
            for index, score in self._group_scores(match, provenance).items():
                uncertain = score.scored and reason is not None
                scores[index] = Score.missing(reason or "", provenance=provenance) if uncertain else score
        return [scores[index] for index in range(len(videos))]

    def _play(self, matches: Sequence[_Match]) -> None:
        """All rounds of all groups; each round of all groups is one call of the comparator."""
        rounds = 0
        while True:
            questions: list[tuple[_Match, IndexPair, bool]] = []
            for match in matches:
                pairs = next_pairs(
                    self.schedule, len(match.items), match.asked, match.preferences(), rounds, self.anchors
                )
                match.asked.update(pairs)
                questions += [(match, pair, swapped) for pair in pairs for swapped in (False, True)]
            if not questions:
                return
            shown = [
                (match.prompt, match.items[pair[swapped]], match.items[pair[not swapped]])
                for match, pair, swapped in questions
            ]
            returned = self.comparator.compare(*(list(column) for column in zip(*shown, strict=True)))
            answers = checked_comparisons(self.name, returned, len(questions))
            for (match, pair, swapped), answer in zip(questions, answers, strict=True):
                match.answers[pair, swapped] = answer
            rounds += 1

    def _group_scores(self, match: _Match, provenance: Mapping[str, str]) -> dict[int, Score]:
        """The score of every member of a group, by its place in the call."""
        n = len(match.items)
        preferences = match.preferences()
        values, reasons = self._values(match, preferences)
        group = {
            "group/position_bias": position_bias(*match.both_orders(preferences)),
            "group/cycles": cycle_share(preferences, self.epsilon),
            "group/significance": self._significance(match, preferences),
            "group/questions": float(len(match.answers)),
        }
        scores = {}
        for item in range(n):
            own = [p if i == item else 1 - p for (i, j), p in preferences.items() if item in (i, j)]
            parts = {
                "win_rate": float(np.mean(own)) if own else math.nan,
                "comparisons": float(len(own)),
                "ties": float(sum(abs(p - 0.5) <= self.epsilon for p in own)),
                "failed": float(sum(item in pair for pair in match.asked) - len(own)),
                **group,
            }
            for index in match.members[item]:
                reason = reasons[item]
                scores[index] = (
                    Score.missing(reason, parts=parts, provenance=provenance)
                    if reason is not None
                    else Score(values[item], parts, provenance=provenance)
                )
        return scores

    def _values(self, match: _Match, preferences: Mapping[IndexPair, float]) -> tuple[list[float], list[str | None]]:
        """Each item's value, and why it has none."""
        n = len(match.items)
        if n < 2:
            if len(match.members[0]) > 1:  # equal files are equally good, whatever a judge would say
                return [0.5], [None]
            reason = f"{self.name} compares, and this prompt has 1 video; give it 2 or more, or {pointwise_remedy('')}"
            return [math.nan], [reason]
        answered = {item for pair in preferences for item in pair}
        reasons: list[str | None] = [
            None if item in answered else f"no comparison of this video has an answer: {match.first_error(item)}"
            for item in range(n)
        ]
        if len({part for item, part in enumerate(components(n, preferences)) if item in answered}) > 1:
            reason = (
                f"{len(match.asked) - len(preferences)} of {len(match.asked)} comparisons have no answer, and the rest "
                f"does not connect the videos of the prompt: {match.first_error(None)}"
            )
            reasons = [each or reason for each in reasons]
        if len(answered) < 2 or not any(each is None for each in reasons):
            return [math.nan] * n, reasons
        if self._prefers_nothing(match, preferences):
            return [0.5] * n, reasons
        rates = expected_win_rates(fit_strengths(n, preferences, self.prior)[sorted(answered)])
        values = dict(zip(sorted(answered), rates.tolist(), strict=True))
        return [quantise(values.get(item, math.nan)) for item in range(n)], reasons

    def _prefers_nothing(self, match: _Match, preferences: Mapping[IndexPair, float]) -> bool:
        if all(abs(p - 0.5) <= self.epsilon for p in preferences.values()):
            return True
        tested = self.alpha > 0 and len(preferences) >= _PAIRS_TO_TEST
        return tested and self._significance(match, preferences) > self.alpha

    def _significance(self, match: _Match, preferences: Mapping[IndexPair, float]) -> float:
        if self.schedule == "seeded":  # whose pairs depend on the answers
            return significance_of_agreement(*match.both_orders(preferences))
        return significance(len(match.items), preferences)


class _Match:
    """The state of one group's tournament.

    Its items are the different videos of the prompt in the order of their content hashes, so that
    neither schedule nor rounding depends on the order of the call.
    """

    def __init__(self, prompt: str, places: Mapping[str, list[int]], videos: Sequence[Video]) -> None:
        self.prompt = prompt
        self.members = [places[key] for key in sorted(places)]
        self.items = [videos[members[0]] for members in self.members]
        self.asked: set[IndexPair] = set()
        # By pair (i, j) and whether j was shown first.
        self.answers: dict[tuple[IndexPair, bool], Comparison] = {}

    def preferences(self) -> dict[IndexPair, float]:
        """P(i is better than j) by pair: the mean of both orders, where both have an answer."""
        found = {}
        for pair in sorted(self.asked):
            both = [self.answers.get((pair, swapped)) for swapped in (False, True)]
            if all(each is not None and each.answered for each in both):
                found[pair] = (self.answers[pair, False].p + 1 - self.answers[pair, True].p) / 2
        return found

    def both_orders(self, pairs: Iterable[IndexPair]) -> tuple[dict[IndexPair, float], dict[IndexPair, float]]:
        """(P(i is better) where i was shown first, P(j is better) where j was) of answered pairs."""
        chosen = list(pairs)
        in_order, reversed_order = ({pair: self.answers[pair, swap].p for pair in chosen} for swap in (False, True))
        return in_order, reversed_order

    def first_error(self, item: int | None) -> str:
        """Why a comparison failed: the first reason, of this item's or of all."""
        errors = (
            answer.error
            for (pair, _), answer in self.answers.items()
            if answer.error and (item is None or item in pair)
        )
        return next(errors, "it was not compared")
