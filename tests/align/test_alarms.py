"""The guards: what the watched readings say against the one before training, which of them is best, and when a run should stop."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cac_align.align.alarms import Reading, alarms, gain, skipped_too_often, unscored_too_often
from cac_align.align.evaluator import is_best
from cac_align.core.video import Video
from cac_align.rewards.motion import motion


def moving(speed_px, contrast=1.0, frames=24, size=64, flash=None):
    """A soft disc on a textured ground, moving to the right by ``speed_px`` per frame."""
    rng = np.random.default_rng(0)
    ground = 0.3 + 0.05 * np.kron(rng.random((8, 8)), np.ones((8, 8)))
    y, x = np.mgrid[:size, :size]
    clip = []
    for frame in range(frames):
        disc = 1 / (1 + np.exp(np.hypot(x - 12 - speed_px * frame, y - 32) - 8))
        clip.append(ground + (0.0 if frame == flash else 0.5 * contrast * disc))
    pixels = np.rint(np.clip(np.stack(clip), 0, 1) * 255).astype(np.uint8)
    return Video.open(np.repeat(pixels[..., None], 3, axis=-1), fps=16)


def test_motion_follows_the_speed_and_hardly_anything_else():
    base = motion(moving(1.6))
    for factor in (0.5, 0.75, 1.25):
        assert motion(moving(1.6 * factor)) / base == pytest.approx(factor, abs=0.06)
    assert motion(moving(0.0)) == 0.0
    assert motion(moving(1.6, flash=9)) == pytest.approx(base, rel=0.02), "a vanished frame is no motion"
    assert motion(moving(1.6).with_fps(8)) == pytest.approx(base / 2)
    assert motion(moving(1.6, frames=1)) == 0.0


def test_the_guard_catches_a_scene_slowed_by_a_quarter():
    """What DiffusionNFT did in the first trial: anomalies gone, everything a quarter slower."""
    before = Reading(0, 0.60, np.mean([motion(moving(s)) for s in (0.8, 1.2, 1.6)]))
    after = Reading(30, 0.95, np.mean([motion(moving(0.75 * s)) for s in (0.8, 1.2, 1.6)]))
    (told,) = alarms([before, after], 0.05)
    assert re.match(
        r"Step 30: the watched videos move 2\d% less than before training \(.* paying for standing still", told
    )
    assert alarms([before, replace(after, motion=before.motion * 0.96)], 0.05) == []


def test_the_alarm_needs_a_rising_reward_and_a_fall_beyond_the_tolerance():
    first = Reading(0, 0.5, 1.0, 0.8, {"unified/alignment": 4.0, "unified/style": 4.0})
    hacked = Reading(20, 0.7, 1.0, 0.7, {"unified/alignment": 3.0, "unified/style": 1.0})
    told = alarms([first, replace(hacked, step=10, held_out=0.9), hacked], 0.05)
    assert (
        len(told) == 2
        and "the held-out reward fell from 0.8000 to 0.7000 while the reward rose from 0.5000 to 0.7000" in told[0]
    )
    assert "prompt alignment (unified/alignment) fell from 4.0000 to 3.0000" in told[1]
    assert alarms([first, replace(hacked, total=0.4)], 0.05) == []
    assert alarms([first, replace(hacked, held_out=0.77, parts={"unified/alignment": 3.9})], 0.05) == []
    assert alarms([first, Reading(20, 0.7, math.nan, math.nan, {})], 0.05) == [] and alarms([first], 0.05) == []
    assert Reading.from_json(json.loads(json.dumps(hacked.to_json()))) == hacked


def watched(step, *totals):
    """A reading of these videos' scores, its mean over those that have one, as ``watching`` takes it."""
    return Reading(step, float(np.nanmean(totals)), 1.0, 0.8, {}, totals)


def test_readings_are_compared_on_the_videos_scored_in_both():
    before, after = watched(0, 0.2, 0.9, 0.7), watched(20, 0.1, 0.8, math.nan)
    assert gain(before, after) == pytest.approx(-0.1)  # the two that have a score in both fell by 0.1 each
    assert gain(watched(0, 0.2, math.nan, 0.7), after) == pytest.approx(-0.1) and after.unscored == 1
    assert math.isnan(gain(watched(0, 0.2, math.nan, math.nan), watched(1, math.nan, 0.4, 0.4)))
    higher = watched(20, math.nan, 0.85, 0.65)  # its mean is higher than before (.75, .60), each of its videos lower
    assert higher.total > before.total and not is_best([before, higher], max_unscored=0.5)
    assert (
        alarms([before, replace(higher, held_out=0.1)], 0.05, max_unscored=0.5) == []
    )  # no rise, so nothing was bought


