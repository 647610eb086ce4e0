"""Thresholds that are fitted on one half of the videos and used on the other.

equal videos, classes → two_halves → half of each video
values, truths of one half → best_threshold → a threshold for the other half

A judge that gives a number and no verdict needs a threshold. One that is fitted on the videos that it is tested on
flatters the judge, most of all on small sets. Here no video is judged by a threshold that has seen it, nor one that
has seen a file of the same bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cac_align.core.judgement import Status
from cac_align.data.records import Record

FIT = "fit"
"""In place of a threshold: fit it, on the half of the videos that it is not used on."""


@dataclass(frozen=True)
class FittedThresholds:
    """The result of ``fit_thresholds``.

    halves: 0 or 1 for each video. thresholds: the one that is used on half 0 and the one that is used on half 1; None
    where none could be fitted, and then the entry of ``faults`` says why.
    """

    halves: tuple[int, ...]
    thresholds: tuple[float | None, float | None]
    faults: tuple[str | None, str | None]

    def to_json(self) -> dict[str, Any]:
        return {
            "thresholds": list(self.thresholds),
            "videos": [self.halves.count(0), self.halves.count(1)],
            "faults": list(self.faults),
        }


def file_groups(records: Sequence[Record], root: Path) -> tuple[list[str], int]:
    """(A text for each record that is equal where the files are equal, the number of files that could not be read.)

    A file that cannot be read is told by its path alone.
    """
    groups, unread = [], 0
    digests: dict[Path, str] = {}
    for record in records:
        path = (root / record.video).resolve()
        if path not in digests:
            try:
                with open(path, "rb") as file:
                    digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:
                digests[path] = f"path {path}"
        unread += digests[path].startswith("path ")
        groups.append(digests[path])
    return groups, unread


def two_halves(groups: Sequence[str], classes: Sequence[str]) -> tuple[int, ...]:
    """Half 0 or 1 for each video: equal groups in one half, and each class in both halves as evenly as that allows.

    The larger groups are placed first, those of one size in the order of a hash, so that the halves depend on the
    videos and not on the order of the records.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for position, group in enumerate(groups):
        members[group].append(position)
    order = sorted(members, key=lambda name: (-len(members[name]), hashlib.sha256(name.encode()).hexdigest()))
    surplus: dict[str, int] = defaultdict(int)  # by class: videos in half 0 more than in half 1
    halves = [0] * len(groups)
    for name in order:
        counts: dict[str, int] = defaultdict(int)
        for position in members[name]:
            counts[classes[position]] += 1
        lean = [sum(abs(surplus[c] + sign * n) for c, n in counts.items()) for sign in (1, -1)]
        total = sum(surplus.values())
        half = int(lean[1] < lean[0] or (lean[0] == lean[1] and total > 0))
        for position in members[name]:
            halves[position] = half
            surplus[classes[position]] += 1 if half == 0 else -1
    return tuple(halves)


def best_threshold(values: npt.ArrayLike, normal: npt.ArrayLike) -> float | str:
    """The threshold with the largest mean of the two recalls, where lower values are called abnormal.

    It lies midway between two neighbouring values; of several that are equally good it is the middle one. Returns why
    there is none where a class is missing or all values are equal.
    """
    v, truth = np.asarray(values, float), np.asarray(normal, bool)
    if truth.all() or not truth.any():
        return f"the other half has no {'anomalous' if truth.any() else 'normal'} video with a score"
    distinct = np.unique(v)
    if len(distinct) == 1:
        return "all scores in the other half are equal"
    candidates = (distinct[:-1] + distinct[1:]) / 2
    # Of two neighbouring floats the midpoint may round to the lower one, which would then not lie below it.
    candidates = np.where(candidates > distinct[:-1], candidates, distinct[1:])
    abnormal, sound = np.sort(v[~truth]), np.sort(v[truth])
    recall = np.searchsorted(abnormal, candidates) / len(abnormal)
    kept = 1 - np.searchsorted(sound, candidates) / len(sound)
    best = np.flatnonzero(np.isclose(recall + kept, (recall + kept).max(), rtol=0, atol=1e-12))
    return float(candidates[best[len(best) // 2]])


def fit_thresholds(values: Sequence[float], truths: Sequence[Status], halves: Sequence[int]) -> FittedThresholds:
    """The threshold of each half, fitted on the other one.

    values: NaN where there is no score; such videos take no part. Raises ``ValueError`` for lengths that differ.
    """
    if not len(values) == len(truths) == len(halves):
        raise ValueError(
            f"expected one truth and one half per value, received {len(values)}, {len(truths)} and {len(halves)}"
        )
    found: list[float | str] = []
    for half in (0, 1):
        other = [i for i, h in enumerate(halves) if h != half and math.isfinite(values[i])]
        found.append(best_threshold([values[i] for i in other], [truths[i] == "normal" for i in other]))
    first, second = (None if isinstance(one, str) else one for one in found)
    faults = tuple(one if isinstance(one, str) else None for one in found)
    return FittedThresholds(tuple(halves), (first, second), (faults[0], faults[1]))
