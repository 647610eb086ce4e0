"""What is asked about a record: clips that cut no anomaly, frames that show it alone, claims that
do not give the verdict away.
"""

from dataclasses import replace

from cac_align.core.judgement import Anomaly, Box, Window
from cac_align.data.records import Record
from cac_align.data.synthesis.plan import plan_questions

BOX = (Box(100, 100, 200, 200),)


def anomaly(start, end, kind="Object Distortion", frames=(), fps=16):
    return Anomaly(kind, Window(start / fps, end / fps), f"it melts at {start}", "box", dict.fromkeys(frames, BOX))


def record(*anomalies, name="r", frames=49, prompt="a red ball"):
    status = "abnormal" if anomalies else "normal"
    return Record(name, f"{name}.mp4", prompt, 16.0, frames, 64, 64, status, anomalies, "ann")


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
        {"video": "../moved/r.mp4"},
        {"review": "audited"},
        {"annotator": "bob"},
        {"extra": {"n": 1}},
        {"anomalies": (labelled,)},
    ):
        assert (
            keys(replace(of, **same))
            == keys(of)
            == keys(replace(of, **same), replace(ball, video="x.mp4", review="audited"))
        )
    for other in (
        {"prompt": "another"},
        {"num_frames": 48},
        {"width": 32},
        {"height": 32},
        {"fps": 16.5},
        {"id": "s"},
        {"anomalies": (more,)},
    ):
        changed = replace(of, **other)
        asked = plan_questions([changed, ball], false_alarm_share=1.0)[changed.id]
        assert set(keys(of)).isdisjoint(question.key for question in asked)
