"""What is asked about a record: clips that cut no anomaly, frames that show it alone, claims that do not give the verdict away."""

import random
from dataclasses import replace

import numpy as np
import pytest

from cac_align.answer import read_answer, write_answer
from cac_align.data.questions import plan, shown, suspected, told, truth
from cac_align.data.records import Record
from cac_align.data.truth import cover, covers, events, length_s, seen, stretch
from cac_align.judgement import Anomaly, Box, Window
from cac_align.miniature.world import make_clip
from cac_align.video import Video

BOX = (Box(100, 100, 200, 200),)


def anomaly(start, end, kind="Object Distortion", frames=(), fps=16):
    return Anomaly(kind, Window(start / fps, end / fps), f"it melts at {start}", "box", dict.fromkeys(frames, BOX))


def record(*anomalies, name="r", frames=49, prompt="a red ball"):
    status = "abnormal" if anomalies else "normal"
    return Record(name, f"{name}.mp4", prompt, 16.0, frames, 64, 64, status, anomalies, "ann")


def test_only_what_is_shown_is_seen_and_windows_and_boxes_are_cut_to_it():
    both = (anomaly(4, 10, frames=range(4, 11)), anomaly(13, 14, frames=(13, 14)))
    shown_at = (0, 4, 8, 12, 16)
    (only,) = seen(both, shown_at, [frame / 16 for frame in shown_at])  # 13-14 falls between two frames shown
    assert only.window == Window(4 / 16, 8 / 16) and sorted(only.boxes) == [4, 8]


def test_an_absence_keeps_its_nearest_boundary_box():
    gone = anomaly(5, 20, "Motion Anomalies", frames=(5, 20))
    (only,) = seen([gone], (0, 8, 16), (0.0, 0.5, 1.0))
    assert only.boxes == {8: BOX} and only.window == Window(0.5, 1.0)  # frame 8 is 3 away from 5, frame 16 is 4 away from 20


@pytest.mark.parametrize("seed", range(200))
def test_clips_are_shorter_than_a_second_cut_nothing_and_show_the_first_frame(seed):
    draw = random.Random(seed)
    start = draw.randint(0, 40)
    one = anomaly(start, min(48, start + draw.randint(0, 6)))
    other = anomaly(45, 48) if start < 30 else anomaly(0, 2)
    of = record(one, other)
    window = cover(one.window, of, max_s=1.0, look_fps=8, draw=draw)
    assert window.start_s <= one.window.start_s and one.window.end_s <= window.end_s <= 48 / 16
    assert length_s(window, 16) < 1.0
    for each in of.anomalies:  # inside or outside, worked out here in frames
        first, last = round(window.start_s * 16), round(window.end_s * 16)
        a, b = round(each.window.start_s * 16), round(each.window.end_s * 16)
        assert (first <= a and b <= last) or b < first or a > last
    steps = (one.window.start_s - window.start_s) * 8
    assert steps == pytest.approx(round(steps))


def test_an_event_that_is_longer_is_its_own_window_and_touching_ones_are_one():
    of = record(anomaly(0, 20), anomaly(15, 30), anomaly(40, 41))
    assert events(of) == [Window(0, 30 / 16), Window(40 / 16, 41 / 16)]
    assert cover(events(of)[0], of, max_s=1.0, look_fps=8, draw=random.Random(0)) == Window(0, 30 / 16)
    assert not covers(Window(0, 1), of) and covers(Window(0, 31 / 16), of) and covers(Window(32 / 16, 39 / 16), of)


def test_stretches_have_the_length_asked_for_and_stay_inside():
    for seed in range(50):
        window = stretch(record(), 0.75, random.Random(seed))
        assert length_s(window, 16) == pytest.approx(0.75) and window.start_s >= 0 and window.end_s <= 3.0
    assert length_s(stretch(record(frames=5), 0.75, random.Random(0)), 16) == pytest.approx(5 / 16)


