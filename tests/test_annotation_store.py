"""Ratings: actions fold into records, undo goes all the way back, nothing stored is ever changed, and writers do not lose each other."""

import json
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from cac_align.data.records import read_records, write_records
from cac_align.encoding import write_mp4
from cac_align.evaluation.annotation_store import Action, AnnotationStore, Member, Outdated, Task, export, fold
from cac_align.evaluation.pairing import read_folder

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
    (mark,) = rating.ratings["c"].marks
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
    assert fold(log, LENGTHS).ratings["c"].marks == []
    log.append(Action(len(log) + 1, "undo", "c", {"action": len(log)}))
    assert len(fold(log, LENGTHS).ratings["c"].marks) == 1


def test_a_changed_rating_must_be_confirmed_again():
    log = actions(*complete(), ("done", {}), ("type", {"anomaly": 0, "type": "Object Distortion"}))
    assert not fold(log, LENGTHS).done


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("done", {})], "not judged yet"),
        ([("start", {"anomaly": 0, "frame": 3}), ("done", {})], "has no type"),
        ([*complete(), ("end", {"anomaly": 0, "frame": 1}), ("done", {})], "before it begins"),
        ([*complete(), ("box", {"anomaly": 0, "frame": 9, "box": [0, 0, 5, 5]}), ("done", {})], "frame 9, outside its window"),
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


@pytest.fixture
def store(tmp_path):
    made = AnnotationStore(tmp_path / "ratings.sqlite")
    yield made
    made.close()


def add(store, kind, detail, *, rater="ann", seen, client, task="t"):
    return store.add(rater=rater, task=task, lengths=LENGTHS, clip="c", kind=kind, detail=detail, seen=seen, client=client)


def test_actions_are_on_disk_at_once_and_survive_a_second_opening(store):
    first = add(store, "normal", {}, seen=0, client="one-one-one")
    with sqlite3.connect(store.path) as other:
        assert other.execute("SELECT rater, kind FROM actions").fetchall() == [("ann", "normal")]
    again = AnnotationStore(store.path)
    assert again.state("ann", "t", LENGTHS).last == first.last
    again.close()


def test_the_table_cannot_be_rewritten(store):
    add(store, "normal", {}, seen=0, client="one-one-one")
    for statement in ("UPDATE actions SET rater = 'eve'", "DELETE FROM actions"):
        with sqlite3.connect(store.path) as other, pytest.raises(sqlite3.IntegrityError, match="never"):
            other.execute(statement)


def test_a_refused_action_leaves_no_trace(store):
    with pytest.raises(ValueError, match="type must be one of"):
        add(store, "type", {"anomaly": 0, "type": "Ugly"}, seen=0, client="one-one-one")
    assert store.actions("ann", "t") == []


def test_the_same_action_sent_twice_counts_once(store):
    state = add(store, "start", {"anomaly": 0, "frame": 1}, seen=0, client="same-one")
    again = add(store, "start", {"anomaly": 0, "frame": 1}, seen=0, client="same-one")
    assert again.last == state.last and len(store.actions("ann", "t")) == 1


def test_a_page_that_is_behind_is_refused_and_other_raters_are_not(store):
    add(store, "normal", {}, seen=0, client="one-one-one")
    with pytest.raises(Outdated, match="another window"):
        add(store, "start", {"anomaly": 0, "frame": 1}, seen=0, client="two-two-two")
    assert add(store, "start", {"anomaly": 0, "frame": 1}, rater="bob", seen=0, client="bob-bob-1").last
    assert store.raters() == ["ann", "bob"]


def test_two_processes_write_at_once(store):
    code = """
import sys
from cac_align.evaluation.annotation_store import AnnotationStore
store, rater, seen = AnnotationStore(sys.argv[1]), sys.argv[2], 0
for number in range(40):
    kind, detail = ("normal", {}) if number % 2 else ("type", {"anomaly": 0, "type": "Object Distortion"})
    seen = store.add(rater=rater, task="t", lengths={"c": 10}, clip="c", kind=kind, detail=detail, seen=seen,
                     client=f"{rater}-{number:08d}").last
"""
    running = [subprocess.Popen([sys.executable, "-c", code, str(store.path), rater]) for rater in ("ann", "bob")]
    assert [process.wait(120) for process in running] == [0, 0]
    for rater in ("ann", "bob"):
        assert [a.kind for a in store.actions(rater, "t")] == ["type", "normal"] * 20


def test_tokens_are_opaque_stable_and_bound_to_the_content(store):
    tokens = store.tokens("clip", {"before/a.mp4": "hash-1", "after/a.mp4": "hash-2"})
    assert store.tokens("clip", {"before/a.mp4": "hash-1"}) == {"before/a.mp4": tokens["before/a.mp4"]}
    assert len(set(tokens.values())) == 2 and not any("before" in token or "hash" in token for token in tokens.values())
    with pytest.raises(ValueError, match="before/a.mp4 is another video"):
        store.tokens("clip", {"before/a.mp4": "hash-3"})


def test_a_path_that_cannot_be_a_database_is_refused(tmp_path):
    (tmp_path / "text").write_text("not a database, and long enough to be one" * 50)
    with pytest.raises(ValueError, match="cannot be used as the database"):
        AnnotationStore(tmp_path / "text")


def test_export_writes_confirmed_ratings_and_names_the_half_written(store, tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("a", "b", "d"):
        write_mp4(tmp_path / "videos" / f"{name}.mp4", np.zeros((10, 32, 32, 3), np.uint8), 8.0)
    (tmp_path / "videos" / "prompts.jsonl").write_text(json.dumps({"video": "a.mp4", "prompt": "a hand"}) + "\n")
    clips = read_folder(tmp_path / "videos").clips
    tasks = [Task(f"t-{clip.name}", clip.name, (Member("c", clip, {"videos": None}),)) for clip in clips]
    for task, rows in zip(tasks, ([*complete(), ("done", {})], complete()[:2], [("normal", {})]), strict=True):
        seen = 0
        for number, (kind, detail) in enumerate(rows):
            seen = add(store, kind, detail, seen=seen, client=f"{task.name}-{number}-----", task=task.token).last
    made = export(store, tasks, tmp_path)
    assert [(fault.name, fault.why) for fault in made.half_written] == [
        ("ann: b.mp4", "anomaly 1 has no type (1–5)"),
        ("ann: d.mp4", "complete, but not confirmed with n"),
    ]
    write_records(tmp_path / "out.jsonl", made.records)
    (record,) = read_records(tmp_path / "out.jsonl")
    assert (record.video, record.prompt, record.annotator, record.review) == ("videos/a.mp4", "a hand", "ann", "draft")
    (anomaly,) = record.anomalies
    assert (anomaly.window.start_s, anomaly.window.end_s) == (0.25, 0.5)  # frames 2 and 4 at 8 fps
    assert {frame: [box.to_json() for box in boxes] for frame, boxes in anomaly.boxes.items()} == {3: [[100, 200, 300, 400]]}
    assert record.extra == {"group": "videos", "pair": None, "task": "a.mp4"}
    assert store.finished("ann", tasks) == {"t-a.mp4"}
