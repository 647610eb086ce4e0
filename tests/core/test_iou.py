"""Eq. 3, 4, 5 against numbers worked by hand and against naive second implementations."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cac_align.core.iou import box_iou, interval_iou, positions, spatial_iou, temporal_iou, two_turn_type_iou, type_iou
from cac_align.core.judgement import ANOMALY_TYPES, Box, Window

OBJECT, HUMAN, MOTION, PHYSICS, TEXT = ANOMALY_TYPES
GRID_4FPS = tuple(n / 4 for n in range(21))  # 81 frames at 16 fps, seen at 4 fps


# ---- Eq. 3 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pred", "gt", "expected"),
    [
        ([HUMAN], [HUMAN], 1.0),
        ([HUMAN, MOTION], [HUMAN], 1 / 2),
        ([HUMAN, MOTION], [HUMAN, PHYSICS], 1 / 3),
        ([OBJECT], [HUMAN], 0.0),
        ([HUMAN, HUMAN], [HUMAN], 1.0),  # sets, not lists
        ([], [HUMAN], 0.0),
        ([HUMAN], [], 0.0),
        ([], [], 1.0),
    ],
)
def test_type_iou_by_hand(pred: list[str], gt: list[str], expected: float) -> None:
    assert type_iou(pred, gt) == pytest.approx(expected, abs=0)


def test_two_turns_are_averaged_and_a_missing_second_turn_counts_zero() -> None:
    assert two_turn_type_iou([HUMAN, MOTION], [HUMAN], [HUMAN]) == 0.75  # (1/2 + 1) / 2
    assert two_turn_type_iou([HUMAN], None, [HUMAN]) == 0.5
    assert two_turn_type_iou([HUMAN], [], [HUMAN]) == 0.5


# ---- Eq. 4 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pred", "gt", "expected"),
    [
        # frames 4..8 against 6..10: three shared of seven
        ([Window(1.0, 2.0)], [Window(1.5, 2.5)], 3 / 7),
        ([Window(0.0, 5.0)], [Window(0.0, 5.0)], 1.0),
        ([Window(0.0, 5.0)], [Window(5.0, 5.0)], 1 / 21),
        ([Window(0.0, 1.0)], [Window(2.0, 3.0)], 0.0),
        # two windows unite: frames {0,1,2} ∪ {8,9} against {2..8}: two shared of ten
        ([Window(0.0, 0.5), Window(2.0, 2.25)], [Window(0.5, 2.0)], 2 / 10),
        # overlapping windows count their frames once: {4..8} ∪ {6..10} = {4..10}
        ([Window(1.0, 2.0), Window(1.5, 2.5)], [Window(1.0, 2.5)], 1.0),
        # a defect between two sampled frames belongs to the nearest: 1.05..1.10 → frame 4
        ([Window(1.05, 1.10)], [Window(1.0, 1.0)], 1.0),
        ([], [Window(1.0, 2.0)], 0.0),
        ([Window(1.0, 2.0)], [], 0.0),
        ([], [], 1.0),
    ],
)
def test_temporal_iou_by_hand(pred: list[Window], gt: list[Window], expected: float) -> None:
    assert temporal_iou(pred, gt, GRID_4FPS) == pytest.approx(expected, abs=1e-12)


def test_positions_follow_time_stamps_not_indices() -> None:
    uneven = (0.0, 0.1, 0.9, 1.0, 2.0)
    assert positions([Window(0.05, 0.95)], uneven) == {1, 2}


def test_windows_without_a_grid_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one time stamp"):
        temporal_iou([Window(0, 1)], [], ())
    assert temporal_iou([], [], ()) == 1.0


@pytest.mark.parametrize(
    ("pred", "gt", "expected"),
    [
        ([Window(1.0, 2.0)], [Window(1.5, 2.5)], 0.5 / 1.5),
        ([Window(0.0, 1.0), Window(2.0, 3.0)], [Window(0.5, 2.5)], 1.0 / 3.0),
        ([Window(0.0, 2.0), Window(1.0, 3.0)], [Window(0.0, 3.0)], 1.0),
        ([Window(1.0, 1.0)], [Window(1.0, 1.0)], 1.0),
        ([Window(1.0, 1.0)], [Window(2.0, 2.0)], 0.0),
        ([Window(1.0, 1.0)], [Window(0.0, 2.0)], 0.0),
        ([], [Window(0.0, 1.0)], 0.0),
        ([], [], 1.0),
    ],
)
def test_interval_iou_by_hand(pred: list[Window], gt: list[Window], expected: float) -> None:
    assert interval_iou(pred, gt) == pytest.approx(expected, abs=1e-12)


TICKS = 40


@st.composite
def tick_windows(draw: st.DrawFn) -> list[Window]:
    ends = draw(st.lists(st.tuples(st.integers(0, TICKS), st.integers(0, TICKS)), max_size=4))
    return [Window(min(pair) / 8, max(pair) / 8) for pair in ends]


@given(tick_windows(), tick_windows())
def test_temporal_iou_equals_counting_frames(pred: list[Window], gt: list[Window]) -> None:
    grid = [n / 8 for n in range(TICKS + 1)]
    inside = [[any(w.start_s <= t <= w.end_s for w in windows) for t in grid] for windows in (pred, gt)]
    both = sum(a and b for a, b in zip(*inside, strict=True))
    either = sum(a or b for a, b in zip(*inside, strict=True))
    assert temporal_iou(pred, gt, grid) == (both / either if either else 1.0)
    assert temporal_iou(pred, gt, grid) == temporal_iou(gt, pred, grid)


@given(tick_windows(), tick_windows())
def test_interval_iou_equals_counting_cells(pred: list[Window], gt: list[Window]) -> None:
    middles = [(n + 0.5) / 8 for n in range(TICKS)]  # every end lies on a tick, so each cell is wholly in or out
    inside = [[any(w.start_s < t < w.end_s for w in windows) for t in middles] for windows in (pred, gt)]
    either = sum(a or b for a, b in zip(*inside, strict=True))
    if either:
        both = sum(a and b for a, b in zip(*inside, strict=True))
        assert interval_iou(pred, gt) == pytest.approx(both / either, abs=1e-12)
    assert interval_iou(pred, gt) == pytest.approx(interval_iou(gt, pred), abs=1e-12)


# ---- Eq. 5 --------------------------------------------------------------------------------------------------------

SQUARE = Box(0, 0, 100, 100)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (SQUARE, SQUARE, 1.0),
        (SQUARE, Box(50, 0, 150, 100), 5000 / 15000),
        (SQUARE, Box(0, 0, 50, 50), 2500 / 10000),
        (SQUARE, Box(100, 0, 200, 100), 0.0),  # they only touch
        (SQUARE, Box(90, 90, 110, 110), 100 / (10000 + 400 - 100)),
    ],
)
def test_box_iou_by_hand(a: Box, b: Box, expected: float) -> None:
    assert box_iou(a, b) == pytest.approx(expected, abs=1e-12) == box_iou(b, a)


def test_spatial_iou_averages_over_true_boxes_on_shared_frames() -> None:
    half = Box(50, 0, 150, 100)  # IoU 1/3 with SQUARE
    # frame 4: 1, frame 8: 1/3; frames 12 and 16 are not shared and do not count
    assert spatial_iou({4: [SQUARE], 8: [half], 12: [half]}, {4: [SQUARE], 8: [SQUARE], 16: [SQUARE]}) == pytest.approx(
        2 / 3
    )


def test_spatial_iou_without_a_shared_frame_is_zero() -> None:
    assert spatial_iou({}, {}) == 0
    assert spatial_iou({1: [SQUARE]}, {2: [SQUARE]}) == 0
    assert spatial_iou({1: []}, {1: [SQUARE]}) == 0
    assert spatial_iou({1: [SQUARE]}, {1: []}) == 0


def test_spatial_iou_counts_true_boxes_without_partner_and_ignores_spare_guesses() -> None:
    far = Box(500, 500, 600, 600)
    assert spatial_iou({1: [SQUARE]}, {1: [SQUARE, far]}) == 0.5
    assert spatial_iou({1: [SQUARE, far]}, {1: [SQUARE]}) == 1.0


def test_spatial_iou_matches_for_the_highest_total_not_greedily() -> None:
    # Greedy takes (truth A, guess 1) at 0.8 and leaves truth B with 0; the best matching gives both a partner.
    truth_a, truth_b = Box(0, 0, 100, 10), Box(20, 0, 120, 10)
    guess_1, guess_2 = Box(10, 0, 110, 10), Box(0, 0, 40, 10)
    a1, b1, a2, b2 = 90 / 110, 90 / 110, 40 / 100, 20 / 120
    assert spatial_iou({0: [guess_1, guess_2]}, {0: [truth_a, truth_b]}) == pytest.approx((a2 + b1) / 2)
    assert (a2 + b1) > (a1 + b2)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x, y = draw(st.integers(0, 20)), draw(st.integers(0, 20))
    return Box(x, y, x + draw(st.integers(1, 12)), y + draw(st.integers(1, 12)))


def cells(box: Box) -> set[tuple[int, int]]:
    return {(x, y) for x in range(box.xmin, box.xmax) for y in range(box.ymin, box.ymax)}


@given(boxes(), boxes())
def test_box_iou_equals_counting_cells(a: Box, b: Box) -> None:
    assert box_iou(a, b) == pytest.approx(len(cells(a) & cells(b)) / len(cells(a) | cells(b)), abs=1e-12)


@given(st.lists(boxes(), min_size=1, max_size=6), st.lists(boxes(), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_spatial_iou_equals_trying_every_matching(guesses: list[Box], truths: list[Box]) -> None:
    padded = [*guesses, *[None] * len(truths)]
    best = max(
        sum(0.0 if guess is None else box_iou(guess, truth) for guess, truth in zip(order, truths, strict=True))
        for order in set(permutations(padded, len(truths)))
    )
    assert spatial_iou({3: guesses}, {3: truths}) == pytest.approx(best / len(truths), abs=1e-12)
