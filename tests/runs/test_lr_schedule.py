"""The learning rate, worked by hand."""

from itertools import pairwise

import pytest

from cac_align.runs.lr_schedule import learning_rate


def test_it_rises_stands_at_the_peak_and_falls_along_half_a_cosine():
    rates = [learning_rate(step, 100, 2.0, warmup_steps=4, min_lr_ratio=0.05) for step in range(100)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0] and rates[99] == pytest.approx(0.1)
    # 5 steps, no warm-up: (1 + cos 45°) / 2 = .8535534 and its mirror
    expected = [2.0, 2 * (0.1 + 0.9 * 0.8535534), 1.1, 2 * (0.1 + 0.9 * 0.1464466), 0.2]
    assert [learning_rate(step, 5, 2.0, min_lr_ratio=0.1) for step in range(5)] == pytest.approx(expected, abs=1e-6)


def test_the_last_step_has_the_least_rate_and_later_ones_keep_it():
    assert {learning_rate(step, 110, 1.0, warmup_steps=10, min_lr_ratio=0.25) for step in (109, 110, 500)} == {0.25}
    rates = [learning_rate(step, 110, 1.0, warmup_steps=10) for step in range(9, 110)]
    assert all(a >= b for a, b in pairwise(rates)) and rates[0] == 1.0 and rates[-1] == 0.0


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_a_ratio_of_one_is_exactly_constant(steps):
    assert {learning_rate(step, steps, 1e-6, min_lr_ratio=1.0) for step in range(steps + 2)} == {1e-6}


def test_one_step_is_taken_at_the_peak():
    assert learning_rate(0, 1, 3.0, min_lr_ratio=0.1) == 3.0
