"""Each warning where its reason is given, and only there."""

import pytest

from cac_align.evaluation.bench.detection import evaluate_judge
from tests.support.verdicts import anomalous, normal


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
    return evaluate_judge(records, scores, resamples=200)


def test_a_coin_is_called_a_coin():
    assert any(w.startswith("Chance") for w in judge_with(0.428, 0.578).warnings)
    assert not any(w.startswith("Chance") for w in judge_with(0.910, 0.724).warnings)


def test_a_number_that_ranks_but_is_cut_in_the_wrong_place_is_told_from_a_bad_one():
    records = [anomalous(f"a{i}") for i in range(20)] + [normal(f"n{i}") for i in range(20)]
    above = [0.6 + 0.01 * i for i in range(20)] + [0.75 + 0.01 * i for i in range(20)]  # a UR + CaC mean: all above 0.5
    cut = [w for w in evaluate_judge(records, above, resamples=50).warnings if w.startswith("Threshold")]
    assert (
        len(cut) == 1 and "AUROC 0.969" in cut[0] and "0.76 calls 5%" in cut[0]
    )  # by hand: 387.5 of 400 pairs; 1 of 20 below 0.76
    assert not [
        w for w in evaluate_judge(records, above, threshold=0.76, resamples=50).warnings if w.startswith("Threshold")
    ]
    blind = [0.6 + 0.01 * (i % 10) for i in range(40)]
    assert not [w for w in evaluate_judge(records, blind, resamples=50).warnings if w.startswith("Threshold")]
