"""A judge without log-probabilities as a reward: it is asked several times and its verdicts are
counted.

prompt, video → k dialogues of CaC, sampled with the seeds 0 … k − 1 → k verdicts
    → R = share of "normal"

For API endpoints (OpenAI's protocol, which Gemini and others offer as well), most of which give no
log-probabilities. Every vote must have a verdict: a share of what happened to arrive would compare
videos by how often the server failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cac_align.cac.two_turn import TwoTurn, judge, judge_provenance
from cac_align.core.judgement import Judgement
from cac_align.core.video import VideoInput, as_pairs
from cac_align.rewards.reward import Score
from cac_align.vlm.protocol import Vlm, checkpoint_uncertainty, served


@dataclass(frozen=True)
class VotedCaC:
    """CaC's two turns, asked of one sampling model per vote; a Reward in [0, 1].

    Values are multiples of 1/k, so ties are frequent: k = 5 orders coarsely. Raises ``ValueError``
    for fewer than 3 votes.
    """

    # The model with another seed for each vote.
    voters: tuple[Vlm, ...]
    settings: TwoTurn = field(default_factory=lambda: TwoTurn(probabilities=False))
    name: str = "api"
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.voters) < 3:
            raise ValueError(f"votes must be 3 or more, received {len(self.voters)}: a share of fewer says nothing")
        if self.settings.probabilities:
            object.__setattr__(self, "settings", replace(self.settings, probabilities=False))

    @property
    def vlm(self) -> Vlm:
        """The first voter: it stands for the server in checks of reachability."""
        return self.voters[0]

    def with_vlms(self, wrap: Callable[[Vlm], Vlm]) -> VotedCaC:
        """The same reward, with each voter wrapped, e.g. to count its tokens."""
        return replace(self, voters=tuple(map(wrap, self.voters)))

    @property
    def provenance(self) -> Mapping[str, str]:
        return {
            "reward": f"cac, share of normal in {len(self.voters)} sampled verdicts",
            "votes": str(len(self.voters)),
            **judge_provenance(self.settings, self.voters[0]),
        }

    def __call__(self, prompts: str | Sequence[str], videos: VideoInput | Sequence[VideoInput]) -> list[Score]:
        """One Score per video, in order; parts ``votes`` and ``votes_normal``. The evidence is the
        first judgement that agrees with the majority.
        """
        prompts, videos = as_pairs(prompts, videos)
        before, provenance = voters_provenance(self.voters), dict(self.provenance)
        ballots = [judge(voter, prompts, videos, self.settings) for voter in self.voters]
        reason = voters_uncertainty(before, self.voters)
        return [self._count([ballot[index] for ballot in ballots], provenance, reason) for index in range(len(videos))]

    def _count(self, votes: Sequence[Judgement], provenance: Mapping[str, str], reason: str | None) -> Score:
        failed = [vote for vote in votes if vote.status is None]
        if failed or reason is not None:
            why = reason or f"{len(failed)} of {len(votes)} votes have no verdict, the first because: {failed[0].error}"
            return Score.missing(why, evidence=failed[0] if failed else votes[0], provenance=provenance)
        normal = sum(vote.status == "normal" for vote in votes)
        majority = "normal" if 2 * normal > len(votes) else "abnormal"
        evidence = next((vote for vote in votes if vote.status == majority), votes[0])
        parts = {"votes": float(len(votes)), "votes_normal": float(normal)}
        return Score(normal / len(votes), parts, evidence, provenance=provenance)


def voters_provenance(voters: Sequence[Vlm]) -> dict[str, str]:
    """What every voter says of its model, to be compared by ``voters_uncertainty`` after they have voted."""
    return {f"{number}/vlm/{key}": value for number, vlm in enumerate(voters) for key, value in vlm.provenance.items()}


def voters_uncertainty(before: Mapping[str, str], voters: Sequence[Vlm]) -> str | None:
    """Why it is open whether one checkpoint gave all votes; None where it did.

    Each voter has connections of its own, so that a restarted server is first noticed by those that
    vote after it.
    """
    after = voters_provenance(voters)
    reason = checkpoint_uncertainty(before, after)
    if reason is None and len(set(served(after).values())) > 1:
        return "the votes come from several checkpoints of the server; score this video again"
    return reason


def api_voters(connect: Callable[..., Vlm], votes: int, temperature: float, **backend: Any) -> tuple[Vlm, ...]:
    """The same server once per vote, sampling with the seeds 0 … votes − 1.

    connect: makes a model from keyword arguments. temperature: above 0, up to 2. Raises
    ``ValueError`` for a temperature of 0, at which every vote would be the same.
    """
    if not 0 < temperature <= 2 or math.isnan(temperature):
        raise ValueError(
            f"vote_temperature must be above 0 and up to 2, received {temperature}: votes must be able to differ"
        )
    return tuple(connect(temperature=temperature, seed=seed, **backend) for seed in range(votes))
