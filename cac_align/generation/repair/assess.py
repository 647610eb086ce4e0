"""Judge and guards in one call, with what they cost.

video, prompt → ``Assessor`` → ``Assessment`` (score, guards' scores), ``Usage``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cac_align.core.video import Video
from cac_align.generation.repair.accept import Assessment
from cac_align.rewards.cached import cached
from cac_align.rewards.checked import checked_scores
from cac_align.rewards.combine import bounds_of
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.metered import Usage, UsageMeter, metered
from cac_align.rewards.reward import Reward, Score, stable_provenance


class Assessor:
    """The judge that finds defects and the guards that it must agree with. ledger: where scores are found again.

    One assessment at a time: what it costs is read from a meter that all share.
    """

    def __init__(self, judge: Reward, guards: Mapping[str, Reward], ledger: Ledger) -> None:
        self._meter = UsageMeter()
        self._judge = cached(metered(judge, self._meter), ledger)
        self._guards = {name: cached(metered(guard, self._meter), ledger) for name, guard in guards.items()}
        self._ranges = {name: _width(guard) for name, guard in guards.items()}

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What identifies the verdicts: the judge's and each guard's provenance."""
        guards = {name: stable_provenance(guard.provenance) for name, guard in self._guards.items()}
        return {"judge": stable_provenance(self._judge.provenance), "guards": guards}

    def __call__(self, prompt: str, video: Video) -> tuple[Assessment, Usage]:
        before = self._meter.reading()
        score = _one_score(self._judge, prompt, video)
        # What the judge cannot read is not accepted whatever the guards say.
        guards = (
            {name: _one_score(guard, prompt, video) for name, guard in self._guards.items()} if score.scored else {}
        )
        return Assessment(score, guards, self._ranges), self._meter.since(before)


def _one_score(reward: Reward, prompt: str, video: Video) -> Score:
    return checked_scores(reward.name, reward([prompt], [video]), 1)[0]


def _width(reward: Reward) -> float:
    bounds = bounds_of(reward)
    return bounds[1] - bounds[0] if bounds is not None else 1.0
