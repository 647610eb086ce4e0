"""The whole audit of one reward.

pairs + groups + reward → perception, localisation, nuisances, blind controls, groups → AuditReport
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cac_align.evaluation.audit.as_reward import rank_groups, run_cost
from cac_align.evaluation.audit.asking import Asker
from cac_align.evaluation.audit.blind import blindfold
from cac_align.evaluation.audit.localisation import localise_defects
from cac_align.evaluation.audit.nuisances import disturb
from cac_align.evaluation.audit.pairs import AuditGroup, AuditPair
from cac_align.evaluation.audit.perception import perceive
from cac_align.evaluation.audit.verdict import AuditReport, Findings, flags_of
from cac_align.rewards.checked import reward_provenance
from cac_align.rewards.reward import Reward


@dataclass(frozen=True)
class AuditSize:
    """controls: of how many pairs the nuisances and the blind controls take the clean clip. steps,
    prompts_per_step, group_size: the Flow-GRPO run whose cost is estimated (the paper's).
    """

    controls: int = 8
    steps: int = 120
    prompts_per_step: int = 4
    group_size: int = 16


def audit_reward(
    reward: Reward,
    pairs: Sequence[AuditPair],
    groups: Sequence[AuditGroup],
    shown: str,
    size: AuditSize = AuditSize(),
    progress: Callable[[int], object] | None = None,
) -> AuditReport:
    """Audit a reward. shown: what it was shown, in a sentence. progress: called with the number of
    videos after each batch.

    Raises ``ValueError`` where there are no pairs, or the reward scores none of their videos: then
    there is nothing to report, and the first reason is named.
    """
    if not pairs:
        raise ValueError("an audit needs pairs of clips with and without a defect, received none")
    asker = Asker(reward, progress)
    seen = perceive(pairs, asker)
    if seen.unscored == len(pairs):
        raise ValueError(
            f"{reward.name} gives no score at all: none of {len(pairs)} pairs has one, so there is nothing to audit; "
            f"the first reason: {asker.first_error or 'none given'}"
        )
    where = localise_defects(pairs, asker)
    count = min(size.controls, len(pairs))
    controls = [pairs[index * len(pairs) // count] for index in range(count)]
    found = Findings(
        pairs=len(pairs),
        perception=seen,
        localisation=where,
        nuisances=disturb(controls, asker, seen.drop.value),
        blind=blindfold(controls, asker),
        groups=rank_groups(groups, asker),
        cost=run_cost(asker.spent, size.steps, size.prompts_per_step, size.group_size),
    )
    return AuditReport(reward.name, reward_provenance(reward), shown, found, flags_of(found))
