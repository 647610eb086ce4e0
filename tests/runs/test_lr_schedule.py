"""The learning rate's share, worked by hand."""

from itertools import pairwise

import pytest

from cac_align.runs.lr_schedule import warm_cosine
from research.training.optimise import LAST_LR


def test_it_rises_stands_at_the_peak_and_falls_along_half_a_cosine():
    assert [warm_cosine(step, 100, warmup=4, floor=0.05) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert warm_cosine(99, 100, warmup=4, floor=LAST_LR) == pytest.approx(0.05)
    # 5 steps, no warm-up: (1 + cos 45°) / 2 = .8535534 and its mirror
    expected = [1.0, 0.1 + 0.9 * 0.8535534, 0.55, 0.1 + 0.9 * 0.1464466, 0.1]
    assert [warm_cosine(step, 5, floor=0.1) for step in range(5)] == pytest.approx(expected, abs=1e-6)


def test_the_last_step_has_the_floor_and_later_ones_keep_it():
    assert {warm_cosine(step, 110, warmup=10, floor=0.25) for step in (109, 110, 500)} == {0.25}
    rates = [warm_cosine(step, 110, warmup=10) for step in range(9, 110)]
    assert all(a >= b for a, b in pairwise(rates)) and rates[0] == 1.0 and rates[-1] == 0.0


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_a_floor_of_one_is_exactly_constant(steps):
    assert {warm_cosine(step, steps, floor=1.0) for step in range(steps + 2)} == {1.0}


def test_one_step_is_taken_at_the_peak():
    assert warm_cosine(0, 1, floor=0.1) == 1.0
