"""The teacher writes what the annotations say: its answers read back without a fault, to the same windows, types and boxes."""

import numpy as np
import pytest

from cac_align.core.answer import read_answer
from cac_align.core.judgement import Anomaly, Box, Window
from cac_align.miniature.teacher import teacher
from cac_align.miniature.world.grammar import COLOURS, parse_prompt
from cac_align.miniature.world.settings import FULL, STUDIO
from cac_align.miniature.world.world import make_clip
from cac_align.rewards.unified import read_axes, write_axes


def seen(clip, fps, window=None):
    video = clip.video()
    indices = video.indices_at(fps, window)
    return indices, [video.times_s[index] for index in indices]


@pytest.mark.parametrize("seed", range(1_000_000, 1_000_030))
def test_answers_read_back_to_the_annotation(seed):
    clip = make_clip(seed, FULL, anomalous=seed % 3 != 0)
    for number, fps in ((1, 4.0), (2, 8.0)):
        indices, times = seen(clip, fps)
        text = teacher.answer(clip.anomalies, number=number, frames=indices, times_s=times)
        turn = read_answer(text, number=number, frames=indices, times_s=times)
        assert turn.faults == ()
        expected = [a for a in clip.anomalies if any(a.window.start_s <= t <= a.window.end_s for t in times)]
        assert turn.status == ("abnormal" if expected else "normal")
        assert sorted(a.type for a in turn.anomalies) == sorted(a.type for a in expected)
        assert sorted(a.reason for a in turn.anomalies) == sorted(a.reason for a in expected)
        for said in turn.anomalies:
            truth = next(a for a in expected if a.reason == said.reason)
            inside = [t for t in times if truth.window.start_s <= t <= truth.window.end_s]
            assert said.window == Window(inside[0], inside[-1])
            on_shown = {frame: boxes for frame, boxes in truth.boxes.items() if frame in indices}
            if number == 2 and on_shown:
                assert said.boxes == on_shown
            assert bool(said.boxes) == (number == 2)


def test_every_frame_gets_its_verdict():
    torn = Anomaly(
        "Object Distortion",
        Window(0.5, 1.0),
        "the red ball splits into two halves",
        "red ball",
        {8: (Box(1, 2, 3, 4),)},
    )
    thought = teacher.chain_of_thought([torn], [0.0, 0.25, 0.5, 0.75, 1.0, 1.25])
    assert thought == (
        "Step 1: Frame 0: fine. Frame 1: fine. Frame 2: ball split. Frame 3: ball split. Frame 4: ball split. Frame 5: fine. "
        "Step 2: motion fine. Step 3: Object Distortion."
    )


def test_places_are_cells_of_a_four_by_four_grid():
    assert [teacher.place(*at) for at in ((0, 0), (0.26, 0.1), (0.99, 0.5), (-0.2, 1.3))] == ["a1", "a2", "c4", "d1"]
    assert teacher.chain_of_thought([], [0.0, 0.25], ["a1", "b2"]).startswith(
        "Step 1: Frame 0: a1 fine. Frame 1: b2 fine. Step 2:"
    )


@pytest.mark.parametrize("seed", range(1_300_000, 1_300_040))
def test_places_follow_the_pixels(seed):
    """The main entity's colour lies in its cell or next to it, on frames where it is not hidden; and a missing one is away."""
    clip = make_clip(seed, STUDIO, anomalous=seed % 2 == 0)
    found = teacher.places(clip.scene, clip.anomalies)
    assert len(found) == len(clip.pixels)
    gone = [a for a in clip.anomalies if "appears" in a.reason]  # appears, disappears
    rgb = np.array(COLOURS[clip.scene.spec.colour])
    for frame, where in enumerate(found):
        if where == teacher.AWAY:
            assert any(a.window.start_s <= frame / 16 <= a.window.end_s and frame not in a.boxes for a in gone)
            continue
        if any("flickers" in a.reason and a.window.start_s <= frame / 16 <= a.window.end_s for a in clip.anomalies):
            continue  # it may be see-through just now
        rows, columns = np.nonzero(np.abs(clip.pixels[frame].astype(int) - rgb).max(-1) < 40)
        row, column = "abcd".index(where[0]), int(where[1]) - 1
        assert (
            len(rows)
            and abs(np.median(rows) / 16 - 0.5 - row) <= 1.2
            and abs(np.median(columns) / 16 - 0.5 - column) <= 1.2
        )


