"""The log of a run: cut back on resume, JSON without NaN, and the same numbers for a tracker."""

import json

import numpy as np
import pytest

from cac_align.runs.metrics_log import JsonlLog, cut_rows, json_values, numbers_of, open_tracker, read_rows, track


def test_the_log_drops_torn_lines_and_rows_of_steps_that_will_be_taken_again(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonlLog(path)
    for step in range(3):
        log.add({"step": step, "score": float("nan") if step else np.float32(0.5)})
    with path.open("a") as file:
        file.write('{"step": 3, "sco')
    assert [row["step"] for row in read_rows(path)] == [0, 1, 2] == [row["step"] for row in JsonlLog(path).rows]
    again = JsonlLog(path, before=2)
    assert again.add({"step": 2, "score": 1.0}) == {"step": 2, "score": 1.0}
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 0, "score": 0.5}, {"step": 1, "score": None}, {"step": 2, "score": 1.0},
    ]  # fmt: skip
    assert again.rows == read_rows(path)


def test_a_file_that_is_not_there_has_no_rows_and_is_not_made(tmp_path):
    assert read_rows(tmp_path / "none") == [] == cut_rows(tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_values_are_rounded_to_significant_digits():
    assert json_values({"x": [float("inf"), 1, True], "y": 0.123456789}) == {"x": [None, 1, True], "y": 0.12345679}
    assert json_values(1234.56789, 6) == 1234.57 and json_values(0.1 + 0.2, None) == 0.1 + 0.2


def test_numbers_of_a_row():
    assert numbers_of({"a": 1, "b": {"c": 2.5, "d": None}, "e": "x", "f": True}, "p/") == {"p/a": 1.0, "p/b/c": 2.5}


def test_tensorboard_gets_the_numbers_at_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = open_tracker("tensorboard", tmp_path, 1)
    track(tracker, {"step": 1, "loss": 2.5, "best": True}, "train")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [event.value for event in events.Scalars("train/loss")] == [2.5]
    track(open_tracker("", tmp_path, 1), {"step": 1, "loss": 2.5})
