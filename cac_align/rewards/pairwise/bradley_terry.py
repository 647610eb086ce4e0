"""Strengths from pairwise preferences: the Bradley-Terry model with a weak prior.

p per pair (N items) → Newton's method → strengths θ (N) → expected win rates (N)

The model: P(i is better than j) = σ(θ_i − θ_j). Every item also plays half a win and half a loss
against a phantom of strength 0, so that an item that won everything stays finite and the solution
is unique. Soft wins count as shares of a win. Source: Hunter, "MM algorithms for generalized
Bradley-Terry models", Ann. Stat. 32 (2004), equation 2 for the likelihood, which is concave.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

PRIOR = 0.5
_MAX_STEPS = 100
_TOLERANCE = 1e-10

IndexPair = tuple[int, int]


def fit_strengths(n: int, preferences: Mapping[IndexPair, float], prior: float = PRIOR) -> np.ndarray:
    """Strengths θ of n items, float64 (n,), on the scale of log-odds.

    preferences: P(i is better than j) in [0, 1] by (i, j), each pair at most once. prior: wins and
    losses of every item against the phantom, > 0. Raises ``ValueError`` for a prior of 0 or less and
    for a pair that is given in both orders or is no pair of items.
    """
    if prior <= 0:
        raise ValueError(f"prior must be > 0, received {prior}: without it an unbeaten item has no finite strength")
    games, wins = np.zeros((n, n)), np.full(n, prior)
    for (i, j), p in preferences.items():
        if not (0 <= i < n and 0 <= j < n and i != j) or (j, i) in preferences:
            raise ValueError(f"({i}, {j}) must be a pair of two of {n} items that is given once")
        games[i, j] = games[j, i] = 1.0
        wins[i] += p
        wins[j] += 1.0 - p
    strength, phantom = np.zeros(n), 2 * prior
    for _ in range(_MAX_STEPS):
        won = 1.0 / (1.0 + np.exp(strength[None, :] - strength[:, None]))
        won_once = 1.0 / (1.0 + np.exp(-strength))
        gradient = wins - (games * won).sum(1) - phantom * won_once
        weight = games * won * (1.0 - won)
        curvature = np.diag(weight.sum(1) + phantom * won_once * (1.0 - won_once)) - weight
        step = np.linalg.solve(curvature, gradient)
        strength += step * min(1.0, 2.0 / max(np.abs(step).max(initial=0.0), 1e-300))  # no leaps where it is flat
        if np.abs(step).max(initial=0.0) < _TOLERANCE:
            break
    return strength


def expected_win_rates(strengths: np.ndarray) -> np.ndarray:
    """Each item's mean probability of being better than another item, in (0, 1), mean 0.5.

    strengths: θ (n,), n ≥ 2.
    """
    n = len(strengths)
    p = 1.0 / (1.0 + np.exp(strengths[None, :] - strengths[:, None]))
    return (p.sum(1) - 0.5) / (n - 1)


def components(n: int, pairs: Mapping[IndexPair, object]) -> list[int]:
    """For each of n items the lowest item that pairs connect it with. Strengths of items that
    nothing connects cannot be compared.
    """
    lowest = list(range(n))

    def root(item: int) -> int:
        while lowest[item] != item:
            item = lowest[item]
        return item

    for i, j in pairs:
        a, b = sorted((root(i), root(j)))
        lowest[b] = a
    return [root(item) for item in range(n)]
