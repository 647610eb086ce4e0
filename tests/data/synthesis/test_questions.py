"""What is asked about a record: clips that cut no anomaly, frames that show it alone, claims that do not give the verdict away."""

import random
from dataclasses import replace

import pytest

from cac_align.core.judgement import Anomaly, Box, Window
from cac_align.core.video import Video
from cac_align.data.records import Record
from cac_align.data.synthesis.plan import plan_questions
from cac_align.data.synthesis.questions import expected_anomalies, question_conversation, question_frames
from cac_align.data.synthesis.teacher_context import expected_findings, teacher_context
from cac_align.data.visibility import (
    anomaly_spans,
    covering_window,
    cuts_no_anomaly,
    visible_anomalies,
    window_duration_s,
)
from cac_align.miniature.world.world import make_clip

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


def test_questions_do_not_depend_on_the_order_of_the_records_and_normal_clips_are_as_long_as_anomalous_ones():
    bad = [record(anomaly(n, n + 4, frames=(n, n + 2)), name=f"bad{n}", prompt=f"a ball number {n}") for n in range(8)]
    good = [record(name=f"good{n}") for n in range(30)]
    questions = plan_questions(bad + good)
    again = plan_questions((bad + good)[::-1])
    assert {name: [q.key for q in asked] for name, asked in questions.items()} == {
        name: [q.key for q in asked] for name, asked in again.items()
    }
    lengths = {
        status: {round(window_duration_s(q.window, 16), 6) for name, asked in questions.items() for q in asked if q.window and name[:3] == start}
        for status, start in (("normal", "goo"), ("abnormal", "bad"))
    }  # fmt: skip
    assert lengths["normal"] <= lengths["abnormal"] and len(lengths["normal"]) > 1
    false = [q for name, asked in questions.items() for q in asked if q.task == "look" and name.startswith("good")]
    assert len(false) == 30 and all(q.alarms and q.window == q.alarms[0].window for q in false)
    assert all(alarm.record == q.record and alarm.donor.startswith("bad") for q in false for alarm in q.alarms)
    assert [q.task for q in questions["bad0"]] == ["scan", "look", "frame", "frame"]


def looks(records, name, **settings):
    return [question for question in plan_questions(records, **settings)[name] if question.task == "look"]


def test_a_normal_video_is_looked_at_where_the_one_is_whose_words_are_nearest():
    sign = record(anomaly(1, 4), name="sign", prompt="a yellow sign saying TEA at night")
    ball = record(anomaly(30, 34), name="ball", prompt="a red ball bounces on grass")
    normal = record(name="n", prompt="a blue ball bounces on sand")
    (own,) = looks([ball], "ball")
    (look,) = looks([sign, ball, normal], "n")
    assert [alarm.donor for alarm in look.alarms] == ["ball", "sign"] and look.window == own.window
    assert own.window.start_s <= 30 / 16 and own.window.end_s >= 34 / 16
    talk = record(anomaly(30, 34), name="talk", prompt=f"{normal.prompt} while people talk")
    (look,) = looks([talk, ball, normal], "n")  # four words of seven are in both; of "ball", two of six
    assert [alarm.donor for alarm in look.alarms] == ["talk", "ball"]
    talk = replace(talk, prompt=f"{talk.prompt} about many other things they read today")  # four of thirteen
    assert [alarm.donor for alarm in looks([talk, ball, normal], "n")[0].alarms] == ["ball", "talk"]


def test_a_normal_video_that_no_clip_fits_into_has_no_donor():
    ball = record(anomaly(30, 34), name="ball")
    (look,) = looks([ball, record(name="n", frames=30)], "n")
    assert look.alarms == () and look.window is None
    long = record(anomaly(0, 20), name="ball")  # 21 frames are more than a second
    assert looks([long, record(name="n")], "n")[0].alarms == ()
    assert looks([record(name="n")], "n")[0].alarms == ()


