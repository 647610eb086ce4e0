"""Anomaly rate, displacement and prompt following of a set of clips, from the oracle's verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cac_align.evaluation.statistics import Estimate, mean_interval, share
from cac_align.miniature.oracle.oracle import OracleVerdict


@dataclass(frozen=True)
class OracleRates:
    """What the oracle's verdicts on a set of clips come to, each with its 95 % interval."""

    name: str
    # Share of anomalous clips.
    anomaly_rate: Estimate
    # Mean oracle displacement in px per second; without a value when no clip shows its entity.
    displacement_px_s: Estimate
    # Share of clips that follow every part of their prompt.
    follows: Estimate

    def to_json(self) -> dict[str, Any]:
        """The rates as one JSON object."""
        keys = ("anomaly_rate", "displacement_px_s", "follows")
        return {"name": self.name, **{key: getattr(self, key).to_json() for key in keys}}


def is_anomalous(verdict: OracleVerdict) -> bool:
    """Whether the oracle calls the clip abnormal."""
    return verdict.status == "abnormal"


def rates_of(name: str, verdicts: Sequence[OracleVerdict]) -> OracleRates:
    """The rates of these clips under this name."""
    follows = [all(verdict.follows.values()) for verdict in verdicts]
    moved = [verdict.displacement_px_s for verdict in verdicts if np.isfinite(verdict.displacement_px_s)]
    return OracleRates(
        name,
        share(sum(map(is_anomalous, verdicts)), len(verdicts)),
        mean_interval(moved) if moved else Estimate(None, None, None, 0),
        share(sum(follows), len(follows)),
    )