def test_questions_do_not_depend_on_the_order_of_the_records_and_normal_clips_are_as_long_as_anomalous_ones():
    bad = [record(anomaly(n, n + 4, frames=(n, n + 2)), name=f"bad{n}", prompt=f"a ball number {n}") for n in range(8)]
    good = [record(name=f"good{n}") for n in range(30)]
    questions = plan(bad + good)
    again = plan((bad + good)[::-1])
    assert {name: [q.key for q in asked] for name, asked in questions.items()} == {
        name: [q.key for q in asked] for name, asked in again.items()
    }
    lengths = {
        status: {round(length_s(q.window, 16), 6) for name, asked in questions.items() for q in asked if q.window and name[:3] == start}
        for status, start in (("normal", "goo"), ("abnormal", "bad"))
    }  # fmt: skip
    assert lengths["normal"] <= lengths["abnormal"] and len(lengths["normal"]) > 1
    false = [q for name, asked in questions.items() for q in asked if q.task == "look" and name.startswith("good")]
    assert len(false) == 30 and all(q.donors and q.window == q.donors[0].window for q in false)
    assert all(donor in questions[donor.record.id] or donor.record.status == "abnormal" for q in false for donor in q.donors)
    assert [q.task for q in questions["bad0"]] == ["scan", "look", "frame", "frame"]


def looks(records, name, **settings):
    return [question for question in plan(records, **settings)[name] if question.task == "look"]


def test_a_normal_video_is_looked_at_where_the_one_is_whose_words_are_nearest():
    sign = record(anomaly(1, 4), name="sign", prompt="a yellow sign saying TEA at night")
    ball = record(anomaly(30, 34), name="ball", prompt="a red ball bounces on grass")
    normal = record(name="n", prompt="a blue ball bounces on sand")
    (own,) = looks([ball], "ball")
    (look,) = looks([sign, ball, normal], "n")
    assert [donor.record.id for donor in look.donors] == ["ball", "sign"] and look.window == own.window
    assert own.window.start_s <= 30 / 16 and own.window.end_s >= 34 / 16
    longer = record(
        anomaly(30, 34), name="long", prompt=normal.prompt, frames=97
    )  # its scan shows more frames than a 3-s video has
    (look,) = looks([longer, ball, normal], "n")
    assert [donor.record.id for donor in look.donors] == ["ball", "long"]


def test_a_normal_video_that_no_clip_fits_into_has_no_donor():
    ball = record(anomaly(30, 34), name="ball")
    (look,) = looks([ball, record(name="n", frames=30)], "n")
    assert look.donors == () and look.window is None
    long = record(anomaly(0, 20), name="ball")  # 21 frames are more than a second
    assert looks([long, record(name="n")], "n")[0].donors == ()
    assert looks([record(name="n")], "n")[0].donors == ()


def test_a_share_of_looks_at_anomalous_videos_has_donors_whose_anomalies_lie_in_the_same_window():
    records = [record(anomaly(n % 40, n % 40 + 2 + n % 3), name=f"bad{n}", prompt=f"ball {n}") for n in range(120)]
    records.append(record(anomaly(10, 12), anomaly(40, 42), name="two"))  # one of its two is outside every window
    for share, least, most in ((0.0, 0, 0), (0.5, 40, 80), (1.0, 119, 120)):
        asked = plan(records, tasks=["scan", "look"], foreign_suspicion=share)
        of = [question for n in range(120) for question in asked[f"bad{n}"] if question.task == "look"]
        foreign = [look for look in of if look.donors]
        assert len(of) == 120 and least <= len(foreign) <= most
        for look in foreign:
            for donor in look.donors:
                (wrong,) = donor.record.anomalies
                assert look.window.start_s <= wrong.window.start_s and wrong.window.end_s <= look.window.end_s
                assert donor.record.id not in (look.record.id, "two")


