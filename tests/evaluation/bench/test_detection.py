"""CaC-Bench: the paper's printed tables from counts, splits, types, bias, and scores that are missing."""

import dataclasses
import json
import math

import pytest

from cac_align.core.judgement import Anomaly, Box, Judgement, Window
from cac_align.data.records import Record
from cac_align.evaluation.bench.confusion import Counts, estimates
from cac_align.evaluation.bench.detection import evaluate, verdict
from cac_align.rewards.reward import Score

# recall, precision, F1 of the anomalous class, the same of the normal class, accuracy: as printed, from 500 + 500 videos
TABLE_1 = {
    "Gemini-2.5-Pro": (0.854, 0.530, 0.654, 0.244, 0.626, 0.351, 0.549),
    "GPT-4o": (0.364, 0.454, 0.404, 0.562, 0.469, 0.511, 0.463),
    "Qwen3-VL-8B": (0.108, 0.574, 0.182, 0.920, 0.508, 0.654, 0.514),
    "Qwen3-VL-32B": (0.066, 0.702, 0.121, 0.972, 0.510, 0.669, 0.519),
    "UnifiedReward": (0.538, 0.563, 0.550, 0.582, 0.557, 0.569, 0.560),
    "UnifiedReward-Think": (0.428, 0.504, 0.463, 0.578, 0.503, 0.538, 0.503),
    "VR-Thinker": (0.382, 0.554, 0.452, 0.692, 0.528, 0.599, 0.537),
    "Skyra-RL": (0.982, 0.500, 0.663, 0.018, 0.500, 0.035, 0.500),
    "VideoVeritas": (0.414, 0.539, 0.468, 0.646, 0.524, 0.579, 0.530),
    "CaC": (0.910, 0.767, 0.833, 0.724, 0.889, 0.798, 0.817),
}
GEMINI_3_1_PRO = (0.537, 0.692, 0.605, 0.583, 0.476, 0.524, 0.560)
TABLE_S1 = {
    "Gemini-3.1-Pro": (0.164, 0.689, 0.265, 0.926, 0.526, 0.671, 0.545),
    "UnifiedReward": (0.472, 0.506, 0.489, 0.540, 0.506, 0.522, 0.506),
    "Qwen3-VL-8B": (0.448, 0.526, 0.484, 0.596, 0.519, 0.555, 0.522),
    "CaC": (0.564, 0.881, 0.688, 0.924, 0.679, 0.783, 0.744),
}
TABLE_S5 = {
    "base": (0.108, 0.574, 0.182, 0.920, 0.508, 0.654, 0.514),
    "without warm-up": (0.706, 0.699, 0.702, 0.696, 0.703, 0.699, 0.701),
    "without multi-frame SFT": (0.506, 0.713, 0.592, 0.796, 0.617, 0.695, 0.651),
    "without GRPO": (0.600, 0.704, 0.648, 0.748, 0.652, 0.696, 0.674),
    "base with inference strategy": (0.102, 0.785, 0.181, 0.972, 0.520, 0.677, 0.537),
    "without inference strategy": (0.802, 0.706, 0.751, 0.666, 0.771, 0.715, 0.734),
    "without temporal IoU": (0.484, 0.682, 0.566, 0.774, 0.600, 0.676, 0.629),
    "without spatial IoU": (0.610, 0.774, 0.682, 0.822, 0.678, 0.743, 0.716),
    "without type IoU": (0.668, 0.729, 0.697, 0.752, 0.694, 0.722, 0.710),
    "CaC": (0.910, 0.767, 0.833, 0.724, 0.889, 0.798, 0.817),
}
ROWS = [(t, n, row) for t, rows in (("1", TABLE_1), ("S1", TABLE_S1), ("S5", TABLE_S5)) for n, row in rows.items()]
NAMES = tuple(f"{c}.{part}" for c in ("anomalous", "normal") for part in ("recall", "precision", "f1")) + ("accuracy",)


def from_recalls(anomalous, normal, n=500):
    hits, passes = round(anomalous * n), round(normal * n)
    return Counts(hits, n - hits, n - passes, passes)


@pytest.mark.parametrize(("table", "name", "row"), ROWS, ids=[f"{t}: {n}" for t, n, _ in ROWS])
def test_the_papers_tables_follow_from_counts(table, name, row):
    found = from_recalls(row[0], row[3]).metrics()
    for key, printed in zip(NAMES, row, strict=True):
        assert found[key] == pytest.approx(printed, abs=0.00051), f"Table {table}, {name}, {key}"


