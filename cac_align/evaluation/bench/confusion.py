"""The 2 × 2 table of verdicts: recall, precision and F1 with intervals, and what must be said before anyone believes them.

right and wrong verdicts by class → Counts → ``estimates`` (metric → value and interval) → ``cautions`` (sentences)

A judge that calls everything abnormal has a recall of 1: the other class's recall tells (CaC's Table 1 shows such judges).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cac_align.evaluation.bench.calibration import Calibration
from cac_align.evaluation.statistics import NOTHING, Estimate, counts_interval, share

COLLAPSED = 0.25
"""Below this recall a class counts as lost. The paper calls .244, .108, .066 and .018 biased, and .382 not."""

RANKS = 0.65
"""From this AUROC on a number is said to rank the videos (ours)."""


@dataclass(frozen=True)
class Counts:
    """The 2 × 2 table with "abnormal" as positive: hits and misses on anomalous videos, false alarms and passes on normal."""

    hits: int
    misses: int
    false_alarms: int
    passes: int

    @property
    def anomalous(self) -> int:
        return self.hits + self.misses

    @property
    def normal(self) -> int:
        return self.false_alarms + self.passes

    @property
    def n(self) -> int:
        return self.anomalous + self.normal

    def metrics(self) -> dict[str, float | None]:
        """Recall, precision and F1 of both classes, and accuracy; None where nothing defines it."""
        values = _metrics(*(np.array([x]) for x in (self.hits, self.passes)), self.anomalous, self.normal)
        return {name: None if math.isnan(value[0]) else float(value[0]) for name, value in values.items()}


def _metrics(hits: np.ndarray, passes: np.ndarray, anomalous: int, normal: int) -> dict[str, np.ndarray]:
    """Every metric from the two numbers of right verdicts, elementwise; NaN where a ratio is 0 / 0."""
    misses, false_alarms = anomalous - hits, normal - passes
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "anomalous.recall": hits / np.float64(anomalous),
            "anomalous.precision": hits / (hits + false_alarms),
            "anomalous.f1": 2 * hits / (2 * hits + misses + false_alarms),
            "normal.recall": passes / np.float64(normal),
            "normal.precision": passes / (passes + misses),
            "normal.f1": 2 * passes / (2 * passes + misses + false_alarms),
            "accuracy": (hits + passes) / np.float64(anomalous + normal),
        }


def estimates(counts: Counts, *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Every metric with its interval. Precision and F1 of a class that the set does not hold are None: they would say nothing."""
    values = counts.metrics()
    found = {
        "anomalous.recall": share(counts.hits, counts.anomalous),
        "normal.recall": share(counts.passes, counts.normal),
    }
    groups = [(counts.hits, counts.anomalous), (counts.passes, counts.normal)]
    for name in ("anomalous.precision", "anomalous.f1", "normal.precision", "normal.f1", "accuracy"):
        # On a one-class set (CaC-Bench-Hard) precision is 1 or undefined whatever the judge does; only recall is reported.
        if values[name] is None or (name != "accuracy" and not (counts.anomalous and counts.normal)):
            found[name] = NOTHING
            continue
        interval = counts_interval(
            groups,
            lambda hits, passes, name=name: _metrics(hits, passes, counts.anomalous, counts.normal)[name],
            resamples=resamples,
            seed=seed,
        )
        found[name] = Estimate(values[name], *(interval or (None, None)), counts.n)
    return found


# ---- cautions -----------------------------------------------------------------------------------------------------


def _bias_warning(name: str, lost: Estimate, other: Estimate, said: str) -> str | None:
    if lost.value is None or other.value is None or lost.value >= COLLAPSED or other.value < 0.5:
        return None
    return (
        f"Bias: {name} recall is {lost.value:.3f} while the other class has {other.value:.3f}: this judge calls nearly every "
        f"video {said}, so its high recall there is a habit, not detection."
    )


def _cut_warning(metrics: Mapping[str, Estimate], by_number: int, found: Calibration) -> str | None:
    """For a number that ranks the videos and misses a class where it is cut."""
    point, recalls = found.operating_point, (metrics["anomalous.recall"].value, metrics["normal.recall"].value)
    if not by_number or point.threshold is None or found.auroc is None or found.auroc < RANKS:
        return None
    if all(recall is None or recall >= COLLAPSED for recall in recalls):
        return None
    return (
        f"Cut: {by_number} of the verdicts compare the judge's number with a threshold that misses one class; the number ranks the videos "
        f"(AUROC {found.auroc:.3f}). Choose another: on these, {point.threshold:.4g} calls {point.wanted:.0%} of the normal ones abnormal."
    )


def cautions(
    metrics: Mapping[str, Estimate],
    counts: Counts,
    unscored: Mapping[str, int],
    *,
    hard_unplaced: int,
    by_number: int,
    calibration: Calibration,
) -> tuple[str, ...]:
    """The sentences a reader needs before believing the numbers. by_number: verdicts that compare the judge's number with a threshold."""
    found = [
        _bias_warning("normal", metrics["normal.recall"], metrics["anomalous.recall"], "abnormal"),
        _bias_warning("anomalous", metrics["anomalous.recall"], metrics["normal.recall"], "normal"),
    ]
    a, b = metrics["anomalous.recall"], metrics["normal.recall"]
    if a.value is not None and b.value is not None:
        balanced = counts_interval(
            [(counts.hits, a.n), (counts.passes, b.n)], lambda hits, passes: (hits / a.n + passes / b.n) / 2
        )
        if balanced and balanced[0] <= 0.5 <= balanced[1]:
            found.append(
                f"Chance: the mean of the two recalls is {(a.value + b.value) / 2:.3f} with interval "
                f"[{balanced[0]:.3f}, {balanced[1]:.3f}]; on these videos the judge cannot be told from a coin."
            )
    missing, total = sum(unscored.values()), counts.n + sum(unscored.values())
    if missing:
        found.append(
            f"Unscored: {missing} of {total} videos have no score ({unscored['abnormal']} anomalous, {unscored['normal']} normal)"
            f" and are left out of every rate; accuracy_bounds shows what they could change."
        )
    if hard_unplaced:
        found.append(
            f"Hard: {hard_unplaced} anomalous videos lack windows or boxes in the ground truth and belong to none of the splits."
        )
    if not counts.anomalous or not counts.normal:
        found.append("One class only: precision, F1, AUROC and bias cannot be seen on this set; read the recall.")
    found.append(_cut_warning(metrics, by_number, calibration))
    return tuple(sentence for sentence in found if sentence)
