"""Thresholds that are fitted on a half that is left out."""

import random
from itertools import pairwise

import pytest

from cac_align.core.judgement import Anomaly, Judgement, Window
from cac_align.data.records import Record
from cac_align.evaluation.bench.detection import evaluate_judge, needs_fit
from cac_align.evaluation.bench.thresholds import best_threshold, file_groups, fit_thresholds, two_halves
from cac_align.rewards.reward import Score

DEFECT = (Anomaly("Object Distortion", Window(0, 0.5)),)


def records_of(*classes):
    return [
        Record(f"r{n}", f"{n}.mp4", "p", 8, 8, 4, 4, status, DEFECT if status == "abnormal" else ())
        for n, status in enumerate(classes)
    ]


def balanced(cut, values, normal):
    good = [v >= cut for v, n in zip(values, normal, strict=True) if n]
    bad = [v < cut for v, n in zip(values, normal, strict=True) if not n]
    return sum(good) / len(good) + sum(bad) / len(bad)


def test_equal_videos_share_a_half_and_classes_are_split_evenly():
    rng = random.Random(0)
    for _ in range(200):
        groups = [f"g{rng.randrange(25)}" for _ in range(60)]
        classes = [rng.choice(["normal", "abnormal"]) for _ in groups]
        halves = two_halves(groups, classes)
        assert all(halves[i] == halves[j] for i in range(60) for j in range(i) if groups[i] == groups[j])
    for _ in range(50):
        groups = [f"{rng.random()}" for _ in range(41)]
        classes = ["abnormal"] * 11 + ["normal"] * 30
        halves = two_halves(groups, classes)
        assert sorted([halves[:11].count(0), halves[:11].count(1)]) == [5, 6]
        assert halves[11:].count(0) == 15 and 20 <= halves.count(0) <= 21


def test_the_halves_follow_the_videos_and_not_their_order():
    groups = [f"g{n}" for n in range(20)]
    classes = ["normal", "abnormal"] * 10
    halves = dict(zip(groups, two_halves(groups, classes), strict=True))
    order = list(range(20))
    random.Random(1).shuffle(order)
    again = two_halves([groups[n] for n in order], [classes[n] for n in order])
    assert [halves[groups[n]] for n in order] == list(again)


def test_the_best_threshold_is_the_one_that_a_search_over_all_finds():
    rng = random.Random(3)
    for _ in range(100):
        values = [rng.choice([-2.0, -1.0, 0.0, 0.5, 3.0]) + rng.choice([0, 0, 0.1]) for _ in range(15)]
        normal = [rng.random() < 0.5 for _ in values]
        found = best_threshold(values, normal)
        if isinstance(found, str):
            assert len(set(normal)) == 1 or len(set(values)) == 1
            continue

        distinct = sorted(set(values))
        inside = [(low + high) / 2 for low, high in pairwise(distinct)]
        assert balanced(found, values, normal) == pytest.approx(max(balanced(cut, values, normal) for cut in inside))
    assert best_threshold([0.1, 0.2], [True, True]) == "the other half has no anomalous video with a score"
    assert best_threshold([0.2, 0.2], [True, False]) == "all scores in the other half are equal"
    lowest = 1.0
    assert lowest < best_threshold([lowest, lowest + 2**-52], [False, True])  # between two neighbouring floats


def test_no_video_is_judged_by_a_threshold_that_saw_it():
    """By hand: half 0 separates at 4, half 1 at 8, so each is judged by the other's."""
    values = [3.0, 5.0, 7.0, 9.0]
    truths = ["abnormal", "normal", "abnormal", "normal"]
    fitted = fit_thresholds(values, truths, [0, 0, 1, 1])
    assert fitted.thresholds == (8.0, 4.0)
    again = fit_thresholds([30.0, -5.0, 7.0, 9.0], truths, [0, 0, 1, 1])
    assert again.thresholds[0] == 8.0  # whatever half 0 holds, its own threshold stays


def test_a_judge_of_pure_chance_gets_no_credit_from_fitting():
    """On 2,000 random scores a threshold fitted on the tested videos themselves would always be above one half."""
    rng = random.Random(5)
    found = []
    for _ in range(60):
        values = [rng.random() * 5 for _ in range(40)]
        rows = records_of(*["normal", "abnormal"] * 20)
        report = evaluate_judge(rows, values, threshold="fit", resamples=20)
        found.append(report.metrics["balanced_accuracy"].value)
    assert abs(sum(found) / len(found) - 0.5) < 0.04  # four standard errors: 0.08 / sqrt(60) each


def test_a_missing_answer_is_missing_and_no_half_without_a_class_gets_a_verdict():
    rows = records_of(*["normal", "abnormal"] * 8)
    values = [4.0 if row.status == "normal" else 1.0 for row in rows]
    given = [Score(value) for value in values]
    given[2], given[5] = Score.missing("no answer"), Score.missing("no answer")
    report = evaluate_judge(rows, given, threshold="fit")
    assert report.unscored_of == {"abnormal": 1, "normal": 1} and report.metrics["balanced_accuracy"].value == 1.0
    assert report.verdicts[2].status is None and report.verdicts[2].error == "no answer"
    # All normal videos are one file, so one half has none, and nothing can be fitted for the other.
    groups = ["same" if row.status == "normal" else row.video for row in rows]
    report = evaluate_judge(rows, values, threshold="fit", groups=groups)
    judged = {one.status for one in report.verdicts if one.truth == "normal"}
    assert judged == {None}  # their own half holds the only normal videos
    assert report.calibration.auroc == 1.0 and report.calibration.n == 16  # the values are known all the same
    assert "--threshold" in next(one.error for one in report.verdicts if one.status is None)


def test_which_judges_need_a_fit():
    verdict = Judgement("normal", log_p_normal=-0.1, log_p_abnormal=-3.0)
    assert not needs_fit([verdict, 7.0], None)
    assert not needs_fit([0.2, 0.9], (0.0, 1.0)) and needs_fit([0.2, 0.9], (0.0, 5.0))
    assert needs_fit([-0.2, 0.9, None], None) and not needs_fit([0.2, None], None)


def test_files_are_equal_by_their_bytes(tmp_path):
    for name, content in (("0.mp4", b"a"), ("1.mp4", b"b"), ("2.mp4", b"a")):
        (tmp_path / name).write_bytes(content)
    rows = records_of("normal", "abnormal", "normal", "normal")
    groups, unread = file_groups(rows, tmp_path)
    assert groups[0] == groups[2] != groups[1] and unread == 1 and groups[3] not in groups[:3]
