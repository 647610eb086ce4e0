"""Is the score a probability, and where to cut it: ECE, reliability curve, AUROC, threshold for a false-alarm rate.

values (higher = more normal), truth → Calibration(ece, bins, auroc, operating point)

Higher is better everywhere in the package, so a video is called abnormal when its value lies *below* a threshold.
ECE = Σ_b (n_b / N) · |mean value in b − share of normal videos in b|, ten bins of equal width on [0, 1] (Naeini et al. 2015,
for a probability of one class). It exists only for values in [0, 1]; an unbounded reward gets None and the reason.
AUROC = P(value of a normal video > value of an anomalous one), ties counting one half (Mann-Whitney).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cac_align.core.judgement import Status
from cac_align.evaluation.statistics import Estimate, share
from cac_align.rewards.reward import Score

BINS = 10
_TEMPERATURES = (0.25, 1000.0)
"""Between which a temperature is looked for."""


@dataclass(frozen=True)
class Bin:
    """One column of the reliability diagram: values in [low, high) (the last one closed). Means are None for an empty bin."""

    low: float
    high: float
    n: int
    mean_value: float | None
    share_normal: float | None

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class OperatingPoint:
    """The cut at a chosen false-alarm rate: call a video abnormal when its value is < ``threshold``.

    threshold: the largest cut whose share of normal videos called abnormal is ≤ ``wanted``. false_alarm_rate, recall: what that
    cut gives on these same videos (choose on one set, report on another). None where a class is missing.
    """

    wanted: float
    threshold: float | None
    false_alarm_rate: Estimate | None
    recall: Estimate | None

    def to_json(self) -> dict[str, Any]:
        return {
            "wanted": self.wanted,
            "threshold": self.threshold,
            "false_alarm_rate": self.false_alarm_rate.to_json() if self.false_alarm_rate else None,
            "recall": self.recall.to_json() if self.recall else None,
        }


@dataclass(frozen=True)
class Calibration:
    """What the numbers behind the verdicts are worth. ``note`` says why ``ece`` is None where it is."""

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


def reliability(values: Sequence[float], normal: Sequence[bool], *, bins: int = BINS) -> tuple[Bin, ...]:
    """The reliability curve of values in [0, 1]: ``bins`` columns of equal width. Raises ``ValueError`` for a value outside."""
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
    return sum(column.n / total * abs(column.mean_value - column.share_normal) for column in columns if column.n)


def auroc(values: Sequence[float], normal: Sequence[bool]) -> float | None:
    """P(a normal video scores above an anomalous one), ties one half; None when one of the classes is missing."""
    from scipy.stats import rankdata

    v, truth = np.asarray(values, dtype=float), np.asarray(normal, dtype=bool)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return None
    ranks = rankdata(v)
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def operating_point(values: Sequence[float], normal: Sequence[bool], *, false_alarm_rate: float) -> OperatingPoint:
    """The largest threshold that calls at most ``false_alarm_rate`` of the normal videos abnormal, and its recall of anomalies.

    Raises ``ValueError`` unless the rate lies in [0, 1).
    """
    if not 0 <= false_alarm_rate < 1:
        raise ValueError(
            f"false_alarm_rate must lie in [0, 1), received {false_alarm_rate}; 0.05 is one false alarm in twenty"
        )
    v, truth = np.asarray(values, dtype=float), np.asarray(normal, dtype=bool)
    good, bad = np.sort(v[truth]), v[~truth]
    if not good.size:
        return OperatingPoint(false_alarm_rate, None, None, None)
    allowed = int(np.floor(false_alarm_rate * good.size + 1e-9))
    threshold = float(
        good[allowed]
    )  # exactly the videos strictly below it are called abnormal: at most `allowed` normal ones
    return OperatingPoint(
        false_alarm_rate,
        threshold,
        share(int((good < threshold).sum()), int(good.size)),
        share(int((bad < threshold).sum()), int(bad.size)) if bad.size else None,
    )


def calibrate(values: Sequence[float], truth: Sequence[Status], *, false_alarm_rate: float = 0.05) -> Calibration:
    """Everything in this file for one judge. ``values`` are finite; leave unscored videos out, and count them.

    Raises ``ValueError`` for a value that is not finite, or when the two differ in length.
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


def fit_temperature(log_odds: Sequence[float], normal: Sequence[bool]) -> float:
    """The T in [0.25, 1000] for which σ(log-odds / T) has the smallest mean negative log-likelihood (Guo et al. 2017, arXiv 1706.04599).

    log_odds: log P(normal) − log P(abnormal) of the deciding turn. Raises ``ValueError`` for other lengths, non-finite values, or
    when all videos are of one kind.
    """
    odds, is_normal = _checked(log_odds, normal)
    signed = np.where(is_normal, odds, -odds)
    grid = np.geomspace(*_TEMPERATURES, 2001)
    losses = [float(np.logaddexp(0, -signed / temperature).mean()) for temperature in grid]
    return float(grid[int(np.argmin(losses))])


