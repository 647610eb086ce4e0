"""Which questions are asked, whatever the order of the records."""

from cac_align.core.judgement import Anomaly, Box, Window
from cac_align.data.records import Record
from cac_align.data.synthesis.plan import plan_questions
from cac_align.data.visibility import (
    window_duration_s,
)

BOX = (Box(100, 100, 200, 200),)


def anomaly(start, end, kind="Object Distortion", frames=(), fps=16):
    return Anomaly(kind, Window(start / fps, end / fps), f"it melts at {start}", "box", dict.fromkeys(frames, BOX))


def record(*anomalies, name="r", frames=49, prompt="a red ball"):
    status = "abnormal" if anomalies else "normal"
    return Record(name, f"{name}.mp4", prompt, 16.0, frames, 64, 64, status, anomalies, "ann")


def test_questions_do_not_depend_on_the_order_of_the_records_and_normal_clips_are_as_long_as_anomalous_ones():
    bad = [record(anomaly(n, n + 4, frames=(n, n + 2)), name=f"bad{n}", prompt=f"a ball number {n}") for n in range(8)]
    good = [record(name=f"good{n}") for n in range(30)]
    questions = plan_questions(bad + good)
    again = plan_questions((bad + good)[::-1])
    assert {name: [q.key for q in asked] for name, asked in questions.items()} == {
        name: [q.key for q in asked] for name, asked in again.items()
    }
    lengths = {
        status: {
            round(window_duration_s(q.window, 16), 6)
            for name, asked in questions.items()
            for q in asked
            if q.window and name[:3] == start
        }
        for status, start in (("normal", "goo"), ("abnormal", "bad"))
    }
    assert lengths["normal"] <= lengths["abnormal"] and len(lengths["normal"]) > 1
    false = [q for name, asked in questions.items() for q in asked if q.task == "look" and name.startswith("good")]
    assert len(false) == 30 and all(q.alarms and q.window == q.alarms[0].window for q in false)
    assert all(alarm.record == q.record and alarm.donor.startswith("bad") for q in false for alarm in q.alarms)
    assert [q.task for q in questions["bad0"]] == ["scan", "look", "frame", "frame"]


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
