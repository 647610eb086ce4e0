"""Intervals and tests against independent implementations (statsmodels) and numbers worked by hand."""

import itertools

import numpy as np
import pytest

from cac_align.evaluation.statistics import (
    compare_by_prompt,
    counts_interval,
    krippendorff_alpha,
    mcnemar,
    mean_interval,
    paired_permutation,
    prompt_interval,
    prompt_means,
    share,
    vote_share,
)


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (455, 500), (9, 500), (5, 5), (29, 100)])
def test_wilson_agrees_with_statsmodels(hits, n):
    from statsmodels.stats.proportion import proportion_confint

    found = share(hits, n)
    low, high = proportion_confint(hits, n, method="wilson")
    assert found.value == hits / n and found.n == n
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


def test_wilson_by_hand():
    # n=10, 0 hits, z=1.959964: high = z² / (n + z²) = 3.841459 / 13.841459
    found = share(0, 10)
    assert found.low == pytest.approx(0, abs=1e-12) and found.high == pytest.approx(3.841459 / 13.841459, abs=1e-6)


def test_share_of_nothing_is_none_and_never_zero():
    found = share(0, 0)
    assert (found.value, found.low, found.high, found.n) == (None, None, None, 0)
    assert str(found) == "–"
    with pytest.raises(ValueError, match="0 <= hits <= n, received hits=6, n=5"):
        share(6, 5)


def test_split_votes_get_a_wilson_interval_over_videos():
    assert vote_share([1, 0, 1]) == share(2, 3) and vote_share([]).value is None
    found, whole = vote_share([1, 0.5, 0, 0.5]), share(2, 4)
    assert found.value == 0.5 and found.n == 4 and (found.low, found.high) == pytest.approx((whole.low, whole.high))
    with pytest.raises(ValueError, match=r"votes must lie in \[0, 1\], received \[2\]"):
        vote_share([2])


def test_bootstrap_of_a_mean_covers_and_repeats():
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = mean_interval(values, seed=3)
    assert found == mean_interval(values, seed=3)
    standard_error = values.std(ddof=1) / 20
    assert found.high - found.low == pytest.approx(2 * 1.96 * standard_error, rel=0.12)
    assert found.low < values.mean() < found.high
    assert (mean_interval([0.5]).low, mean_interval([0.5]).high, mean_interval([]).value) == (0.5, 0.5, None)
    with pytest.raises(ValueError, match="leave unscored videos out"):
        mean_interval([0.1, float("nan")])


def test_counts_bootstrap_equals_resampling_the_videos_one_by_one():
    hits, passes, n = 455, 362, 500
    found = counts_interval([(hits, n), (passes, n)], lambda h, p: (h + p) / (2 * n), resamples=4000)
    rng = np.random.default_rng(5)
    right = np.r_[np.ones(hits), np.zeros(n - hits)], np.r_[np.ones(passes), np.zeros(n - passes)]
    draws = [np.mean([rng.choice(r, n).mean() for r in right]) for _ in range(4000)]
    assert found == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.004)


def test_counts_bootstrap_of_something_undefined_is_none():
    assert counts_interval([(0, 10), (10, 10)], lambda hits, passes: hits / (hits + 10 - passes)) is None


def test_mcnemar_agrees_with_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar as reference

    rng = np.random.default_rng(0)
    first, second = rng.random(80) < 0.5, rng.random(80) < 0.65
    found = mcnemar(first, second)
    table = [[(first & second).sum(), (first & ~second).sum()], [(~first & second).sum(), (~first & ~second).sum()]]
    assert found.p_value == pytest.approx(reference(table, exact=True).pvalue)
    assert (found.only_first, found.only_second) == (table[0][1], table[1][0])
    assert found.difference == pytest.approx(second.mean() - first.mean())


def test_mcnemar_by_hand_and_without_discordance():
    # one discordant pair against six: p = 2 · (C(7,0) + C(7,1)) / 2⁷ = 16 / 128
    first, second = [True] + [False] * 6 + [True] * 3, [False] + [True] * 6 + [True] * 3
    assert mcnemar(first, second).p_value == pytest.approx(0.125)
    assert mcnemar([True, False], [True, False]).p_value == 1
    assert mcnemar([], []).p_value is None
    with pytest.raises(ValueError, match="received 1 and 2"):
        mcnemar([True], [True, False])


