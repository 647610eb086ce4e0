"""Before against after in numbers: one Measure per row of the paper's Table 2 and more, paired intervals, and warnings in sentences.

Readings, two by two → measures (before, after, difference on the complete pairs) → warnings → Comparison

Every difference is paired: after − before on the pairs where both are known and come from the same judge (equal provenances). A prompt's
pairs are averaged first; then a percentile bootstrap interval over prompts and a sign-flip permutation test, or McNemar's exact test
(yes/no, one pair per prompt). Pairs that lack such a value are counted, per measure, in ``missing``.

Source: CaC (arXiv 2605.11723) Sec. 4.2 and Table 2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cac_align.evaluation.pairing import Fault, Pairing
from cac_align.evaluation.report.readings import PairReading, Reading, counts, judged_alike, misjudged
from cac_align.evaluation.statistics import (
    MIN_PROMPTS,
    NO_ESTIMATE,
    Estimate,
    PairedTest,
    compare_by_prompt,
    mean_interval,
    prompt_interval,
    prompt_means,
    vote_share,
)
from cac_align.rewards.normalise import variance_shares

RESAMPLES = 4000
COMPONENTS: Mapping[str, str] = {"cac": "CaC score", "unified": "UnifiedReward", "reward": "Combined reward"}
_MOTION_FALL = 0.05  # a fall of 5 % of the motion is worth a sentence even where few pairs leave the interval wide
_SCORE_MOVE = 0.02  # likewise, of a score's own range


@dataclass(frozen=True)
class Measure:
    """One row: a quantity before and after on the pairs where both are known.

    key: its name in JSON. higher_is_better: None where neither is (motion). rate: a share of videos, shown in per cent. values: (before,
    after) per pair; the estimates and the test count prompts. no_interval: why the difference has no interval, where it has none.
    """

    key: str
    label: str
    section: str
    higher_is_better: bool | None
    rate: bool
    before: Estimate
    after: Estimate
    difference: Estimate
    test: PairedTest
    missing: int
    values: tuple[tuple[float, float], ...]
    no_interval: str | None = None

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "changed" when the interval *and* the paired test exclude no change, else "open".

        Where every prompt moved alike there is no interval to ask, and the test alone decides; below 5 prompts nothing does.
        """
        low, high, moved = self.difference.low, self.difference.high, self.difference.value
        if self.difference.n < MIN_PROMPTS or not moved or self.test.p_value is None or self.test.p_value >= 0.05:
            return "open"
        if low is not None and high is not None and low <= 0 <= high:
            return "open"
        if self.higher_is_better is None:
            return "changed"
        return "better" if (moved > 0) == self.higher_is_better else "worse"

    @property
    def many(self) -> str:
        """What the difference rests on: "24 pairs", or "8 prompts" where a prompt has several pairs."""
        n = self.difference.n
        return f"{n} {'pair' if n == len(self.values) else 'prompt'}{'s' if n > 1 else ''}"

    def to_json(self) -> dict[str, Any]:
        names = ("key", "label", "section", "missing", "verdict", "no_interval")
        row: dict[str, Any] = {name: getattr(self, name) for name in names} | {"pairs": len(self.values)}
        row |= {name: getattr(self, name).to_json() for name in ("before", "after", "difference", "test")}
        return row


@dataclass(frozen=True)
class Comparison:
    """Everything the report says in numbers.

    shares: by component, its share of the combined reward's variance within a prompt's group, as the reward recorded it; where no group
    was scored together, of the variance of the pairs' differences (``shares_of_change``). contributions: mean normalised change.
    """

    before: str
    after: str
    readings: tuple[PairReading, ...]
    measures: tuple[Measure, ...]
    warnings: tuple[str, ...]
    shares: Mapping[str, Estimate]
    shares_of_change: bool
    contributions: Mapping[str, Estimate]
    faults: tuple[Fault, ...]

    def measure(self, key: str) -> Measure | None:
        return next((measure for measure in self.measures if measure.key == key), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "before": self.before,
            "after": self.after,
            "pairs": len(self.readings),
            "measures": [measure.to_json() for measure in self.measures],
            "warnings": list(self.warnings),
            "shares": {name: share.to_json() for name, share in self.shares.items()},
            "contributions": {name: value.to_json() for name, value in self.contributions.items()},
            "faults": [{"kind": fault.kind, "name": fault.name, "why": fault.why} for fault in self.faults],
        }


