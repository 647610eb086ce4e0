"""Ratings of people: rates, paired tests, agreement and the review rules, each against numbers
worked by hand.
"""

import dataclasses
import json
import math

import pytest

from cac_align.core.judgement import Box, Window
from cac_align.data.records import write_records
from cac_align.evaluation.human.experts import read_ratings, summarise_ratings
from cac_align.evaluation.pairing import Fault
from tests.support.ratings import HUMAN, MOTION, rating


def pair_of(name, rater, before, after):
    return [rating(name, rater, before), rating(name, rater, after, "after")]


def test_one_rater_gives_wilson_and_mcnemar():
    # ten pairs: 6 get better, 1 gets worse, 1 bad both times, 2 good both times
    outcomes = [(1, 0)] * 6 + [(0, 1)] + [(1, 1)] + [(0, 0)] * 2
    rows = [row for number, pair in enumerate(outcomes) for row in pair_of(f"{number}.mp4", "ann", *pair)]
    report = summarise_ratings(rows)
    assert report.rates["before"].value == 0.7 and report.rates["after"].value == 0.2
    z, n, p = 1.959964, 10, 0.7
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert report.rates["before"].high - report.rates["before"].low == pytest.approx(2 * half, abs=1e-6)
    assert report.difference.name.startswith("McNemar") and report.difference.p_value == pytest.approx(16 / 128)
    assert report.difference.difference == pytest.approx(-0.5) and (
        report.difference.only_first,
        report.difference.only_second,
    ) == (6, 1)
    assert report.difference_interval.low < -0.5 < report.difference_interval.high
    assert report.status_agreement.alpha is None and "two raters" in report.status_agreement.note
    assert report.type_rates["before"][HUMAN].value == 0.7 and report.type_rates["before"][MOTION].value == 0
    assert "-0.500" in report.to_markdown() and not report.faults
    json.dumps(report.to_json(), allow_nan=False)


def test_two_raters_who_split_give_halves_and_a_permutation_test():
    rows = []
    for number, (ann, bob) in enumerate([((1, 0), (1, 0)), ((1, 0), (0, 0)), ((1, 1), (1, 0)), ((1, 0), (1, 0))]):
        rows += pair_of(f"{number}.mp4", "ann", *ann) + pair_of(f"{number}.mp4", "bob", *bob)
    report = summarise_ratings(rows)
    assert report.rates["before"].value == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert report.rates["after"].value == pytest.approx(0.5 / 4)
    assert report.difference.name == "paired permutation" and report.difference.p_value == pytest.approx(2 / 16)
    split = [fault for fault in report.faults if fault.kind == "raters disagree"]
    assert {fault.name for fault in split} == {
        "before/before/1.mp4",
        "after/after/2.mp4",
    } and "ann abnormal, bob normal" in split[0].why
    # 8 units, 2 ratings each: 7 ann-abnormal… coincidences: 2 units disagree, abnormal said 5 + 3 = 8 of 16 times
    assert report.status_agreement.alpha == pytest.approx(1 - 15 * 2 / (8 * 8))
    assert report.raters["ann"].value == pytest.approx(5 / 8) and report.raters["bob"].value == pytest.approx(3 / 8)


def test_seeds_of_one_prompt_are_one_case_and_few_prompts_have_no_interval():
    # two prompts of five seeds: one got better in all five, the other stayed
    rows = []
    for number in range(10):
        bad, prompt = number < 5, f"prompt {number // 5}"
        rows += [
            rating(f"{number}.mp4", "ann", bad, prompt=prompt),
            rating(f"{number}.mp4", "ann", False, "after", prompt=prompt),
        ]
    report = summarise_ratings(rows)
    # McNemar over the pairs, as if they were independent, would say p = 2/2^5
    assert (report.difference.name, report.difference.n, report.difference.p_value) == ("paired permutation", 2, 1.0)
    assert report.difference.difference == pytest.approx(-0.5)
    assert (report.difference_interval.value, report.difference_interval.low) == (pytest.approx(-0.5), None)
    assert "-0.500 (no interval) over 2 prompts" in report.to_markdown()
    # ten videos, but two prompts: the Wilson interval is that of 1 of 2
    rate = report.rates["before"]
    assert (rate.value, rate.n, report.raters["ann"].n) == (0.5, 2, 20)
    z, n, p = 1.959964, 2, 0.5
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert (rate.low, rate.high) == pytest.approx((p - half, p + half), abs=1e-6)


