"""The store of ratings: on disk at once, never changed, safe with several writers; the export names
what is half-written.
"""

import sqlite3
import subprocess
import sys

import pytest

from cac_align.evaluation.human.store import AnnotationStore, Outdated
from tests.support.rating_actions import LENGTHS, add


def test_actions_are_on_disk_at_once_and_survive_a_second_opening(store):
    first = add(store, "normal", {}, last_known=0, client="one-one-one")
    with sqlite3.connect(store.path) as other:
        assert other.execute("SELECT rater, kind FROM actions").fetchall() == [("ann", "normal")]
    again = AnnotationStore(store.path)
    assert again.state("ann", "t", LENGTHS).last == first.last
    again.close()


def test_the_table_cannot_be_rewritten(store):
    add(store, "normal", {}, last_known=0, client="one-one-one")
    for statement in ("UPDATE actions SET rater = 'eve'", "DELETE FROM actions"):
        with sqlite3.connect(store.path) as other, pytest.raises(sqlite3.IntegrityError, match="never"):
            other.execute(statement)


def test_a_refused_action_leaves_no_trace(store):
    with pytest.raises(ValueError, match="type must be one of"):
        add(store, "type", {"anomaly": 0, "type": "Ugly"}, last_known=0, client="one-one-one")
    assert store.actions("ann", "t") == []


def test_the_same_action_sent_twice_counts_once(store):
    state = add(store, "start", {"anomaly": 0, "frame": 1}, last_known=0, client="same-one")
    again = add(store, "start", {"anomaly": 0, "frame": 1}, last_known=0, client="same-one")
    assert again.last == state.last and len(store.actions("ann", "t")) == 1


def test_a_page_that_is_behind_is_refused_and_other_raters_are_not(store):
    add(store, "normal", {}, last_known=0, client="one-one-one")
    with pytest.raises(Outdated, match="another window"):
        add(store, "start", {"anomaly": 0, "frame": 1}, last_known=0, client="two-two-two")
    assert add(store, "start", {"anomaly": 0, "frame": 1}, rater="bob", last_known=0, client="bob-bob-1").last
    assert store.raters() == ["ann", "bob"]


def test_two_processes_write_at_once(store):
    code = """
import sys
from cac_align.evaluation.human.store import AnnotationStore
store, rater, last_known = AnnotationStore(sys.argv[1]), sys.argv[2], 0
for number in range(40):
    kind, detail = ("normal", {}) if number % 2 else ("type", {"anomaly": 0, "type": "Object Distortion"})
    last_known = store.add(rater=rater, task="t", lengths={"c": 10}, clip="c", kind=kind, detail=detail,
                           last_known=last_known,
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
