"""False alarms: where they are placed, and what they suspect."""

from dataclasses import replace

from cac_align.core.judgement import Anomaly, Box, Window
from cac_align.core.video import Video
from cac_align.data.records import Record
from cac_align.data.synthesis.plan import plan_questions
from cac_align.data.synthesis.questions import expected_anomalies, question_conversation, question_frames
from cac_align.data.synthesis.teacher_context import expected_findings, teacher_context
from cac_align.miniature.world.world import make_clip

BOX = (Box(100, 100, 200, 200),)


def anomaly(start, end, kind="Object Distortion", frames=(), fps=16):
    return Anomaly(kind, Window(start / fps, end / fps), f"it melts at {start}", "box", dict.fromkeys(frames, BOX))


def record(*anomalies, name="r", frames=49, prompt="a red ball"):
    status = "abnormal" if anomalies else "normal"
    return Record(name, f"{name}.mp4", prompt, 16.0, frames, 64, 64, status, anomalies, "ann")


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
