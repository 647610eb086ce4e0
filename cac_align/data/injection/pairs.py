"""One source → one pair of twins that is kept, or the reasons why there is none.

SourceClip + injectors + random stream → make_pair → TwinPair, and every rejected attempt with its reason
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from cac_align.core.judgement import Anomaly
from cac_align.data.injection.injector import Edit, Injector, NotApplicable, SourceClip
from cac_align.data.injection.settings import Injection
from cac_align.data.injection.truth import Truth, anomaly_of, measure
from cac_align.data.injection.visible import why_rejected


@dataclass(frozen=True)
class Rejection:
    """A rejected attempt. severity: None where the injector did not apply."""

    injector: str
    severity: float | None
    reason: str

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class TwinPair:
    """Twins that are kept: the edit, its measured truth and its annotation."""

    injector: str
    severity: float
    edit: Edit
    truth: Truth
    anomaly: Anomaly


def make_pair(
    source: SourceClip, injectors: Mapping[str, Injector], rng: np.random.Generator, settings: Injection
) -> tuple[TwinPair | None, list[Rejection]]:
    """Try injectors in random order until one gives a visible defect that is not absurd.

    A defect that cannot be seen is tried again with more severity, an absurd one with less, up to
    ``settings.tries`` times. Deterministic: the same source, injectors and stream give the same
    bytes.
    """
    names = sorted(injectors)
    order = [names[index] for index in rng.permutation(len(names))]
    rejected: list[Rejection] = []
    tried = 0
    for name in order:
        if tried == settings.max_injectors:
            break
        severity = float(rng.uniform(settings.min_severity, settings.max_severity))
        seed = int(rng.integers(2**63))
        for _ in range(settings.tries):
            try:
                edit = injectors[name].apply(source, np.random.default_rng(seed), severity)
            except NotApplicable as error:
                rejected.append(Rejection(name, None, str(error)))
                break
            truth = measure(edit)
            reason = why_rejected(edit, truth, source.fps, settings)
            if reason is None and truth is not None:
                return TwinPair(name, severity, edit, truth, anomaly_of(edit, truth, source.fps)), rejected
            rejected.append(Rejection(name, round(severity, 4), str(reason)))
            seed += 1
            if str(reason).startswith("absurd"):
                severity = max(0.6 * severity, settings.min_severity)
            else:
                severity = min(severity + 0.35 * (1 - severity) + 0.05, settings.max_severity)
        else:
            tried += 1
    return None, rejected
