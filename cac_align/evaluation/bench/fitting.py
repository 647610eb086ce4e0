"""Fit CaC's temperature and threshold on videos whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cac_align.rewards.reward import Score

_TEMPERATURES = (0.25, 1000.0)
"""The lowest and the highest temperature that is tried."""


def fit_temperature(log_odds: npt.ArrayLike, normal: npt.ArrayLike) -> float:
    """The temperature T in [0.25, 1000] for which σ(log-odds / T) has the smallest mean negative
    log-likelihood.

    log_odds: log P(normal) − log P(abnormal) of the deciding turn, shape (N,). normal: the truth.
    Source: Guo et al. 2017 (arXiv 1706.04599). Raises ``ValueError`` for different lengths, values
    that are not finite, or videos of one class only.
    """
    odds, is_normal = _checked(log_odds, normal)
    signed = np.where(is_normal, odds, -odds)
    grid = np.geomspace(*_TEMPERATURES, 2001)
    losses = [float(np.logaddexp(0, -signed / temperature).mean()) for temperature in grid]
    return float(grid[int(np.argmin(losses))])


def fit_threshold(log_odds: npt.ArrayLike, normal: npt.ArrayLike) -> float:
    """The log-odds at which a video is as likely to be normal as abnormal.

    This is b of σ((log-odds − b) / T) with the smallest mean negative log-likelihood over b and T
    in [0.25, 1000] (Platt 1999). It holds for the share of normal videos that it was fitted on.

    log_odds: those of a judge, or the mean over several test-time augmentations, shape (N,). Raises ``ValueError`` as
    ``fit_temperature`` does.
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
class CalibrationFit:
    """The result of ``fit_scores``.

    temperature: see ``fit_temperature``.
    threshold: see ``fit_threshold``; None for a judge without test-time augmentation, whose own word is the
        verdict.
    n: number of videos with a score.
    abnormal: share of abnormal videos among them.
    loss_before, loss: mean negative log-likelihood in nats of σ(log-odds) and of σ(log-odds /
        temperature).
    right_before, right: share of right verdicts with a threshold of 0 and with the fitted one, by
        CaC's own rule (``consensus_judgement``: "abnormal" needs one augmentation that says so).
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


def fit_scores(scores: Sequence[Score], normal: Sequence[bool], *, num_augmentations: int = 1) -> CalibrationFit:
    """Fit temperature and, for several test-time augmentations, the threshold to CaC's scores of videos whose truth
    is known.

    Videos without a score are left out. Fit on videos that the judge was not trained on and will
    not be evaluated on.

    Raises ``ValueError`` when a score has no log-odds (it is not CaC's), when no video has a
    score, when all scored videos are of one class, or when the log-odds do not separate the
    classes.
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
    threshold = round(fit_threshold(odds, is_normal), 3) if num_augmentations > 1 else None
    if temperature >= _TEMPERATURES[1] or (threshold is not None and not odds.min() <= threshold <= odds.max()):
        found = f"temperature {temperature}" + ("" if threshold is None else f", threshold {threshold}")
        raise ValueError(f"these log-odds do not tell normal from abnormal videos ({found}); nothing was kept")
    signed = np.where(is_normal, odds, -odds)
    each = [
        [value for name, value in parts.items() if name.startswith("log_odds/")] or [parts["log_odds"]]
        for parts, _ in rows
    ]
    lowest, highest = np.array([min(values) for values in each]), np.array([max(values) for values in each])

    def share_right(threshold: float) -> float:
        # Where no single augmentation agrees with the mean, the mean decides.
        called_normal = np.where(odds > threshold, highest > 0, lowest > 0)
        return float((called_normal == is_normal).mean())

    return CalibrationFit(
        temperature,
        threshold,
        len(rows),
        float(1 - is_normal.mean()),
        float(np.logaddexp(0, -signed).mean()),
        float(np.logaddexp(0, -signed / temperature).mean()),
        share_right(0.0),
        share_right(threshold or 0.0),
    )


def _checked(log_odds: npt.ArrayLike, normal: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    odds, is_normal = np.asarray(log_odds, np.float64), np.asarray(normal, bool)
    if odds.shape != is_normal.shape or odds.ndim != 1:
        raise ValueError(f"expected one truth per value, received {odds.shape} and {is_normal.shape}")
    if not np.isfinite(odds).all() or is_normal.all() or not is_normal.any():
        raise ValueError("expected finite log-odds of normal and of abnormal videos")
    return odds, is_normal
