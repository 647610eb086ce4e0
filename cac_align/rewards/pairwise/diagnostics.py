"""What a tournament says of its judge: position bias, cycles, and whether there is a preference.

answers in both orders, per pair → position_bias | cycle_share | significance
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from cac_align.rewards.pairwise.bradley_terry import IndexPair

_DRAWS = 2000


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
    """How often preferences as strong as these, but with random directions, are explained as well by
    strengths of the items: a p-value, in (0, 1]. For schedules whose pairs do not depend on answers.

    Where nothing differs, both orders of a pair are exchangeable, so that p and 1 − p are equally
    likely. The statistic is the sum of squares of p − 0.5 that least-squares strengths explain;
    directions are flipped 2,000 times with a fixed seed.
    """
    if not preferences:
        return 1.0
    lead = np.fromiter(preferences.values(), float) - 0.5
    rows, (first, second) = np.arange(len(lead)), (np.array(column) for column in zip(*preferences, strict=True))
    incidence = np.zeros((len(lead), n))
    incidence[rows, first], incidence[rows, second] = 1.0, -1.0
    left, singular, _ = np.linalg.svd(incidence, full_matrices=False)
    basis = left[:, singular > 1e-9]
    flipped = (np.random.default_rng(0).choice([-1.0, 1.0], size=(_DRAWS, len(lead))) * lead) @ basis
    observed = ((lead @ basis) ** 2).sum()
    return _p_value((flipped**2).sum(1), float(observed))


def significance_of_agreement(in_order: Mapping[IndexPair, float], reversed_order: Mapping[IndexPair, float]) -> float:
    """How often the two orders of a pair agree as much when the answers are dealt to other questions:
    a p-value, in (0, 1]. For schedules whose pairs depend on the answers.

    in_order, reversed_order: P(i is better) and P(j is better), as in ``position_bias``. Where nothing
    differs, an answer does not depend on the pair that was shown, so that answers are exchangeable,
    whatever the position bias and however the pairs were chosen. The statistic is the sum of squares
    of the difference of the two answers; they are dealt 2,000 times with a fixed seed.
    """
    answers = np.array([(in_order[pair], reversed_order[pair]) for pair in in_order if pair in reversed_order])
    if not len(answers):
        return 1.0
    dealt = np.random.default_rng(0).permuted(np.tile(answers.ravel(), (_DRAWS, 1)), axis=1)
    found = ((dealt[:, ::2] - dealt[:, 1::2]) ** 2).sum(1)
    return _p_value(found, float(((answers[:, 0] - answers[:, 1]) ** 2).sum()))


def _p_value(drawn: np.ndarray, observed: float) -> float:
    return float((1 + (drawn >= observed - 1e-12).sum()) / (len(drawn) + 1))