def test_a_reading_without_most_of_its_scores_is_said_and_never_the_best():
    before, lucky = watched(0, *[0.5] * 32), watched(20, 0.9, *[math.nan] * 31)
    assert not is_best([before, lucky])
    (told,) = alarms([before, lucky], 0.05)
    assert told.startswith("Step 20: 31 of the 32 watched videos have no score") and lucky.to_json()["unscored"] == 31
    nearly = watched(20, *[0.6] * 30, math.nan, math.nan)
    assert is_best([before, nearly]) and alarms([before, nearly], 0.05) == []
    back = Reading.from_json(json.loads(json.dumps(nearly.to_json())))
    assert back.unscored == 2 and gain(before, back) == pytest.approx(0.1)
    old = {name: value for name, value in nearly.to_json().items() if name not in ("totals", "unscored")}
    assert gain(before, Reading.from_json(old)) == pytest.approx(0.1)  # kept before readings had their videos' scores


def seen(step, totals, **each):
    """A reading of two numbers per video or more: means over the videos that have them."""
    held_out = each.get("held_out", (0.8,))
    parts = {"unified/alignment": float(np.nanmean(each["alignment"]))} if "alignment" in each else {}
    named = {("unified/alignment" if name == "alignment" else name): values for name, values in each.items()}
    return Reading(step, float(np.nanmean(totals)), 1.0, float(np.nanmean(held_out)), parts, totals, named)


def test_the_held_out_reward_and_alignment_are_compared_on_the_videos_that_have_them_in_both():
    """A judge that fails on some videos moves the mean both ways; the videos themselves say what happened."""
    nan = math.nan
    before, after = seen(0, (0.5, 0.5), held_out=(0.9, nan)), seen(10, (0.7, 0.7), held_out=(0.9, 0.1))
    assert after.held_out == 0.5 and alarms([before, after], 0.05) == []  # its mean fell, the one video in both did not
    before = seen(0, (0.5,) * 4, held_out=(0.9, 0.9, 0.5, 0.5))
    after = seen(10, (0.7,) * 4, held_out=(0.85, 0.81, nan, nan))
    lost, hacked = alarms([before, after], 0.05)  # its mean rose from .70 to .83
    assert lost == (
        "Step 10: 2 of the 4 watched videos have a score and no longer the held-out reward; the others are compared."
    )
    assert "the held-out reward fell from 0.9000 to 0.8300 while the reward rose from 0.5000 to 0.7000" in hacked
    before = seen(0, (0.5, 0.5, 0.5), alignment=(5.0, 5.0, 1.0))
    after = seen(10, (0.7, 0.7, nan), alignment=(4.0, 4.0, nan))
    (told,) = alarms([before, after], 0.05, max_unscored=0.5)  # a video without any score is told as such, not twice
    assert "prompt alignment (unified/alignment) fell from 5.0000 to 4.0000" in told
    assert Reading.from_json(json.loads(json.dumps(after.to_json()))).each["unified/alignment"][:2] == (4.0, 4.0)
    gone = Reading(10, 0.7, 1.0, nan, {}, (0.7, 0.7), {"held_out": (nan, nan)})
    (told,) = alarms([seen(0, (0.5, 0.5), alignment=(5.0, 5.0)), gone], 0.05)
    assert told.startswith("Step 10: 2 of the 2 watched videos have a score and no longer prompt alignment")


def test_stopping_rules_by_hand():
    rows = [
        {"step": k, "videos": 10, "unscored": n, "errors": ["timeout"] if n else []} for k, n in enumerate((0, 0, 1, 2))
    ]
    assert unscored_too_often(rows, 0.1, 4) is None  # 3 of 40
    told = unscored_too_often(rows, 0.1, 2)  # 3 of 20
    assert told is not None and told.startswith(
        "15% of the videos of the last 2 steps have no score (max_unscored is 10%): timeout."
    )
    assert unscored_too_often(rows[-1:], 0.0, 2) is None
    assert unscored_too_often(rows, 0.1, 2, since=2) == told and unscored_too_often(rows, 0.1, 2, since=3) is None
    assert skipped_too_often([{"skipped": "x"}], 1, Path("i")) is None
    assert "2 steps were skipped" in (skipped_too_often([{"skipped": "x"}, {}, {"skipped": "y"}], 1, Path("i")) or "")


def test_the_best_reading_by_hand():
    def best(*totals):
        return is_best([Reading(step, total, 0.1, math.nan, {}) for step, total in enumerate(totals)])

    assert best(0.5, 0.6) and best(0.5, 0.4, 0.55) and best(math.nan, 0.1)
    assert not best(0.5) and not best(0.5, 0.5) and not best(0.5, 0.7, 0.6) and not best(0.5, math.nan)
