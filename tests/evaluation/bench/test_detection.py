"""CaC-Bench: the paper's printed tables from counts, splits, types, bias, and scores that are
missing.
"""

import dataclasses
import json
import math

import pytest

from cac_align.core.judgement import Anomaly, Box, Judgement, Window
from cac_align.data.records import Record
from cac_align.evaluation.bench.confusion import ConfusionCounts
from cac_align.evaluation.bench.detection import decide_verdict, evaluate_judge
from cac_align.rewards.reward import Score
from tests.support.verdicts import anomalous, normal, says


def test_a_verdict_comes_from_words_where_there_are_any_else_from_the_number():
    r = normal("a")
    judgement = says("abnormal", 2.0)
    doubtful = dataclasses.replace(
        judgement, log_p_normal=-0.4, log_p_abnormal=-1.4
    )  # says abnormal, leans to normal: 0.73
    score = Score(doubtful.reward, evidence=doubtful)
    assert decide_verdict(r, score).status == "abnormal" and decide_verdict(r, score).source == "judgement"
    assert decide_verdict(r, score, threshold=0.5).status == "normal"
    combined = Score((doubtful.reward + 0.9) / 2, {"cac": doubtful.reward, "ur": 0.9}, doubtful)
    assert decide_verdict(r, combined).status == "abnormal" and decide_verdict(r, combined).source == "judgement"
    assert decide_verdict(r, combined, threshold=0.5).status == "normal"
    assert decide_verdict(r, Score(0.5)).status == "normal" and decide_verdict(r, 0.49).status == "abnormal"
    assert decide_verdict(r, judgement).value == pytest.approx(1 / (1 + math.exp(2)))


def test_the_verdict_of_cac_is_its_own_at_any_temperature_and_over_views():
    r, judgement = normal("a"), says("abnormal", -0.5)
    for temperature in (
        1.0,
        13.0,
    ):  # two augmentations, 16 and −15: their mean is 0.5, and a threshold of 6 takes the one that says abnormal
        augmented = Score(
            1 / (1 + math.exp(-0.5 / temperature)),
            {"log_odds": 0.5, "log_odds/as_is": 16.0, "log_odds/later": -15.0},
            judgement,
        )
        found = decide_verdict(r, augmented)
        assert (found.status, found.source, found.value) == ("abnormal", "judgement", augmented.value)
        assert decide_verdict(r, augmented, threshold=0.5).status == "normal"
    combined = Score(0.7, {"cac": 0.5, "ur": 0.9, "cac/log_odds": 0.5}, judgement)
    assert (decide_verdict(r, combined).status, decide_verdict(r, combined).source) == ("abnormal", "judgement")


def by(judgement):
    """A score as CaC gives it: the judgement's own reward."""
    return Score(judgement.reward, evidence=judgement)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (None, "no score stored"),
        (float("nan"), "not finite"),
        (Score.missing("server is down"), "server is down"),
        (Judgement(None, error="window outside the video"), "window outside"),
        (Judgement(None), "no status"),
    ],
)
def test_no_failure_becomes_a_verdict(given, why):
    one = decide_verdict(normal("a"), given)
    assert one.status is None and math.isnan(one.value) and why in one.error
    report = evaluate_judge([normal("a"), normal("b"), anomalous("c")], [given, 0.9, 0.1])
    row = report.to_json()
    assert (row["n"], row["unscored"], row["accuracy"]) == (3, 1, 1.0)
    assert row["normal"]["unscored"] == 1 and row["anomalous"]["unscored"] == 0
    assert row["accuracy_bounds"] == [pytest.approx(2 / 3), 1.0]
    assert any(w.startswith("Unscored: 1 of 3") for w in row["warnings"])


def test_a_judgement_without_probabilities_has_a_verdict_and_no_value():
    row = evaluate_judge([normal("a"), anomalous("b")], [Judgement("normal"), Judgement("normal")])
    assert row.counts == ConfusionCounts(0, 1, 0, 1) and row.calibration.n == 0 and row.calibration.ece is None
    assert decide_verdict(normal("a"), Judgement("normal"), threshold=0.4).status is None


def test_types_splits_and_ious_by_hand():
    big = Box(0, 0, 1000, 500)
    records = [
        anomalous("a"),
        anomalous("b", "Motion Anomalies", Window(0, 3)),
        anomalous("c", "Motion Anomalies", Window(0, 3), big),
        anomalous("d", "Motion Anomalies", Window(0, 0.25), big),
        Record("e", "e.mp4", "p", 16, 81, 64, 64, "abnormal", (Anomaly("Character Anomalies", Window(0, 1)),)),
        normal("f"),
    ]
    hit = Anomaly("Motion Anomalies", Window(0, 3), boxes={0: (Box(0, 0, 100, 50),)})
    scores = {
        "a": by(says("abnormal", 2.0, hit)),
        "b": by(says("abnormal", 2.0, hit)),
        "c": by(says("normal")),
        "d": Score(0.2),  # no evidence: counts for recall, not for type or place
        "e": Score.missing("timeout"),
        "f": by(says("normal")),
    }
    row = evaluate_judge(records, scores, judge="j").to_json()
    motion = row["per_type"]["Motion Anomalies"]
    assert (motion["n"], motion["recall"], motion["type_recall"]) == (3, pytest.approx(2 / 3), 0.5)
    assert row["per_type"]["Object Distortion"]["type_recall"] == 0  # called abnormal, for another reason
    assert row["per_type"]["Character Anomalies"]["recall"] is None and row["per_type"]["Character Anomalies"]["n"] == 0
    hard = {name: (row["hard"][name]["n"], row["hard"][name]["recall"]) for name in row["hard"] if name != "unassigned"}
    assert hard == {"short_small": (1, 1), "short_large": (1, 1), "long_small": (1, 1), "long_large": (1, 0)}
    assert row["hard"]["unassigned"] == 1
    # detected with evidence: a (4-fps frames 0-2 of 0-12: 3/13) and b (1); c is a miss with evidence
    assert row["temporal_iou"] == pytest.approx((3 / 13 + 1) / 2) and row["spatial_iou"] == pytest.approx(0.5)
    assert row["localisation"]["all_anomalous"]["temporal"]["value"] == pytest.approx((3 / 13 + 1 + 0) / 3)
    json.dumps(row, allow_nan=False)


def test_hard_is_reported_by_recall_only():
    row = evaluate_judge([anomalous("a"), anomalous("b")], [0.1, 0.9]).to_json()
    assert (
        row["anomalous"]["recall"] == 0.5 and row["anomalous"]["precision"] is None and row["normal"]["recall"] is None
    )
    assert any("One class only" in w for w in row["warnings"])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="at least one record"):
        evaluate_judge([], [])
    with pytest.raises(ValueError, match=r"\['a'\] occur more than once"):
        evaluate_judge([normal("a"), normal("a")], [0.1, 0.2])
    with pytest.raises(ValueError, match="1 scores and 2 records"):
        evaluate_judge([normal("a"), normal("b")], [0.1])
    with pytest.raises(ValueError, match="belong to no record, first 'z'"):
        evaluate_judge([normal("a")], {"z": 0.3})
    for wrong in (math.nan, math.inf):  # nothing is below a NaN: every video would be normal
        with pytest.raises(ValueError, match="threshold must be a finite number; received"):
            evaluate_judge([normal("a"), anomalous("b")], [0.1, 0.2], threshold=wrong)
