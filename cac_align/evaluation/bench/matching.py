"""One-to-one matching of single errors in time (Spotlight). The protocol is ours: Spotlight's could
not be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cac_align.cac.per_type import window_iou
from cac_align.core.judgement import Anomaly
from cac_align.evaluation.statistics import Estimate, share

THRESHOLDS = (0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Matching:
    """Precision, recall and mean IoU of matched errors at one threshold on the temporal IoU."""

    threshold: float
    precision: Estimate
    recall: Estimate
    f1: float | None
    mean_iou: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            "threshold": self.threshold,
            "precision": self.precision.to_json(),
            "recall": self.recall.to_json(),
            "f1": self.f1,
            "mean_iou": self.mean_iou,
        }


def match_errors(
    truth: Mapping[str, Sequence[Anomaly]],
    predicted: Mapping[str, Sequence[Anomaly]],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
) -> tuple[Matching, ...]:
    """Match predicted to true errors one to one, within a video and type, where their temporal IoU
    reaches the threshold.

    truth, predicted: anomalies by video id. Videos missing from ``predicted`` count as nothing
    found, so leave videos without a judgement out of ``truth`` and count them.

    Raises ``ValueError`` for an anomaly without a window, or a video in ``predicted`` that
    ``truth`` lacks.
    """
    from scipy.optimize import linear_sum_assignment

    extra = sorted(set(predicted) - set(truth))
    if extra:
        raise ValueError(
            f"match_errors: judged videos {extra[:3]} have no ground truth; pass truth for every judged video"
        )
    for name, rows in (("truth", truth), ("predicted", predicted)):
        for video, anomalies in rows.items():
            if any(anomaly.window is None for anomaly in anomalies):
                raise ValueError(
                    f"match_errors: {name}[{video!r}] holds an anomaly without a window; errors are matched in time"
                )
    total_truth = sum(len(rows) for rows in truth.values())
    total_predicted = sum(len(rows) for rows in predicted.values())
    results = []
    for threshold in thresholds:
        matched: list[float] = []
        for video, anomalies in truth.items():
            guesses = predicted.get(video, ())
            for kind in sorted({anomaly.type for anomaly in anomalies}):
                real = [a.window for a in anomalies if a.type == kind and a.window is not None]
                guessed = [a.window for a in guesses if a.type == kind and a.window is not None]
                if not guessed:
                    continue
                overlap = np.array([[window_iou(r, g) for g in guessed] for r in real])
                # A pair below the threshold is worth nothing, so that it cannot displace a pair that counts.
                rows, columns = linear_sum_assignment(np.where(overlap >= threshold, 1 + overlap, 0.0), maximize=True)
                matched += [float(v) for v in overlap[rows, columns] if v >= threshold]
        hits = len(matched)
        results.append(
            Matching(
                threshold,
                share(hits, total_predicted),
                share(hits, total_truth),
                2 * hits / (total_predicted + total_truth) if total_predicted + total_truth else None,
                float(np.mean(matched)) if matched else None,
            )
        )
    return tuple(results)
