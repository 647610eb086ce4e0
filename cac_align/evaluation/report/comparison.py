"""Compare the two sides of a pairing: measures with paired intervals and tests, and the order of
the pairs.

Every difference is after − before, on the pairs where both values are known and come from the
same judge (equal provenances). A prompt's pairs are averaged first. Then follow a percentile
bootstrap interval over prompts, and McNemar's exact test (yes/no outcomes, one pair per prompt)
or a sign-flip permutation test. Pairs without both values are counted per measure in
``missing``.

Source: CaC (arXiv 2605.11723) Sec. 4.2 and Table 2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cac_align.evaluation.pages.page import COMPONENT_TITLES
from cac_align.evaluation.pairing import Fault, Pairing
from cac_align.evaluation.report.clip_record import ClipRecord, ClipRecordPair
from cac_align.evaluation.report.clip_scores import judge_differences, same_judge
from cac_align.evaluation.report.measure import JUDGED_DIFFERENTLY, Measure, ReportComparison
from cac_align.evaluation.report.report_warnings import report_warnings
from cac_align.evaluation.statistics import (
    Estimate,
    compare_by_prompt,
    mean_interval,
    prompt_interval,
    prompt_means,
    vote_share,
)
from cac_align.rewards.normalise import variance_shares

RESAMPLES = 4000


def compare_pairs(
    pairing: Pairing, clip_records: Sequence[ClipRecord], faults: Sequence[Fault] = (), *, seed: int = 0
) -> ReportComparison:
    """Compare. clip_records: before and after of each pair in turn, as ``collect_clip_records``
    returns them.
    """
    rows = tuple(
        ClipRecordPair(pair, before, after)
        for pair, before, after in zip(pairing.pairs, clip_records[::2], clip_records[1::2], strict=True)
    )
    measures = tuple(_measures(rows, seed))
    components = list(dict.fromkeys(name for clip_record in clip_records for name in clip_record.normalised))
    shares = {
        name: mean_interval([r.shares[name] for r in clip_records if name in r.shares], resamples=RESAMPLES, seed=seed)
        for name in dict.fromkeys(name for clip_record in clip_records for name in clip_record.shares)
    }
    changes = {
        name: [_both(row, lambda r, name=name: r.normalised.get(name), "reward") for row in rows] for name in components
    }
    contributions = {name: _change(rows, pairs, seed) for name, pairs in changes.items()}
    of_change = not shares
    if of_change:
        shares = _shares_of_change(changes, _weights(clip_records))
    all_faults = (*faults, *_different_judges(rows))
    made = ReportComparison(
        pairing.before, pairing.after, rows, measures, (), shares, of_change, contributions, all_faults
    )
    return replace(made, warnings=tuple(report_warnings(made)))


def _different_judges(rows: Sequence[ClipRecordPair]) -> list[Fault]:
    """A fault for each pair that has a value on both sides, but from different judges."""
    found = []
    for row in rows:
        apart = judge_differences(row.before, row.after)
        if apart:
            what = "; ".join(
                f"{COMPONENT_TITLES.get(key, key)} ({', '.join(entries)})" for key, entries in apart.items()
            )
            found.append(
                Fault(JUDGED_DIFFERENTLY, row.pair.id, f"different judges before and after, not compared: {what}")
            )
    return found


def _change(rows: Sequence[ClipRecordPair], pairs: Sequence[tuple[float, float] | None], seed: int) -> Estimate:
    known = [(row.pair.prompt, pair) for row, pair in zip(rows, pairs, strict=True) if pair is not None]
    values = prompt_means([after - before for _, (before, after) in known], [prompt for prompt, _ in known])
    return prompt_interval(values, resamples=RESAMPLES, seed=seed)


def _weights(clip_records: Sequence[ClipRecord]) -> Mapping[str, float]:
    """The combination's weights, from its provenance; equal ones where none is stated."""
    stated = next(
        (clip_record.provenance["weights"] for clip_record in clip_records if "weights" in clip_record.provenance), "{}"
    )
    return json.loads(stated)


def _shares_of_change(
    changes: Mapping[str, Sequence[tuple[float, float] | None]], weights: Mapping[str, float]
) -> dict[str, Estimate]:
    complete = [row for row in zip(*changes.values(), strict=True) if None not in row]
    if len(changes) < 2 or len(complete) < 2:
        return {}
    terms = [
        [weights.get(name, 1.0) * (pair[1] - pair[0]) for pair in column if pair is not None]
        for name, column in zip(changes, zip(*complete, strict=True), strict=True)
    ]
    shares = variance_shares(np.array(terms))
    return {
        name: Estimate(float(share), None, None, len(complete))
        for name, share in zip(changes, shares, strict=True)
        if math.isfinite(share)
    }


