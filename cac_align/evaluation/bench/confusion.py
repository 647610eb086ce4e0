"""The 2 × 2 table of verdicts, and recall, precision and F1 of both classes with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cac_align.evaluation.statistics import NO_ESTIMATE, Estimate, share


@dataclass(frozen=True)
class ConfusionCounts:
    """The 2 × 2 table of verdicts, with "abnormal" as the positive class."""

    true_positives: int
    false_negatives: int
    false_positives: int
    true_negatives: int

    @property
    def anomalous(self) -> int:
        return self.true_positives + self.false_negatives

    @property
    def normal(self) -> int:
        return self.false_positives + self.true_negatives

    @property
    def n(self) -> int:
        return self.anomalous + self.normal

    def metrics(self) -> dict[str, float | None]:
        """Recall, precision and F1 of both classes, accuracy, and balanced accuracy (the mean of the two recalls).

        None where a metric is undefined.
        """
        right = np.array([self.true_positives]), np.array([self.true_negatives])
        values = _metrics(*right, self.anomalous, self.normal)
        return {name: None if math.isnan(value[0]) else float(value[0]) for name, value in values.items()}


def _metrics(tp: np.ndarray, tn: np.ndarray, anomalous: int, normal: int) -> dict[str, np.ndarray]:
    """Every metric from the numbers of right verdicts, elementwise; NaN where a ratio is 0 / 0."""
    fn, fp = anomalous - tp, normal - tn
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "anomalous.recall": tp / np.float64(anomalous),
            "anomalous.precision": tp / (tp + fp),
            "anomalous.f1": 2 * tp / (2 * tp + fn + fp),
            "normal.recall": tn / np.float64(normal),
            "normal.precision": tn / (tn + fn),
            "normal.f1": 2 * tn / (2 * tn + fn + fp),
            "accuracy": (tp + tn) / np.float64(anomalous + normal),
            "balanced_accuracy": (tp / np.float64(anomalous) + tn / np.float64(normal)) / 2,
        }


def confusion_metrics(counts: ConfusionCounts, *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Every metric with its interval.

    On a set of one class (CaC-Bench-Hard) precision is 1 or undefined whatever the judge does, so
    precision and F1 are None there.
    """
    values = counts.metrics()
    metrics = {
        "anomalous.recall": share(counts.true_positives, counts.anomalous),
        "normal.recall": share(counts.true_negatives, counts.normal),
    }
    # Jeffreys' posterior of each class's recall. A bootstrap of the counts would draw nothing but perfect judges from a
    # perfect one, however few videos it has seen.
    rng = np.random.default_rng(seed)
    right, sizes = (counts.true_positives, counts.true_negatives), (counts.anomalous, counts.normal)
    drawn = [n * rng.beta(hits + 0.5, n - hits + 0.5, size=resamples) for hits, n in zip(right, sizes, strict=True)]
    spread = _metrics(drawn[0], drawn[1], *sizes)
    for name in (
        "anomalous.precision",
        "anomalous.f1",
        "normal.precision",
        "normal.f1",
        "accuracy",
        "balanced_accuracy",
    ):
        value = values[name]
        if value is None or (name != "accuracy" and not (counts.anomalous and counts.normal)):
            metrics[name] = NO_ESTIMATE
            continue
        low, high = np.nanquantile(spread[name], [0.025, 0.975])
        metrics[name] = Estimate(value, min(float(low), value), max(float(high), value), counts.n)
    return metrics
