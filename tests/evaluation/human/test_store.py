"""The store of ratings: on disk at once, never changed, safe with several writers; the export names what is half-written."""

import json
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from cac_align.core.encoding import write_mp4
from cac_align.data.records import read_records, write_records
from cac_align.evaluation.human.store import AnnotationStore, Member, Outdated, Task, export
from cac_align.evaluation.pairing import read_folder

LENGTHS = {"c": 10}


def complete(frame=2):
    """The actions of one whole anomaly."""
    return [
        ("start", {"anomaly": 0, "frame": frame}),
        ("end", {"anomaly": 0, "frame": frame + 2}),
        ("type", {"anomaly": 0, "type": "Human Distortion"}),
        ("box", {"anomaly": 0, "frame": frame + 1, "box": [100, 200, 300, 400]}),
        ("reason", {"anomaly": 0, "text": "  six fingers "}),
    ]


@pytest.fixture
def store(tmp_path):
    made = AnnotationStore(tmp_path / "ratings.sqlite")
    yield made
    made.close()


def add(store, kind, detail, *, rater="ann", seen, client, task="t"):
    return store.add(
        rater=rater, task=task, lengths=LENGTHS, clip="c", kind=kind, detail=detail, seen=seen, client=client
    )


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
from cac_align.evaluation.human.store import AnnotationStore
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
    assert {frame: [box.to_json() for box in boxes] for frame, boxes in anomaly.boxes.items()} == {
        3: [[100, 200, 300, 400]]
    }
    assert record.extra == {"group": "videos", "pair": None, "task": "a.mp4"}
    assert store.finished("ann", tasks) == {"t-a.mp4"}
    # Of tasks that are not served it is known when the store was told of them, and named when it was not.
    assert {fault.kind for fault in export(store, [], tmp_path).half_written} == {"rated, not there"}
    store.describe(tasks)
    assert export(store, [], tmp_path) == made
