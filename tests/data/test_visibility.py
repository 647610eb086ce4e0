"""What frames can show of an annotation."""

import random

import pytest

from cac_align.core.judgement import Anomaly, Box, Window
from cac_align.data.records import Record
from cac_align.data.visibility import (
    anomaly_spans,
    covering_window,
    cuts_no_anomaly,
    visible_anomalies,
    window_duration_s,
)

BOX = (Box(100, 100, 200, 200),)


def anomaly(start, end, kind="Object Distortion", frames=(), fps=16):
    return Anomaly(kind, Window(start / fps, end / fps), f"it melts at {start}", "box", dict.fromkeys(frames, BOX))


def record(*anomalies, name="r", frames=49, prompt="a red ball"):
    status = "abnormal" if anomalies else "normal"
    return Record(name, f"{name}.mp4", prompt, 16.0, frames, 64, 64, status, anomalies, "ann")


def test_only_what_is_shown_is_seen_and_windows_and_boxes_are_cut_to_it():
    both = (anomaly(4, 10, frames=range(4, 11)), anomaly(13, 14, frames=(13, 14)))
    shown_at = (0, 4, 8, 12, 16)
    (only,) = visible_anomalies(
        both, shown_at, [frame / 16 for frame in shown_at]
    )  # 13-14 falls between two frames shown
    assert only.window == Window(4 / 16, 8 / 16) and sorted(only.boxes) == [4, 8]


def test_an_absence_keeps_its_nearest_boundary_box():
    gone = anomaly(5, 20, "Motion Anomalies", frames=(5, 20))
    (only,) = visible_anomalies([gone], (0, 8, 16), (0.0, 0.5, 1.0))
    assert only.boxes == {8: BOX} and only.window == Window(
        0.5, 1.0
    )  # frame 8 is 3 away from 5, frame 16 is 4 away from 20


@pytest.mark.parametrize("seed", range(200))
def test_clips_are_shorter_than_a_second_cut_nothing_and_show_the_first_frame(seed):
    draw = random.Random(seed)
    start = draw.randint(0, 40)
    one = anomaly(start, min(48, start + draw.randint(0, 6)))
    other = anomaly(45, 48) if start < 30 else anomaly(0, 2)
    of = record(one, other)
    window = covering_window(one.window, of, max_s=1.0, look_fps=8, draw=draw)
    assert window.start_s <= one.window.start_s and one.window.end_s <= window.end_s <= 48 / 16
    assert window_duration_s(window, 16) < 1.0
    for each in of.anomalies:  # inside or outside, worked out here in frames
        first, last = round(window.start_s * 16), round(window.end_s * 16)
        a, b = round(each.window.start_s * 16), round(each.window.end_s * 16)
        assert (first <= a and b <= last) or b < first or a > last
    steps = (one.window.start_s - window.start_s) * 8
    assert steps == pytest.approx(round(steps))


def test_an_event_that_is_longer_is_its_own_window_and_touching_ones_are_one():
    of = record(anomaly(0, 20), anomaly(15, 30), anomaly(40, 41))
    assert anomaly_spans(of) == [Window(0, 30 / 16), Window(40 / 16, 41 / 16)]
    assert covering_window(anomaly_spans(of)[0], of, max_s=1.0, look_fps=8, draw=random.Random(0)) == Window(0, 30 / 16)
    assert (
        not cuts_no_anomaly(Window(0, 1), of)
        and cuts_no_anomaly(Window(0, 31 / 16), of)
        and cuts_no_anomaly(Window(32 / 16, 39 / 16), of)
    )
