"""Which records belong together because they show one source, which of them are held out, and a
mixture of several data sets in stated shares.

records → ``related`` → pairs of rows of one source: an injected pair, its hard normals, a second
annotation of one video

records → ``hold_out_sources`` → those that train, calibrate and measure, by whole sources

records by data set + shares → ``mixed`` → the records that are used
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction

from cac_align.data.perceptual_hash import duplicate_groups
from cac_align.data.records import Record


def related(records: Sequence[Record]) -> list[tuple[int, int]]:
    """Pairs of rows that must stay together: the same source file (``extra["origin"]["sha256"]``),
    twins (``extra["twin"]``), or the same video.

    Every row is linked to the first one of its kind only; the pairs connect whole groups.
    """
    first: dict[tuple[str, str], int] = {}
    links = []
    for row, record in enumerate(records):
        for key in _kinships(record):
            if (earlier := first.setdefault(key, row)) != row:
                links.append((earlier, row))
    return links


def source_hash(record: Record) -> str | None:
    """The sha256 of the file that a record's clip was cut from; None where the record does not say."""
    origin = record.extra.get("origin")
    found = origin.get("sha256") if isinstance(origin, Mapping) else None
    return found if isinstance(found, str) and found else None


def _kinships(record: Record) -> list[tuple[str, str]]:
    keys = [("id", record.id), ("video", os.path.normpath(record.video))]
    if (found := source_hash(record)) is not None:
        keys.append(("source", found))
    if isinstance(twin := record.extra.get("twin"), str) and twin:
        keys.append(("id", twin))
    return keys


def hold_out_sources(records: Sequence[Record], share: float, seed: int) -> dict[str, list[Record]]:
    """The records as "train", "calibrate" and "bench"; all records of a source are in one of them.

    share: of the records that do not train, half of them for each of the other two; at least one
    source of each. Sources are drawn by the seed and their records' ids. Raises ``ValueError`` for
    fewer than three sources.
    """
    groups = duplicate_groups(len(records), [(one, other, 0.0) for one, other in related(records)])
    if len(groups) < 3:
        raise ValueError(
            f"{len(records)} records come from {len(groups)} sources; training, calibration and bench need one each"
        )

    def lot(group: Sequence[int]) -> bytes:
        return hashlib.sha256(f"{seed}\0{min(records[row].id for row in group)}".encode()).digest()

    parts: dict[str, list[Record]] = {"calibrate": [], "bench": [], "train": []}
    order = sorted(groups, key=lot)
    for number, group in enumerate(order):
        spare = len(order) - number
        name = "train"
        for part, after in (("calibrate", 2), ("bench", 1)):
            if not parts[part] or (len(parts[part]) < share / 2 * len(records) and spare > after):
                name = part
                break
        parts[name] += [records[row] for row in sorted(group)]
    return parts


def mixed(pools: Mapping[str, Sequence[Record]], shares: Mapping[str, float], seed: int) -> dict[str, list[Record]]:
    """The largest choice of records in which each pool has its share, in either class.

    shares: by pool, adding up to 1. The pool that is scarcest for its share is used whole, the
    others are thinned; numbers are rounded down. Which records stay depends on the seed and on
    their own ids; those of one source stay or go together as far as the numbers allow. Raises
    ``ValueError`` for a pool without a record of a class.
    """
    chosen: dict[str, list[Record]] = {name: [] for name in pools}
    for status in ("abnormal", "normal"):
        of = {name: [record for record in pool if record.status == status] for name, pool in pools.items()}
        for name, found in of.items():
            if not found:
                raise ValueError(f"{name}: none of its {len(pools[name])} records is {status}; a mixture needs both")
        # As decimal fractions: 0.1 of 30 records is 3, not the 2.999… of binary numbers.
        exact = {name: Fraction(str(shares[name])) for name in pools}
        total = min(len(found) / exact[name] for name, found in of.items())
        for name, found in of.items():
            count = max(1, math.floor(total * exact[name]))
            chosen[name] += sorted(found, key=lambda record: _lot(record, seed))[:count]
    return chosen


def _lot(record: Record, seed: int) -> tuple[bytes, str]:
    """A record's place in the draw: that of its source."""
    source = source_hash(record) or record.id
    return hashlib.sha256(f"{seed}\0{source}".encode()).digest(), record.id
