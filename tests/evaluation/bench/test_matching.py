"""Errors matched one to one, by hand."""

import pytest

from cac_align.core.judgement import Anomaly, Window
from cac_align.evaluation.bench.matching import match_errors, window_iou

OBJECT, MOTION = "Object Distortion", "Motion Anomalies"


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
