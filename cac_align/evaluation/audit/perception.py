"""Does the reward fall when a defect is put in: how often, how far, and for which defects.

AuditPairs, scores of both twins → ``perceive`` → Perception, with a psychometric curve per property
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cac_align.evaluation.audit.asking import Asker, AuditQuestion
from cac_align.evaluation.audit.pairs import AuditPair
from cac_align.evaluation.statistics import NO_ESTIMATE, Estimate, mean_interval, share
from cac_align.rewards.normalise import TIE

_LEVEL = 0.05
"""Level of the test that a reward falls more often than it rises."""


@dataclass(frozen=True)
class Perception:
    """``falls``: share of the pairs whose defective twin scores lower, with a Wilson interval; a tie
    is no fall. ``drop``: mean of clean − defective. ``p_value``: of the sign test against "falls and
    rises are equally likely". ``curve``: the share of falls by type, severity, size and duration of
    the defect. ``drops``: of each pair, None without both scores.
    """

    falls: Estimate
    rises: int
    ties: int
    unscored: int
    drop: Estimate
    p_value: float
    curve: dict[str, dict[str, Estimate]]
    drops: tuple[float | None, ...]

    @property
    def reacts(self) -> bool:
        """Whether the reward falls more often than it rises, beyond chance."""
        return self.p_value <= _LEVEL and (self.drop.value or 0.0) > 0


def perceive(pairs: Sequence[AuditPair], asker: Asker) -> Perception:
    """Ask about both twins of every pair."""
    from scipy.stats import binomtest

    cases = [[AuditQuestion(p.prompt, p.clean), AuditQuestion(p.prompt, p.defect.video)] for p in pairs]
    drops = [
        clean.value - defect.value if clean.scored and defect.scored else None for clean, defect in asker.ask(cases)
    ]
    scored = [(pair, drop) for pair, drop in zip(pairs, drops, strict=True) if drop is not None]
    falls = sum(drop >= TIE for _, drop in scored)
    rises = sum(drop <= -TIE for _, drop in scored)
    moved = falls + rises
    return Perception(
        falls=share(falls, len(scored)) if scored else NO_ESTIMATE,
        rises=rises,
        ties=len(scored) - moved,
        unscored=len(pairs) - len(scored),
        drop=mean_interval([drop for _, drop in scored]) if scored else NO_ESTIMATE,
        p_value=float(binomtest(falls, moved, 0.5, alternative="greater").pvalue) if moved else 1.0,
        curve=_curves(scored),
        drops=tuple(drops),
    )


def _curves(scored: Sequence[tuple[AuditPair, float]]) -> dict[str, dict[str, Estimate]]:
    if not scored:
        return {}
    fell = np.array([drop >= TIE for _, drop in scored])
    types = [pair.defect.anomaly.type for pair, _ in scored]
    curves = {
        "type": {name: share(int(fell[chosen].sum()), int(chosen.sum())) for name, chosen in _by_name(types).items()}
    }
    for name, values in (
        ("severity", [pair.severity for pair, _ in scored]),
        ("size", [pair.size for pair, _ in scored]),
        ("duration_s", [pair.duration_s for pair, _ in scored]),
    ):
        curves[name] = {
            label: share(int(fell[chosen].sum()), int(chosen.sum()))
            for label, chosen in thirds(np.asarray(values)).items()
        }
    return curves


def _by_name(names: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: np.array([each == name for each in names]) for name in sorted(set(names))}


def thirds(values: np.ndarray) -> dict[str, np.ndarray]:
    """Which values lie in the lowest, middle and highest third, by "low to high" of each; equal
    values stay together, and a third without any is left out.
    """
    third = np.searchsorted(np.quantile(values, [1 / 3, 2 / 3]), values, side="left")
    found = {}
    for number in range(3):
        chosen = third == number
        if chosen.any():
            found[f"{values[chosen].min():.3g} to {values[chosen].max():.3g}"] = chosen
    return found