def test_what_no_shown_frame_can_show_is_not_claimed():
    brief = Anomaly(
        "Human Distortion", Window(5 / 16, 7 / 16), "the head comes off the red figure", "", {5: (Box(1, 2, 3, 4),)}
    )
    text = teacher.answer([brief], number=1, frames=(0, 4, 8), times_s=(0.0, 0.25, 0.5))
    assert read_answer(text, number=1, frames=(0, 4, 8), times_s=(0.0, 0.25, 0.5)).status == "normal"
    assert "head off" in teacher.answer([brief], number=1, frames=(0, 6), times_s=(0.0, 0.375))


def test_an_absence_points_at_its_nearest_transition():
    gone = Anomaly(
        "Motion Anomalies",
        Window(7 / 16, 14 / 16),
        "the red ball suddenly disappears",
        "red ball",
        {7: (Box(0, 0, 9, 9),), 14: (Box(5, 5, 7, 7),)},
    )
    assert teacher.with_shown_boxes(gone, (8, 10, 12)).boxes == {8: (Box(0, 0, 9, 9),)}
    assert teacher.with_shown_boxes(gone, (10, 12, 14)).boxes == {14: (Box(5, 5, 7, 7),)}
    with pytest.raises(ValueError, match="no boxes"):
        teacher.with_shown_boxes(Anomaly("Motion Anomalies", Window(0, 1), "gone"), (0,))


def test_the_world_has_no_reason_without_a_look():
    known = {mark for mark, _, _ in teacher.APPEARANCES}
    for seed in range(1_100_000, 1_100_150):
        for anomaly in make_clip(seed, FULL, anomalous=True).anomalies:
            assert any(mark in anomaly.reason for mark in known), anomaly.reason
            colour, kind = teacher.who(anomaly)
            assert f"{colour} {kind}" in anomaly.reason


def test_a_complaint_retold_names_only_the_other_entity():
    told = teacher.about_entity(
        Anomaly("Human Distortion", None, "the near arm of the red figure is missing", "near arm of the red figure"),
        "blue",
        "box",
    )
    assert (told.reason, told.region) == ("the near arm of the blue box is missing", "near arm of the blue box")


def test_grades_fall_with_what_is_wrong():
    ball = parse_prompt("a red ball rolls to the right on grass")
    clean = teacher.grades(ball, ball, (), 0.0)
    assert clean == {"alignment": 5.0, "physics": 5.0, "style": 5.0}
    assert read_axes(write_axes(clean)) == clean
    other = parse_prompt("a blue ball rolls to the right on grass")
    assert teacher.grades(other, ball, (), 0.0)["alignment"] == 3.5  # colour: 1.5 points
    assert teacher.grades(parse_prompt("a blue figure walks to the left at night"), ball, (), 0.0)["alignment"] == 1.0
    assert teacher.grades(ball, ball, (), 0.8)["style"] == 3.5  # 5 - 2 * 0.8 = 3.4, to the nearest half
    large = {frame: (Box(0, 0, 400, 300),) for frame in range(16, 33)}
    floating = Anomaly(
        "Physical Violations", Window(1.0, 2.0), "the red ball floats up without support", "red ball", large
    )
    assert teacher.grades(ball, ball, [floating], 0.0) == {"alignment": 5.0, "physics": 2.0, "style": 4.5}
    small = Anomaly(
        "Physical Violations",
        Window(1.0, 1.2),
        "the red ball floats up without support",
        "red ball",
        {16: (Box(0, 0, 150, 150),)},
    )
    assert teacher.grades(ball, ball, [small], 0.0)["physics"] == 5.0  # a small short defect escapes a holistic judge


def test_turn_two_answers_fit_the_miniature_s_token_limit():
    lengths = []
    for seed in range(1_200_000, 1_200_020):
        clip = make_clip(seed, FULL, anomalous=True)
        indices, times = seen(clip, 8.0, clip.anomalies[0].window)
        lengths.append(len(teacher.answer(clip.anomalies, number=2, frames=indices, times_s=times)))
    assert np.max(lengths) < 4000
