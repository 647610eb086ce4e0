"""Evidence in TensorBoard and W&B: real files written by the real writers, read back from the disk."""

import io
import json
import struct
import time

import numpy as np
import pytest
from PIL import Image

from cac_align.core.encoding import write_mp4
from cac_align.core.judgement import Anomaly, Box, Judgement, Window
from cac_align.core.video import Video
from cac_align.plugins.common.evidence import (
    draw_strip,
    evidence_text,
    informative_frames,
    log_evidence,
    most_informative,
    read_evidence,
    step_metrics,
)
from cac_align.rewards.cached import cached
from cac_align.rewards.combine import combine
from cac_align.rewards.ledger import Ledger, score_key
from cac_align.rewards.reward import Score
from tests.support.hosting import Brightness, clip

BOX = Box(0, 0, 500, 500)
MELTS = Anomaly("Object Distortion", Window(0.25, 0.5), "melts <b>", "top left", {4: (BOX,)})


class Judge:
    """Mean brightness with a judgement: abnormal below 128."""

    name, bounds, provenance = "judge", (0.0, 1.0), {"reward": "judge"}

    def __call__(self, prompts, videos):
        scores = []
        for prompt, video in zip(prompts, videos, strict=True):
            value = float(video.frames([0]).pixels.mean()) / 255
            found = (MELTS,) if value < 0.5 else ()
            judged = Judgement("abnormal" if found else "normal", found, (), -0.1, -2.0)
            scores.append(Score.missing("judge: told not to") if prompt == "unscorable" else Score(value, {}, judged))
        return scores


