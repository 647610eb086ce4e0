"""Calibration worked by hand: reliability bins, ECE, AUROC by counting pairs, and the cut for a
false-alarm rate.
"""

import itertools
import random

import pytest

from cac_align.evaluation.bench.calibration import (
    auroc,
    calibrate,
    expected_calibration_error,
    operating_point,
    reliability,
)


def test_ece_by_hand():
    # [0.8, 0.9): 0.85 and 0.89 of which one is normal: |0.87 − 0.5| · 2/4; [0.1, 0.2): 0.1, none: |0.1 −
    # 0| · 1/4; 1.0 normal: 0.
    columns = reliability([0.85, 0.89, 0.1, 1.0], [True, False, False, True])
    assert [column.n for column in columns] == [0, 1, 0, 0, 0, 0, 0, 0, 2, 1]
    assert expected_calibration_error(columns) == pytest.approx(0.37 * 0.5 + 0.1 * 0.25)
    assert columns[0].mean_value is None and columns[9].share_normal == 1


def test_a_calibrated_judge_has_a_small_ece_and_an_overconfident_one_does_not():
    rng = random.Random(0)
    values = [rng.random() for _ in range(20000)]
    truth = [rng.random() < value for value in values]
    honest = calibrate(values, ["normal" if t else "abnormal" for t in truth]).ece
    loud = calibrate([float(v > 0.5) for v in values], ["normal" if t else "abnormal" for t in truth]).ece
    assert honest < 0.01 and loud == pytest.approx(0.25, abs=0.01)


def test_auroc_counts_pairs_with_ties_as_a_half():
    rng = random.Random(1)
    values, normal = [rng.randint(0, 6) / 6 for _ in range(60)], [rng.random() < 0.4 for _ in range(60)]
    good = [v for v, t in zip(values, normal, strict=True) if t]
    bad = [v for v, t in zip(values, normal, strict=True) if not t]
    wanted = sum((g > b) + 0.5 * (g == b) for g, b in itertools.product(good, bad)) / (len(good) * len(bad))
    assert auroc(values, normal) == pytest.approx(wanted)
    assert auroc([0.1, 0.2], [True, True]) is None


def test_operating_point_never_exceeds_the_rate_even_with_ties():
    normal = [0.2, 0.2, 0.2, 0.6, 0.7, 0.8, 0.9, 0.9, 0.95, 1.0]
    anomalous = [0.1, 0.2, 0.3, 0.59, 0.7]
    values, truth = normal + anomalous, [True] * 10 + [False] * 5
    one = operating_point(values, truth, false_alarm_rate=0.3)
    assert one.threshold == 0.6 and one.false_alarm_rate.value == 0.3 and one.recall.value == 0.8
    two = operating_point(values, truth, false_alarm_rate=0.25)  # the three ties at 0.2 are all in or all out
    assert two.threshold == 0.2 and two.false_alarm_rate.value == 0 and two.recall.value == 0.2
    assert operating_point([0.5], [False], false_alarm_rate=0.1).threshold is None
    with pytest.raises(ValueError, match="false_alarm_rate must lie in"):
        operating_point(values, truth, false_alarm_rate=1.0)


def test_an_unbounded_reward_has_no_ece_but_an_auroc():
    found = calibrate([-3.0, 2.5], ["abnormal", "normal"])
    assert found.ece is None and found.auroc == 1 and "not inside [0, 1]" in found.note
    with pytest.raises(ValueError, match="not finite"):
        calibrate([float("nan")], ["normal"])
    with pytest.raises(ValueError, match="2 values and 1 truths"):
        calibrate([0.1, 0.2], ["normal"])
    assert calibrate([], []).auroc is None
