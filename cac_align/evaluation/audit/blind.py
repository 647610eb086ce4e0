"""What the reward says when it cannot see, or is not told: grey frames, another clip's frames, no prompt.

clean clip → the same question without its picture or prompt → how often the answer is as good
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cac_align.evaluation.audit.asking import Asker, AuditQuestion
from cac_align.evaluation.audit.pairs import AuditPair, pixels_of, same_clock
from cac_align.evaluation.statistics import NO_ESTIMATE, Estimate, mean_interval, share
from cac_align.rewards.normalise import QUANTUM


@dataclass(frozen=True)
class BlindControl:
    """``as_well``: share of the clips that score at least as high without what was taken away.
    ``change``: mean of |without − with|. ``unscored``: clips without one of the two scores: a judge
    that refuses to answer blind.
    """

    as_well: Estimate
    change: Estimate
    unscored: int


def blindfold(pairs: Sequence[AuditPair], asker: Asker) -> dict[str, BlindControl]:
    """Ask about the clean clips of these pairs again, with frames or prompt exchanged.

    Another clip's frames are those of the next pair with another prompt. A reward that compares is
    not asked without a prompt, because it compares the videos of one prompt only.
    """
    seen = [AuditQuestion(pair.prompt, pair.clean) for pair in pairs]
    grey = [
        AuditQuestion(pair.prompt, same_clock(pair.clean, np.full_like(pixels_of(pair.clean), 128), "grey"))
        for pair in pairs
    ]
    cases = {
        "grey_frames": list(zip(seen, grey, strict=True)),
        "other_frames": [
            (seen[index], AuditQuestion(pair.prompt, other.clean))
            for index, pair in enumerate(pairs)
            if (other := _another(pairs, index)) is not None
        ],
    }
    if not asker.compares:
        cases["no_prompt"] = [(one, AuditQuestion("", one.video)) for one in seen]
    return {name: _control(asker.ask(asked)) for name, asked in cases.items()}


def _another(pairs: Sequence[AuditPair], index: int) -> AuditPair | None:
    later = (*pairs[index + 1 :], *pairs[:index])
    return next((pair for pair in later if pair.prompt != pairs[index].prompt), None)


def _control(scores: Sequence[Sequence]) -> BlindControl:
    both = [(seen.value, blind.value) for seen, blind in scores if seen.scored and blind.scored]
    if not both:
        return BlindControl(NO_ESTIMATE, NO_ESTIMATE, len(scores))
    as_well = share(sum(blind >= seen - QUANTUM for seen, blind in both), len(both))
    return BlindControl(as_well, mean_interval([abs(blind - seen) for seen, blind in both]), len(scores) - len(both))