def compare(
    pairing: Pairing, readings: Sequence[Reading], faults: Sequence[Fault] = (), *, seed: int = 0
) -> Comparison:
    """Compare. readings: before and after of each pair in turn, as ``read_all`` gives them."""
    rows = tuple(
        PairReading(pair, before, after)
        for pair, before, after in zip(pairing.pairs, readings[::2], readings[1::2], strict=True)
    )
    measures = tuple(_measures(rows, seed))
    components = list(dict.fromkeys(name for reading in readings for name in reading.normalised))
    shares = {
        name: mean_interval([r.shares[name] for r in readings if name in r.shares], resamples=RESAMPLES, seed=seed)
        for name in dict.fromkeys(name for reading in readings for name in reading.shares)
    }
    changes = {
        name: [_both(row, lambda r, name=name: r.normalised.get(name), "reward") for row in rows] for name in components
    }
    contributions = {name: _change(rows, pairs, seed) for name, pairs in changes.items()}
    of_change = not shares
    if of_change:
        shares = _shares_of_change(changes, _weights(readings))
    named = (*faults, *_different_judges(rows))
    made = Comparison(pairing.before, pairing.after, rows, measures, (), shares, of_change, contributions, named)
    return replace(made, warnings=tuple(warnings(made)))


JUDGED_DIFFERENTLY = "judged differently"
"""The kind of fault of a pair whose two sides come from different judges."""


def _different_judges(rows: Sequence[PairReading]) -> list[Fault]:
    """A fault per pair that has a value on both sides, but from different judges: such numbers are not compared."""
    found = []
    for row in rows:
        apart = misjudged(row.before, row.after)
        if apart:
            said = "; ".join(f"{COMPONENTS.get(key, key)} ({', '.join(entries)})" for key, entries in apart.items())
            found.append(
                Fault(JUDGED_DIFFERENTLY, row.pair.id, f"different judges before and after, not compared: {said}")
            )
    return found


def _change(rows: Sequence[PairReading], pairs: Sequence[tuple[float, float] | None], seed: int) -> Estimate:
    known = [(row.pair.prompt, pair) for row, pair in zip(rows, pairs, strict=True) if pair is not None]
    values = prompt_means([after - before for _, (before, after) in known], [prompt for prompt, _ in known])
    return prompt_interval(values, resamples=RESAMPLES, seed=seed)


def _weights(readings: Sequence[Reading]) -> Mapping[str, float]:
    """The combination's weights, from its provenance; equal ones where none is stated."""
    stated = next((reading.provenance["weights"] for reading in readings if "weights" in reading.provenance), "{}")
    return json.loads(stated)


def _shares_of_change(
    changes: Mapping[str, Sequence[tuple[float, float] | None]], weights: Mapping[str, float]
) -> dict[str, Estimate]:
    complete = [index for index, row in enumerate(zip(*changes.values(), strict=True)) if None not in row]
    if len(changes) < 2 or len(complete) < 2:
        return {}
    terms = [
        [weights.get(name, 1.0) * (pairs[i][1] - pairs[i][0]) for i in complete] for name, pairs in changes.items()
    ]
    shares = variance_shares(np.array(terms))
    return {
        name: Estimate(float(share), None, None, len(complete))
        for name, share in zip(changes, shares, strict=True)
        if math.isfinite(share)
    }


# ---- measures -----------------------------------------------------------------------------------------------------


def _measures(rows: Sequence[PairReading], seed: int) -> list[Measure]:
    """The rows of the table that have at least one complete pair, and motion."""
    found = []

    def add(
        key: str, label: str, section: str, better: bool | None, take: Callable[[PairReading], Any], rate: bool = False
    ) -> None:
        known = [(row.pair.prompt, pair) for row in rows if (pair := take(row)) is not None]
        if known:
            found.append(_measure(key, label, section, better, rate, known, len(rows) - len(known), seed))

    for name in dict.fromkeys(name for row in rows for reading in (row.before, row.after) for name in reading.vbench):
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
    names = list(dict.fromkeys(name for row in rows for reading in (row.before, row.after) for name in reading.values))
    for name in sorted(names, key=lambda name: (list(COMPONENTS).index(name) if name in COMPONENTS else -1, name)):
        add(
            name,
            COMPONENTS.get(name, name),
            "Rewards",
            True,
            lambda row, name=name: _both(row, lambda r: r.values.get(name), name),
        )
    add("motion", "Motion", "Motion", None, lambda row: _both(row, lambda r: r.motion, "motion"))
    return found


