"""Tournaments of scripted judges whose bias is known: equal videos stay equal, order is recovered, failures never vote."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import spearmanr

from cac_align.core.video import Video
from cac_align.generation.best_of_n import best_of_n
from cac_align.rewards.build import reward_choices
from cac_align.rewards.cached import cached
from cac_align.rewards.combine import combine, compares_videos
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.pairwise.bradley_terry import components, expected_win_rates, fit_strengths
from cac_align.rewards.pairwise.comparison import Comparison
from cac_align.rewards.pairwise.diagnostics import (
    cycle_share,
    position_bias,
    significance,
    significance_of_agreement,
)
from cac_align.rewards.pairwise.schedules import PAIR_SCHEDULES, next_pairs, num_pairs
from cac_align.rewards.pairwise.tournament import Tournament


def clip(brightness: int) -> Video:
    """A video whose quality is its brightness, 0 to 255."""
    return Video.open(np.full((4, 8, 8, 3), brightness, np.uint8), fps=8.0, name=str(brightness))


def brightness(video: Video) -> int:
    return int(video.frames((0,)).pixels[0, 0, 0, 0])


@dataclass
class Scripted:
    """P(the first is better) = σ(slope · difference + first_lead), as hard winners when asked; some pairs fail."""

    slope: float = 0.1
    first_lead: float = 0.0
    hard: bool = False
    fails: frozenset[int] = frozenset()
    asked: list[tuple[int, int]] = field(default_factory=list)
    seed: int | None = None
    name: str = "scripted"

    @property
    def provenance(self):
        return {"reward": "scripted", "slope": str(self.slope)}

    def compare(self, prompts, firsts, seconds):
        rng = np.random.default_rng(self.seed)
        answers = []
        for first, second in zip(firsts, seconds, strict=True):
            a, b = brightness(first), brightness(second)
            self.asked.append((a, b))
            p = 1 / (1 + math.exp(-(self.slope * (a - b) + self.first_lead)))
            if self.hard:
                p = float(rng.random() < p) if self.seed is not None else float(p > 0.5) if p != 0.5 else 0.5
            failed = a in self.fails or b in self.fails
            answers.append(Comparison.missing("the judge is away") if failed else Comparison(p))
        return answers


def values(tournament: Tournament, videos: list[Video]) -> list[float]:
    return [score.value for score in tournament(["p"] * len(videos), videos)]


def test_strengths_maximise_the_likelihood_that_scipy_maximises():
    rng = np.random.default_rng(3)
    preferences = {(i, j): float(rng.random()) for i in range(5) for j in range(i + 1, 5) if (i, j) != (0, 4)}

    def loss(theta):
        found = 0.0
        for (i, j), p in preferences.items():
            found -= p * -np.log1p(np.exp(theta[j] - theta[i])) + (1 - p) * -np.log1p(np.exp(theta[i] - theta[j]))
        return found + 0.5 * (np.log1p(np.exp(theta)) + np.log1p(np.exp(-theta))).sum()

    wanted = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-9}).x
    np.testing.assert_allclose(fit_strengths(5, preferences), wanted, atol=1e-5)


def test_two_items_worked_by_hand():
    # One win and the prior: σ(θ₁ − θ₂) + σ(θ₁) = 1.5 at the maximum, and θ₂ = −θ₁ by symmetry.
    theta = fit_strengths(2, {(0, 1): 1.0})
    sigmoid = lambda value: 1 / (1 + math.exp(-value))  # noqa: E731
    assert theta[0] == pytest.approx(-theta[1])
    assert sigmoid(2 * theta[0]) + sigmoid(theta[0]) == pytest.approx(1.5)
    assert expected_win_rates(theta).tolist() == pytest.approx([sigmoid(2 * theta[0]), sigmoid(-2 * theta[0])])


def test_parts_of_a_graph():
    assert components(6, {(1, 3): 1.0, (3, 5): 0.0, (0, 2): 0.5}) == [0, 1, 0, 1, 4, 1]


@pytest.mark.parametrize("schedule", PAIR_SCHEDULES)
@given(st.integers(2, 17))
@settings(max_examples=16, deadline=None)
def test_every_schedule_connects_all_items_within_its_count(schedule, n):
    answered: dict[tuple[int, int], float] = {}
    for rounds in range(20):
        pairs = next_pairs(schedule, n, set(answered), answered, rounds, 2)
        if not pairs:
            break
        assert all(i < j and (i, j) not in answered for i, j in pairs)
        answered |= dict.fromkeys(pairs, 1.0)
    assert set(components(n, answered)) == {0}
    assert len(answered) <= num_pairs(schedule, n, 2)
    assert schedule == "seeded" or len(answered) == num_pairs(schedule, n, 2)


@pytest.mark.parametrize("schedule", PAIR_SCHEDULES)
def test_a_judge_that_prefers_the_first_still_ranks_by_quality(schedule):
    videos = [clip(value) for value in (10, 90, 50, 130, 170, 210, 30, 70)]
    judge = Scripted(slope=0.05, first_lead=1.0)
    found = values(Tournament(judge, schedule), videos)
    agreement = spearmanr(found, [brightness(video) for video in videos]).statistic
    assert agreement >= (1.0 if schedule == "round_robin" else 0.95)  # the others see about a third of the pairs
    assert np.mean(found) == pytest.approx(0.5, abs=1e-6)


def test_the_order_of_the_call_changes_nothing():
    videos = [clip(value) for value in (10, 90, 50, 130, 170, 210, 30)]
    for schedule in PAIR_SCHEDULES:
        tournament = Tournament(Scripted(slope=0.02, first_lead=0.7), schedule)
        forward = dict(zip(map(brightness, videos), values(tournament, videos), strict=True))
        backward = dict(zip(map(brightness, videos[::-1]), values(tournament, videos[::-1]), strict=True))
        assert forward == backward


def test_every_pair_is_asked_in_both_orders():
    judge = Scripted()
    values(Tournament(judge), [clip(value) for value in (1, 2, 3, 4)])
    assert sorted(judge.asked) == sorted((a, b) for a in (1, 2, 3, 4) for b in (1, 2, 3, 4) if a != b)


def test_equal_videos_are_a_group_without_spread_whatever_the_position_bias():
    videos = [clip(value) for value in (100, 101, 102, 103)]
    always_first = Scripted(slope=0.0, first_lead=50.0, hard=True)
    scores = Tournament(always_first)(["p"] * 4, videos)
    assert [score.value for score in scores] == [0.5] * 4
    assert scores[0].parts["group/position_bias"] == 1.0


def test_coin_tosses_about_equal_videos_seldom_make_a_ranking():
    videos = [clip(value) for value in range(100, 108)]
    spreads = [
        float(np.std(values(Tournament(Scripted(slope=0.0, hard=True, seed=seed)), videos))) for seed in range(60)
    ]
    # Level 0.05: of 60 groups three are expected to differ, and more than nine has probability 0.001.
    assert sum(spread > 0 for spread in spreads) <= 9
    forced = [
        float(np.std(values(Tournament(Scripted(slope=0.0, hard=True, seed=seed), alpha=0.0), videos)))
        for seed in range(60)
    ]
    assert sum(spread > 0 for spread in forced) >= 55


class Noisy:
    """Names a winner: the brighter one more often, by the log-odds ``slope`` per grey level; a new draw for every question."""

    name = "noisy"
    provenance: ClassVar = {"reward": "noisy"}

    def __init__(self, slope: float, seed: int) -> None:
        self.slope, self.rng = slope, np.random.default_rng(seed)

    def compare(self, prompts, firsts, seconds):
        leads = [self.slope * (brightness(a) - brightness(b)) for a, b in zip(firsts, seconds, strict=True)]
        return [Comparison(float(self.rng.random() < 1 / (1 + math.exp(-lead)))) for lead in leads]


def test_neighbours_of_a_real_order_are_ranked_and_coin_tosses_seldom():
    videos = [clip(10 * value) for value in range(16)]

    def ranked(slope: float) -> int:
        groups = (values(Tournament(Noisy(slope, seed), schedule="seeded"), videos) for seed in range(40))
        return sum(len(set(group)) > 1 for group in groups)

    assert ranked(1.0) == 40
    assert ranked(0.0) <= 8  # two are expected at level 0.05, and more than eight has probability 0.0002


def test_a_failed_comparison_is_no_vote():
    videos = [clip(value) for value in (10, 60, 110, 160)]
    scores = Tournament(Scripted(fails=frozenset({60})))(["p"] * 4, videos)
    assert [score.scored for score in scores] == [True, False, True, True]
    assert "the judge is away" in str(scores[1].error)
    without = values(Tournament(Scripted()), [videos[0], *videos[2:]])
    assert [scores[0].value, scores[2].value, scores[3].value] == pytest.approx(without)
    assert scores[0].parts["failed"] == 1 and scores[0].parts["comparisons"] == 2


def test_a_disconnected_group_has_no_score():
    class TwoHalves(Scripted):
        def compare(self, prompts, firsts, seconds):
            low = [(brightness(a) < 100, brightness(b) < 100) for a, b in zip(firsts, seconds, strict=True)]
            return [Comparison(1.0) if a == b else Comparison.missing("timeout") for a, b in low]

    scores = Tournament(TwoHalves())(["p"] * 4, [clip(value) for value in (10, 60, 110, 160)])
    assert not any(score.scored for score in scores)
    assert all("timeout" in str(score.error) for score in scores)


def test_prompts_are_separate_groups_and_one_video_is_none():
    videos = [clip(value) for value in (10, 60, 200, 90)]
    scores = Tournament(Scripted())(["a", "a", "b", "a"], videos)
    assert not scores[2].scored
    assert scores[3].value > scores[1].value > scores[0].value


def test_equal_files_share_one_place():
    judge = Scripted()
    scores = Tournament(judge)(["p"] * 3, [clip(10), clip(200), clip(10)])
    assert scores[0].value == scores[2].value < scores[1].value
    assert len(judge.asked) == 2
    assert [score.value for score in Tournament(judge)(["p"] * 2, [clip(10), clip(10)])] == [0.5, 0.5]
    assert len(judge.asked) == 2  # a tie that needs no judge


@pytest.mark.parametrize("returned", [None, [], ["1"] * 2, [Comparison(0.5)] * 3])
def test_a_comparator_that_breaks_its_contract_gives_no_number(returned):
    class Broken(Scripted):
        def compare(self, prompts, firsts, seconds):
            return returned

    try:
        scores = Tournament(Broken())(["p"] * 2, [clip(1), clip(200)])
    except ValueError as error:
        assert "scripted" in str(error)
    else:
        assert returned == ["1"] * 2 and not any(score.scored for score in scores)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.inf])
def test_no_comparison_outside_its_range(p):
    with pytest.raises(ValueError):
        Comparison(p)


def test_diagnostics_worked_by_hand():
    assert position_bias({(0, 1): 0.8, (1, 2): 0.6}, {(0, 1): 0.4, (1, 2): 0.5}) == pytest.approx((0.2 + 0.1) / 2)
    # 0 beats 1, 1 beats 2, 2 beats 0: a cycle. 0, 1, 3 is none; (2, 3) is a tie, so that no triple holds it.
    preferences = {(0, 1): 0.9, (1, 2): 0.9, (0, 2): 0.1, (0, 3): 0.9, (1, 3): 0.9, (2, 3): 0.5}
    assert cycle_share(preferences, 0.05) == pytest.approx(1 / 2)


def test_significance_is_the_share_of_orders_that_separate_as_much():
    # Three items in order: of 8 directions the 6 without a cycle separate as much.
    assert significance(3, {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 1.0}) == pytest.approx(6 / 8, abs=0.04)
    ordered = {(i, j): 1.0 for i in range(6) for j in range(i + 1, 6)}
    assert significance(6, ordered) == pytest.approx(720 / 2**15, abs=0.012)


def test_agreement_of_both_orders_is_compared_with_answers_dealt_to_other_questions():
    # Of the 6 ways to deal two wins and two losses to two pairs, 4 have both orders agree in both pairs.
    agreeing = significance_of_agreement({(0, 1): 1.0, (2, 3): 1.0}, {(0, 1): 0.0, (2, 3): 0.0})
    assert agreeing == pytest.approx(4 / 6, abs=0.04)
    # Always the first: nothing else can be dealt.
    assert significance_of_agreement({(0, 1): 1.0, (2, 3): 1.0}, {(0, 1): 1.0, (2, 3): 1.0}) == 1.0
    # Ten pairs that all agree: 2^10 of the ways to deal ten wins and ten losses to twenty questions.
    pairs = [(2 * k, 2 * k + 1) for k in range(10)]
    found = significance_of_agreement(dict.fromkeys(pairs, 1.0), dict.fromkeys(pairs, 0.0))
    assert found == pytest.approx(2**10 / math.comb(20, 10), abs=0.004)


def test_best_of_n_keeps_the_winner_and_the_ledger_serves_no_comparison(tmp_path):
    levels = {0: 40, 1: 200, 2: 90}
    judge = Scripted(first_lead=0.5)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    reward = cached(Tournament(judge), ledger)
    (chosen,) = best_of_n(["p"], lambda prompt, seed: clip(levels[seed]), reward, n=3)
    assert brightness(chosen.video) == 200
    asked = len(judge.asked)
    values_again = [score.value for score in reward(["p"] * 2, [clip(40), clip(200)])]
    assert len(judge.asked) == asked + 2  # among two the value is another one, so it is asked again
    assert values_again[1] > 0.5 > values_again[0]
    assert {row["kind"] for row in ledger.rows()} == {"combined"}


def test_who_needs_whole_groups_is_known_through_every_wrapper(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    tournament = Tournament(Scripted())
    for reward in (tournament, combine({"pairs": tournament}), cached(combine({"pairs": tournament}), ledger)):
        assert "compares pairs" in str(compares_videos(reward))
    with pytest.raises(ValueError, match="fragment"):
        reward_choices(combine({"pairs": tournament}))
