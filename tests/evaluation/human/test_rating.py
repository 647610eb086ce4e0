"""Actions fold into ratings, undo walks back through every state, and what does not fit is refused
with a sentence.
"""

import pytest

from cac_align.evaluation.human.rating import Action, fold

LENGTHS = {"c": 10}


def actions(*rows):
    return [Action(number, kind, "c", detail) for number, (kind, detail) in enumerate(rows, 1)]


def complete(frame=2):
    """The actions of one whole anomaly."""
    return [
        ("start", {"anomaly": 0, "frame": frame}),
        ("end", {"anomaly": 0, "frame": frame + 2}),
        ("type", {"anomaly": 0, "type": "Human Distortion"}),
        ("box", {"anomaly": 0, "frame": frame + 1, "box": [100, 200, 300, 400]}),
        ("reason", {"anomaly": 0, "text": "  six fingers "}),
    ]


def test_actions_fold_into_a_rating():
    rating = fold(actions(*complete(), ("done", {})), LENGTHS)
    (mark,) = rating.ratings["c"].anomalies
    assert rating.done and rating.ratings["c"].status == "abnormal"
    assert (mark.start, mark.end, mark.type, mark.reason) == (2, 4, "Human Distortion", "six fingers")
    assert [box.to_json() for box in mark.boxes[3]] == [[100, 200, 300, 400]]


def test_undo_walks_back_through_every_state():
    rows = [*complete(), ("saliency", {"anomaly": 0, "saliency": "salient"}), ("normal", {}), ("done", {})]
    states = [fold(actions(*rows[:count]), LENGTHS).ratings["c"].to_json() for count in range(len(rows) + 1)]
    log = actions(*rows)
    for expected in reversed(states[:-1]):
        log.append(Action(len(log) + 1, "undo", "c", {"action": fold(log, LENGTHS).undoable}))
        assert fold(log, LENGTHS).ratings["c"].to_json() == expected
    assert fold(log, LENGTHS).undoable is None


def test_normal_drops_marks_and_undo_brings_them_back():
    log = actions(*complete(), ("normal", {}))
    assert fold(log, LENGTHS).ratings["c"].anomalies == []
    log.append(Action(len(log) + 1, "undo", "c", {"action": len(log)}))
    assert len(fold(log, LENGTHS).ratings["c"].anomalies) == 1


def test_a_changed_rating_must_be_confirmed_again():
    log = actions(*complete(), ("done", {}), ("type", {"anomaly": 0, "type": "Object Distortion"}))
    assert not fold(log, LENGTHS).done


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("done", {})], "not judged yet"),
        ([("start", {"anomaly": 0, "frame": 3}), ("done", {})], "has no type"),
        ([*complete(), ("end", {"anomaly": 0, "frame": 1}), ("done", {})], "before it begins"),
        (
            [*complete(), ("box", {"anomaly": 0, "frame": 9, "box": [0, 0, 5, 5]}), ("done", {})],
            "frame 9, outside its window",
        ),
        ([("start", {"anomaly": 0, "frame": 10})], r"frame must be a whole number in \[0, 9\], received 10"),
        ([("start", {"anomaly": 1, "frame": 0})], "anomaly must be a whole number"),
        ([("start", {"anomaly": 0, "frame": True})], "frame must be a whole number"),
        ([("type", {"anomaly": 0, "type": "Ugly"})], "type must be one of Object Distortion"),
        ([("box", {"anomaly": 0, "frame": 0, "box": [5, 5, 5, 9]})], "empty or inverted"),
        ([("reason", {"anomaly": 0, "text": "x" * 2001})], "at most 2000 characters"),
        ([("unbox", {"anomaly": 0, "frame": 0})], "anomaly must be"),
        ([("undo", {"action": 1})], "nothing to undo"),
        ([("explode", {})], "action must be one of"),
    ],
)
def test_what_does_not_fit_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        fold(actions(*rows), LENGTHS)
