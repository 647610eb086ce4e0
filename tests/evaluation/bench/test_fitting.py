"""Temperature and threshold against simulated judges whose answer is known."""

import math
import random

import pytest

from cac_align.evaluation.bench.fitting import fit_scores, fit_temperature, fit_threshold
from cac_align.rewards.reward import Score


def test_a_temperature_makes_certainty_as_large_as_it_is_right():
    # All log-odds are 12 and three of four videos are normal: the likelihood is largest at σ(12 / T) =
    # 3/4, T = 12 / ln 3 = 10.923.
    assert fit_temperature([12.0] * 4, [True, True, True, False]) == pytest.approx(10.923, rel=0.005)
    rng = random.Random(2)
    honest = [rng.gauss(0, 2) for _ in range(20_000)]
    truth = [rng.random() < 1 / (1 + 2.718281828**-z) for z in honest]
    assert fit_temperature([5 * z for z in honest], truth) == pytest.approx(5, rel=0.05)
    with pytest.raises(ValueError, match="of normal and of abnormal"):
        fit_temperature([1.0, 2.0], [True, True])
    with pytest.raises(ValueError, match="one truth per value"):
        fit_temperature([1.0], [True, False])


def test_a_threshold_lies_where_normal_is_as_likely_as_not():
    assert fit_threshold([1.0, 2.0, 3.0, 4.0], [False, False, True, True]) == pytest.approx(
        2.5, abs=0.01
    )  # parted: in the middle
    # Two log-odds only: at −10 one of four is normal, at 20 nine of ten. The line through logit(1/4) and
    # logit(9/10) is 0 at
    # −10 + 30 · 1.0986 / (1.0986 + 2.1972) = 0.
    odds, truth = [-10.0] * 20 + [20.0] * 20, [True] * 5 + [False] * 15 + [True] * 18 + [False] * 2
    assert fit_threshold(odds, truth) == pytest.approx(0.0, abs=0.01)
    rng = random.Random(3)
    seen = [rng.gauss(0, 20) for _ in range(20_000)]
    truth = [rng.random() < 1 / (1 + 2.718281828 ** -((z - 7) / 4)) for z in seen]
    assert fit_threshold(seen, truth) == pytest.approx(7, abs=0.3)
    with pytest.raises(ValueError, match="of normal and of abnormal"):
        fit_threshold([1.0, 2.0], [False, False])


def test_a_fit_counts_what_it_was_made_on():
    def scored(odds):
        return Score(0.5, {"log_odds": odds}, None, None, {})

    # One view: three of four at 12 are normal, T = 12 / ln 3. Two views: also b, with two log-odds b lies
    # where logit(3/4) and logit(1/4) meet.
    one = fit_scores([scored(12.0)] * 4 + [Score.missing("torn")], [True, True, True, False, False])
    assert (one.n, one.abnormal, one.threshold, one.right, one.right_before) == (4, 0.25, None, 0.75, 0.75)
    assert one.temperature == pytest.approx(10.923, rel=0.005)
    assert one.loss == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), abs=1e-5)
    assert one.loss_before == pytest.approx(0.75 * math.log1p(math.exp(-12)) + 0.25 * math.log1p(math.exp(12)))
    torn = Score(0.5, {"log_odds": 4.0, "log_odds/as_is": 12.0, "log_odds/later": -4.0}, None, None, {})
    two = fit_scores([scored(16.0)] * 4 + [torn] * 4, [True] * 3 + [False] + [True] + [False] * 3, num_augmentations=2)
    assert two.threshold == pytest.approx(10.0, abs=0.01) and (two.right_before, two.right) == (0.5, 0.75)
    with pytest.raises(ValueError, match="no video has a score; the first says: torn"):
        fit_scores([Score.missing("torn")], [True])
    with pytest.raises(ValueError, match="the scores have no log-odds"):
        fit_scores([Score(3.0, {"alignment": 3.0}, None, None, {})], [True])


def test_a_fit_counts_verdicts_as_cac_gives_them_and_keeps_nothing_of_a_judge_that_knows_nothing():
    def scored(*views):
        return Score(
            0.5,
            {"log_odds": sum(views) / len(views), **{f"log_odds/{k}": v for k, v in enumerate(views)}},
            None,
            None,
            {},
        )

    # Below the threshold (between 4 and 8) "abnormal" needs a view that says so: the last two have means
    # of 3, and only one has one.
    scores = [*[scored(9.0, 7.0)] * 4, scored(10.0, -4.0), scored(2.0, 4.0)]
    fit = fit_scores(scores, [True] * 4 + [False] * 2, num_augmentations=2)
    assert 3 < fit.threshold < 8 and fit.right == pytest.approx(5 / 6) and fit.right_before == pytest.approx(4 / 6)
    blind = [scored(float(k % 7), float(k % 7)) for k in range(70)]
    with pytest.raises(ValueError, match="do not tell normal from abnormal videos"):
        fit_scores(blind, [k % 10 < 7 for k in range(70)], num_augmentations=2)
    with pytest.raises(ValueError, match="do not tell normal from abnormal videos"):
        fit_scores([scored(-9.0), scored(-8.0), scored(9.0), scored(8.0)], [True, True, False, False])
