"""A store of ratings, and the actions of a rater."""

import pytest

from cac_align.evaluation.human.store import AnnotationStore

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


def add(store, kind, detail, *, rater="ann", last_known, client, task="t"):
    return store.add(
        rater=rater,
        task=task,
        lengths=LENGTHS,
        clip="c",
        kind=kind,
        detail=detail,
        last_known=last_known,
        client=client,
    )
