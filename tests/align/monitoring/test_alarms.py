"""Alarms: evaluation results compared with the one before training, the best result, and when a run stops."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cac_align.align.monitoring.alarms import (
    EvalResult,
    find_alarms,
    is_best,
    skipped_too_often,
    total_gain,
    unscored_too_often,
)
from cac_align.rewards.normal_flow_speed import normal_flow_speed
from tests.support.moving_disc import moving


def test_a_scene_slowed_by_a_quarter_raises_an_alarm():
    """What DiffusionNFT did in the first trial: anomalies gone, everything a quarter slower."""
    before = EvalResult(0, 0.60, np.mean([normal_flow_speed(moving(s)) for s in (0.8, 1.2, 1.6)]))
    after = EvalResult(30, 0.95, np.mean([normal_flow_speed(moving(0.75 * s)) for s in (0.8, 1.2, 1.6)]))
    (alarm,) = find_alarms([before, after], 0.05)
    assert re.match(
        r"Step 30: the normal-flow speed of the evaluation videos is 2\d% lower than before training \(.* may prefer videos that stand still",
        alarm,
    )
    assert find_alarms([before, replace(after, normal_flow_speed=before.normal_flow_speed * 0.96)], 0.05) == []


def test_the_alarm_needs_a_rising_reward_and_a_fall_beyond_the_tolerance():
    first = EvalResult(0, 0.5, 1.0, 0.8, {"unified/alignment": 4.0, "unified/style": 4.0})
    hacked = EvalResult(20, 0.7, 1.0, 0.7, {"unified/alignment": 3.0, "unified/style": 1.0})
    alarms = find_alarms([first, replace(hacked, step=10, held_out=0.9), hacked], 0.05)
    assert (
        len(alarms) == 2
        and "the held-out reward fell from 0.8000 to 0.7000 while the reward rose from 0.5000 to 0.7000" in alarms[0]
    )
    assert "prompt alignment (unified/alignment) fell from 4.0000 to 3.0000" in alarms[1]
    assert find_alarms([first, replace(hacked, total=0.4)], 0.05) == []
    assert find_alarms([first, replace(hacked, held_out=0.77, parts={"unified/alignment": 3.9})], 0.05) == []
    assert (
        find_alarms([first, EvalResult(20, 0.7, math.nan, math.nan, {})], 0.05) == []
        and find_alarms([first], 0.05) == []
    )
    assert EvalResult.from_json(json.loads(json.dumps(hacked.to_json()))) == hacked


def scores_at(step, *totals):
    """The result of these scores; the mean is over those that are there."""
    return EvalResult(step, float(np.nanmean(totals)), 1.0, 0.8, {}, totals)


def test_results_are_compared_on_the_videos_scored_in_both():
    before, after = scores_at(0, 0.2, 0.9, 0.7), scores_at(20, 0.1, 0.8, math.nan)
    assert total_gain(before, after) == pytest.approx(-0.1)  # the two that have a score in both fell by 0.1 each
    assert total_gain(scores_at(0, 0.2, math.nan, 0.7), after) == pytest.approx(-0.1) and after.unscored == 1
    assert math.isnan(total_gain(scores_at(0, 0.2, math.nan, math.nan), scores_at(1, math.nan, 0.4, 0.4)))
    higher = scores_at(20, math.nan, 0.85, 0.65)  # its mean is higher than before (.75, .60), each of its videos lower
    assert higher.total > before.total and not is_best([before, higher], max_unscored=0.5)
    assert (
        find_alarms([before, replace(higher, held_out=0.1)], 0.05, max_unscored=0.5) == []
    )  # no rise, so nothing was bought


def test_a_result_without_most_of_its_scores_raises_an_alarm_and_is_never_the_best():
    before, lucky = scores_at(0, *[0.5] * 32), scores_at(20, 0.9, *[math.nan] * 31)
    assert not is_best([before, lucky])
    (alarm,) = find_alarms([before, lucky], 0.05)
    assert (
        alarm.startswith("Step 20: 31 of the 32 evaluation videos have no score") and lucky.to_json()["unscored"] == 31
    )
    nearly = scores_at(20, *[0.6] * 30, math.nan, math.nan)
    assert is_best([before, nearly]) and find_alarms([before, nearly], 0.05) == []
    back = EvalResult.from_json(json.loads(json.dumps(nearly.to_json())))
    assert back.unscored == 2 and total_gain(before, back) == pytest.approx(0.1)


def numbers_at(step, totals, **each):
    """The result of these numbers per video; means are over the videos that have them."""
    held_out = each.get("held_out", (0.8,))
    parts = {"unified/alignment": float(np.nanmean(each["alignment"]))} if "alignment" in each else {}
    named = {("unified/alignment" if name == "alignment" else name): values for name, values in each.items()}
    return EvalResult(step, float(np.nanmean(totals)), 1.0, float(np.nanmean(held_out)), parts, totals, named)


def test_the_held_out_reward_and_alignment_are_compared_on_the_videos_that_have_them_in_both():
    """A judge that fails on some videos moves the mean both ways; the videos themselves say what happened."""
    nan = math.nan
    before, after = numbers_at(0, (0.5, 0.5), held_out=(0.9, nan)), numbers_at(10, (0.7, 0.7), held_out=(0.9, 0.1))
    assert (
        after.held_out == 0.5 and find_alarms([before, after], 0.05) == []
    )  # its mean fell, the one video in both did not
    before = numbers_at(0, (0.5,) * 4, held_out=(0.9, 0.9, 0.5, 0.5))
    after = numbers_at(10, (0.7,) * 4, held_out=(0.85, 0.81, nan, nan))
    lost, hacked = find_alarms([before, after], 0.05)  # its mean rose from .70 to .83
    assert lost == (
        "Step 10: 2 of the 4 evaluation videos have a score but no longer the held-out reward; the others are compared."
    )
    assert "the held-out reward fell from 0.9000 to 0.8300 while the reward rose from 0.5000 to 0.7000" in hacked
    before = numbers_at(0, (0.5, 0.5, 0.5), alignment=(5.0, 5.0, 1.0))
    after = numbers_at(10, (0.7, 0.7, nan), alignment=(4.0, 4.0, nan))
    (alarm,) = find_alarms([before, after], 0.05, max_unscored=0.5)  # a video without any score counts as unscored only
    assert "prompt alignment (unified/alignment) fell from 5.0000 to 4.0000" in alarm
    assert EvalResult.from_json(json.loads(json.dumps(after.to_json()))).per_video["unified/alignment"][:2] == (
        4.0,
        4.0,
    )
    gone = EvalResult(10, 0.7, 1.0, nan, {}, (0.7, 0.7), {"held_out": (nan, nan)})
    (alarm,) = find_alarms([numbers_at(0, (0.5, 0.5), alignment=(5.0, 5.0)), gone], 0.05)
    assert alarm.startswith("Step 10: 2 of the 2 evaluation videos have a score but no longer prompt alignment")


def test_stopping_rules_by_hand():
    rows = [
        {"step": k, "videos": 10, "unscored": n, "errors": ["timeout"] if n else []} for k, n in enumerate((0, 0, 1, 2))
    ]
    assert unscored_too_often(rows, 0.1, 4) is None  # 3 of 40
    alarm = unscored_too_often(rows, 0.1, 2)  # 3 of 20
    assert alarm is not None and alarm.startswith(
        "15% of the videos of the last 2 steps have no score (max_unscored is 10%): timeout."
    )
    assert unscored_too_often(rows[-1:], 0.0, 2) is None
    assert (
        unscored_too_often(rows, 0.1, 2, first_step=2) == alarm
        and unscored_too_often(rows, 0.1, 2, first_step=3) is None
    )
    assert skipped_too_often([{"skipped": "x"}], 1, Path("i")) is None
    assert "2 steps were skipped" in (skipped_too_often([{"skipped": "x"}, {}, {"skipped": "y"}], 1, Path("i")) or "")


def test_the_best_result_by_hand():
    def best(*totals):
        return is_best([EvalResult(step, total, 0.1, math.nan, {}) for step, total in enumerate(totals)])

    assert best(0.5, 0.6) and best(0.5, 0.4, 0.55) and best(math.nan, 0.1)
    assert not best(0.5) and not best(0.5, 0.5) and not best(0.5, 0.7, 0.6) and not best(0.5, math.nan)
