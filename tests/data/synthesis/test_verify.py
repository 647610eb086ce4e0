"""A teacher's answer is kept when labels, time and boxes agree with people and it does not say that
it knew: each rule, by hand.
"""

import json

import numpy as np
import pytest

from cac_align.core.judgement import Anomaly, Box, Window
from cac_align.core.video import Frames
from cac_align.data.synthesis.verify import admits_mistake, answer_faults, mentions_hint

FRAMES = Frames(np.zeros((9, 8, 8, 3), np.uint8), tuple(range(0, 36, 4)), tuple(n / 4 for n in range(9)), 4.0, 36)


def truth(first=2, last=5, kind="Object Distortion", boxes=None):
    return Anomaly(kind, Window(first / 4, last / 4), "melts", "box", boxes or {})


def answer(region="Frame 2-5", label="Object Distortion", boxes=None, thought="Step 1: fine.", **changes):
    item = {
        "Attributed Time Region": region,
        "Attributed Label": label,
        "Reason for Anomaly": "melts",
        "Problem Region": "box",
    }
    item |= {"BBOX": boxes} if boxes is not None else {}
    return json.dumps({"COT": thought, "status": "abnormal", "anomalies": [item], **changes})


NORMAL = json.dumps({"COT": "Step 1: fine.", "status": "normal", "anomalies": []})


def rules(text, meant, number=1, strict=False):
    return [fault.split(":")[0] for fault in answer_faults(text, meant, FRAMES, number=number, strict=strict)]


def test_a_right_answer_has_no_fault():
    assert rules(answer(), [truth()]) == [] and rules(NORMAL, []) == []


@pytest.mark.parametrize(
    "region, strict, expected",
    [
        ("Frame 2-4", False, []),  # 3 of 4 frames
        ("Frame 2-3", False, ["time"]),  # IoU exactly 0.5 does not exceed it
        ("Frame 4-7", False, ["time"]),  # 2 of 6
        ("Frame 1-7", False, []),  # 4 of 7
        ("Frame 1-7", True, []),  # both ends within two frames, all covered
        ("Frame 2-4", True, ["time"]),  # covers 75 %
        ("Frame 0-6", True, []),
        ("Frame 2-8", True, ["time"]),  # IoU 4/7, but the end is three frames off
    ],
)
def test_time(region, strict, expected):
    assert rules(answer(region), [truth()], strict=strict) == expected


def test_labels_are_compared_exactly_and_as_a_set():
    two = json.loads(answer())
    two["anomalies"] *= 2
    assert rules(json.dumps(two), [truth()]) == []  # two instances of one category are one group
    assert rules(answer(label="Physical Violations"), [truth()]) == ["labels"]
    assert rules(answer(), [truth(), truth(kind="Motion Anomalies")]) == ["labels"]
    assert rules(answer(label="object distortion"), [truth()])[0] == "format"


def test_status():
    assert rules(NORMAL, [truth()]) == ["status"] and rules(answer(), []) == ["status"]
    assert rules("I cannot see the video.", [truth()]) == ["format"]


BOXES = {8: (Box(0, 0, 100, 100),), 12: (Box(0, 0, 100, 100),)}


@pytest.mark.parametrize(
    "boxes, strict, expected",
    [
        ({"Frame 2": [0, 0, 100, 100], "Frame 3": [0, 0, 100, 100]}, True, []),
        ({"Frame 2": [0, 0, 100, 100]}, False, ["boxes"]),  # one of two: 0.5
        ({"Frame 2": [0, 0, 100, 100], "Frame 3": [0, 0, 100, 40]}, False, []),  # (1 + 0.4) / 2
        ({"Frame 2": [0, 0, 100, 100], "Frame 3": [0, 0, 100, 40]}, True, ["boxes"]),
        (
            {"Frame 2": [0, 0, 100, 70], "Frame 3": [0, 0, 100, 70], "Frame 7": [0, 0, 9, 9]},
            False,
            ["boxes"],
        ),  # 1.4 / 3
        (
            {"Frame 2": [0, 0, 100, 70], "Frame 3": [0, 0, 100, 70], "Frame 5": [0, 0, 9, 9]},
            False,
            [],
        ),  # in the window, unannotated
        ({"Frame 2": [500, 500, 600, 600], "Frame 3": [500, 500, 600, 600]}, False, ["boxes"]),
    ],
)
def test_boxes(boxes, strict, expected):
    assert rules(answer(boxes=boxes), [truth(boxes=BOXES)], number=2, strict=strict) == expected


def test_boxes_that_nobody_drew_cannot_be_compared():
    assert rules(answer(boxes={"Frame 2": [0, 0, 1, 1]}), [truth()], number=2) == []


@pytest.mark.parametrize(
    "text",
    [
        "The ground truth says so.",
        "As the annotation shows, it melts.",
        "According to the labels, it melts.",
        "as hinted, frame 3",
        "The given label is right.",
        "I was told that it melts.",
        "the provided bounding: the provided bbox",
        "People found a defect.",
        "the expected answer",
        "The hint points to frame 3.",
        "matches the human annotations",
        "the marked region: the marked box",
    ],
)
def test_talk_of_the_hint_is_rejected(text):
    assert mentions_hint(text)
    assert "hint" in rules(answer(thought=text), [truth()])


@pytest.mark.parametrize(
    "text",
    [
        "There is a hint of blur on the box.",
        "People found in the park walk on; the labels on the bottle are sharp.".replace("People found", "People seen"),
        "The first look suspected the box; the suspicion is right.",
        "given the light, the shadow is plausible",
        "a box is marked red",
    ],
)
def test_ordinary_talk_is_not(text):
    assert mentions_hint(text) is None


def test_a_scan_does_not_admit_that_it_is_mistaken_but_a_look_may_say_so_of_what_it_was_told():
    for text in (
        "This is a false alarm.",
        "A mistaken inspector sees it melt.",
        "The box is wrongly suspected.",
        "As in another video",
    ):
        assert admits_mistake(text) and rules(answer(thought=text), [truth()]) == ["hint"]
        assert rules(answer(boxes={"Frame 2": [0, 0, 1, 1]}, thought=text), [truth()], number=2) == []
    assert admits_mistake("The lamp could be mistaken for a ball; no alarm is seen in the video.") is None
    assert answer_faults(NORMAL, [truth()], FRAMES, number=1) == ("status: normal, expected abnormal",)
