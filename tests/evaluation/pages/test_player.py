"""A video inside a page: a preview of the same length and times, boxes that last until the next one, limits."""

import base64
import json

import numpy as np
import pytest

from cac_align.core.judgement import Anomaly, Box, Window
from cac_align.core.video import Video
from cac_align.evaluation.pages import player as module
from cac_align.evaluation.pages.player import box_overlay, embedded_player, file_player

VIDEO = Video.open(np.random.default_rng(0).integers(0, 255, (24, 360, 640, 3), dtype=np.uint8), fps=8.0)


def test_a_box_stays_until_the_next_one_and_the_last_until_its_window_ends():
    boxes = {8: (Box(0, 0, 500, 500),), 10: (Box(1, 1, 9, 9),)}
    rows = json.loads(box_overlay(VIDEO, [Anomaly("Object Distortion", Window(1.0, 1.5), boxes=boxes)]))
    assert [row[:6] for row in rows] == [[1.0, 1.25, 0, 0, 500, 500], [1.25, 1.625, 1, 1, 9, 9]]


def test_an_anomaly_without_a_box_draws_none():
    assert (
        box_overlay(VIDEO, [Anomaly("Motion Anomalies", Window(0.0, 1.0)), Anomaly("Motion Anomalies", None)]) == "[]"
    )


def test_the_preview_is_small_and_keeps_every_frames_time():
    made = embedded_player(VIDEO, [], 2_000_000)
    small = Video.open(base64.b64decode(made.source.removeprefix("data:video/mp4;base64,")))
    assert (small.width, small.height, len(small)) == (320, 180, 24)
    assert small.times_s == pytest.approx(VIDEO.times_s, abs=1e-3)
    assert (made.width, made.height, made.duration_s) == (640, 360, 3.0)


def test_what_does_not_fit_is_shown_as_frames(monkeypatch):
    assert embedded_player(VIDEO, [], 20_000).source is None
    monkeypatch.setattr(module, "_MAX_PREVIEW_FRAMES", 23)
    long = embedded_player(VIDEO, [], 2_000_000)
    assert long.source is None and len(long.pictures) == 6
    assert file_player(VIDEO, [], "videos/a.mp4").source == "videos/a.mp4"
