"""What every reward around another one shows of it: name, provenance, bounds, and whether it compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cac_align.rewards.combine import bounds_of, compares_videos
from cac_align.rewards.reward import Reward


@dataclass(frozen=True)
class WrappedReward:
    """The base of rewards that ask another one, such as behind a ledger; they add the call."""

    reward: Reward

    @property
    def name(self) -> str:
        return self.reward.name

    @property
    def provenance(self) -> Mapping[str, str]:
        return self.reward.provenance

    @property
    def bounds(self) -> tuple[float, float] | None:
        return bounds_of(self.reward)

    @property
    def compares_videos(self) -> str | None:
        return compares_videos(self.reward)
