"""Everything that is known of one clip: scores with their judgement, ratings, VBench values,
luminance change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cac_align.core.judgement import Judgement
from cac_align.data.records import Record
from cac_align.evaluation.pairing import FolderClip, Pair


@dataclass
class ClipRecord:
    """What is known of one clip. Missing values are None or absent, never 0.

    values: score by component name ("cac", "unified", …); "reward" is a combination's value.
    normalised, shares: a combination's normalised component values and shares of variance.
    error: why there is no score.
    provenance: of the score as a whole.
    ratings: one record per rater.
    vbench: value in [0, 1] by dimension.
    luminance_change: see ``luminance.luminance_change``.
    judges: provenance of what produced a value, by the value's key ("cac", "reward", "cac_rate" for
        the verdict, "vbench/<dimension>"). Two values are comparable only where these are equal.
    """

    clip: FolderClip
    values: dict[str, float] = field(default_factory=dict)
    normalised: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    judgement: Judgement | None = None
    error: str | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    ratings: list[Record] = field(default_factory=list)
    vbench: dict[str, float] = field(default_factory=dict)
    luminance_change: float | None = None
    judges: dict[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def scored(self) -> bool:
        """Whether the clip has any score."""
        return bool(self.values)

    @property
    def judged_abnormal(self) -> bool | None:
        """CaC's verdict; None without one."""
        return None if self.judgement is None or self.judgement.status is None else self.judgement.status == "abnormal"


@dataclass(frozen=True)
class ClipRecordPair:
    """A pair with what is known of its two clips."""

    pair: Pair
    before: ClipRecord
    after: ClipRecord

    @property
    def experts(self) -> tuple[float, float] | None:
        """(before, after): share of the raters who judged both clips and call each abnormal; None
        without such a rater.
        """
        sides = [
            {
                record.annotator: float(record.status == "abnormal")
                for record in clip_record.ratings
                if is_counted(record)
            }
            for clip_record in (self.before, self.after)
        ]
        both = sorted(sides[0].keys() & sides[1].keys())
        if not both:
            return None
        first, second = (sum(side[rater] for rater in both) / len(both) for side in sides)
        return first, second


def is_counted(record: Any) -> bool:
    """Whether a rating counts: it names its rater, and no reviewer returned it."""
    return bool(record.annotator) and record.review != "returned"


def existing_files(places: Sequence[Path], name: str) -> list[Path]:
    """The files called ``name``, which may be a pattern, in these folders."""
    return [path for place in places for path in sorted(place.glob(name)) if path.is_file()]


ReportProgress = Callable[[int, int, str], None]
"""Called with (done, total, what) after each step."""
