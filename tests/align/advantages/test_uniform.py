"""Group-relative advantages by hand, and the least standard deviation that counts."""

import math

import numpy as np
import pytest

from cac_align.align.advantages.uniform import decoupled_advantages, has_zero_std, summed_advantages

NAN = math.nan
NOISE = np.array([0.99901, 0.99899] * 8)  # 16 scores of .999 ± 1e-5: their standard deviation is 1e-5
CLEAR = np.array([0.2, 0.8] * 8)  # .3


def test_noise_of_a_server_is_no_advantage_and_the_group_has_zero_std():
    found = summed_advantages(np.stack([NOISE, CLEAR]), 5.0, min_group_std=1e-3)
    assert found.zero_std.tolist() == [True, False] and not found.values[0].any() and not found.trained[0].any()
    assert found.values[1] == pytest.approx([-1, 1] * 8)
    loud = summed_advantages(np.stack([NOISE, CLEAR]), 5.0)
    assert loud.values[0] == pytest.approx([1, -1] * 8) and not loud.zero_std.any()  # what it would be without
    assert summed_advantages(np.stack([NOISE, CLEAR]), 5.0, global_std=True, min_group_std=1e-3).zero_std.tolist() == [
        True,
        False,
    ]


def test_the_least_std_is_a_standard_deviation_and_changes_nothing_above_it():
    pair = np.array([[0.5, 0.502, math.nan]])  # ± .001 of .501, over the two that have a score
    assert has_zero_std(pair[0], 1.001e-3) and not has_zero_std(pair[0], 0.999e-3) and not has_zero_std(pair[0])
    for given in (pair, np.stack([CLEAR, CLEAR + 0.1])):
        assert np.array_equal(
            summed_advantages(given, 5.0, min_group_std=0.9e-3).values, summed_advantages(given, 5.0).values
        )
    tied = np.array([0.3, 0.1 + 0.2, 0.3])
    assert (
        has_zero_std(tied) and has_zero_std(np.array([0.7, math.nan])) and has_zero_std(np.array([math.nan, math.nan]))
    )


def test_decoupled_a_component_of_noise_says_nothing_beside_one_that_differs():
    """In raw units the first component (1 to 5) moves by .003, four times what it adds on [0, 1]: both are measured on [0, 1]."""
    unified = np.array([4.003, 3.997, 4.003, 3.997])  # on [0, 1] ± .00075
    cac = np.array([0.1, 0.1, 0.9, 0.9])
    raw, normalised = np.stack([unified, cac])[:, None], np.stack([(unified - 1) / 4, cac])[:, None]
    totals = normalised.mean(0)
    weights = np.array([0.5, 0.5])
    found = decoupled_advantages(raw, weights, totals, 5.0, normalised=normalised, min_group_std=1e-3)
    assert found.values[0] == pytest.approx([-1, -1, 1, 1]) and not found.zero_std.any()
    both = decoupled_advantages(raw, weights, totals, 5.0, normalised=normalised, min_group_std=0.5e-3)
    # ½(1 − 1), ½(−1 − 1), ½(1 + 1), ½(−1 + 1), over their standard deviation √½
    assert both.values[0] == pytest.approx([0, -math.sqrt(2), math.sqrt(2), 0])
    quiet = decoupled_advantages(raw[:1], weights[:1], totals, 5.0, normalised=normalised[:1], min_group_std=1e-3)
    assert quiet.zero_std.all() and not quiet.values.any()


def test_group_advantages_by_hand():
    totals = np.array([[1.0, 2.0, 3.0, NAN], [0.5, 0.5, 0.5 + 1e-8, 0.5], [NAN, NAN, NAN, 1.0], [0.0, 0.0, 0.0, 1.0]])
    found = summed_advantages(totals, clip=1.5)
    a = math.sqrt(1.5)
    np.testing.assert_allclose(found.values[0], [-a, 0, a, 0])
    np.testing.assert_allclose(found.values[1:3], 0)
    np.testing.assert_allclose(found.values[3], [-1 / math.sqrt(3)] * 3 + [1.5])  # √3 clipped
    assert found.zero_std.tolist() == [False, True, True, False]
    assert found.unscored.sum() == 4 and found.trained.sum() == 3 + 4
    assert (
        summed_advantages(np.array([[0.3, 0.1 + 0.2, 0.7]]), 5.0).values[0, 0]
        == summed_advantages(np.array([[0.3, 0.3, 0.7]]), 5.0).values[0, 1]
    )


def test_with_the_std_of_the_batch_a_group_counts_as_much_as_its_scores_differ():
    totals = np.array([[0.2, 0.8], [0.9, 0.902], [0.5, NAN]])
    # The scored five: mean 3.302 / 5 = 0.6604, mean square 2.553604 / 5 = 0.5107208, variance 0.0745926, std 0.2731165.
    found = summed_advantages(totals, 5.0, global_std=True)
    assert found.values[0] == pytest.approx([-0.3 / 0.2731165, 0.3 / 0.2731165], rel=1e-5)
    assert found.values[1] == pytest.approx([-0.001 / 0.2731165, 0.001 / 0.2731165], rel=1e-5)
    assert found.values[2].tolist() == [0, 0] and found.zero_std.tolist() == [False, False, True]
    assert summed_advantages(totals, 5.0).values[1] == pytest.approx(
        [-1, 1]
    )  # by its own std the second group counts as much as the first
    for equal in (np.full((2, 3), NAN), np.full((2, 3), 0.4)):
        found = summed_advantages(equal, 5.0, global_std=True)
        assert found.zero_std.all() and (found.values == 0).all()


def test_decoupled_advantages_by_hand():
    """A component with a hundredth of the other's spread counts as much; one without spread counts nothing."""
    components = np.array([[[0.0, 0.0, 1.0, 1.0]], [[0.51, 0.5, 0.51, 0.5]], [[3.0, 3.0, 3.0, 3.0]]])
    totals = components.sum(0)
    found = decoupled_advantages(components, np.array([0.5, 0.5, 0.5]), totals, 5.0)
    mixed = np.array([0.0, -1.0, 1.0, 0.0])  # ½(−1 + 1), ½(−1 − 1), ½(1 + 1), ½(1 − 1)
    np.testing.assert_allclose(found.values[0], mixed / mixed.std(), atol=1e-12)
    totals[0, 3] = NAN
    found = decoupled_advantages(components, np.array([0.5, 0.5, 0.5]), totals, 5.0)
    assert found.values[0, 3] == 0 and found.unscored[0, 3] and found.trained.sum() == 3
    still = decoupled_advantages(np.ones((2, 1, 4)), np.array([0.5, 0.5]), np.ones((1, 4)), 5.0)
    assert still.zero_std.tolist() == [True] and not still.values.any()
