"""Recall, precision and F1 against the paper's tables."""

import pytest

from cac_align.evaluation.bench.confusion import ConfusionCounts, confusion_metrics

# recall, precision, F1 of the anomalous class, the same of the normal class, accuracy: as printed,
# from 500 + 500 videos
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
    return ConfusionCounts(hits, n - hits, n - passes, passes)


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
    silent = ConfusionCounts(0, 5, 0, 5).metrics()  # never says abnormal: precision is 0 / 0, F1 is 0 / 5
    assert silent["anomalous.precision"] is None and silent["anomalous.f1"] == 0 and silent["normal.precision"] == 0.5
    hard = confusion_metrics(ConfusionCounts(3, 1, 0, 0))
    assert hard["anomalous.recall"].value == 0.75 and hard["anomalous.precision"].value is None
    assert hard["normal.recall"].value is None and hard["accuracy"].value == 0.75
    assert set(ConfusionCounts(0, 0, 0, 0).metrics().values()) == {None}


def test_a_perfect_judge_of_twelve_videos_is_not_certain():
    found = confusion_metrics(ConfusionCounts(6, 0, 0, 6))
    for name in NAMES:
        assert found[name].value == found[name].high == 1
        assert found[name].low is not None and 0.5 < found[name].low < 0.9, name
    many = confusion_metrics(from_recalls(0.91, 0.724))["anomalous.precision"]
    assert many.value == pytest.approx(0.767, abs=0.001)
    assert many.low == pytest.approx(0.738, abs=0.01) and many.high == pytest.approx(0.797, abs=0.01)
