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
from cac_align.data.injection.visible import why_rejected, why_sham_rejected


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
    bytes. Injectors of the tier "core" and the others draw from streams of their own and are counted
    apart. So a pair of a core injector is the same whether or not the extra is installed.
    """
    streams = {True: rng, False: rng.spawn(1)[0]}
    tried = {True: 0, False: 0}
    rejected: list[Rejection] = []
    for name in _order(injectors, streams):
        core = injectors[name].tier == "core"
        if tried[core] == settings.max_injectors:
            continue
        severity = float(streams[core].uniform(settings.min_severity, settings.max_severity))
        seed = int(streams[core].integers(2**63))
        for _ in range(settings.tries):
            try:
                edit = injectors[name].apply(source, np.random.default_rng(seed), severity)
            except NotApplicable as error:
                rejected.append(Rejection(name, None, str(error)))
                break
            truth = measure(edit)
            reason = why_rejected(edit, truth, source.fps, settings)
            if reason is None and injectors[name].tier == "gpu":
                reason = why_sham_rejected(edit, source.pixels, settings)
            if reason is None and truth is not None:
                return TwinPair(name, severity, edit, truth, anomaly_of(edit, truth, source.fps)), rejected
            rejected.append(Rejection(name, round(severity, 4), str(reason)))
            if str(reason).startswith("the sham"):
                break  # no severity changes what the sham went through
            seed += 1
            if str(reason).startswith("absurd"):
                severity = max(0.6 * severity, settings.min_severity)
            else:
                severity = min(severity + 0.35 * (1 - severity) + 0.05, settings.max_severity)
        else:
            tried[core] += 1
    return None, rejected


def _order(injectors: Mapping[str, Injector], streams: Mapping[bool, np.random.Generator]) -> list[str]:
    """The names in random order. Other injectors come in between those of the tier "core" (stream
    ``True``) and do not change their order.
    """
    shuffled: dict[bool, list[str]] = {}
    for core, stream in streams.items():
        names = sorted(name for name, injector in injectors.items() if (injector.tier == "core") == core)
        shuffled[core] = [names[index] for index in stream.permutation(len(names))]
    turns = np.repeat([True, False], [len(shuffled[True]), len(shuffled[False])])
    return [shuffled[bool(core)].pop(0) for core in streams[False].permutation(turns)]
