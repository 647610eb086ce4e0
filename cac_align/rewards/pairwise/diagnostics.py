"""What a tournament says of its judge: position bias, cycles, and whether there is a preference.

answers in both orders, per pair → position_bias | cycle_share | significance
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from cac_align.rewards.pairwise.bradley_terry import IndexPair

_FLIPS = 2000


def position_bias(in_order: Mapping[IndexPair, float], reversed_order: Mapping[IndexPair, float]) -> float:
    """How much more often the video shown first wins than it should, in [−1, 1].

    in_order: P(i is better) by (i, j) where i was shown first. reversed_order: P(j is better) where j
    was shown first. The mean of their sum − 1; 1 for a judge that always takes the first. NaN
    without a pair that was answered in both orders.
    """
    both = [in_order[pair] + reversed_order[pair] - 1 for pair in in_order if pair in reversed_order]
    return float(np.mean(both)) if both else float("nan")


def cycle_share(preferences: Mapping[IndexPair, float], epsilon: float) -> float:
    """The share of cycles (i better than j better than k better than i) among the triples whose three
    pairs were answered and are no ties.

    epsilon: |p − 0.5| up to which a pair is a tie. NaN without such a triple. A judge that tosses a
    coin has 0.25.
    """
    better = {pair: p > 0.5 for pair, p in preferences.items() if abs(p - 0.5) > epsilon}
    items = sorted({item for pair in better for item in pair})
    found = [
        better[i, j] == better[j, k] != better[i, k]
        for i, j, k in combinations(items, 3)
        if (i, j) in better and (j, k) in better and (i, k) in better
    ]
    return float(np.mean(found)) if found else float("nan")


def significance(n: int, preferences: Mapping[IndexPair, float]) -> float:
    """How often preferences as strong as these, but with random directions, would separate the items
    as much: a p-value, in (0, 1].

    Where nothing differs, both orders of a pair are exchangeable, so that p and 1 − p are equally
    likely. The statistic is the sum of squares of the items' mean preferences; directions are
    flipped 2,000 times with a fixed seed.
    """
    if not preferences:
        return 1.0
    first, second = (np.array(column) for column in zip(*preferences, strict=True))
    lead = np.fromiter(preferences.values(), float) - 0.5
    incidence = np.zeros((len(lead), n))
    incidence[np.arange(len(lead)), first] = 1.0
    incidence[np.arange(len(lead)), second] = -1.0
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(_FLIPS, len(lead)))
    flipped = ((signs * lead) @ incidence) ** 2
    observed = ((lead @ incidence) ** 2).sum()
    return float((1 + (flipped.sum(1) >= observed - 1e-12).sum()) / (_FLIPS + 1))