def _abnormal(reading: Reading) -> float | None:
    return None if reading.judged_abnormal is None else float(reading.judged_abnormal)


def _both(row: PairReading, take: Callable[[Reading], float | None], judge: str) -> tuple[float, float] | None:
    """(before, after); None where a side has no value, or the two come from different judges of this key."""
    first, second = take(row.before), take(row.after)
    if first is None or second is None or math.isnan(first) or math.isnan(second):
        return None
    return (first, second) if judged_alike(row.before, row.after, judge) else None


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
    """known: (prompt, (before, after)) of each pair that counts."""
    values, prompts = [pair for _, pair in known], [prompt for prompt, _ in known]
    yes_no = rate or key == "vbench/dynamic_degree"
    found = compare_by_prompt(values, prompts, yes_no=yes_no, resamples=RESAMPLES, seed=seed)
    sides = [
        vote_share(side) if rate else prompt_interval(side, resamples=RESAMPLES, seed=seed)
        for side in (found.first, found.second)
    ]
    return Measure(
        key,
        label,
        section,
        better,
        rate,
        *sides,
        found.difference,
        found.test,
        missing,
        tuple(values),
        found.no_interval,
    )


# ---- sentences ----------------------------------------------------------------------------------------------------


def warnings(made: Comparison) -> list[str]:
    """What a reader must not miss, one sentence each: ways in which a better number can hide a worse video."""
    found = []
    motion, cac, unified = (made.measure(key) for key in ("motion", "cac", "unified"))
    rate = made.measure("experts") or made.measure("cac_rate")
    if motion and rate and _moved(motion, -1, _MOTION_FALL * _value(motion.before)) and _value(rate.difference) < 0:
        fall = -_value(motion.difference) / _value(motion.before)
        found.append(
            f"Motion fell by {fall:.0%} while the {_low(rate.label)} improved: fewer anomalies may only mean that less happens. "
            f"{_certainty(motion)}"
        )
    dynamic = made.measure("vbench/dynamic_degree")
    if dynamic and rate and _moved(dynamic, -1, _SCORE_MOVE) and _value(rate.difference) < 0:
        found.append(
            f"VBench's dynamic degree fell from {_value(dynamic.before):.3f} to {_value(dynamic.after):.3f} while the "
            f"{_low(rate.label)} improved: still videos have fewer anomalies. {_certainty(dynamic)}"
        )
    experts = made.measure("experts")
    cac_moved = cac or made.measure("cac_rate")
    cac_better = cac_moved is not None and _moved(cac_moved, 1 if cac_moved.higher_is_better else -1, _SCORE_MOVE)
    if experts and cac_moved and cac_better and _value(experts.difference) >= 0:
        how = (
            "did not change"
            if _value(experts.difference) == 0
            else f"rose by {100 * _value(experts.difference):.0f} points"
        )
        found.append(
            f"CaC {'rose' if cac else 'saw fewer anomalies'}, but experts did not agree: their anomaly rate {how} over "
            f"{experts.many}. The reward may have been outwitted. {_certainty(experts)}"
        )
    elif cac_better and experts is None:
        found.append(
            "CaC rose, and no expert's rating of both sides was found: the run optimised CaC, so this proves little. Rate both folders."
        )
    if unified and cac and _moved(unified, 1, _SCORE_MOVE * 4) and _moved(cac, -1, _SCORE_MOVE):
        found.append(
            f"UnifiedReward rose by {_value(unified.difference):.3f} while CaC fell by {-_value(cac.difference):.3f}: general appeal was "
            f"bought with anomalies. {_certainty(cac)}"
        )
    if made.shares and len(made.shares) > 1:
        name, share = max(made.shares.items(), key=lambda item: _value(item[1]))
        where = "between before and after" if made.shares_of_change else "within a group"
        if _value(share) > 0.9:
            found.append(
                f"{COMPONENTS.get(name, name)} makes {_value(share):.0%} of the combined reward's variance {where}: the others hardly count."
            )
    unscored = sum(not reading.scored for row in made.readings for reading in (row.before, row.after))
    if unscored and any(reading.scored for row in made.readings for reading in (row.before, row.after)):
        found.append(
            f"{unscored} of {2 * len(made.readings)} videos have no score; their pairs are left out of the rewards' rows."
        )
    apart = [fault for fault in made.faults if fault.kind == JUDGED_DIFFERENTLY]
    if apart:
        found.append(
            f"{len(apart)} of {len(made.readings)} pairs were judged by different judges before and after, and are not compared: "
            f"{apart[0].why.split(': ', 1)[1]}. Score both folders with the same reward."
        )
    prompts = len(prompt_means([0.0] * len(made.readings), [row.pair.prompt for row in made.readings]))
    if prompts < 20:
        pairs = f"{len(made.readings)} pair{'s' if len(made.readings) > 1 else ''}"
        few = pairs if prompts == len(made.readings) else f"{prompts} prompt{'s' if prompts > 1 else ''} ({pairs})"
        found.append(f"Only {few}: the intervals are wide, and a few videos decide.")
    return found