def test_windows_and_boxes_of_raters_who_both_saw_something():
    a = rating("x.mp4", "ann", True, window=Window(0, 2), box=Box(0, 0, 500, 500))
    b = rating("x.mp4", "bob", True, window=Window(1, 3), box=Box(0, 0, 500, 1000), kind=MOTION)
    c = rating("x.mp4", "cai", False)
    report = summarise_ratings([a, b, c])
    assert report.window_iou.value == pytest.approx(1 / 3) and report.window_iou.n == 1
    assert report.box_iou.value == pytest.approx(0.5)
    assert report.rates["before"].value == pytest.approx(2 / 3) and report.difference is None and report.groups is None


def test_nothing_is_dropped_silently():
    rows = [
        *pair_of("a.mp4", "ann", 1, 0),
        rating("b.mp4", "ann", 1),  # never rated after
        rating("c.mp4", "ann", 1, pair=None),
        *pair_of("d.mp4", "ann", 1, 0),
        rating("d.mp4", "bob", 1),  # bob judged one side only
        rating("e.mp4", "ann", 1, review="returned"),
        rating("f.mp4", "", 1),
        rating("a.mp4", "ann", 1, kind=MOTION),  # again
    ]
    half = Fault("half-written rating", "ann: g.mp4", "anomaly 1 has no type (1–5)")
    report = summarise_ratings(rows, faults=[half])
    kinds = sorted(fault.kind for fault in report.faults)
    assert kinds == sorted(
        [
            "half-written rating",
            "unpaired video",
            "unpaired video",
            "half a pair",
            "returned",
            "no rater",
            "rated twice",
        ]
    )
    assert report.difference.n == 2 and report.rates["before"].n == 4
    assert report.type_rates["before"][MOTION].value == 0.25  # the later rating of a.mp4 counts
    text = report.to_markdown()
    for name in ("ann: g.mp4", "b.mp4", "d.mp4 by bob", "before/e.mp4#ann", "before/f.mp4#"):
        assert name in text
    with pytest.raises(ValueError, match="no usable rating among them; 1 were left out"):
        summarise_ratings([rating("f.mp4", "", 1)])
    with pytest.raises(ValueError, match=r"received groups \['before', 'after'\]"):
        summarise_ratings(rows, groups=("old", "new"))


def test_groups_may_have_other_names_and_share_a_clip():
    """Best-of-N: the random candidate may be the chosen one; then one rating stands in both groups."""
    rows = []
    for number in range(4):
        shared = number == 0
        first = rating(f"{number}.mp4", "ann", not shared, "random candidate")
        second = rating(f"{number}.mp4", "ann", False, "chosen")
        if shared:
            second = dataclasses.replace(second, video=first.video)
        rows += [first, second]
    report = summarise_ratings(rows, groups=("random candidate", "chosen"))
    assert report.difference.n == 4 and report.difference.only_first == 3 and report.rates["chosen"].value == 0
    assert report.raters["ann"].n == 7  # the shared clip was judged once


def test_hostile_names_stay_in_their_cell():
    report = summarise_ratings([rating("x|y\n# z.mp4", "a|b", True, group="g|\nh")])
    assert all(
        line.count("|") - line.count("\\|") == 4 for line in report.to_markdown().split("\n") if line.startswith("| g")
    )


def test_ratings_are_read_with_their_faults(tmp_path):
    path = tmp_path / "ratings.jsonl"
    write_records(path, pair_of("a.mp4", "ann", 1, 0))
    with open(path, "a") as file:
        file.write('{"id": "x", "video": "v"}\n{"half')
    for place in (path, tmp_path):
        records, faults = read_ratings(place)
        named = {"ratings.jsonl:3": "unreadable rating", "ratings.jsonl:4": "unreadable line"}
        assert len(records) == 2 and {fault.name: fault.kind for fault in faults} == named
    with pytest.raises(ValueError, match="no ratings there"):
        read_ratings(tmp_path / "nowhere")
    path.write_text("\n")
    with pytest.raises(ValueError, match="the file is empty"):
        read_ratings(path)


# ---- review -------------------------------------------------------------------------------------------------------