# ---- measures -----------------------------------------------------------------------------------------------------


def _measures(rows: Sequence[ClipRecordPair], seed: int) -> list[Measure]:
    """The measures that have at least one complete pair."""
    found = []

    def add(
        key: str,
        label: str,
        section: str,
        better: bool | None,
        take: Callable[[ClipRecordPair], Any],
        rate: bool = False,
    ) -> None:
        known = [(row.pair.prompt, pair) for row in rows if (pair := take(row)) is not None]
        if known:
            found.append(_measure(key, label, section, better, rate, known, len(rows) - len(known), seed))

    for name in dict.fromkeys(
        name for row in rows for clip_record in (row.before, row.after) for name in clip_record.vbench
    ):
        label = name.replace("_", " ").capitalize()
        add(
            f"vbench/{name}",
            label,
            "VBench",
            True,
            lambda row, name=name: _both(row, lambda r: r.vbench.get(name), f"vbench/{name}"),
        )
    add("experts", "Anomaly rate, experts", "Anomalies", False, lambda row: row.experts, rate=True)
    add("cac_rate", "Anomaly rate, CaC", "Anomalies", False, lambda row: _both(row, _abnormal, "cac_rate"), rate=True)
    names = list(
        dict.fromkeys(name for row in rows for clip_record in (row.before, row.after) for name in clip_record.values)
    )
    for name in sorted(
        names, key=lambda name: (list(COMPONENT_TITLES).index(name) if name in COMPONENT_TITLES else -1, name)
    ):
        add(
            name,
            COMPONENT_TITLES.get(name, name),
            "Rewards",
            True,
            lambda row, name=name: _both(row, lambda r: r.values.get(name), name),
        )
    add(
        "luminance_change",
        "Luminance change per ⅛ s",
        "Luminance change",
        None,
        lambda row: _both(row, lambda r: r.luminance_change, "luminance_change"),
    )
    return found


def _abnormal(clip_record: ClipRecord) -> float | None:
    return None if clip_record.judged_abnormal is None else float(clip_record.judged_abnormal)


def _both(row: ClipRecordPair, take: Callable[[ClipRecord], float | None], judge: str) -> tuple[float, float] | None:
    """(before, after); None where a side has no value, or the two come from different judges of
    this key.
    """
    first, second = take(row.before), take(row.after)
    if first is None or second is None or math.isnan(first) or math.isnan(second):
        return None
    return (first, second) if same_judge(row.before, row.after, judge) else None


def _measure(
    key: str,
    label: str,
    section: str,
    better: bool | None,
    rate: bool,
    known: Sequence[tuple[str | None, tuple[float, float]]],
    missing: int,
    seed: int,
) -> Measure:
    """known: (prompt, (before, after)) of each pair that has both values."""
    values, prompts = [pair for _, pair in known], [prompt for prompt, _ in known]
    yes_no = rate or key == "vbench/dynamic_degree"
    found = compare_by_prompt(values, prompts, yes_no=yes_no, resamples=RESAMPLES, seed=seed)
    first, second = (
        vote_share(side) if rate else prompt_interval(side, resamples=RESAMPLES, seed=seed)
        for side in (found.first, found.second)
    )
    return Measure(
        key,
        label,
        section,
        better,
        rate,
        first,
        second,
        found.difference,
        found.test,
        missing,
        tuple(values),
        found.no_interval,
    )


# ---- sentences ----------------------------------------------------------------------------------------------------


# ---- the order of pairs -------------------------------------------------------------------------------------------


RANKINGS = ("reward", "cac", "experts", "cac_rate", "unified")
"""Pairs are ordered by the first of these measures that the run has."""


def gains(made: ReportComparison) -> tuple[str | None, list[float | None]]:
    """The label of the measure that pairs are ordered by, and the gain of each pair.

    A positive gain means better after; None means unknown.
    """
    takes: dict[str, Callable[[ClipRecordPair], tuple[float, float] | None]] = {
        "experts": lambda row: row.experts,
        "cac_rate": lambda row: _both(row, _abnormal, "cac_rate"),
    }
    for key in RANKINGS:
        measure = made.measure(key)
        if measure is not None:
            take = takes.get(key, lambda row, key=key: _both(row, lambda r: r.values.get(key), key))
            sign = 1 if measure.higher_is_better else -1
            pairs = [take(row) for row in made.pairs]
            return measure.label, [None if pair is None else sign * (pair[1] - pair[0]) for pair in pairs]
    return None, [None] * len(made.pairs)
