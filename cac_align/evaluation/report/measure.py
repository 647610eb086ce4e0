"""The report's numbers: one measure per row of the paper's Table 2 and more, and the whole
comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cac_align.evaluation.pairing import Fault
from cac_align.evaluation.report.clip_record import ClipRecordPair
from cac_align.evaluation.statistics import (
    MIN_PROMPTS,
    Estimate,
    PairedTest,
)


@dataclass(frozen=True)
class Measure:
    """A quantity before and after, on the pairs where both values are known and come from the same
    judge.

    key: its name in JSON.
    higher_is_better: None where neither direction is better (luminance change).
    rate: whether it is a share of videos, shown in per cent.
    missing: number of pairs without both values.
    values: (before, after) per pair; the estimates and the test count prompts.
    no_interval: why the difference has no interval, where it has none.
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
    def unit(self) -> str:
        """What its values count, in words."""
        units = {"luminance_change": "share of the full range per 1/8 s", "normal_flow_speed": "share of full_speed"}
        return "share of videos" if self.rate else units.get(self.key, "score")

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "changed" when interval and paired test both exclude no change, else
        "open".

        Where every prompt moved alike there is no interval, and the test alone decides. Below
        ``MIN_PROMPTS`` prompts the verdict is always "open".
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
        """What the difference rests on: "24 pairs", or "8 prompts" where a prompt has several
        pairs.
        """
        n = self.difference.n
        return f"{n} {'pair' if n == len(self.values) else 'prompt'}{'s' if n > 1 else ''}"

    def to_json(self) -> dict[str, Any]:
        names = ("key", "label", "section", "unit", "missing", "verdict", "no_interval")
        row: dict[str, Any] = {name: getattr(self, name) for name in names} | {"pairs": len(self.values)}
        row |= {name: getattr(self, name).to_json() for name in ("before", "after", "difference", "test")}
        return row


@dataclass(frozen=True)
class ReportComparison:
    """Everything that the report says in numbers.

    shares: by component, its share of the combined reward's variance within a prompt's group, as
        the reward recorded it. Where no group was scored together, its share of the variance of the
        pairs' differences (then ``shares_of_change`` is true).
    contributions: mean change of the normalised value by component.
    """

    before: str
    after: str
    pairs: tuple[ClipRecordPair, ...]
    measures: tuple[Measure, ...]
    warnings: tuple[str, ...]
    shares: Mapping[str, Estimate]
    shares_of_change: bool
    contributions: Mapping[str, Estimate]
    faults: tuple[Fault, ...]

    def measure(self, key: str) -> Measure | None:
        """The measure of that key, or None."""
        return next((measure for measure in self.measures if measure.key == key), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "before": self.before,
            "after": self.after,
            "pairs": len(self.pairs),
            "measures": [measure.to_json() for measure in self.measures],
            "warnings": list(self.warnings),
            "shares": {name: share.to_json() for name, share in self.shares.items()},
            "contributions": {name: value.to_json() for name, value in self.contributions.items()},
            "faults": [{"kind": fault.kind, "name": fault.name, "why": fault.why} for fault in self.faults],
        }


JUDGED_DIFFERENTLY = "judged differently"
"""The kind of fault of a pair whose two sides come from different judges."""


def known_value(estimate: Estimate) -> float:
    """The value of an estimate that rests on at least one case."""
    assert estimate.value is not None  # a measure exists only where pairs do
    return estimate.value