@pytest.fixture
def run(tmp_path):
    """Two steps: a bright and a dark clip, then the dark one unscored beside a clip that is gone."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    judge = cached(Judge(), ledger)
    videos = []
    for level in (240, 60, 200):
        path = tmp_path / f"{level}.mp4"
        write_mp4(path, clip(level, 17, 64, 96), fps=16)
        videos.append(Video.open(path))
    judge(["a ball"] * 2, videos[:2])
    judge(["unscorable", "a cat"], videos[1:])
    for prompt, video, facts in (
        ("a ball", videos[0], {"step": 3, "group": "g0", "advantage": 1.5}),
        ("a ball", videos[1], {"step": 3, "group": "g0", "advantage": -0.5}),
        ("unscorable", videos[1], {"step": 7, "advantage": 0.0}),
        ("a cat", videos[2], {"step": 7, "advantage": 0.25}),
    ):
        ledger.annotate(score_key(prompt, video, Judge.provenance), host="flow-factory", **facts)
    (tmp_path / "200.mp4").unlink()
    return tmp_path / "ledger.jsonl"


def read_back(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    events.Reload()
    return events


def test_tensorboard_shows_the_boxed_clip_beside_its_advantage(run, tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "events") as writer:
        assert log_evidence(run, writer, frames=3, width_px=96) == 4
    events = read_back(tmp_path / "events")
    scalars = {tag: [(e.step, round(e.value, 2)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    # step 3: (240 + 60) / 2 / 255; step 7: 200 / 255 alone, one of two unscored
    assert scalars == {"reward/mean_score": [(3, 0.59), (7, 0.78)], "reward/unscored_share": [(3, 0), (7, 0.5)]}
    # lowest advantage first; in step 7 the unscored one, whose file is still there; the other one's file is gone
    drawn = {tag: [e.step for e in events.Images(tag)] for tag in events.Tags()["images"]}
    assert drawn == {"evidence/0": [3, 7], "evidence/1": [3]}
    dark = np.asarray(
        Image.open(io.BytesIO(events.Images("evidence/0")[0].encoded_image_string)).convert("RGB")
    ).astype(int)
    assert dark.shape == (64 + 32, 3 * 96, 3)
    red = (dark[..., 0] > 200) & (dark[..., 1] < 60)
    rows, columns = np.nonzero(red)
    place = informative_frames(Video.open(tmp_path / "60.mp4"), (MELTS,), 3).index(4)
    assert (rows.min(), rows.max()) == (32, 32 + 31)  # the box covers the upper left quarter of frame 4 only
    assert (columns.min(), columns.max()) == (96 * place, 96 * place + 47)
    bright = np.asarray(
        Image.open(io.BytesIO(events.Images("evidence/1")[0].encoded_image_string)).convert("RGB")
    ).astype(int)
    assert not ((bright[..., 0] > 200) & (bright[..., 1] < 60)).any()
    texts = {
        (tag, e.step): e.tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
        for e in events.Tensors(tag)
    }
    assert len(texts) == 4
    first = texts["evidence/0/text_summary", 3]
    assert (
        "- **advantage**: -0.5" in first
        and "- **group**: g0" in first
        and "melts &lt;b&gt;" in first
        and "0.25-0.50 s" in first
    )
    assert "- **score**: none: judge: told not to" in texts["evidence/0/text_summary", 7]


def wandb_history(folder, patience_s=60):
    """What ``read_history`` gives once W&B's own process has written the run's end; it may lag behind ``finish``."""
    for _ in range(10 * patience_s):
        steps, ended = read_history(folder)
        if ended:
            return steps
        time.sleep(0.1)
    raise AssertionError(f"the run under {folder} was not finished within {patience_s} s")


def read_history(folder):
    """({key: value} of every step an offline run logged, from the run file itself, LevelDB's log format (blocks of 32 KiB) behind a
    header of 7 bytes; each record is a protocol buffer; and whether the run's end is there."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.rglob("run-*.wandb")
    data, at, begun, steps, ended = path.read_bytes(), 7, b"", [], False
    assert data[:4] == b":W&B"[: len(data)]
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a block's end too short for a record's head
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        piece, at = data[at + 7 : at + 7 + length], at + 7 + length
        if at > len(data):  # still being written
            break
        begun = piece if kind in (1, 2) else begun + piece
        if kind in (1, 4):
            record = wandb_internal_pb2.Record.FromString(begun)
            ended = ended or record.WhichOneof("record_type") == "exit"
            if record.WhichOneof("record_type") == "history":
                step = {}
                for (
                    item
                ) in record.history.item:  # a picture's or table's own fields come one by one, as ("evidence", "path")
                    name, *inside = item.nested_key or [item.key]
                    value = json.loads(item.value_json)
                    step[name] = {**step.get(name, {}), inside[0]: value} if inside else value
                steps.append(step)
    return steps, ended


def test_weights_and_biases_gets_the_same(run, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb", reason="W&B is an extra")
    for name, value in (
        ("MODE", "offline"),
        ("SILENT", "true"),
        ("DATA_DIR", str(tmp_path)),
        ("CACHE_DIR", str(tmp_path)),
    ):
        monkeypatch.setenv(f"WANDB_{name}", value)
    with wandb.init(dir=tmp_path, project="test") as going:
        assert log_evidence(run, going, frames=3) == 4
    third, seventh = wandb_history(tmp_path)
    own = {"evidence", "evidence_step", "reward/mean_score", "reward/unscored_share"}
    assert {key for key in third if key[0] != "_"} == own | {"evidence/0", "evidence/1"}
    assert {key for key in seventh if key[0] != "_"} == own | {"evidence/0"}  # the other clip's file is gone
    assert (third["evidence_step"], seventh["evidence_step"]) == (3, 7)
    assert third["reward/mean_score"] == pytest.approx(150 / 255, abs=0.01) and third["reward/unscored_share"] == 0
    assert (
        seventh["reward/mean_score"] == pytest.approx(200 / 255, abs=0.01) and seventh["reward/unscored_share"] == 0.5
    )
    dark = third["evidence/0"]
    assert (
        "- **advantage**: -0.5" in dark["caption"]
        and "- **score**: none: judge: told not to" in seventh["evidence/0"]["caption"]
    )
    (files,) = (tmp_path / "wandb").glob("offline-run-*/files")
    strip = np.asarray(Image.open(files / dark["path"]).convert("RGB")).astype(int)
    assert strip.shape == (160 + 32, 3 * 240, 3)  # three frames of 96 x 64 px, 240 px wide, below two lines of text
    assert ((strip[..., 0] > 200) & (strip[..., 1] < 60)).any()  # the box
    table = json.loads((files / third["evidence"]["path"]).read_text())
    assert table["columns"] == ["clip", "text"] and [row[0] for row in table["data"]] == ["evidence/0", "evidence/1"]
    assert third["evidence"]["nrows"] == 2 and "melts &lt;b&gt;" in table["data"][0][1]


def test_component_shares_are_those_of_the_combination(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    reward = cached(combine({"a": Brightness(), "b": Judge()}), ledger)
    videos = [Video.open(clip(level, 17), fps=16) for level in (200, 100)]
    reward(["p", "p"], videos)
    items = read_evidence(tmp_path / "ledger.jsonl")
    assert (
        [item.kind for item in items] == ["combined", "combined"]
        and items[0].step is None
        and items[0].advantage is None
    )
    numbers = step_metrics(items)
    # both components fall by 100 / 255: equal shares
    assert numbers["reward/share/a"] == pytest.approx(0.5) and numbers["reward/share/b"] == pytest.approx(0.5)
    assert draw_strip(items[0]) is None  # pixels, no file
    assert "advantage" not in evidence_text(items[0])


def test_nothing_scored_gives_no_mean():
    item = read_item(Score.missing("dead server"))
    assert step_metrics([item]) == {"reward/unscored_share": 1.0}
    assert "none: dead server" in evidence_text(item)


def read_item(score, **facts):
    from cac_align.plugins.common.evidence import Evidence

    return Evidence("k", "score", "p", "gone.mp4", "r", score, facts)


def test_the_ends_are_shown_first():
    items = [
        read_item(Score(value / 10), advantage=advantage)
        for value, advantage in ((1, 0.5), (2, -1.0), (3, 2.0), (4, 0.1))
    ]
    assert [item.advantage for item in most_informative(items, 3)] == [-1.0, 2.0, 0.1]
    missing = read_item(Score.missing("x"), advantage=0.0)
    assert most_informative([*items, missing], 2) == [missing, items[1]]
    items = [read_item(Score(value / 10)) for value in (5, 1, 9)]
    assert [item.score.value for item in most_informative(items, 2)] == [0.1, 0.9]


def test_text_cannot_leave_its_line():
    text = evidence_text(read_item(Score(0.5), note="x\n# <script>alert(1)</script> **bold**", advantage=float("nan")))
    assert "\n#" not in text and "<script" not in text and "\\*\\*bold" in text
    assert read_item(Score(0.5), advantage=float("nan")).advantage is None


def test_a_retried_video_counts_once_and_a_broken_file_is_text_only(tmp_path, caplog):
    path = tmp_path / "clip.mp4"
    write_mp4(path, clip(200, 17, 64, 64), fps=16)
    video = Video.open(path)
    key, ledger = score_key("p", video, {}), Ledger(tmp_path / "ledger.jsonl")
    ledger.record([(key, "missing", "p", video, "r", Score.missing("timeout"))])
    ledger.record([(key, "score", "p", video, "r", Score(0.5))])
    (item,) = read_evidence(tmp_path / "ledger.jsonl")
    assert item.score.value == 0.5 and draw_strip(item) is not None
    path.write_bytes(b"no video")
    assert draw_strip(item) is None and "clip.mp4: not drawn" in caplog.text


def test_wrong_use_is_named(tmp_path):
    (tmp_path / "ledger.jsonl").write_text("")
    with pytest.raises(ValueError, match="SummaryWriter or a W&B run, received dict"):
        log_evidence(tmp_path / "ledger.jsonl", {})
    with pytest.raises(ValueError, match="no such ledger"):
        read_evidence(tmp_path / "other.jsonl")
    with pytest.raises(ValueError, match="clips_per_step >= 1"):
        log_evidence(tmp_path / "ledger.jsonl", {}, clips_per_step=0)
    assert json.dumps(read_evidence(tmp_path / "ledger.jsonl")) == "[]"