def test_a_share_of_looks_at_anomalous_videos_has_alarms_at_the_times_of_the_truth_with_as_many_findings():
    records = [
        record(
            anomaly(n % 40, n % 40 + 2, ("Object Distortion", "Motion Anomalies")[n % 2]),
            name=f"bad{n}",
            prompt=f"ball {n}",
        )
        for n in range(120)
    ]
    records += [
        record(anomaly(10, 12, kind), anomaly(40, 42, kind), name=f"two{kind}")
        for kind in ("Object Distortion", "Motion Anomalies")
    ]
    for share, least, most in ((0.0, 0, 0), (0.5, 40, 80), (1.0, 120, 120)):
        asked = plan_questions(records, tasks=["scan", "look"], false_alarm_share=share)
        of = [question for n in range(120) for question in asked[f"bad{n}"] if question.task == "look"]
        foreign = [look for look in of if look.alarms]
        assert len(of) == 120 and least <= len(foreign) <= most
        for look, alarm in [(each, alarm) for each in foreign for alarm in each.alarms]:
            assert alarm.donor[:3] == "bad" and alarm.donor != look.record.id
            (donated,), (own,) = alarm.suspected, look.record.anomalies
            (theirs,) = next(of for of in records if of.id == alarm.donor).anomalies
            assert (donated.type, donated.reason, donated.window) == (
                theirs.type,
                theirs.reason,
                own.window,
            ) and donated.type != own.type
            assert (alarm.record, alarm.window, alarm.task) == (look.record, look.window, "scan")
    first, second = (look for look in asked["twoObject Distortion"] if look.task == "look")
    assert {alarm.donor for alarm in (*first.alarms, *second.alarms)} == {"twoMotion Anomalies"}
    assert [donated.window for donated in first.alarms[0].suspected] == [own.window for own in records[-2].anomalies]


def test_a_mistaken_scan_is_the_scans_question_and_tells_the_teacher_alone_what_to_suspect():
    clip = make_clip(1_420_001, anomalous=True)
    of, video = clip.record("x.mp4"), Video.open(clip.pixels, fps=16)
    start = of.anomalies[0].window.start_s
    ball = record(
        anomaly(round(16 * start), round(16 * start) + 4, frames=range(20)), name="ball", frames=of.num_frames
    )
    good = replace(of, id="good", status="normal", anomalies=())
    for name, donor in (("good", ball), (of.id, replace(ball, anomalies=ball.anomalies * len(of.anomalies)))):
        asked = plan_questions([of, donor, good], false_alarm_share=1.0, tasks=["scan", "look"])[name]
        scan, look = asked[:2]
        alarm = next(alarm for alarm in look.alarms if alarm.donor == "ball")
        frames = question_frames(alarm, video)
        assert (
            question_conversation(alarm, frames)[0].text == question_conversation(scan, frames)[0].text
            and alarm.key != scan.key
        )
        assert frames.indices == question_frames(scan, video).indices and alarm.number == 1 and not alarm.boxed
        (system,) = teacher_context(
            alarm, frames, video, close_ups=True
        )  # the defect that is there is not enlarged for it
        assert f"(sample {name}, alarm)" in system.text and "mistaken" in system.text
        assert (
            f"it melts at {round(16 * start)}" in expected_findings(alarm, frames)
            and expected_findings(alarm, frames) in system.text
        )
        assert [donated.type for donated in expected_anomalies(alarm, frames)] == ["Object Distortion"] * len(
            alarm.suspected
        )
        assert not any(donated.boxes for donated in alarm.suspected)
        again = replace(alarm, suspected=tuple(replace(donated, reason="it splits") for donated in alarm.suspected))
        assert len({alarm.key, again.key, scan.key}) == 3
        assert len({replace(look, alarms=alarms).key for alarms in ((), (alarm,), (again,))}) == 3


def test_single_frames_show_a_single_frame_category_alone():
    of = record(anomaly(2, 9, frames=range(2, 10)), anomaly(6, 12, "Motion Anomalies", frames=(6, 12)))
    frames = [
        question.frame
        for question in plan_questions([of, record(name="n")], frames_per_video=99)["r"]
        if question.task == "frame"
    ]
    assert frames == [2, 3, 4, 5]  # from 6 on something moves wrongly as well, and one frame cannot show that
    motion = record(anomaly(6, 12, "Motion Anomalies", frames=(6, 12)))
    assert [question.task for question in plan_questions([motion])["r"]] == ["scan", "look"]


