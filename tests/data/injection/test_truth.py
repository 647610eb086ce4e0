"""Window and boxes come from the difference of the twins: checked against numbers that are known by hand."""

import numpy as np
import pytest

from cac_align.data.injection.injector import Edit
from cac_align.data.injection.injectors.presence import appear, vanish
from cac_align.data.injection.settings import Injection
from cac_align.data.injection.truth import anomaly_of, measure
from cac_align.data.injection.visible import why_rejected
from tests.data.injection.squares import HEIGHT, WIDTH, square_clip


def edit_of(sham, anomalous, subject, **more):
    return Edit(
        anomalous, sham, more.pop("type", "Object Distortion"), "test", "the square melts", "square", subject, **more
    )


def blank(frames=20, height=120, width=160):
    return np.full((frames, height, width, 3), 90, np.uint8)


def test_window_and_box_are_those_of_the_pixels_that_differ():
    sham, wrong = blank(), blank()
    wrong[5:9, 40:60, 30:50] = 130
    truth = measure(edit_of(sham, wrong, np.zeros(sham.shape[:3], bool)))
    assert truth is not None and (truth.first, truth.last) == (5, 8)
    assert truth.boxes[5] == ((30, 40, 50, 60),) and set(truth.boxes) == {5, 6, 7, 8}
    assert truth.contrast == 40


def test_a_difference_of_eight_levels_is_none_and_nine_is_one():
    sham, wrong = blank(), blank()
    wrong[5:9, 40:60, 30:50] = 98
    assert measure(edit_of(sham, wrong, np.zeros(sham.shape[:3], bool))) is None
    wrong[5:9, 40:60, 30:50] = 99
    assert measure(edit_of(sham, wrong, np.zeros(sham.shape[:3], bool))) is not None


def test_the_box_covers_the_whole_part_and_not_what_it_left_behind():
    sham, wrong = blank(), blank()
    subject, vacated = np.zeros((2, *sham.shape[:3]), bool)
    sham[:, 40:60, 10:30] = 200  # the thing where it belongs, on every frame
    wrong[:] = sham
    wrong[6:10, 40:60, 10:30] = 90
    wrong[6:10, 40:60, 100:120] = 200
    wrong[6:10, 40:60, 110:120] = 90  # its right half happens to look like the background
    subject[6:10, 40:60, 100:120] = True
    vacated[6:10, 40:60, 10:30] = True
    truth = measure(edit_of(sham, wrong, subject, vacated=vacated))
    assert truth is not None and truth.boxes[7] == ((100, 40, 120, 60),)
    without = measure(edit_of(sham, wrong, subject))
    assert without is not None and len(without.boxes[7]) == 2


def test_short_holes_do_not_end_a_window_and_a_lone_frame_does_not_begin_one():
    sham, wrong = blank(), blank()
    wrong[[8, 9, 12, 13], 40:60, 30:50] = 130
    wrong[2, 40:60, 30:50] = 130
    truth = measure(edit_of(sham, wrong, np.zeros(sham.shape[:3], bool)))
    assert truth is not None and (truth.first, truth.last) == (8, 13)


@pytest.mark.parametrize("injector", [vanish, appear])
def test_an_absence_is_boxed_on_the_frames_beside_it(injector):
    source = square_clip()
    edit = injector(source, np.random.default_rng(3), 0.6)
    truth = measure(edit)
    assert truth is not None
    gone = np.flatnonzero((edit.anomalous != edit.sham).any((1, 2, 3)))
    before, after = gone[0] - 1, gone[-1] + 1
    assert truth.first == max(before, 0) and truth.last == min(after, 31)
    assert set(truth.boxes) == {frame for frame in (before, after) if 0 <= frame < 32}
    for frame, boxes in truth.boxes.items():
        left = 10 + 3 * frame
        assert boxes == ((left, 70, left + 24, 94),)
    anomaly = anomaly_of(edit, truth, source.fps)
    assert anomaly.window is not None and anomaly.window.start_s == truth.first / 16
    assert anomaly.type == "Motion Anomalies"


def rejected(wrong, sham, fps=16.0, **more):
    edit = edit_of(sham, wrong, np.zeros(sham.shape[:3], bool), **more)
    return why_rejected(edit, measure(edit), fps, Injection())


def test_a_judge_must_be_able_to_see_it():
    sham = blank(33, HEIGHT, WIDTH)
    wrong = sham.copy()
    wrong[9:12, 40:60, 30:50] = 150  # between the frames 8 and 12, which a judge sees at 4 fps
    assert "no frame" in str(rejected(wrong, sham))
    wrong[12, 40:60, 30:50] = 150
    assert rejected(wrong, sham) is None
    brief = sham.copy()
    brief[11:13, 40:60, 30:50] = 150  # at 8 fps the frames 10, 12 and 14 are seen
    assert "two frames" in str(rejected(brief, sham, type="Motion Anomalies"))
    assert rejected(brief, sham) is None
    faint = sham.copy()
    faint[8:17, 40:60, 30:50] = 100
    assert "grey levels" in str(rejected(faint, sham))
    tiny = sham.copy()
    tiny[8:17, 40:42, 30:32] = 250
    assert "of a frame" in str(rejected(tiny, sham))
    everything = sham.copy()
    everything[8:17] = 250
    assert str(rejected(everything, sham)).startswith("absurd")
