"""Where and when: IoUs, Hard's duration and area, and one-to-one matching, each against numbers
worked by hand.
"""

import numpy as np
import pytest

from cac_align.core.judgement import Anomaly, Box, Judgement, Turn, Window
from cac_align.core.video import Video
from cac_align.data.records import Record
from cac_align.evaluation.bench.localisation import first_turn_times_s, localise

OBJECT, MOTION = "Object Distortion", "Motion Anomalies"


def record(*anomalies, fps=16.0, num_frames=81):
    status = "abnormal" if anomalies else "normal"
    return Record("v", "v.mp4", "a cat", fps, num_frames, 832, 480, status, tuple(anomalies))


@pytest.mark.parametrize(("fps", "num_frames"), [(16, 81), (24, 49), (30, 31), (14.985, 60), (8, 1), (3, 7)])
def test_the_grid_is_the_one_the_judge_is_shown(fps, num_frames):
    video = Video.open(np.zeros((num_frames, 4, 4, 3), np.uint8), fps=fps)
    wanted = [video.times_s[index] for index in video.indices_at(4)]
    grid = first_turn_times_s(record(fps=fps, num_frames=num_frames))
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
