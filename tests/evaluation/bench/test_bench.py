"""`evaluate bench`: real files, real rewards of a few lines, a ledger, stored rows, tables and
plots.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from cac_align.core.judgement import Anomaly, Judgement, Window
from cac_align.data.records import Record, write_records
from cac_align.evaluation.bench.bench import bench, write_bench
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