def fit_threshold(log_odds: Sequence[float], normal: Sequence[bool]) -> float:
    """The log-odds at which a video is as likely to be normal as not: b of σ((log-odds − b) / T) with the smallest mean negative
    log-likelihood over b and T in [0.25, 1000] (Platt 1999). Mind that it holds for the share of normal videos it was fitted on.

    log_odds: those of a judge, or the mean of several views. Raises ``ValueError`` as ``fit_temperature`` does.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    odds, is_normal = _checked(log_odds, normal)
    scale = max(1.0, float(np.abs(odds).max()))
    signs, scaled = np.where(is_normal, 1.0, -1.0), odds / scale

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (line[0] * scaled + line[1])
        pulls = -signs * expit(-margins) / len(signs)
        return float(np.logaddexp(0, -margins).mean()), np.array([pulls @ scaled, pulls.sum()])

    slope, shift = minimize(
        loss,
        np.array([1.0, 0.0]),
        jac=True,
        bounds=[(scale / _TEMPERATURES[1], scale / _TEMPERATURES[0]), (None, None)],
    ).x
    return float(-shift / slope * scale)


@dataclass(frozen=True)
class Fit:
    """What ``fit_scores`` found for a judge, and on what.

    temperature: as in ``fit_temperature``. threshold: as in ``fit_threshold``; None for a judge that sees each video in one view, whose
    verdict is its own word. n: videos with a score. abnormal: share of them. loss_before, loss: mean negative log-likelihood of σ(log-odds)
    and of σ(log-odds / temperature), nats. right_before, right: share of right verdicts with a threshold of 0, and with this one, by CaC's
    own rule (``cac.views.consensus_judgement``: "abnormal" needs a view that says so).
    """

    temperature: float
    threshold: float | None
    n: int
    abnormal: float
    loss_before: float
    loss: float
    right_before: float
    right: float

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def fit_scores(scores: Sequence[Score], normal: Sequence[bool], *, views: int = 1) -> Fit:
    """Temperature, and for several views the threshold, from CaC's scores of videos whose truth is known; whatever has no score is left out.

    Fit on videos that the judge has neither learnt from nor will be measured on. Raises ``ValueError`` when no score has log-odds (it is
    not CaC's), no video has a score (the first one's reason is told), all of those that have are of one kind, or the log-odds do not
    tell one kind from the other.
    """
    rows = [(score.parts, truth) for score, truth in zip(scores, normal, strict=True) if score.scored]
    if not rows:
        raise ValueError(
            f"no video has a score; the first says: {scores[0].error}" if scores else "expected scores, received none"
        )
    if any("log_odds" not in parts for parts, _ in rows):
        raise ValueError("the scores have no log-odds, as CaC's have; there is nothing to fit")
    odds, is_normal = _checked([parts["log_odds"] for parts, _ in rows], [truth for _, truth in rows])
    temperature = round(fit_temperature(odds, is_normal), 3)
    threshold = round(fit_threshold(odds, is_normal), 3) if views > 1 else None
    if temperature >= _TEMPERATURES[1] or (threshold is not None and not odds.min() <= threshold <= odds.max()):
        found = f"temperature {temperature}" + ("" if threshold is None else f", threshold {threshold}")
        raise ValueError(f"these log-odds do not tell normal from abnormal videos ({found}); nothing was kept")
    signed = np.where(is_normal, odds, -odds)
    each = [
        [value for name, value in parts.items() if name.startswith("log_odds/")] or [parts["log_odds"]]
        for parts, _ in rows
    ]
    lowest, highest = np.array([min(seen) for seen in each]), np.array([max(seen) for seen in each])

    def right(cut: float) -> float:
        sound = np.where(
            odds > cut, highest > 0, lowest > 0
        )  # where no view says what the mean does, what they do say stands
        return float((sound == is_normal).mean())

    return Fit(
        temperature,
        threshold,
        len(rows),
        float(1 - is_normal.mean()),
        float(np.logaddexp(0, -signed).mean()),
        float(np.logaddexp(0, -signed / temperature).mean()),
        right(0.0),
        right(threshold or 0.0),
    )


def _checked(log_odds: Sequence[float], normal: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    odds, is_normal = np.asarray(log_odds, np.float64), np.asarray(normal, bool)
    if odds.shape != is_normal.shape or odds.ndim != 1:
        raise ValueError(f"expected one truth per value, received {odds.shape} and {is_normal.shape}")
    if not np.isfinite(odds).all() or is_normal.all() or not is_normal.any():
        raise ValueError("expected finite log-odds of normal and of abnormal videos")
    return odds, is_normal