def test_a_look_is_told_the_first_donors_answer_that_there_is():
    video = Video.open(np.zeros((49, 16, 16, 3), np.uint8), fps=16)
    scanned = video.sample(4)
    ball, sign = (record(anomaly(n, n + 4), name=name, prompt=name) for n, name in ((8, "ball"), (16, "sign")))

    def answer(of, frames=scanned):
        return write_answer(
            chain_of_thought=of.id, anomalies=of.anomalies, number=1, frames=frames.indices, times_s=frames.times_s
        )

    (look,) = looks([ball, sign, record(name="n", prompt="ball")], "n")
    asked, told_of = suspected(look, scanned, "", answer)
    assert told_of == {"claim": answer(ball), "donor": "ball"} and asked.window == look.donors[0].window
    other, told_of = suspected(look, scanned, "", lambda of: answer(of) if of.id == "sign" else None)
    assert told_of["donor"] == "sign" and other.window == look.donors[1].window != asked.window
    assert other.key != asked.key == suspected(look, scanned, "", answer)[0].key
    turn = read_answer(told_of["claim"], number=1, frames=scanned.indices, times_s=scanned.times_s)
    assert other.window.start_s <= turn.anomalies[0].window.start_s <= other.window.end_s
    assert suspected(look, scanned, "", lambda of: None)[1] == {}
    beyond = answer(ball).replace("Frame 2-3", "Frame 12-13")  # frame 12, at 3 s, is the last one that this video has at 4 fps
    assert beyond != answer(ball) and suspected(look, scanned, "", lambda of: beyond)[1] == {}
    (doubted,) = looks([ball, replace(ball, id="own")], "own", foreign_suspicion=1.0)
    asked, told_of = suspected(doubted, scanned, "own", answer)
    assert told_of["donor"] == "ball" and asked.window == doubted.window
    assert suspected(doubted, scanned, "own", lambda of: None) == (replace(doubted, donors=()), {"claim": "own"})


def test_single_frames_show_a_single_frame_category_alone():
    of = record(anomaly(2, 9, frames=range(2, 10)), anomaly(6, 12, "Motion Anomalies", frames=(6, 12)))
    frames = [question.frame for question in plan([of, record(name="n")], frames_per_video=99)["r"] if question.task == "frame"]
    assert frames == [2, 3, 4, 5]  # from 6 on something moves wrongly as well, and one frame cannot show that
    motion = record(anomaly(6, 12, "Motion Anomalies", frames=(6, 12)))
    assert [question.task for question in plan([motion])["r"]] == ["scan", "look"]


def test_a_corrected_record_is_asked_anew():
    of = record(anomaly(2, 9, frames=(2, 9)))
    (before, *_), (after, *_) = (plan([one])["r"] for one in (of, replace(of, prompt="another")))
    assert before.task == after.task == "scan" and before.key != after.key


def test_the_teacher_sees_the_anomaly_enlarged_and_is_told_in_the_frames_own_numbers():
    clip = make_clip(1_420_001, anomalous=True)
    of, video = clip.record("x.mp4"), Video.open(clip.pixels, fps=16)
    scan = plan([of])[of.id][0]
    frames = shown(scan, video)
    system, close = told(scan, frames, video, close_ups=True)
    assert system.role == "system" and f"(sample {of.id}, scan)" in system.text and '"status": "abnormal"' in system.text
    first = min(n for n, t in enumerate(frames.times_s) if t >= truth(scan, frames)[0].window.start_s)
    assert f'"Attributed Time Region": "Frame {first}-' in system.text and "COT" not in system.text
    assert close.as_images and len(close.frames) <= 8
    height, width = close.frames.shape[1:3]
    assert 16 <= height <= 64 and 16 <= width <= 64 and height * width < 64 * 64
    (alone,) = told(scan, frames, video, close_ups=False)
    assert alone.text == system.text and alone.frames is None