def test_gemini_3_1_pros_printed_precisions_do_not_follow_from_its_recalls():
    recall, precision, f1, normal_recall, normal_precision, normal_f1, accuracy = GEMINI_3_1_PRO
    assert not (recall * 500).is_integer()  # and they are no shares of 500 either
    a, b = recall * 500, normal_recall * 500
    assert (a + b) / 1000 == pytest.approx(accuracy, abs=0.0005)
    assert a / (a + 500 - b) == pytest.approx(0.563, abs=0.0005) and precision == 0.692
    assert b / (b + 500 - a) == pytest.approx(0.557, abs=0.0005) and normal_precision == 0.476
    # the printed F1 follow from the printed precisions, so the error lies in the precisions
    assert 2 * precision * recall / (precision + recall) == pytest.approx(f1, abs=0.001)
    assert 2 * normal_precision * normal_recall / (normal_precision + normal_recall) == pytest.approx(
        normal_f1, abs=0.001
    )


def test_metrics_that_nothing_defines_are_none():
    silent = Counts(0, 5, 0, 5).metrics()  # never says abnormal: precision is 0 / 0, F1 is 0 / 5
    assert silent["anomalous.precision"] is None and silent["anomalous.f1"] == 0 and silent["normal.precision"] == 0.5
    hard = estimates(Counts(3, 1, 0, 0))
    assert hard["anomalous.recall"].value == 0.75 and hard["anomalous.precision"].value is None
    assert hard["normal.recall"].value is None and hard["accuracy"].value == 0.75
    assert set(Counts(0, 0, 0, 0).metrics().values()) == {None}


def anomalous(name, kind="Object Distortion", window=Window(0.0, 0.5), box=Box(0, 0, 100, 100)):
    return Record(name, f"{name}.mp4", "p", 16, 81, 64, 64, "abnormal", (Anomaly(kind, window, boxes={0: (box,)}),))


def normal(name):
    return Record(name, f"{name}.mp4", "p", 16, 81, 64, 64, "normal")


def says(status, log_odds=2.0, *anomalies):
    log_p = -math.log1p(math.exp(-log_odds))
    other = log_p - log_odds
    pair = (log_p, other) if status == "normal" else (other, log_p)
    return Judgement(status, tuple(anomalies), (), *pair)


def test_a_verdict_comes_from_words_where_there_are_any_else_from_the_number():
    r = normal("a")
    judgement = says("abnormal", 2.0)
    doubtful = dataclasses.replace(
        judgement, log_p_normal=-0.4, log_p_abnormal=-1.4
    )  # says abnormal, leans to normal: 0.73
    score = Score(doubtful.reward, evidence=doubtful)
    assert verdict(r, score).status == "abnormal" and verdict(r, score).source == "judgement"
    assert verdict(r, score, threshold=0.5).status == "normal"
    combined = Score((doubtful.reward + 0.9) / 2, {"cac": doubtful.reward, "ur": 0.9}, doubtful)
    assert verdict(r, combined).status == "normal" and verdict(r, combined).source == "threshold"
    assert verdict(r, Score(0.5)).status == "normal" and verdict(r, 0.49).status == "abnormal"
    assert verdict(r, judgement).value == pytest.approx(1 / (1 + math.exp(2)))


def test_the_verdict_of_cac_is_its_own_at_any_temperature_and_over_views():
    r, judgement = normal("a"), says("abnormal", -0.5)
    for temperature in (
        1.0,
        13.0,
    ):  # two views, 16 and −15: their mean is 0.5, and a threshold of 6 takes the one that says abnormal
        views = Score(
            1 / (1 + math.exp(-0.5 / temperature)),
            {"log_odds": 0.5, "log_odds/as_is": 16.0, "log_odds/later": -15.0},
            judgement,
        )
        found = verdict(r, views)
        assert (found.status, found.source, found.value) == ("abnormal", "judgement", views.value)
        assert verdict(r, views, threshold=0.5).status == "normal"
    combined = Score(0.7, {"cac": 0.5, "ur": 0.9, "cac/log_odds": 0.5}, judgement)
    assert (verdict(r, combined).status, verdict(r, combined).source) == ("normal", "threshold")


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
    one = verdict(normal("a"), given)
    assert one.status is None and math.isnan(one.value) and why in one.error
    report = evaluate([normal("a"), normal("b"), anomalous("c")], [given, 0.9, 0.1])
    row = report.to_json()
    assert (row["n"], row["unscored"], row["accuracy"]) == (3, 1, 1.0)
    assert row["normal"]["unscored"] == 1 and row["anomalous"]["unscored"] == 0
    assert row["accuracy_bounds"] == [pytest.approx(2 / 3), 1.0]
    assert any(w.startswith("Unscored: 1 of 3") for w in row["warnings"])


