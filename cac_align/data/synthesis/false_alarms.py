"""False alarms: looks that are given a mistaken scan, so that turn 2 learns to check turn 1.

A normal video's look is placed where an anomalous video (its donor) has one, and is given a
mistaken scan of the normal video that suspects the donor's anomalies there. A share of the looks at
anomalous videos is given a mistaken scan of their own video too. Neither the words of turn 1, nor
their length, nor how they fit the clip may reveal the verdict: at inference turn 1 always writes
about the video that is shown.
"""

from __future__ import annotations

import hashlib
import random
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, islice

from cac_align.core.judgement import Anomaly, Window
from cac_align.data.records import Record
from cac_align.data.synthesis.questions import RecordQuestion
from cac_align.data.visibility import window_duration_s

DONORS_PER_LOOK = 3
"""Maximum number of donors per look: each one whose alarm fails verification costs all its rounds."""


Donors = Sequence[tuple[str, set[str], RecordQuestion]]
"""Looks at anomalous records as (position on a hash ring, words of the prompt, look), sorted by
position.
"""


def draw_for(record: Record, about: str, seed: int) -> random.Random:
    """A random generator that depends only on seed, purpose and record."""
    return random.Random(f"{seed}|{about}|{record.id}")


def place_donors(looks: Sequence[RecordQuestion]) -> Donors:
    """Place looks at anomalous records on the ring."""
    placed = [(_hash_place(look.record.id, look.window), _words(look.record.prompt), look) for look in looks]
    return sorted(placed, key=lambda donor: donor[0])


def normal_look(record: Record, donors: Donors, max_clip_s: float, seed: int) -> RecordQuestion:
    """A normal record's look: at the time of a donor's look, if that is a short clip inside this
    video too.
    """
    last_s = (record.num_frames - 1) / record.fps

    def fits(other: RecordQuestion) -> bool:
        assert other.window is not None
        return other.window.end_s <= last_s + 1e-6 and _is_short(other, max_clip_s)

    chosen = _choose_donors(record, donors, fits, _hash_place(seed, "look", record.id))
    alarms = tuple(_false_alarm(record, donor, donor.window, donor.record.anomalies) for donor in chosen)
    return RecordQuestion(record, "look", alarms[0].window if alarms else None, alarms=alarms)


def with_false_alarms(
    look: RecordQuestion, donors: Donors, share: float, max_clip_s: float, seed: int
) -> RecordQuestion:
    """An abnormal record's look, in ``share`` of cases with false alarms at the times of its own
    anomalies.

    Donors have as many anomalies, so that a false claim is as long as a right one, and no type in
    common.
    """
    record, window = look.record, look.window
    assert window is not None
    about = f"foreign {window.start_s:.6f}"
    if draw_for(record, about, seed).random() >= share:
        return look
    types = {anomaly.type for anomaly in record.anomalies}

    def fits(other: RecordQuestion) -> bool:
        donated = other.record.anomalies
        mistaken = len(donated) == len(record.anomalies) and types.isdisjoint(anomaly.type for anomaly in donated)
        return mistaken and _is_short(other, max_clip_s) == _is_short(look, max_clip_s)

    chosen = _choose_donors(record, donors, fits, _hash_place(seed, about, record.id))
    return replace(look, alarms=tuple(_false_alarm(record, donor, window, record.anomalies) for donor in chosen))


def _false_alarm(
    record: Record, donor: RecordQuestion, window: Window | None, when: Sequence[Anomaly]
) -> RecordQuestion:
    """The mistaken scan that suspects the donor's anomalies at the times of ``when``, for a look at
    ``window``.
    """
    donated = zip(donor.record.anomalies, when, strict=True)
    suspected = tuple(replace(anomaly, window=at.window, boxes={}, saliency=None) for anomaly, at in donated)
    return RecordQuestion(record, "scan", window, suspected=suspected, donor=donor.record.id)


def _choose_donors(
    record: Record, donors: Donors, fits: Callable[[RecordQuestion], bool], start: str
) -> list[RecordQuestion]:
    """At most ``DONORS_PER_LOOK`` of eight fitting looks, those whose prompts are most similar to
    the record's.

    Similarity is the Jaccard index of the prompts' words; the number of shared words would
    favour long prompts. The eight are the first that fit among the 256 that follow ``start`` on
    the ring, so that another donor changes only the choices near it.
    """
    first = bisect_left(donors, start, key=lambda donor: donor[0])
    next_ones = (donors[place] for place in islice(chain(range(first, len(donors)), range(first)), 256))
    offered = list(islice((donor for donor in next_ones if fits(donor[2])), 8))
    words = _words(record.prompt)

    def similarity(donor: tuple[str, set[str], RecordQuestion]) -> float:
        return len(words & donor[1]) / max(1, len(words | donor[1]))

    return [look for _, _, look in sorted(offered, key=similarity, reverse=True)[:DONORS_PER_LOOK]]


def _hash_place(*of: object) -> str:
    return hashlib.sha256("|".join(map(str, of)).encode()).hexdigest()


def _is_short(look: RecordQuestion, max_clip_s: float) -> bool:
    assert look.window is not None
    return window_duration_s(look.window, look.record.fps) < max_clip_s


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{3,}", text.lower()))