def _value(estimate: Estimate) -> float:
    assert estimate.value is not None  # a measure exists only where pairs do
    return estimate.value


def _moved(measure: Measure, direction: int, enough: float) -> bool:
    """Whether it moved that way: beyond chance, or by enough to matter."""
    moved = direction * _value(measure.difference)
    return moved > enough or (measure.verdict != "open" and moved > 0)


def _certainty(measure: Measure) -> str:
    if measure.verdict == "open":
        return f"With {measure.many} this may still be chance."
    if measure.no_interval:
        return "Every prompt moved alike, and the paired test excludes no change."
    return "The 95 % interval excludes no change."


def _low(label: str) -> str:
    """A label inside a sentence: "anomaly rate by experts"."""
    return (label[0].lower() + label[1:]).replace(", ", " by ")


# ---- the order of pairs -------------------------------------------------------------------------------------------


def _points(share: float) -> str:
    return f"{100 * share:+.0f}".replace("-", "−")


RANKINGS = ("reward", "cac", "experts", "cac_rate", "unified")
"""What wins and losses are ordered by: the first of these that the run has."""


def gains(made: Comparison) -> tuple[str | None, list[float | None]]:
    """(label of what pairs are ordered by, gain per pair: positive is better after; None where unknown)."""
    takes: dict[str, Callable[[PairReading], tuple[float, float] | None]] = {
        "experts": lambda row: row.experts,
        "cac_rate": lambda row: _both(row, _abnormal, "cac_rate"),
    }
    for key in RANKINGS:
        measure = made.measure(key)
        if measure is not None:
            take = takes.get(key, lambda row, key=key: _both(row, lambda r: r.values.get(key), key))
            sign = 1 if measure.higher_is_better else -1
            pairs = [take(row) for row in made.readings]
            return measure.label, [None if pair is None else sign * (pair[1] - pair[0]) for pair in pairs]
    return None, [None] * len(made.readings)


def summary(made: Comparison) -> str:
    """The result in one or two sentences."""
    rate = made.measure("experts") or made.measure("cac_rate")
    many = f"{len(made.readings)} pair{'s' if len(made.readings) != 1 else ''} of videos"
    if rate is None:
        apart = any(fault.kind == JUDGED_DIFFERENTLY for fault in made.faults)
        why = (
            "Different judges judged the two sides"
            if apart
            else "No verdict was found: give a reward, a ledger or ratings"
        )
        return f"{many}, the same prompts before and after. {why}."
    low, high = rate.difference.low, rate.difference.high
    moved = _value(rate.difference)
    verb = "fell" if moved < 0 else "rose" if moved > 0 else "stayed"
    interval = (
        f" ({_points(moved)} points, 95 % interval {_points(low)} to {_points(high)})"
        if low is not None and high is not None
        else f" ({_points(moved)} points; {rate.no_interval})"
    )
    who = "by experts" if rate.key == "experts" else "by CaC"
    return f"{many}, the same prompts before and after. Anomalies counted {who} {verb} from {100 * _value(rate.before):.0f} % to {100 * _value(rate.after):.0f} %{interval}."


__all__ = [
    "COMPONENTS", "Comparison", "Measure", "NO_ESTIMATE", "PairReading", "compare", "counts", "gains", "summary", "warnings",
]  # fmt: skip
