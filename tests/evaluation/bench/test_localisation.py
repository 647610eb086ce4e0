"""Where and when: IoUs, Hard's duration and area, and one-to-one matching, each against numbers worked by hand."""

import numpy as np
import pytest

from cac_align.core.judgement import Anomaly, Box, Judgement, Turn, Window
from cac_align.core.video import Video
from cac_align.data.records import Record
from cac_align.evaluation.bench.localisation import (
    duration_s,
    grid_s,
    localise,
    match_errors,
    mean_area,
    split_of,
    union_area,
    window_iou,
)

OBJECT, MOTION = "Object Distortion", "Motion Anomalies"


def record(*anomalies, fps=16.0, num_frames=81):
    status = "abnormal" if anomalies else "normal"
    return Record("v", "v.mp4", "a cat", fps, num_frames, 832, 480, status, tuple(anomalies))


@pytest.mark.parametrize(("fps", "num_frames"), [(16, 81), (24, 49), (30, 31), (14.985, 60), (8, 1), (3, 7)])
def test_the_grid_is_the_one_the_judge_is_shown(fps, num_frames):
    video = Video.open(np.zeros((num_frames, 4, 4, 3), np.uint8), fps=fps)
    wanted = [video.times_s[index] for index in video.indices_at(4)]
    grid = grid_s(record(fps=fps, num_frames=num_frames))
    assert list(grid) == pytest.approx(wanted[: len(grid)])
    assert len(wanted) - len(grid) in (0, 1)  # the judge is shown a second frame where the grid has one


def test_localise_by_hand():
    truth = record(Anomaly(OBJECT, Window(1.0, 2.0), boxes={16: (Box(0, 0, 100, 100),), 20: (Box(0, 0, 100, 100),)}))
    said = Anomaly(OBJECT, Window(1.5, 2.5), boxes={16: (Box(0, 0, 100, 50),), 40: (Box(0, 0, 9, 9),)})
    other = Anomaly(MOTION, Window(1.5, 2.5), boxes={16: (Box(500, 500, 600, 600),)})
    found = localise(truth, Judgement("abnormal", (said, other)))
    assert found.temporal == pytest.approx(3 / 7)  # 4-fps frames 4-8 against 6-10
    assert found.spatial == pytest.approx(0.5)  # frame 16 is the only common one
    assert found.type == 0.5


def test_the_first_turn_owns_the_window_and_a_normal_verdict_points_at_nothing():
    truth = record(Anomaly(OBJECT, Window(1.0, 2.0), boxes={16: (Box(0, 0, 100, 100),)}))
    first = Turn(1, "", (0, 4), "abnormal", (Anomaly(OBJECT, Window(1.0, 2.0)),))
    second = Anomaly(OBJECT, Window(0.0, 5.0), boxes={16: (Box(0, 0, 100, 100),)})
    assert localise(truth, Judgement("abnormal", (second,), (first,))).temporal == 1
    assert localise(truth, Judgement("normal", (), (first,))).temporal == 0
    no_boxes = record(Anomaly(OBJECT, Window(1.0, 2.0)))
    assert localise(no_boxes, Judgement("abnormal", (second,))).spatial is None
    with pytest.raises(ValueError, match="needs an anomalous video"):
        localise(record(), Judgement("normal"))


def test_union_area_counts_overlap_once():
    assert union_area([Box(0, 0, 500, 500), Box(250, 250, 750, 750)]) == pytest.approx(0.25 + 0.25 - 0.0625)
    rng = np.random.default_rng(0)
    grid, boxes = np.zeros((1000, 1000), bool), []
    for _ in range(6):
        (x0, x1), (y0, y1) = (sorted(rng.choice(1001, 2, replace=False).tolist()) for _ in "xy")
        boxes.append(Box(x0, y0, x1, y1))
        grid[y0:y1, x0:x1] = True
    assert union_area(boxes) == pytest.approx(grid.mean())


def test_hard_splits_at_their_borders():
    small, large = {0: (Box(0, 0, 400, 499),)}, {0: (Box(0, 0, 400, 500),)}  # 19.96 % and exactly 20 %
    fifteen, sixteen = Window(0, 14 / 16), Window(0, 15 / 16)  # 15 frames last 0.9375 s, 16 frames exactly 1 s
    splits = [split_of(record(Anomaly(OBJECT, w, boxes=b))) for w in (fifteen, sixteen) for b in (small, large)]
    assert splits == ["short_small", "short_large", "long_small", "long_large"]
    assert split_of(record()) is None and split_of(record(Anomaly(OBJECT, Window(0, 1)))) is None
    # the hull of two windows counts, and the area is the mean over boxed frames
    pair = (
        Anomaly(OBJECT, Window(0.5, 0.75), boxes={8: (Box(0, 0, 100, 1000),)}),
        Anomaly(MOTION, Window(2.0, 2.0), boxes={32: (Box(0, 0, 500, 1000),), 8: (Box(50, 0, 150, 1000),)}),
    )
    assert duration_s(pair, 16) == pytest.approx(1.5 + 1 / 16)
    assert mean_area(pair) == pytest.approx((0.15 + 0.5) / 2)


def test_errors_are_matched_once_and_inside_their_type():
    truth = {"a": [Anomaly(OBJECT, Window(0, 1)), Anomaly(OBJECT, Window(2, 3))], "b": [Anomaly(MOTION, Window(0, 2))]}
    said = {
        "a": [Anomaly(OBJECT, Window(0, 1)), Anomaly(OBJECT, Window(0, 0.8)), Anomaly(MOTION, Window(2, 3))],
        "b": [Anomaly(MOTION, Window(1, 2))],
    }
    loose, strict = match_errors(truth, said, thresholds=(0.5, 0.7))
    assert (loose.precision.value, loose.recall.value, loose.f1) == (2 / 4, 2 / 3, 4 / 7)
    assert loose.mean_iou == pytest.approx(0.75) and (strict.precision.value, strict.recall.value) == (1 / 4, 1 / 3)
    assert window_iou(Window(1, 1), Window(1, 1)) == 1 and window_iou(Window(1, 1), Window(2, 2)) == 0
    with pytest.raises(ValueError, match="no ground truth"):
        match_errors({}, said)
    with pytest.raises(ValueError, match="without a window"):
        match_errors({"a": [Anomaly(OBJECT, None)]}, {})


def test_a_pair_below_the_threshold_cannot_displace_one_that_counts():
    # 0-10 overlaps 0-6 by .6 and 1-9 by .8: at 0.7 only the second counts, and it must be the one that is matched.
    truth = {"a": [Anomaly(OBJECT, Window(0, 10)), Anomaly(OBJECT, Window(20, 24))]}
    said = {"a": [Anomaly(OBJECT, Window(0, 6)), Anomaly(OBJECT, Window(1, 9))]}
    (found,) = match_errors(truth, said, thresholds=(0.7,))
    assert found.recall.value == 0.5 and found.mean_iou == pytest.approx(0.8)
