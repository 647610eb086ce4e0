"""Normalisers and shares against numbers worked by hand."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from cac_align.rewards.normalise import (
    Statistics,
    by_group,
    by_range,
    by_rank,
    by_reference,
    measure_statistics,
    quantise,
    read_statistics,
    variance_shares,
)


def test_quantise_makes_ties_of_rounding():
    assert quantise(0.3) == quantise(0.1 + 0.2)
    assert quantise(0.5000004) == 0.5 and quantise(0.5000006) == 0.500001
    assert math.copysign(1, quantise(-1e-9)) == 1
    assert math.isnan(quantise(math.nan))


def test_range_is_unified_rewards_formula():
    assert by_range(np.array([1.0, 2.0, 5.0]), (1.0, 5.0)).tolist() == [0.0, 0.25, 1.0]


def test_group_is_a_population_z_score():
    # 1, 2, 3, 6: mean 3, squared deviations 4 + 1 + 0 + 9 = 14, variance 14 / 4 = 3.5
    assert by_group(np.array([1.0, 2.0, 3.0, 6.0])) == pytest.approx([-2 / 3.5**0.5, -1 / 3.5**0.5, 0, 3 / 3.5**0.5])


def test_a_component_that_does_not_move_gives_nothing():
    assert by_group(np.array([0.1] * 7)).tolist() == [0.0] * 7  # mean of seven 0.1 is not 0.1 in floats


def test_rank_shares_average_ranks():
    # ranks 1, 2.5, 2.5, 4 of four → 0, 0.5, 0.5, 1
    assert by_rank(np.array([1.0, 7.0, 7.0, 9.0])).tolist() == [0.0, 0.5, 0.5, 1.0]
    assert by_rank(np.array([3.0, 3.0])).tolist() == [0.5, 0.5]


@given(st.lists(st.integers(0, 5), min_size=2, max_size=20))
def test_rank_agrees_with_scipy(values):
    expected = (rankdata(values) - 1) / (len(values) - 1)
    assert by_rank(np.array(values, float)) == pytest.approx(expected)


def test_reference_uses_only_frozen_numbers():
    statistics = Statistics(3.0, 0.5, 100, "somewhere")
    assert by_reference(np.array([2.0, 4.5]), statistics).tolist() == [-2.0, 3.0]


def test_shares_by_hand():
    # terms a = (0, 2), b = (1, 0): total (1, 2); means 1, 0.5, 1.5
    # cov(a, t) = ((-1)(-.5) + (1)(.5)) / 2 = .5, cov(b, t) = ((.5)(-.5) + (-.5)(.5)) / 2 = -.25, var(t) = .25
    assert variance_shares(np.array([[0.0, 2.0], [1.0, 0.0]])).tolist() == [2.0, -1.0]


@given(st.lists(st.tuples(*[st.floats(-3, 3)] * 3), min_size=2, max_size=12))
def test_shares_sum_to_one_or_are_nan(rows):
    shares = variance_shares(np.array(rows).T)
    assert np.isnan(shares).all() or shares.sum() == pytest.approx(1, abs=1e-6)


def test_shares_need_spread():
    assert np.isnan(variance_shares(np.array([[1.0], [2.0]]))).all()
    assert np.isnan(variance_shares(np.array([[1.0, 2.0], [2.0, 1.0]]))).all()  # they cancel: the total does not move


def test_a_statistics_file_round_trips(tmp_path):
    path = tmp_path / "reference.json"
    path.write_text(json.dumps(measure_statistics({"cac": [0.0, 1.0, math.nan], "unified": [2.0, 4.0]}, "two clips")))
    found = read_statistics(path, ["cac", "unified"])
    assert found == {"cac": Statistics(0.5, 0.5, 2, "two clips"), "unified": Statistics(3.0, 1.0, 2, "two clips")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "expected a JSON file"),
        ("[]", "no statistics for cac"),
        ('{"unified": {}}', "no statistics for cac"),
        ('{"cac": {"mean": 1, "std": 1, "n": 5}}', "need mean, std, n and source.*'source'"),
        ('{"cac": {"mean": 1, "std": 0, "n": 5, "source": ""}}', "positive std"),
        ('{"cac": {"mean": 1, "std": 1, "n": 1, "source": ""}}', "n >= 2"),
    ],
)
def test_a_bad_statistics_file_is_refused(tmp_path, text, message):
    path = tmp_path / "reference.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_statistics(path, ["cac"])


def test_statistics_without_spread_are_refused():
    with pytest.raises(ValueError, match="cannot be a reference"):
        measure_statistics({"cac": [0.5, 0.5]}, "stuck")
