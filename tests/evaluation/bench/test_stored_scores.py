"""Stored scores: by judge, version and record; failures apart."""

import json

import pytest

from cac_align.data.records import Record
from cac_align.evaluation.bench.stored_scores import stored_scores
from cac_align.rewards.reward import Score


def rows_for(records, judge="cac", **extra):
    return [
        json.dumps({"reward": judge, "video": r.video, "prompt": r.prompt, **Score(0.9, provenance=extra).to_json()})
        for r in records
    ]


def test_stored_rows_keep_judges_versions_and_failures_apart(set_of_six):
    folder, records = set_of_six
    lines = rows_for(records, weights="a") + rows_for(records[:2], weights="b")
    failed = {"reward": "cac", "id": "r0", **Score.missing("timeout").to_json()}
    elsewhere = json.loads(rows_for(records[:1], weights="a")[0]) | {"prompt": "another prompt", "score": 0.0}
    unknown = json.loads(rows_for(records[:1], weights="a")[0]) | {"video": "elsewhere.mp4"}
    note = {"key": "0" * 64, "kind": "extra", "extra": {}}
    lines += [json.dumps(row) for row in (failed, elsewhere, unknown, note)]
    (folder / "scores.jsonl").write_text("\n".join(lines) + '\n{"reward": "cac", "vid')  # torn by a dead process
    stored = stored_scores(folder / "scores.jsonl", records)
    assert sorted(len(scores) for scores in stored.values()) == [2, 6]
    assert all(name.startswith("cac@") for name in stored)
    assert all(score.value == 0.9 for scores in stored.values() for score in scores.values())
    alone = folder / "alone.jsonl"
    alone.write_text(json.dumps(failed) + "\n")
    assert stored_scores(alone, records)["cac"]["r0"].error == "timeout"


def test_a_broken_stored_row_is_named(set_of_six):
    folder, records = set_of_six
    path = folder / "scores.jsonl"
    path.write_text(rows_for(records)[0] + "\n{broken\n")
    with pytest.raises(ValueError, match=r"scores.jsonl:2: not JSON"):
        stored_scores(path, records)
    path.write_text('{"video": "videos/0.mp4", "score": 0.3}\n')
    with pytest.raises(ValueError, match="expected a score with"):
        stored_scores(path, records)
    twin = [*records, Record("twin", "other/0.mp4", "prompt 0", 8, 8, 32, 32, "normal")]
    path.write_text(json.dumps({**json.loads(rows_for(records)[0]), "video": "0.mp4"}) + "\n")
    with pytest.raises(ValueError, match="fits more than one record"):
        stored_scores(path, twin)