def test_permutation_counts_every_sign_pattern():
    first, second = [0.0] * 6, [0.3, 0.5, 0.1, 0.4, -0.2, 0.6]
    observed = abs(sum(second))
    patterns = [
        abs(sum(s * d for s, d in zip(signs, second, strict=True))) for signs in itertools.product((-1, 1), repeat=6)
    ]
    wanted = sum(value >= observed - 1e-12 for value in patterns) / len(patterns)
    found = paired_permutation(first, second)
    assert found.p_value == pytest.approx(wanted) and found.difference == pytest.approx(np.mean(second))
    assert paired_permutation([1.0], [2.0]).p_value == 1.0
    with pytest.raises(ValueError, match="not finite"):
        paired_permutation([0.0, 1.0], [float("nan"), 1.0])


def test_alpha_of_krippendorffs_own_example():
    # Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": two observers, ten units, alpha = 1
    # − 19·4 / (14·6)
    meg, owen = "0100000100", "1110010000"
    ratings = {"meg": dict(enumerate(meg)), "owen": dict(enumerate(owen))}
    assert krippendorff_alpha(ratings).alpha == pytest.approx(0.095, abs=5e-4)


def test_alpha_with_gaps_by_hand():
    # units: a (n,n), b (n,x), c (x,x); d rated once is left out. Coincidences: n-n 2, n-x 1+1, x-x 2; values 3 n, 3 x.
    # alpha = 1 − (N−1)·D / Σ n_c·n_k over c≠k = 1 − 5·2 / 18
    ratings = {"r1": {"a": "n", "b": "n", "c": "x"}, "r2": {"a": "n", "b": "x"}, "r3": {"c": "x", "d": "n"}}
    found = krippendorff_alpha(ratings)
    assert found.alpha == pytest.approx(1 - 10 / 18) and (found.units, found.raters) == (3, 3)


def test_alpha_says_why_it_is_missing():
    assert "two raters" in krippendorff_alpha({"r1": {"a": 1}}).note
    assert "undefined without variation" in krippendorff_alpha({"r1": {"a": "n"}, "r2": {"a": "n"}}).note


def test_a_prompt_s_values_are_averaged_and_an_unknown_prompt_stands_alone():
    assert prompt_means([1.0, 0.0, 1.0, 0.5, 0.5], ["a", "b", "a", None, None]) == [1.0, 0.0, 0.5, 0.5]
    with pytest.raises(ValueError, match="shorter"):
        prompt_means([1.0, 2.0], ["a"])


def test_few_or_equal_prompts_have_no_interval():
    assert (prompt_interval([1, 2, 3, 4]).low, prompt_interval([1, 2, 3, 4]).value) == (None, 2.5)
    assert (prompt_interval([0.1 + 0.2, 0.3] * 10).high, prompt_interval([]).value) == (
        None,
        None,
    )  # equal but for rounding
    values = [0.1, 0.4, 0.2, 0.8, 0.3]
    assert prompt_interval(values, seed=2) == mean_interval(values, seed=2)


def test_pairs_of_one_prompt_are_one_case():
    # six prompts of three seeds, each better after in two of three: pooled, McNemar over 12 discordant
    # pairs says p = 2/2^12
    pairs, prompts = [(1.0, 0.0), (1.0, 0.0), (0.0, 0.0)] * 6, [f"p{n // 3}" for n in range(18)]
    found = compare_by_prompt(pairs, prompts, yes_no=True)
    assert (found.test.name, found.test.n, found.test.p_value) == ("paired permutation", 6, pytest.approx(2 / 2**6))
    assert found.difference.value == pytest.approx(-2 / 3) and found.difference.n == 6 and found.difference.low is None
    assert found.no_interval == "no interval: every prompt has the same value"
    # unequal numbers of seeds: each prompt weighs the same; (1 + 0) / 2 and not 3/4
    assert compare_by_prompt([(0.0, 1.0)] * 3 + [(0.0, 0.0)], ["a", "a", "a", "b"], yes_no=True).difference.value == 0.5


def test_one_pair_per_prompt_changes_nothing():
    rng = np.random.default_rng(4)
    first, second = rng.random((2, 12))
    for prompts in ([None] * 12, [f"p{n}" for n in range(12)]):
        found = compare_by_prompt(list(zip(first, second, strict=True)), prompts, yes_no=False, seed=3)
        assert found.test == paired_permutation(first, second, seed=3)
        assert found.difference == mean_interval(second - first, seed=3)
        outcomes = compare_by_prompt(
            [(float(a > 0.5), float(b > 0.3)) for a, b in zip(first, second, strict=True)], prompts, yes_no=True
        )
        assert outcomes.test == mcnemar(first > 0.5, second > 0.3)
