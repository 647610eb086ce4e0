"""Hard's groups at the borders of duration and area."""

import numpy as np
import pytest

from cac_align.core.judgement import Anomaly, Box, Window
from cac_align.data.records import Record
from cac_align.evaluation.bench.difficulty import duration_s, mean_area, split_of, union_area

OBJECT, MOTION = "Object Distortion", "Motion Anomalies"


def record(*anomalies, fps=16.0, num_frames=81):
    status = "abnormal" if anomalies else "normal"
    return Record("v", "v.mp4", "a cat", fps, num_frames, 832, 480, status, tuple(anomalies))


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
