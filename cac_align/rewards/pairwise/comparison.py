"""What a judge says of two videos shown one after the other.

prompt, first video, second video → Comparator → Comparison(p that the first is better | reason)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Protocol, runtime_checkable

from cac_align.core.video import Video


@dataclass(frozen=True)
class Comparison:
    """One answer about one ordered pair. Raises ``ValueError`` when p and error disagree."""

    # P(the video shown first is better), in [0, 1]: 1, 0 or 0.5 (a tie) where the judge only names a winner; NaN
    # when there is no answer.
    p: float
    # Why there is no answer; None when there is one.
    error: str | None = None
    # The judge's words.
    text: str = ""
    # Tokens read and written, for cost reports.
    tokens: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if math.isnan(self.p) != bool(self.error):
            raise ValueError(f"Comparison: exactly one of p and error is given, received p={self.p}, {self.error!r}")
        if not math.isnan(self.p) and not 0 <= self.p <= 1:
            raise ValueError(f"Comparison.p must lie in [0, 1], received {self.p}")

    @classmethod
    def missing(cls, reason: str, text: str = "") -> Comparison:
        """No answer, and the reason."""
        return cls(math.nan, reason or "no reason given", text)

    @property
    def answered(self) -> bool:
        return not math.isnan(self.p)


@runtime_checkable
class Comparator(Protocol):
    """A judge that compares. Thread-safe; a pair that fails does not affect the others."""

    @property
    def name(self) -> str: ...

    @property
    def provenance(self) -> Mapping[str, str]:
        """What identifies its answers: model, prompt hash, frames."""
        ...

    def compare(self, prompts: Sequence[str], firsts: Sequence[Video], seconds: Sequence[Video]) -> list[Comparison]:
        """One Comparison per (prompt, first, second), in order. The judge sees them in this order;
        the caller asks again the other way round.
        """
        ...


def checked_comparisons(name: str, returned: object, count: int) -> list[Comparison]:
    """One Comparison per question; whatever is none becomes a missing one.

    Raises ``ValueError`` when there is not one value per question, because then nobody knows which
    pair each belongs to.
    """
    if not isinstance(returned, (list, tuple)) or len(returned) != count:
        received = f"{len(returned)} values" if isinstance(returned, (list, tuple)) else type(returned).__name__
        raise ValueError(f"comparator {name!r} returned {received} for {count} questions; expected one each")
    return [_checked(name, each) for each in returned]


def _checked(name: str, given: object) -> Comparison:
    if not isinstance(given, Comparison):
        return Comparison.missing(f"comparator {name!r} returned a {type(given).__name__}, no Comparison")
    if isinstance(given.p, bool) or not isinstance(given.p, Real) or not isinstance(given.error, str | None):
        return Comparison.missing(f"comparator {name!r} returned a Comparison whose fields have other types")
    return given
