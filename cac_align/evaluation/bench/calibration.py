"""Is a score a probability, and which threshold fits: ECE, reliability curve, AUROC, operating
point.

Higher scores mean more normal everywhere in the package, so a video is called abnormal when its
score lies below a threshold.

ECE = Σ_b (n_b / N) · |mean score in b − share of normal videos in b|, with ten bins of equal
width on [0, 1] (Naeini et al. 2015, for the probability of one class). It exists only for scores
in [0, 1]; other rewards get None and a note.

AUROC = P(score of a normal video > score of an anomalous one), ties counting one half
(Mann-Whitney).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cac_align.core.judgement import Status
from cac_align.evaluation.statistics import Estimate, share

BINS = 10


@dataclass(frozen=True)
class Bin:
    """One bin of the reliability curve: scores in [low, high), the last bin closed. Means are None
    for an empty bin.
    """

    low: float
    high: float
    n: int
    mean_value: float | None
    share_normal: float | None

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class OperatingPoint:
    """The threshold for a chosen false-alarm rate: a video with a lower score is called abnormal.

    ``threshold`` is the largest one that calls at most ``target_false_alarm_rate`` of the normal
    videos abnormal. ``false_alarm_rate`` and ``recall`` are what it gives on these same videos
    (choose it on one set, report on another). Values are None where a class is missing.
    """

    target_false_alarm_rate: float
    threshold: float | None
    false_alarm_rate: Estimate | None
    recall: Estimate | None

    def to_json(self) -> dict[str, Any]:
        return {
            "target_false_alarm_rate": self.target_false_alarm_rate,
            "threshold": self.threshold,
            "false_alarm_rate": self.false_alarm_rate.to_json() if self.false_alarm_rate else None,
            "recall": self.recall.to_json() if self.recall else None,
        }


@dataclass(frozen=True)
class Calibration:
    """How far a judge's scores can be read as probabilities. ``note`` says why ``ece`` is None
    where it is.
    """

    ece: float | None
    bins: tuple[Bin, ...]
    auroc: float | None
    operating_point: OperatingPoint
    n: int
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "ece": self.ece,
            "auroc": self.auroc,
            "operating_point": self.operating_point.to_json(),
            "bins": [column.to_json() for column in self.bins],
            "n": self.n,
            "note": self.note,
        }


def reliability(values: npt.ArrayLike, normal: npt.ArrayLike, *, bins: int = BINS) -> tuple[Bin, ...]:
    """The reliability curve of scores in [0, 1], in ``bins`` bins of equal width.

    Raises ``ValueError`` for a score outside [0, 1].
    """
    v, truth = np.asarray(values, dtype=float), np.asarray(normal, dtype=bool)
    if v.size and not ((v >= 0) & (v <= 1)).all():
        raise ValueError(
            f"reliability needs values in [0, 1], received {v.min()} to {v.max()}; normalise the reward first"
        )
    column = np.minimum((v * bins).astype(int), bins - 1)
    found = []
    for number in range(bins):
        inside = column == number
        n = int(inside.sum())
        mean, fraction = (float(v[inside].mean()), float(truth[inside].mean())) if n else (None, None)
        found.append(Bin(number / bins, (number + 1) / bins, n, mean, fraction))
    return tuple(found)


def expected_calibration_error(columns: Sequence[Bin]) -> float | None:
    """ECE of a reliability curve, in [0, 1]; None when the curve is empty."""
    total = sum(column.n for column in columns)
    if not total:
        return None
    filled = [
        (c.n, c.mean_value, c.share_normal) for c in columns if c.mean_value is not None and c.share_normal is not None
    ]
    return sum(n / total * abs(mean - normal) for n, mean, normal in filled)


def auroc(values: npt.ArrayLike, normal: npt.ArrayLike) -> float | None:
    """P(a normal video scores above an anomalous one), ties one half; None when a class is missing."""
    from scipy.stats import rankdata

    v, truth = np.asarray(values, dtype=float), np.asarray(normal, dtype=bool)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return None
    ranks = rankdata(v)
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def operating_point(values: npt.ArrayLike, normal: npt.ArrayLike, *, false_alarm_rate: float) -> OperatingPoint:
    """The largest threshold that calls at most ``false_alarm_rate`` of the normal videos abnormal.

    Raises ``ValueError`` unless the rate lies in [0, 1).
    """
    if not 0 <= false_alarm_rate < 1:
        raise ValueError(
            f"false_alarm_rate must lie in [0, 1), received {false_alarm_rate}; 0.05 is one false alarm in twenty"
        )
    v, truth = np.asarray(values, dtype=float), np.asarray(normal, dtype=bool)
    normals, anomalous = np.sort(v[truth]), v[~truth]
    if not normals.size:
        return OperatingPoint(false_alarm_rate, None, None, None)
    allowed = int(np.floor(false_alarm_rate * normals.size + 1e-9))
    # Videos strictly below the threshold are called abnormal: at most ``allowed`` normal ones.
    threshold = float(normals[allowed])
    return OperatingPoint(
        false_alarm_rate,
        threshold,
        share(int((normals < threshold).sum()), int(normals.size)),
        share(int((anomalous < threshold).sum()), int(anomalous.size)) if anomalous.size else None,
    )


def calibrate(values: Sequence[float], truth: Sequence[Status], *, false_alarm_rate: float = 0.05) -> Calibration:
    """ECE, reliability curve, AUROC and operating point of one judge's scores.

    Leave unscored videos out, and count them. Raises ``ValueError`` for a score that is not finite,
    or when scores and truths differ in number.
    """
    if len(values) != len(truth):
        raise ValueError(f"calibrate needs one truth per value, received {len(values)} values and {len(truth)} truths")
    v = np.asarray(values, dtype=float)
    if not np.isfinite(v).all():
        raise ValueError("calibrate received a value that is not finite; leave unscored videos out and count them")
    normal = [status == "normal" for status in truth]
    bounded = bool(v.size) and bool(((v >= 0) & (v <= 1)).all())
    columns = reliability(v, normal) if bounded else ()
    note = "" if bounded or not v.size else f"no ECE: values run from {v.min():.3g} to {v.max():.3g}, not inside [0, 1]"
    if not v.size:
        note = "no ECE: no video has a value"
    return Calibration(
        expected_calibration_error(columns),
        columns,
        auroc(v, normal),
        operating_point(v, normal, false_alarm_rate=false_alarm_rate),
        int(v.size),
        note,
    )
