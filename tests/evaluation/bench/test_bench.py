"""`evaluate bench`: real files, real rewards of a few lines, a ledger, stored rows, tables and
plots.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from cac_align.core.decoding import FileFrames
from cac_align.core.judgement import Anomaly, Judgement, Window
from cac_align.core.video import Video
from cac_align.data.records import Record, write_records
from cac_align.evaluation.bench.bench import bench, chunks_within, write_bench
from cac_align.evaluation.bench.detection import evaluate_judge
from cac_align.evaluation.bench.figures import draw_figures
from cac_align.evaluation.bench.results import compare_judges
from cac_align.evaluation.bench.stored_scores import stored_scores
from cac_align.evaluation.bench.tables import to_markdown
from cac_align.rewards.combine import combine
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.reward import Score
from tests.support.bench_set import clip


@dataclass(frozen=True)
class Brightness:
    """A reward that likes bright first frames: the clips below are dark exactly where they are
    anomalous.
    """

    name: str = "brightness"
    calls: tuple = ()
    seen: list | None = None

    @property
    def provenance(self):
        return {"reward": self.name, "version": "1"}

    def __call__(self, prompts: Sequence[str], videos) -> list[Score]:
        if self.seen is not None:
            self.seen.extend(video.name for video in videos)
        return [Score(float(video.frames([0]).pixels.mean()) / 255, provenance=self.provenance) for video in videos]


def test_two_rewards_over_files_with_a_ledger_that_resumes(set_of_six):
    folder, _ = set_of_six
    seen: list[str] = []
    told = []
    rewards = {"bright": Brightness(seen=seen), "again": Brightness("other")}
    with_ledger = {"ledger": Ledger(folder / "ledger.jsonl"), "progress": lambda *row: told.append(row)}
    found = bench(folder / "records.jsonl", rewards, out=folder / "out", **with_ledger)
    assert found.reports[0].to_json()["accuracy"] == 1.0 and len(seen) == 6 and told[-1] == ("again", 6, 6)
    assert found.comparisons[0].test.p_value == 1.0 and found.comparisons[0].test.n == 6
    bench(folder / "records.jsonl", {"bright": Brightness(seen=seen)}, ledger=Ledger(folder / "ledger.jsonl"))
    assert len(seen) == 6  # nothing was judged twice
    row = json.loads((folder / "out" / "bench.json").read_text())
    assert set(row["judges"]) == {"bright", "again"} and len(row["judges"]["bright"]["videos"]) == 6
    assert (folder / "out" / "detection.png").stat().st_size > 5000


def test_a_ledger_alone_is_enough(set_of_six):
    folder, records = set_of_six
    bench(folder / "records.jsonl", {"bright": Brightness()}, ledger=Ledger(folder / "ledger.jsonl"))
    stored = stored_scores(folder / "ledger.jsonl", records)
    assert set(stored) == {"brightness"} and len(stored["brightness"]) == 6
    assert evaluate_judge(records, stored["brightness"]).to_json()["accuracy"] == 1.0


def test_what_is_odd_about_the_videos_is_counted_and_named(set_of_six):
    folder, records = set_of_six
    (folder / "videos" / "0.mp4").write_bytes(b"not a video")
    (folder / "videos" / "1.mp4").unlink()
    clip(folder / "videos" / "2.mp4", 210, frames=5, size=48)
    records[3] = Record(**{**{k: getattr(records[3], k) for k in records[3].__dataclass_fields__}, "prompt": " "})
    write_records(folder / "records.jsonl", records)
    found = bench(folder / "records.jsonl", {"bright": Brightness()})
    row = found.to_json(videos=True)
    assert (row["n"], row["unscored"], row["accuracy"]) == (6, 2, 1.0)
    notes = " / ".join(found.notes)
    for wanted in (
        "2 videos cannot be opened",
        "r2 (5 frames, record says 8)",
        "48×48",
        "1 records have no prompt",
        "r3",
    ):
        assert wanted in notes
    assert [v["id"] for v in row["videos"] if v["status"] is None] == ["r0", "r1"]
    assert "cannot open videos/0.mp4" in row["videos"][0]["error"]
    with pytest.raises(ValueError, match="at least one reward"):
        bench(folder / "records.jsonl", {})


def test_the_table_survives_hostile_names(tmp_path):
    records = [Record("a", "a.mp4", "p", 8, 8, 4, 4, "normal"), Record("b", "b.mp4", "p", 8, 8, 4, 4, "abnormal", (
        Anomaly("Human Distortion", Window(0, 0.5)),))]  # fmt: skip
    nasty = "x|y\n<script> $\\frac$ _"
    reports = [
        evaluate_judge(records, [0.9, 0.1], judge=nasty),
        evaluate_judge(records, [None, -3.0], judge="unbounded"),
    ]
    found = compare_judges(reports)
    text = to_markdown(found)
    line = next(line for line in text.split("\n") if line.startswith("| x"))
    assert line.count("|") - line.count("\\|") == 11
    assert "not inside [0, 1]" in text and "Unscored: 1 of 2" in text
    assert found.comparisons[0].test.n == 1  # only the video that both scored
    assert {path.name for path in write_bench(found, tmp_path / "o")} >= {"bench.json", "bench.md", "reliability.png"}
    assert set(draw_figures(found)) == {"detection", "splits", "reliability"}
    with pytest.raises(ValueError, match="do the stored scores belong to these records"):
        compare_judges([])
    with pytest.raises(ValueError, match="different names"):
        compare_judges([reports[0], reports[0]])


def test_a_judges_words_and_its_calibration_reach_the_json(tmp_path):
    records = [Record("a", "a.mp4", "p", 8, 8, 4, 4, "normal")]
    judgement = Judgement("normal", log_p_normal=math.log(0.7), log_p_abnormal=math.log(0.1))
    row = compare_judges([evaluate_judge(records, [judgement], judge="j")]).to_json()
    assert row["judge"] == "j" and row["ece"] == pytest.approx(1 - 0.875)


def test_a_threshold_beyond_every_score_is_refused(set_of_six):
    folder, *_ = set_of_six

    class Bounded(Brightness):
        bounds = (0.0, 1.0)

    with pytest.raises(
        ValueError, match=r"finite number between 0 and 1, where judge 'bright' has its values; received 50"
    ):
        bench(folder / "records.jsonl", {"bright": Bounded()}, threshold=50)


def test_a_reward_that_compares_a_prompts_videos_is_refused(set_of_six):
    root, _ = set_of_six
    for normalise in ("group", "rank"):
        ranked = combine({"a": Brightness("a"), "b": Brightness("b")}, normalise=normalise)
        with pytest.raises(ValueError, match=f"judge 'both': normalise: {normalise} compares the videos of a prompt"):
            bench(root / "records.jsonl", {"both": ranked})


class Dense(Brightness):
    """Reads every frame, as a judge at a high rate does."""

    def __call__(self, prompts, videos):
        return [Score(float(video.sample(8).pixels.mean()), provenance=self.provenance) for video in videos]


def test_each_video_is_decoded_once_however_many_judges(set_of_six, monkeypatch):
    folder, _ = set_of_six
    decoded = []
    read = FileFrames.read

    def counted(self, indices):
        decoded.append((self.path.name, len(indices)))
        return read(self, indices)

    monkeypatch.setattr("cac_align.core.decoding.FileFrames.read", counted)
    # KeptFrames.read reaches FileFrames.read only when something has to be decoded.
    judges = {name: kind(name) for name, kind in [("a", Brightness), ("b", Dense), ("c", Brightness), ("d", Dense)]}
    told = []
    found = bench(folder / "records.jsonl", judges, progress=lambda *row: told.append(row))
    assert sorted(decoded) == [(f"{number}.mp4", 8) for number in range(6)]
    assert [row for row in told if row[1] == 6] == [(name, 6, 6) for name in judges]
    decoded.clear()
    one_video = 8 * 32 * 32 * 3
    small = bench(folder / "records.jsonl", judges, shared_bytes=2 * one_video)  # three chunks of two videos
    assert len(decoded) == 6 and small.to_json(videos=True) == found.to_json(videos=True)
    decoded.clear()
    bench(folder / "records.jsonl", judges, shared_bytes=one_video - 1)  # too small for any: each judge decodes
    assert len(decoded) == 24


def test_chunks_stay_within_their_bytes():
    def video(frames):
        return Video.open(np.zeros((frames, 10, 10, 3), np.uint8), fps=8, layout="THWC")

    rows = [(n, video(frames)) for n, frames in enumerate([1, 2, 3, 9, 1, 1])]
    chunks = [[n for n, _ in chunk] for chunk in chunks_within(rows, 4 * 300)]
    assert chunks == [[0, 1], [2, 3, 4], [5]]  # number 3 is too large to be kept and takes nothing
    many = [(n, rows[0][1]) for n in range(130)]
    assert [len(chunk) for chunk in chunks_within(many, 10**9)] == [64, 64, 2]


def test_a_number_without_bounds_is_judged_by_fitted_thresholds(tmp_path):
    (tmp_path / "videos").mkdir()
    records = []
    for number in range(12):
        bad = number % 2 == 1
        clip(tmp_path / "videos" / f"{number}.mp4", (40 if bad else 210) + number)
        status = "abnormal" if bad else "normal"
        anomalies = (Anomaly("Object Distortion", Window(0, 0.5)),) if bad else ()
        records.append(Record(f"r{number}", f"videos/{number}.mp4", "p", 8, 8, 32, 32, status, anomalies))
    write_records(tmp_path / "records.jsonl", records)
    found = bench(tmp_path / "records.jsonl", {"dense": Dense()}, protocols={"dense": "official"})
    row = found.to_json()
    assert row["balanced_accuracy"] == 1.0 and row["auroc"] == 1.0 and row["protocol"] == "official"
    assert all(51 < one < 210 for one in row["threshold"]["thresholds"]) and row["threshold"]["videos"] == [6, 6]
    assert "Files of equal bytes" in row["notes"][0] and "(two halves)" in to_markdown(found)
    fixed = bench(tmp_path / "records.jsonl", {"dense": Dense()}, threshold=30.0).to_json()
    assert (fixed["threshold"], fixed["normal"]["recall"], fixed["anomalous"]["recall"]) == (30.0, 1.0, 0.0)
