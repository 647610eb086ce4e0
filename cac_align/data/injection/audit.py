"""Shortcuts: whether anything but the defect tells an anomalous clip from its sham.

twins + boxes → ``twin_features`` (size, thumbnail and fine structure off the boxes) → ``shortcut_auc``
→ AUC of a logistic regression that never saw the source, 0.5 where there is no shortcut
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from cac_align.data.injection.pairs import TwinPair
from cac_align.data.injection.sources.masks import dilated, grey

THUMBNAIL = 32
"""Rows and columns of a thumbnail."""
FEATURES = ("metadata", "thumbnail", "high-pass off the boxes", "high-pass of the whole picture")
"""What classifiers are given, one after another."""


def twin_features(pair: TwinPair, sizes: Sequence[int], fps: float) -> dict[str, np.ndarray]:
    """What each classifier is shown of an anomalous clip and its sham, float32 (2, F) by name.

    sizes: bytes of the two files.
    """
    truth, edit = pair.truth, pair.edit
    count, height, width = truth.changed.shape
    frames = sorted(set(np.linspace(truth.first, truth.last, 4).round().astype(int).tolist()))
    boxed = np.zeros((len(frames), height, width), bool)
    for index, frame in enumerate(frames):
        for left, top, right, bottom in truth.boxes.get(frame, ()):
            boxed[index, top:bottom, left:right] = True
        boxed[index] |= truth.changed[frame]
    free = ~dilated(boxed, 2)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in FEATURES}
    for twin, size in zip((edit.anomalous, edit.sham), sizes, strict=True):
        light = grey(twin[frames])
        rows["metadata"].append(np.array([size, fps, count, height, width], np.float32))
        rows["thumbnail"].append(_thumbnail(light, free))
        rows["high-pass off the boxes"].append(_fine_structure(light, free))
        rows["high-pass of the whole picture"].append(_fine_structure(light, np.ones_like(free)))
    return {name: np.stack(found).astype(np.float32) for name, found in rows.items()}


def _thumbnail(light: np.ndarray, free: np.ndarray) -> np.ndarray:
    """The mean light of the free pixels in THUMBNAIL × THUMBNAIL cells, over the frames; 0 where none is free."""
    rows = np.arange(light.shape[1]) * THUMBNAIL // light.shape[1]
    columns = np.arange(light.shape[2]) * THUMBNAIL // light.shape[2]
    cells = (rows[:, None] * THUMBNAIL + columns[None]).ravel()
    total = np.bincount(cells, weights=(light * free).sum(0).ravel(), minlength=THUMBNAIL**2)
    number = np.bincount(cells, weights=free.sum(0).ravel(), minlength=THUMBNAIL**2)
    return total / np.maximum(number, 1)


def _fine_structure(light: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Mean, standard deviation and quantiles of what a 3 × 3 mean takes away, over the free pixels."""
    from scipy import ndimage

    fine = np.abs(light - ndimage.uniform_filter(light, 3, axes=(1, 2)))[free]
    if fine.size == 0:
        return np.zeros(6)
    return np.array([fine.mean(), fine.std(), *np.quantile(fine, (0.5, 0.75, 0.9, 0.99))])


@dataclass(frozen=True)
class ShortcutAuc:
    """The AUC of a classifier between twins, and its 95 % interval (bootstrap over pairs)."""

    auc: float
    low: float
    high: float
    pairs: int

    def to_json(self) -> dict[str, float | int]:
        return {name: round(value, 4) for name, value in asdict(self).items()}


def shortcut_auc(features: np.ndarray, sources: Sequence[str], *, folds: int = 5, seed: int = 0) -> ShortcutAuc | None:
    """How well a logistic regression tells anomalous clips from shams of sources that it never saw.

    features: (P, 2, F), the anomalous clip first. sources: the source of each pair; its pairs are
    held out together. None where there are fewer than ``folds`` sources.
    """
    names = sorted(set(sources))
    if len(names) < folds:
        return None
    rng = np.random.default_rng(seed)
    fold_of = dict(
        zip((names[index] for index in rng.permutation(len(names))), np.arange(len(names)) % folds, strict=True)
    )
    fold = np.array([fold_of[source] for source in sources])
    scores = np.empty(features.shape[:2])
    for held in range(folds):
        train = features[fold != held].astype(np.float64)
        middle, scale = train.mean((0, 1)), train.std((0, 1))
        # What a classifier can use of twins is how each departs from what clips of its kind look like.
        weights = _logistic((train - middle) / np.maximum(scale, 1e-6))
        scores[fold == held] = ((features[fold == held] - middle) / np.maximum(scale, 1e-6)) @ weights
    draws = [_auc(scores[rng.integers(len(scores), size=len(scores))]) for _ in range(400)]
    low, high = np.quantile(draws, (0.025, 0.975))
    return ShortcutAuc(_auc(scores), float(low), float(high), len(scores))


def _logistic(twins: np.ndarray, ridge: float = 1.0, steps: int = 25) -> np.ndarray:
    """Weights of a ridge logistic regression by Newton's method; classes are balanced, so the intercept
    is that of the centred features. twins: (P, 2, F), the first of each is the positive one.
    """
    rows = twins.reshape(-1, twins.shape[-1])
    target = np.tile([1.0, 0.0], len(twins))
    if rows.shape[1] > len(rows):  # in the span of the rows, where the solution lies
        basis = np.linalg.qr(rows.T)[0]
        return basis @ _logistic((rows @ basis).reshape(len(twins), 2, -1), ridge, steps)
    weights = np.zeros(rows.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(rows @ weights, -30, 30)))
        gradient = rows.T @ (p - target) + ridge * weights
        curvature = (rows * (p * (1 - p))[:, None]).T @ rows + ridge * np.eye(rows.shape[1])
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < 1e-6:
            break
    return weights


def _auc(scores: np.ndarray) -> float:
    """The probability that an anomalous clip scores above a sham; ties count half. scores: (P, 2)."""
    above, below = np.sort(scores[:, 0]), np.sort(scores[:, 1])
    less = np.searchsorted(below, above, side="left").sum()
    equal = np.searchsorted(below, above, side="right").sum() - less
    return float((less + 0.5 * equal) / (len(above) * len(below)))


def audit_pairs(features: Sequence[Mapping[str, np.ndarray]], sources: Sequence[str]) -> dict[str, object]:
    """The AUC of every classifier over all pairs; null where there are too few sources."""
    found: dict[str, object] = {}
    for name in FEATURES:
        result = shortcut_auc(np.stack([row[name] for row in features]), sources) if features else None
        found[name] = None if result is None else result.to_json()
    return found
