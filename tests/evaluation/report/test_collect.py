"""What is known of a clip: stored scores by content, raters and VBench by clip; missing things stay
missing.
"""

import hashlib
import json

import numpy as np
import pytest

from cac_align.core.encoding import write_mp4
from cac_align.core.judgement import Anomaly, Window
from cac_align.data.records import Record, write_records
from cac_align.evaluation.pairing import pair_up, read_folder
from cac_align.evaluation.report.collect import collect_clip_records
from cac_align.rewards.cached import cached
from cac_align.rewards.combine import combine
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.reward import Score


class Brightness:
    """A reward: the mean brightness. Dark videos (below 0.1) have no score."""

    bounds = (0.0, 1.0)

    def __init__(self, name):
        self.name = name
        self.provenance = {"reward": name}

    def __call__(self, prompts, videos):
        values = [float(video.frames([0]).pixels.mean()) / 255 for video in videos]
        return [Score(v) if v >= 0.1 else Score.missing("too dark to see") for v in values]


@pytest.fixture
def folders(tmp_path):
    made = []
    for group, levels in (("before", (100, 20, 60)), ("after", (200, 110, 60))):
        folder = tmp_path / group
        folder.mkdir()
        for number, level in enumerate(levels):
            write_mp4(folder / f"{number}.mp4", np.full((4, 32, 32, 3), level, np.uint8), 8.0)
        rows = [
            {"video": f"{n}.mp4", "prompt": f"p{n}", "seed": 0} for n in range(2)
        ]  # nothing says what 2.mp4 was made from
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        made.append(folder)
    return made


def read(folders, **options):
    faults = []
    return collect_clip_records(pair_up(*map(read_folder, folders)), folders, faults=faults, **options), faults


def test_stored_scores_are_those_of_the_reward_itself(folders):
    reward = combine({"cac": Brightness("cac"), "unified": Brightness("unified")})
    fresh, faults = read(folders, reward=reward)
    assert [(fault.kind, fault.name) for fault in faults] == [
        ("no score", "before/1.mp4"), ("no score", "before/2.mp4"), ("no score", "after/2.mp4"),
    ]  # fmt: skip
    assert "too dark" in faults[0].why and "which prompt" in faults[1].why
    for folder in folders:
        clips = [clip for clip in read_folder(folder).clips if clip.prompt]
        cached(reward, Ledger(folder / "ledger.jsonl"))([clip.prompt for clip in clips], [clip.video for clip in clips])
    stored, faults = read(folders)
    for one, other in zip(fresh, stored, strict=True):
        assert (one.values, one.normalised) == (other.values, other.normalised)
    assert set(stored[0].values) == {"cac", "unified", "reward"} and stored[2].values == {}
    assert ("no score", "before/1.mp4") in {(fault.kind, fault.name) for fault in faults}


def test_raters_and_vbench_rows_find_their_clips_and_strangers_are_named(folders, tmp_path):
    def record(video, group):
        return Record(
            video, video, "p", 8.0, 4, 32, 32, "normal", annotator="ann", review="draft", extra={"group": group}
        )

    write_records(
        tmp_path / "ratings.jsonl",
        [record("before/0.mp4", "before"), record("moved/1.mp4", "after"), record("else/9.mp4", "before")],
    )
    digest = hashlib.sha256((folders[1] / "0.mp4").read_bytes()).hexdigest()
    rows = [
        {"path": "/elsewhere/0.mp4", "sha256": digest, "dimension": "imaging_quality", "raw": 64.0, "error": None},
        {
            "path": "/elsewhere/0.mp4",
            "sha256": digest,
            "dimension": "subject_consistency",
            "raw": None,
            "error": "one frame",
        },
    ]
    (folders[1] / "vbench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clip_records, faults = read(folders)
    by_name = {f"{r.clip.group}/{r.clip.name}": r for r in clip_records}
    assert [name for name, r in by_name.items() if r.ratings] == ["before/0.mp4", "after/1.mp4"]
    assert by_name["after/1.mp4"].ratings[0].extra["pair"] == "1.mp4"
    assert by_name["after/0.mp4"].vbench == {"imaging_quality": 0.64}
    assert {("rating of another video", "else/9.mp4"), ("no VBench value", "after/0.mp4")} <= {
        (f.kind, f.name) for f in faults
    }


def test_a_vbench_row_is_of_its_prompt_and_names_its_judge(folders):
    digest = hashlib.sha256((folders[1] / "0.mp4").read_bytes()).hexdigest()
    row = {"path": "0.mp4", "sha256": digest, "raw": 0.25, "error": None, "version": "0.1.5"}
    rows = [
        {**row, "dimension": "overall_consistency", "prompt": "p0"},
        {**row, "dimension": "temporal_style", "prompt": "of another folder"},
        {**row, "dimension": "imaging_quality", "raw": 50.0, "imaging_mode": "shorter"},
        {"path": "0.mp4", "sha256": digest, "dimension": "human_action", "raw": False, "error": None, "prompt": "p0"},
    ]
    (folders[1] / "vbench.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    clip_records, faults = read(folders)
    found = next(clip_record for clip_record in clip_records if clip_record.vbench)
    assert found.vbench == {"overall_consistency": 0.25, "imaging_quality": 0.5}
    assert found.judges["vbench/imaging_quality"] == {"version": "0.1.5", "imaging_mode": "shorter"}
    assert any("earlier release" in fault.why for fault in faults)


def test_a_rater_counts_once_however_many_files_hold_the_rating(folders, tmp_path):
    def record(status, rater):
        mark = (Anomaly("Object Distortion", Window(0.0, 0.1), reason="bent"),) * (status == "abnormal")
        return Record(f"0#{rater}", "before/0.mp4", "p0", 8.0, 4, 32, 32, status, mark, annotator=rater, review="draft")

    write_records(tmp_path / "ratings-old.jsonl", [record("normal", "ann"), record("normal", "bob")])
    write_records(tmp_path / "ratings.jsonl", [record("abnormal", "ann"), record("normal", "bob")])
    clip_records, faults = read(folders)
    assert [(one.annotator, one.status) for one in clip_records[0].ratings] == [("ann", "abnormal"), ("bob", "normal")]
    assert [fault.name for fault in faults if fault.kind == "rated twice"] == [
        "0#ann"
    ]  # the same rating twice is no news
