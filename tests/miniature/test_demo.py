"""The demo: its summary against hand-worked counts, and one small real run with the shipped weights."""

import json

import pytest

from cac_align.cli.main import main
from cac_align.generation.selection import Selection
from cac_align.miniature.demo import compare_choices, demo, playground_prompts, summary_lines
from cac_align.miniature.oracle.oracle import OracleVerdict
from cac_align.miniature.world.grammar import parse_prompt
from cac_align.miniature.world.settings import PROMPT_SEEDS
from cac_align.rewards.reward import Score


def verdict(status, displacement=10.0):
    return OracleVerdict(
        status=status,
        types=("Motion Anomalies",) if status == "abnormal" else (),
        window=None,
        follows={"entity": True, "colour": status == "normal", "motion": True},
        displacement_px_s=displacement,
        reason="",
    )


def selection(chosen, unified):
    scores = tuple(Score.missing("broken") if u is None else Score(0.5, {"unified": u}) for u in unified)
    return Selection("p", chosen, tuple("abc"[: len(unified)]), scores, (), "")


def test_the_summary_compares_the_three_ways_of_choosing_on_the_same_prompts():
    good, bad = verdict("normal"), verdict("abnormal", 30.0)
    selections = [
        selection(0, [2.0, 3.0]),  # UR prefers 1, UR + CaC chose 0
        selection(1, [4.0, 4.0]),  # a tie goes to the lowest index, 0
        selection(1, [None, 1.0]),  # a candidate without a score is nobody's favourite
        selection(None, [None, None]),  # undecided
    ]
    verdicts = [[good, bad], [bad, good], [good, bad], [good, good]]
    choices, comparison = compare_choices(selections, verdicts)
    random_one, unified, combined = choices
    assert random_one.anomaly_rate.value == pytest.approx(3 / 6) and random_one.anomaly_rate.n == 6
    assert unified.anomaly_rate.value == pytest.approx(3 / 3)  # candidates 1, 0, 1: all bad
    assert combined.anomaly_rate.value == pytest.approx(1 / 3)  # candidates 0, 1, 1: good, good, bad
    assert comparison["undecided"] == 1
    assert comparison["difference"]["value"] == pytest.approx(-2 / 3)
    assert random_one.displacement_px_s.value == pytest.approx((3 * 10 + 3 * 30) / 6)
    assert combined.follows.value == pytest.approx(2 / 3)
    text = "\n".join(summary_lines(choices, comparison, 4, 2))
    assert "anomalous 33.3 %" in text and "1 prompts are undecided" in text and "-66.7 points" in text


def test_prompts_are_distinct_and_inside_the_world():
    prompts = playground_prompts(12)
    assert len(set(prompts)) == 12 and min(PROMPT_SEEDS) >= 3_000_000
    for prompt in prompts:
        parse_prompt(prompt)
    with pytest.raises(ValueError, match="expected 1 to 216 prompts"):
        playground_prompts(217)


def test_a_run_whose_judge_says_nothing_is_no_success(tmp_path, monkeypatch, capsys):
    class Silent:
        name, bounds, provenance = "silent", (0.0, 1.0), {"reward": "silent"}

        def __call__(self, prompts, videos):
            return [Score.missing("nothing to say") for _ in videos]

    monkeypatch.setattr("cac_align.rewards.build.load_reward", Silent)
    assert main(["demo", "--out", str(tmp_path), "--n", "1", "--prompts", "1"]) == 1
    told = capsys.readouterr().out
    assert "no decided prompt" in told and "1 prompts are undecided" in told
    page = (tmp_path / "report.html").read_text()
    assert "anomalous by the miniature&#39;s oracle" in page and "Best of 1 in the miniature" in page


def test_a_small_run_leaves_everything_on_disk_and_resumes(tmp_path):
    printed = list(demo(tmp_path, n=2, num_prompts=2))
    assert printed[0].startswith("2 prompts x 2 candidates") and printed[-1].startswith(
        f"report: {tmp_path / 'report.html'} ("
    )
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 4
    rows = [json.loads(line) for line in (tmp_path / "selection.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(len(row["scores"]) == 2 for row in rows)
    assert all(
        score is not None or error for row in rows for score, error in zip(row["scores"], row["errors"], strict=True)
    )
    ledger = (tmp_path / "ledger.jsonl").read_text()
    assert list(demo(tmp_path, n=2, num_prompts=2)) == printed
    scored = [line for line in (tmp_path / "ledger.jsonl").read_text().splitlines() if '"kind": "score"' in line[:100]]
    assert len(scored) == sum('"kind": "score"' in line[:100] for line in ledger.splitlines())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["choices"][0]["name"] == "a random candidate" and summary["domain"] == "miniature"
