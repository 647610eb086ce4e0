"""Reading an answer is the format check of Eq. 2: every fault has a name, nothing hostile raises, and JSON round trips are exact."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cac_align.core.answer import read_answer, write_answer
from cac_align.core.judgement import (
    ANOMALY_TYPES,
    Anomaly,
    Box,
    Turn,
    Window,
)

FRAMES = tuple(range(0, 81, 4))
TIMES_S = tuple(index / 16 for index in FRAMES)


def anomaly(**changes: Any) -> dict[str, Any]:
    row = {
        "Attributed Time Region": "Frame 4-8",
        "Attributed Label": "Human Distortion",
        "Reason for Anomaly": "a sixth finger",
        "Problem Region": "left hand",
        "BBOX": {"Frame 5": [100, 200, 300, 400]},
    } | changes
    return {key: value for key, value in row.items() if value is not ...}


def answer(**changes: Any) -> dict[str, Any]:
    row = {"COT": "Step 1: ...", "status": "abnormal", "anomalies": [anomaly()]} | changes
    return {key: value for key, value in row.items() if value is not ...}


NORMAL = {"COT": "all fine", "status": "normal", "anomalies": []}


def read(row: Any, number: int = 1) -> Turn:
    return read_answer(row if isinstance(row, str) else json.dumps(row), number=number, frames=FRAMES, times_s=TIMES_S)


# ---- a sound answer -----------------------------------------------------------------------------------------------


def test_a_sound_first_turn_is_read_into_seconds_and_source_frames() -> None:
    turn = read(answer())
    assert turn.valid and turn.faults == ()
    assert (turn.status, turn.chain_of_thought, turn.number, turn.frames) == ("abnormal", "Step 1: ...", 1, FRAMES)
    (found,) = turn.anomalies
    assert found.window == Window(1.0, 2.0)  # frames 4 and 8 of the 4-fps grid
    assert found.boxes == {20: (Box(100, 200, 300, 400),)}  # frame 5 is source frame 20
    assert (found.type, found.reason, found.region) == ("Human Distortion", "a sixth finger", "left hand")


def test_a_normal_answer_has_no_anomalies() -> None:
    for number in (1, 2):
        turn = read(NORMAL, number)
        assert turn.valid and turn.status == "normal" and turn.anomalies == ()


def test_a_second_turn_may_leave_the_window_to_its_clip() -> None:
    turn = read(answer(anomalies=[anomaly(**{"Attributed Time Region": ...})]), 2)
    assert turn.valid and turn.anomalies[0].window == Window(0.0, 5.0)


def test_several_boxes_on_one_frame() -> None:
    boxes = {"Frame 5": [[1, 2, 3, 4], [5, 6, 7, 8]], "frame 6": [0, 0, 1000, 1000]}
    assert read(answer(anomalies=[anomaly(BBOX=boxes)]), 2).anomalies[0].boxes == {
        20: (Box(1, 2, 3, 4), Box(5, 6, 7, 8)),
        24: (Box(0, 0, 1000, 1000),),
    }


@pytest.mark.parametrize(
    "region",
    ["Frame 4-8", "frame 4 - 8", "Frames 4–8", "4-8", "Frame 4 to Frame 8", " Frame 4—8 ", "frames 4~8", "Frame 04-08"],
)
def test_spellings_of_a_region(region: str) -> None:
    assert read(answer(anomalies=[anomaly(**{"Attributed Time Region": region})])).anomalies[0].window == Window(
        1.0, 2.0
    )


def test_a_region_of_one_frame() -> None:
    assert read(answer(anomalies=[anomaly(**{"Attributed Time Region": "Frame 20"})])).anomalies[0].window == Window(
        5.0, 5.0
    )


@pytest.mark.parametrize(
    "around",
    [
        "{}",
        "```json\n{}\n```",
        "```\n{}```",
        "Sure, here it is:\n{}\nI hope this helps!",
        "\ufeff  {}\n\n",
        "{} Note: a } alone, and a {{",
    ],
)
def test_fences_and_stray_text_are_tolerated(around: str) -> None:
    text = around.replace("{}", json.dumps(answer()), 1).replace("{{", "{")
    assert read(text).valid


def test_raw_line_breaks_inside_strings_are_tolerated() -> None:
    assert read('{"COT": "Step 1:\n\tfine", "status": "normal", "anomalies": []}').chain_of_thought == "Step 1:\n\tfine"


# ---- every fault has a name ---------------------------------------------------------------------------------------

FAULTS: list[tuple[int, Any, str]] = [
    (1, "", "not json: the answer holds no JSON object"),
    (1, "normal", "not json: the answer holds no JSON object"),
    (1, "[1, 2]", "not json: the answer holds no JSON object"),
    (1, '{"COT": "x", "status": "normal", "anomalies": [', "not json"),
    (1, "{'COT': 'x', 'status': 'normal', 'anomalies': []}", "not json"),
    (1, '{"COT": "x", "status": "normal", "anomalies": [],}', "not json"),
    (1, '{"COT": NaN, "status": "normal", "anomalies": []}', "not json: the constant NaN"),
    (1, json.dumps(NORMAL) + json.dumps(NORMAL), "several objects: expected one JSON object, found 2"),
    (1, '{"COT": "x", "status": "abnormal", "status": "normal", "anomalies": []}', "duplicate key: 'status'"),
    (1, answer(COT=...), "COT: missing"),
    (1, answer(COT=["a"]), "COT: expected a string"),
    (1, answer(status=...), "status: missing"),
    (1, answer(status="Normal"), "status: expected 'normal' or 'abnormal', received 'Normal'"),
    (1, answer(status=None), "status: expected 'normal' or 'abnormal', received None"),
    (1, answer(status=["normal"]), "status: expected 'normal' or 'abnormal'"),
    (1, answer(anomalies=...), "anomalies: missing"),
    (1, answer(anomalies={}), "anomalies: expected a list"),
    (1, answer(anomalies=[]), "anomalies: must name at least one anomaly when status is abnormal"),
    (1, answer(status="normal"), "anomalies: must be empty when status is normal, received 1"),
    (1, answer(score=5), "unknown key: 'score'; expected COT, status, anomalies"),
    (1, answer(anomalies=["finger"]), "anomalies[0].(object): expected an object"),
    (1, answer(anomalies=[anomaly(), None]), "anomalies[1].(object): expected an object"),
    (1, answer(anomalies=[anomaly(confidence=1)]), "anomalies[0].unknown key: 'confidence'"),
    (1, answer(anomalies=[anomaly(**{"Reason for Anomaly": ...})]), "anomalies[0].Reason for Anomaly: missing"),
    (1, answer(anomalies=[anomaly(**{"Problem Region": 3})]), "anomalies[0].Problem Region: expected a string"),
    (
        1,
        answer(anomalies=[anomaly(**{"Attributed Label": "Finger"})]),
        "Attributed Label: expected one of the five labels, received 'Finger'",
    ),
    (
        1,
        answer(anomalies=[anomaly(**{"Attributed Label": ["Human Distortion"]})]),
        "Attributed Label: expected one of the five",
    ),
    (
        1,
        answer(anomalies=[anomaly(**{"Attributed Label": ...})]),
        "Attributed Label: expected one of the five labels, received None",
    ),
    (1, answer(anomalies=[anomaly(**{"Attributed Time Region": ...})]), "Attributed Time Region: missing"),
    (
        1,
        answer(anomalies=[anomaly(**{"Attributed Time Region": "early"})]),
        "Attributed Time Region: expected 'Frame a-b', received 'early'",
    ),
    (
        1,
        answer(anomalies=[anomaly(**{"Attributed Time Region": [4, 8]})]),
        "Attributed Time Region: expected 'Frame a-b'",
    ),
    (
        1,
        answer(anomalies=[anomaly(**{"Attributed Time Region": "Frame 8-4"})]),
        "Attributed Time Region: inverted: 8-4",
    ),
    (
        1,
        answer(anomalies=[anomaly(**{"Attributed Time Region": "Frame 4-21"})]),
        "outside the video: 4-21, the frames shown are 0-20",
    ),
    (1, answer(anomalies=[anomaly(**{"Attributed Time Region": "Frame -3-4"})]), "expected 'Frame a-b'"),
    (2, answer(anomalies=[anomaly(BBOX=...)]), "anomalies[0].BBOX: missing"),
    (2, answer(anomalies=[anomaly(BBOX={})]), "anomalies[0].BBOX: missing"),
    (2, answer(anomalies=[anomaly(BBOX=[1, 2, 3, 4])]), "BBOX: expected an object keyed 'Frame n'"),
    (2, answer(anomalies=[anomaly(BBOX={"5": [1, 2, 3, 4]})]), "BBOX: expected keys 'Frame n', received '5'"),
    (2, answer(anomalies=[anomaly(BBOX={"Frame 21": [1, 2, 3, 4]})]), "'Frame 21' is not a frame of the clip (0-20)"),
    (2, answer(anomalies=[anomaly(BBOX={"Frame 5": [1, 2, 3]})]), "'Frame 5': expected [xmin, ymin, xmax, ymax]"),
    (2, answer(anomalies=[anomaly(BBOX={"Frame 5": "everywhere"})]), "'Frame 5': expected [xmin, ymin, xmax, ymax]"),
    (2, answer(anomalies=[anomaly(BBOX={"Frame 5": []})]), "'Frame 5': expected [xmin, ymin, xmax, ymax]"),
    (
        2,
        answer(anomalies=[anomaly(BBOX={"Frame 5": [[1, 2, 3, 4], [5]]})]),
        "'Frame 5': expected [xmin, ymin, xmax, ymax], received [5]",
    ),
    (
        2,
        answer(anomalies=[anomaly(BBOX={"Frame 5": [1, 2, 3, 1001]})]),
        "Box.ymax must lie in [0, 1000], received 1001",
    ),
    (2, answer(anomalies=[anomaly(BBOX={"Frame 5": [-1, 2, 3, 4]})]), "Box.xmin must lie in [0, 1000], received -1"),
    (
        2,
        answer(anomalies=[anomaly(BBOX={"Frame 5": [0.5, 2, 3, 4]})]),
        "Box.xmin must be an integer in [0, 1000], received 0.5",
    ),
    (
        2,
        answer(anomalies=[anomaly(BBOX={"Frame 5": [True, 2, 3, 4]})]),
        "Box.xmin must be an integer in [0, 1000], received True",
    ),
    (2, answer(anomalies=[anomaly(BBOX={"Frame 5": [3, 2, 1, 4]})]), "Box is empty or inverted: [3, 2, 1, 4]"),
    (2, answer(anomalies=[anomaly(BBOX={"Frame 5": [3, 2, 3, 4]})]), "Box is empty or inverted"),
    (1, answer(anomalies=[anomaly(BBOX={"Frame 99": [1, 2, 3, 4]})]), "'Frame 99' is not a frame of the clip"),
]


@pytest.mark.parametrize(("number", "row", "fault"), FAULTS)
def test_every_fault_is_named_and_is_the_only_one(number: int, row: Any, fault: str) -> None:
    turn = read(row, number)
    assert not turn.valid
    assert len(turn.faults) == 1 and fault in turn.faults[0], turn.faults


def test_several_faults_are_all_listed_and_what_is_sound_is_kept() -> None:
    row = answer(COT=..., anomalies=[anomaly(), anomaly(**{"Attributed Label": "x", "Attributed Time Region": "y"})])
    turn = read(row)
    assert [fault.split(":")[0] for fault in turn.faults] == [
        "COT",
        "anomalies[1].Attributed Label",
        "anomalies[1].Attributed Time Region",
    ]
    assert turn.status == "abnormal" and len(turn.anomalies) == 1


def test_the_answer_inside_a_broken_object_is_not_taken() -> None:
    turn = read('{"COT": "broken, ' + json.dumps(NORMAL))
    assert turn.status is None and not turn.valid


# ---- hostile text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"status": ' + "[" * 900 + "]" * 900 + "}",
        '{"status": ' + "[" * 980 + "]" * 980 + ', "COT": "", "anomalies": []}',
        '{"anomalies": [{"Attributed Label": ' + "[" * 950 + "]" * 950 + "}]}",
        '{"anomalies": [{"BBOX": {"Frame 1": [' + "[" * 940 + "]" * 940 + ", 1, 1, 1]}}]}",
        '{"status": ' + "9" * 10_000 + "}",
        '{"anomalies": [{"Attributed Label": "Human Distortion", "BBOX": {"Frame 1": [1e999, 0, 1, 1]}}]}',
        '{"anomalies": [{"BBOX": {"Frame 1": [' + "9" * 4000 + ", 0, 1, 1]}}]}",
        '{"COT": "\\ud800", "status": "normal", "anomalies": []}',
        '{"anomalies": [{"Attributed Time Region": "Frame ٣-٤"}]}',
        '{"anomalies": [{"Attributed Time Region": "Frame ²-³"}]}',
        "{" * 5000 + "}" * 5000,
        "\x00{\x00}",
        '{"COT": "<script>alert(1)</script>", "status": "normal", "anomalies": []}',
    ],
)
@pytest.mark.parametrize("number", [1, 2])
def test_hostile_text_never_raises_and_round_trips(text: str, number: int) -> None:
    turn = read(text, number)
    assert Turn.from_json(json.loads(json.dumps(turn.to_json()))) == turn


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2000)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(ANOMALY_TYPES),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(["Frame 1", "Frame 30"]), inner, max_size=4)
    ),
    max_leaves=12,
)
keys = st.sampled_from(["COT", "status", "anomalies", "Attributed Time Region", "Attributed Label", "BBOX", "x"])
almost_answers = st.fixed_dictionaries(
    {},
    optional={
        "COT": json_values,
        "status": st.sampled_from(["normal", "abnormal"]) | json_values,
        "anomalies": st.lists(st.dictionaries(keys, json_values, max_size=5) | json_values, max_size=3) | json_values,
        "x": json_values,
    },
)


@given(almost_answers, st.integers(1, 2), st.integers(0, 21))
@settings(max_examples=120, deadline=None)
def test_almost_answers_never_raise(row: dict[str, Any], number: int, shown: int) -> None:
    turn = read_answer(json.dumps(row), number=number, frames=FRAMES[:shown], times_s=TIMES_S[:shown])
    assert Turn.from_json(json.loads(json.dumps(turn.to_json()))) == turn
    for found in turn.anomalies:
        assert set(found.boxes) <= set(FRAMES[:shown])


@given(st.text(alphabet='{}[]":,\\ntrue01 normalstatusCOT\n', max_size=200), st.integers(1, 2))
@settings(max_examples=200, deadline=None)
def test_json_like_noise_never_raises(text: str, number: int) -> None:
    assert isinstance(read(text, number), Turn)


@given(st.integers(0, 400), st.characters(), st.integers(1, 2))
@settings(max_examples=200, deadline=None)
def test_a_damaged_answer_never_raises(position: int, character: str, number: int) -> None:
    text = json.dumps(answer())
    position %= len(text)
    for damaged in (
        text[:position],
        text[:position] + character + text[position + 1 :],
        text[:position] + character + text[position:],
    ):
        turn = read(damaged, number)
        assert turn.valid or turn.faults


# ---- write_answer is the inverse ----------------------------------------------------------------------------------

some_text = st.text(max_size=30)
boxes = st.tuples(st.integers(0, 999), st.integers(0, 999), st.integers(1, 1000), st.integers(1, 1000)).map(
    lambda c: Box(c[0], c[1], min(c[0] + c[2], 1000), min(c[1] + c[3], 1000))
)


@st.composite
def shown_anomalies(draw: st.DrawFn, number: int) -> Anomaly:
    first = draw(st.integers(0, 20))
    last = draw(st.integers(first, 20))
    found = draw(
        st.dictionaries(
            st.sampled_from(FRAMES), st.lists(boxes, min_size=1, max_size=3).map(tuple), min_size=1, max_size=4
        )
        if number == 2
        else st.just({})
    )
    return Anomaly(
        draw(st.sampled_from(ANOMALY_TYPES)),
        Window(TIMES_S[first], TIMES_S[last]),
        draw(some_text),
        draw(some_text),
        found,
    )


@pytest.mark.parametrize("number", [1, 2])
@given(data=st.data(), thought=some_text)
@settings(deadline=None)
def test_what_is_written_is_read_back(number: int, data: st.DataObject, thought: str) -> None:
    anomalies = data.draw(st.lists(shown_anomalies(number), max_size=3))
    text = write_answer(chain_of_thought=thought, anomalies=anomalies, number=number, frames=FRAMES, times_s=TIMES_S)
    turn = read_answer(text, number=number, frames=FRAMES, times_s=TIMES_S)
    assert turn.faults == ()
    assert (turn.status, turn.anomalies) == ("abnormal" if anomalies else "normal", tuple(anomalies))
    assert turn.chain_of_thought == thought


def test_writing_widens_windows_to_the_frames_shown_and_drops_boxes_that_were_not() -> None:
    found = Anomaly("Motion Anomalies", Window(0.9, 1.6), boxes={20: (Box(0, 0, 9, 9),), 21: (Box(0, 0, 8, 8),)})
    text = write_answer(chain_of_thought="", anomalies=[found], number=2, frames=FRAMES, times_s=TIMES_S)
    (row,) = json.loads(text)["anomalies"]
    assert row["Attributed Time Region"] == "Frame 4-6"  # 1.0 to 1.5 s
    assert row["BBOX"] == {"Frame 5": [0, 0, 9, 9]}