def test_a_judgement_without_probabilities_has_a_verdict_and_no_value():
    row = evaluate([normal("a"), anomalous("b")], [Judgement("normal"), Judgement("normal")])
    assert row.counts == Counts(0, 1, 0, 1) and row.calibration.n == 0 and row.calibration.ece is None
    assert verdict(normal("a"), Judgement("normal"), threshold=0.4).status is None


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
    row = evaluate(records, scores, judge="j").to_json()
    motion = row["per_type"]["Motion Anomalies"]
    assert (motion["n"], motion["recall"], motion["type_recall"]) == (3, pytest.approx(2 / 3), 0.5)
    assert row["per_type"]["Object Distortion"]["type_recall"] == 0  # called abnormal, for another reason
    assert row["per_type"]["Character Anomalies"]["recall"] is None and row["per_type"]["Character Anomalies"]["n"] == 0
    hard = {name: (row["hard"][name]["n"], row["hard"][name]["recall"]) for name in row["hard"] if name != "unplaced"}
    assert hard == {"short_small": (1, 1), "short_large": (1, 1), "long_small": (1, 1), "long_large": (1, 0)}
    assert row["hard"]["unplaced"] == 1
    # detected with evidence: a (4-fps frames 0-2 of 0-12: 3/13) and b (1); c is a miss with evidence
    assert row["temporal_iou"] == pytest.approx((3 / 13 + 1) / 2) and row["spatial_iou"] == pytest.approx(0.5)
    assert row["localisation"]["all_anomalous"]["temporal"]["value"] == pytest.approx((3 / 13 + 1 + 0) / 3)
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize(
    ("recalls", "word"),
    [((0.982, 0.018), "normal recall"), ((0.108, 0.920), "anomalous recall"), ((0.854, 0.244), "normal recall")],
)
def test_a_collapsed_class_is_named(recalls, word):
    report = judge_with(*recalls)
    bias = [w for w in report.warnings if w.startswith("Bias")]
    assert len(bias) == 1 and word in bias[0] and f"{min(recalls):.3f}" in bias[0]


@pytest.mark.parametrize("recalls", [(0.910, 0.724), (0.382, 0.692), (0.1, 0.1)])
def test_a_judge_that_is_merely_bad_or_good_is_not_called_biased(recalls):
    assert not [w for w in judge_with(*recalls).warnings if w.startswith("Bias")]


def judge_with(anomalous_recall, normal_recall, n=500):
    records = [anomalous(f"a{i}") for i in range(n)] + [normal(f"n{i}") for i in range(n)]
    scores = [0.1 if i < round(anomalous_recall * n) else 0.9 for i in range(n)]
    scores += [0.9 if i < round(normal_recall * n) else 0.1 for i in range(n)]
    return evaluate(records, scores, resamples=200)


def test_a_coin_is_called_a_coin():
    assert any(w.startswith("Chance") for w in judge_with(0.428, 0.578).warnings)
    assert not any(w.startswith("Chance") for w in judge_with(0.910, 0.724).warnings)


def test_hard_is_reported_by_recall_only():
    row = evaluate([anomalous("a"), anomalous("b")], [0.1, 0.9]).to_json()
    assert (
        row["anomalous"]["recall"] == 0.5 and row["anomalous"]["precision"] is None and row["normal"]["recall"] is None
    )
    assert any("One class only" in w for w in row["warnings"])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="at least one record"):
        evaluate([], [])
    with pytest.raises(ValueError, match=r"\['a'\] stand twice"):
        evaluate([normal("a"), normal("a")], [0.1, 0.2])
    with pytest.raises(ValueError, match="1 scores and 2 records"):
        evaluate([normal("a"), normal("b")], [0.1])
    with pytest.raises(ValueError, match="belong to no record, first 'z'"):
        evaluate([normal("a")], {"z": 0.3})
    for wrong in (math.nan, math.inf):  # nothing is below a NaN: every video would be normal
        with pytest.raises(ValueError, match="threshold must be a finite number; received"):
            evaluate([normal("a"), anomalous("b")], [0.1, 0.2], threshold=wrong)


def test_a_number_that_ranks_but_is_cut_in_the_wrong_place_is_told_from_a_bad_one():
    records = [anomalous(f"a{i}") for i in range(20)] + [normal(f"n{i}") for i in range(20)]
    above = [0.6 + 0.01 * i for i in range(20)] + [0.75 + 0.01 * i for i in range(20)]  # a UR + CaC mean: all above 0.5
    cut = [w for w in evaluate(records, above, resamples=50).warnings if w.startswith("Cut")]
    assert (
        len(cut) == 1 and "AUROC 0.969" in cut[0] and "0.76 calls 5%" in cut[0]
    )  # by hand: 387.5 of 400 pairs; 1 of 20 below 0.76
    assert not [w for w in evaluate(records, above, threshold=0.76, resamples=50).warnings if w.startswith("Cut")]
    blind = [0.6 + 0.01 * (i % 10) for i in range(40)]
    assert not [w for w in evaluate(records, blind, resamples=50).warnings if w.startswith("Cut")]
