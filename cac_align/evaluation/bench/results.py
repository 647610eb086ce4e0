"""What a bench found: one report per judge, and a paired comparison of every two judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from cac_align.evaluation.bench.detection import JudgeReport
from cac_align.evaluation.statistics import PairedTest, mcnemar


@dataclass(frozen=True)
class JudgeComparison:
    """Two judges on the videos that both scored. ``test.difference`` is second's accuracy minus
    first's.
    """

    first: str
    second: str
    test: PairedTest

    def to_json(self) -> dict[str, Any]:
        return {"first": self.first, "second": self.second, **self.test.to_json()}


@dataclass(frozen=True)
class Bench:
    """Several judges on one set of records. ``notes`` name what does not fit about the videos
    themselves.
    """

    reports: tuple[JudgeReport, ...]
    comparisons: tuple[JudgeComparison, ...]
    notes: tuple[str, ...] = field(default=())

    def to_json(self, *, videos: bool = False) -> dict[str, Any]:
        """For one judge its report plus ``notes``; for several, ``judges`` by name and
        ``comparisons``.
        """
        if len(self.reports) == 1:
            return {**self.reports[0].to_json(videos=videos), "notes": list(self.notes)}
        return {
            "judges": {report.judge: report.to_json(videos=videos) for report in self.reports},
            "comparisons": [one.to_json() for one in self.comparisons],
            "notes": list(self.notes),
        }


def compare_judges(reports: Sequence[JudgeReport], *, notes: Sequence[str] = ()) -> Bench:
    """Compare reports on the same records: McNemar's exact test on the videos that both judges
    scored.

    Raises ``ValueError`` for no report, or when two reports have the same judge's name.
    """
    if not reports:
        raise ValueError(
            "compare needs at least one judge, received none; do the stored scores belong to these records?"
        )
    names = [report.judge for report in reports]
    if len(set(names)) != len(names):
        raise ValueError(f"judges need different names, received {names}")
    found = []
    for first, second in combinations(reports, 2):
        other = {one.id: one for one in second.verdicts if one.status is not None}
        both = [(one, other[one.id]) for one in first.verdicts if one.status is not None and one.id in other]
        found.append(
            JudgeComparison(first.judge, second.judge, mcnemar([a.right for a, _ in both], [b.right for _, b in both]))
        )
    return Bench(tuple(reports), tuple(found), tuple(notes))
