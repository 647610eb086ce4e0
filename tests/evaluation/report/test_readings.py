"""What is known of a video: motion by hand, stored scores by content, raters and VBench by clip; missing things stay missing."""

import hashlib
import json

import numpy as np
import pytest

from cac_align.core.encoding import write_mp4
from cac_align.core.judgement import Anomaly, Judgement, Window
from cac_align.core.video import Video
from cac_align.data.records import Record, write_records
from cac_align.evaluation.pairing import pair_up, read_folder
from cac_align.evaluation.report.clip_record import ClipRecord
from cac_align.evaluation.report.clip_scores import enter_score, judge_differences, same_judge
from cac_align.evaluation.report.collect import collect_clip_records
from cac_align.evaluation.report.luminance import luminance_change
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


def flicker(count, fps, *, side=64, low=0, high=255):
    """Alternates between two levels every 1/8 s."""
    times = np.arange(count) / fps
    pixels = np.where((np.floor(times * 8 + 1e-6) % 2 == 0)[:, None, None, None], low, high)
    return Video.open(np.broadcast_to(pixels, (count, side, side, 3)).astype(np.uint8), fps=fps)


@pytest.mark.parametrize(("count", "fps"), [(9, 8.0), (17, 16.0), (33, 32.0)])
def test_luminance_change_is_the_share_of_the_range_per_eighth_of_a_second_at_any_rate(count, fps):
    assert luminance_change(flicker(count, fps)) == pytest.approx(1.0)
    assert luminance_change(flicker(count, fps, low=100, high=151)) == pytest.approx(51 / 255, abs=1e-3)
    assert luminance_change(flicker(count, fps, low=90, high=90)) == 0.0


def test_luminance_change_counts_the_part_of_the_picture_that_moves_and_not_fine_noise():
    pixels = np.zeros((9, 64, 64, 3), np.uint8)
    pixels[1::2, :32] = 255
    assert luminance_change(Video.open(pixels, fps=8.0)) == pytest.approx(0.5)
    noise = np.random.default_rng(0).integers(0, 256, (9, 640, 640, 3), dtype=np.uint8)
    assert luminance_change(Video.open(noise, fps=8.0)) < 0.04  # a hundred pixels are averaged into one
    assert luminance_change(Video.open(pixels[:1], fps=8.0)) is None


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


ABNORMAL = Judgement("abnormal", (Anomaly("Object Distortion", Window(0.0, 0.1)),))


def test_a_verdict_counts_only_with_the_score_that_it_led_to():
    refused = ClipRecord(None)
    enter_score(refused, Score.missing("mass 0.0003 on the two verdicts", evidence=ABNORMAL), "cac")
    assert (refused.judged_abnormal, refused.scored, refused.error) == (None, False, "mass 0.0003 on the two verdicts")
    enter_score(refused, Score(0.2, evidence=ABNORMAL), "cac")
    assert refused.judged_abnormal is True and refused.error is None
    enter_score(refused, Score.missing("refused", evidence=Judgement("normal")), "cac")
    assert refused.judged_abnormal is True and refused.values == {
        "cac": 0.2
    }  # value and verdict are still the same call's


def test_the_verdict_of_a_scored_component_survives_a_combination_that_failed():
    provenance = {"reward": "combine unified+cac", "cac/vlm": "A", "unified/vlm": "B"}
    kept, lost = ClipRecord(None), ClipRecord(None)
    enter_score(
        kept,
        Score.missing("unified: no answer", parts={"cac": 0.2}, evidence=ABNORMAL, provenance=provenance),
        "unified+cac",
    )
    enter_score(
        lost,
        Score.missing("cac: mass", parts={"unified": 3.0}, evidence=ABNORMAL, provenance=provenance),
        "unified+cac",
    )
    assert (kept.judged_abnormal, lost.judged_abnormal) == (True, None)
    assert kept.judges["cac_rate"] == {"vlm": "A"}


def test_a_component_s_judge_is_the_same_alone_and_in_a_combination():
    alone, combined, other = ClipRecord(None), ClipRecord(None), ClipRecord(None)
    enter_score(alone, Score(0.2, evidence=ABNORMAL, provenance={"vlm": "A"}), "cac")
    parts, provenance = {"cac": 0.3, "normalised/cac": 0.3}, {"reward": "combine cac", "cac/vlm": "A"}
    enter_score(combined, Score(0.3, parts, ABNORMAL, None, provenance), "cac")
    enter_score(other, Score(0.2, evidence=ABNORMAL, provenance={"vlm": "B", "tta": "2"}), "cac")
    assert (
        same_judge(alone, combined, "cac")
        and same_judge(alone, combined, "cac_rate")
        and judge_differences(alone, combined) == {}
    )
    assert judge_differences(alone, other) == {"cac": ["tta", "vlm"], "cac_rate": ["tta", "vlm"]}


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
