"""Confirmed ratings as records; unfinished ones are named."""

import json

import numpy as np

from cac_align.cli.main import main
from cac_align.core.encoding import write_mp4
from cac_align.data.records import read_records, write_records
from cac_align.evaluation.human.experts import read_ratings
from cac_align.evaluation.human.export import export_ratings
from cac_align.evaluation.human.tasks import RatingTask, TaskMember
from cac_align.evaluation.pairing import read_folder
from tests.support.rating_actions import add, complete


def test_export_writes_confirmed_ratings_and_names_the_half_written(store, tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("a", "b", "d"):
        write_mp4(tmp_path / "videos" / f"{name}.mp4", np.zeros((10, 32, 32, 3), np.uint8), 8.0)
    (tmp_path / "videos" / "prompts.jsonl").write_text(json.dumps({"video": "a.mp4", "prompt": "a hand"}) + "\n")
    clips = read_folder(tmp_path / "videos").clips
    tasks = [RatingTask(f"t-{clip.name}", clip.name, (TaskMember("c", clip, {"videos": None}),)) for clip in clips]
    for task, rows in zip(tasks, ([*complete(), ("done", {})], complete()[:2], [("normal", {})]), strict=True):
        last_known = 0
        for number, (kind, detail) in enumerate(rows):
            last_known = add(
                store, kind, detail, last_known=last_known, client=f"{task.name}-{number}-----", task=task.token
            ).last
    made = export_ratings(store, tasks, tmp_path)
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
    assert {fault.kind for fault in export_ratings(store, [], tmp_path).half_written} == {"rated, not there"}
    store.describe(tasks)
    assert export_ratings(store, [], tmp_path) == made


def test_the_database_itself_is_read_as_ratings(store, tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    write_mp4(tmp_path / "videos" / "a.mp4", np.zeros((10, 32, 32, 3), np.uint8), 8.0)
    (clip,) = read_folder(tmp_path / "videos").clips
    task = RatingTask("t", clip.name, (TaskMember("c", clip, {"videos": None}),))
    store.describe([task])
    for number, (kind, detail) in enumerate([*complete(), ("done", {})]):
        add(store, kind, detail, last_known=number, client=f"action-{number}-----")
    add(store, "normal", {}, rater="bob", last_known=0, client="bob-0-----")
    for place in (tmp_path / "ratings.sqlite", tmp_path):  # the folder holds no export yet
        records, faults = read_ratings(place)
        assert [(record.annotator, record.status, record.video) for record in records] == [
            ("ann", "abnormal", "videos/a.mp4")
        ]
        assert [fault.kind for fault in faults] == ["half-written rating"]
    assert main(["evaluate", "experts", str(tmp_path / "ratings.sqlite"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["anomaly_rate"]["videos"]["value"] == 1.0
