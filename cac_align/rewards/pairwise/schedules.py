"""Which pairs of a group are compared, round by round.

number of items, what was asked and answered → schedule → pairs of the next round, none at the end

    round_robin  every pair: n (n − 1) / 2 comparisons, in one round
    anchor       every item against the same k items: about k n, in one round
    seeded       neighbours in the standing so far, ⌈log2 n⌉ + 1 rounds: about n log2(n) / 2

Every comparison is asked in both orders, which doubles the questions. Items are given in an order
that does not depend on their place in the call (``tournament``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import combinations
from typing import Literal

import numpy as np

from cac_align.rewards.pairwise.bradley_terry import IndexPair, components, fit_strengths

PairSchedule = Literal["round_robin", "anchor", "seeded"]
PAIR_SCHEDULES: tuple[PairSchedule, ...] = ("round_robin", "anchor", "seeded")


def next_pairs(
    schedule: PairSchedule,
    n: int,
    asked: Collection[IndexPair],
    answered: Mapping[IndexPair, float],
    rounds: int,
    anchors: int,
) -> list[IndexPair]:
    """The pairs (i < j) of the next round; an empty list when the tournament is over.

    asked: pairs of the rounds so far, answered or not. answered: P(i is better) of those that were.
    rounds: how many there were. anchors: how many items the others are compared with.
    """
    if schedule == "seeded":
        return _neighbours(n, asked, answered) if rounds < math.ceil(math.log2(max(n, 2))) + 1 else []
    if rounds:
        return []
    pairs = list(combinations(range(n), 2))
    return pairs if schedule == "round_robin" else [pair for pair in pairs if pair[0] < anchors]


def num_pairs(schedule: PairSchedule, n: int, anchors: int) -> int:
    """The most pairs that a group of n items is asked; twice as many questions."""
    if schedule == "seeded":
        return min(n // 2 * (math.ceil(math.log2(max(n, 2))) + 1), n * (n - 1) // 2)
    k = n if schedule == "round_robin" else min(anchors, n)
    return k * n - k * (k + 1) // 2


def _neighbours(n: int, asked: Collection[IndexPair], answered: Mapping[IndexPair, float]) -> list[IndexPair]:
    """Disjoint new pairs of items that stand next to each other; of equally near ones those that
    nothing connects yet.
    """
    place = np.argsort(np.argsort(-fit_strengths(n, answered), kind="stable"), kind="stable")
    part = components(n, answered)
    new = [pair for pair in combinations(range(n), 2) if pair not in asked]
    new.sort(key=lambda pair: (part[pair[0]] == part[pair[1]], abs(int(place[pair[0]] - place[pair[1]])), pair))
    chosen: list[IndexPair] = []
    used: set[int] = set()
    for pair in new:
        if used.isdisjoint(pair):
            chosen.append(pair)
            used.update(pair)
    return chosen