def test_a_corrected_record_is_asked_anew():
    of = record(anomaly(2, 9, frames=(2, 9)))
    (before, *_), (after, *_) = (plan_questions([one])["r"] for one in (of, replace(of, prompt="another")))
    assert before.task == after.task == "scan" and before.key != after.key


def test_what_is_neither_shown_nor_compared_asks_nothing_anew_and_all_else_does():
    of, ball = (
        record(anomaly(2, 9, frames=(2, 9))),
        record(anomaly(4, 9, "Motion Anomalies", frames=(4, 9)), name="ball"),
    )
    (labelled,) = (replace(one, saliency="non-salient") for one in of.anomalies)
    (more,) = (replace(one, region="elsewhere") for one in of.anomalies)

    def keys(one, other=ball):
        return [question.key for question in plan_questions([one, other], false_alarm_share=1.0)["r"]]

    for same in (
        {"video": "../moved/r.mp4"}, {"review": "audited"}, {"annotator": "bob"}, {"extra": {"n": 1}}, {"anomalies": (labelled,)},
    ):  # fmt: skip
        assert (
            keys(replace(of, **same))
            == keys(of)
            == keys(replace(of, **same), replace(ball, video="x.mp4", review="audited"))
        )
    for other in (
        {"prompt": "another"}, {"num_frames": 48}, {"width": 32}, {"height": 32}, {"fps": 16.5}, {"id": "s"}, {"anomalies": (more,)}
    ):  # fmt: skip
        changed = replace(of, **other)
        asked = plan_questions([changed, ball], false_alarm_share=1.0)[changed.id]
        assert set(keys(of)).isdisjoint(question.key for question in asked)


def test_a_record_more_or_less_changes_its_neighbours_questions_only():
    kinds = ("Object Distortion", "Motion Anomalies")
    bad = [
        record(anomaly(n % 40, n % 40 + 2, kinds[n % 2]), name=f"bad{n}", prompt=f"a ball number {n}")
        for n in range(300)
    ]
    good = [record(name=f"good{n}", prompt="a ball") for n in range(300)]

    def keys(records):
        asked = plan_questions(records, tasks=["look"], false_alarm_share=1.0)
        return {(name, n): q.key for name, questions in asked.items() for n, q in enumerate(questions)}

    before, shares = keys(bad + good), []
    for gone in range(0, 300, 30):
        after = keys(bad[:gone] + bad[gone + 1 :] + good)
        shares.append(sum(before[name] != key for name, key in after.items()) / len(after))
    assert (
        max(shares) < 0.12 and sum(shares) / len(shares) < 0.05
    )  # eight of 300 are looked at, or sixteen of which eight fit
    donors = {
        alarm.donor
        for asked in plan_questions(bad + good, tasks=["look"]).values()
        for q in asked
        for alarm in q.alarms
    }
    assert len(donors) > 200  # and everyone's findings are borrowed


def test_the_teacher_sees_the_anomaly_enlarged_and_is_told_in_the_frames_own_numbers():
    clip = make_clip(1_420_001, anomalous=True)
    of, video = clip.record("x.mp4"), Video.open(clip.pixels, fps=16)
    scan = plan_questions([of])[of.id][0]
    frames = question_frames(scan, video)
    system, close = teacher_context(scan, frames, video, close_ups=True)
    assert (
        system.role == "system" and f"(sample {of.id}, scan)" in system.text and '"status": "abnormal"' in system.text
    )
    first = min(n for n, t in enumerate(frames.times_s) if t >= expected_anomalies(scan, frames)[0].window.start_s)
    assert f'"Attributed Time Region": "Frame {first}-' in system.text and "COT" not in system.text
    assert close.as_images and len(close.frames) <= 8
    height, width = close.frames.shape[1:3]
    assert 16 <= height <= 64 and 16 <= width <= 64 and height * width < 64 * 64
    (alone,) = teacher_context(scan, frames, video, close_ups=False)
    assert alone.text == system.text and alone.frames is None
