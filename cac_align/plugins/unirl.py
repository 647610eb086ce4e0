"""UniRL: a local reward backend for Hydra; for a backend in another process use UniRL's own remote
client with our service.

    reward:
      backend:
        _target_: cac_align.plugins.unirl.CaCBackend
        base_device: cpu
        config: {_target_: cac_align.plugins.unirl.CaCSpec, reward: recipes/judge.yaml, fps: 16}

Components reach the trainer's log as ``component_rewards``. A video without a score gets
its group's mean and keeps its reason in ``errors``; with ``on_missing: raise`` it has
``successes=False`` and NaN, which UniRL refuses to train on.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

from unirl.reward.base import BaseRewardComponentSpec, RewardBackend
from unirl.types.reward import RewardRequest, RewardResponse

from cac_align.plugins.common.host import HostOptions, host_reward


@dataclass
class CaCSpec(BaseRewardComponentSpec):
    """The options of ``HostOptions`` but ``layout``, which UniRL fixes, and UniRL's ``batch_size``."""

    reward: str | None = None
    component: str | None = None
    fps: float = 16.0
    reasks: int = 1
    on_missing: str = "neutral"
    on_missing_evaluation: str = "leave_out"
    max_unscored_share: float = 0.02
    min_seen: int = 200
    group_size: int | None = None
    ledger: str | None = None
    timeout_s: float = 600.0
    retries: int = 15
    backoff_s: float = 0.25
    token_env: str | None = None
    send: str = "frames"
    quality: int = 90
    batch_size: int = 8


class CaCBackend(RewardBackend):
    """Our reward as UniRL's local backend."""

    input_kind = "video"

    def __init__(self, *, config: CaCSpec, base_device: str) -> None:
        del base_device  # the reward's recipe says where its models run
        options: dict[str, Any] = asdict(config)
        super().__init__(
            model_name=config.component or "cac_unified", batch_size=options.pop("batch_size"), timeout=config.timeout_s
        )
        self.host_reward = host_reward(HostOptions.read(options, layout="CTHW"), "unirl")

    def compute_rewards(self, request: RewardRequest) -> RewardResponse:
        """UniRL's response, with one reward per video.

        request.videos: (C, T, H, W) tensors in [0, 1], with one prompt each.
        request.group_ids: one each, or none; they go to the ledger. Raises ``ValueError`` where
        these differ in length or there is no video.
        """
        start = time.monotonic()
        if not request.is_video:
            raise ValueError(
                "UniRL passed no video: this backend judges video, set input_kind: video and use a video model"
            )
        # A request has either its prompts, or two sets of them, of which the backend picks one.
        picked = self.prompts(request) if hasattr(RewardBackend, "prompts") else request.prompts
        prompts, videos = list(picked), request.videos or []
        each = None if request.group_ids is None else [{"group": group} for group in request.group_ids]
        scores = self.host_reward.scores(prompts, videos, each=each or None)
        neutral = self.host_reward.options.on_missing == "neutral"
        groups = [str(group) for group in request.group_ids] if request.group_ids else None
        rewards = [score.value for score in scores]
        if neutral:
            rewards = self.host_reward.apply_policy(prompts, scores, groups=groups)
        names = sorted({name for score in scores for name in score.parts})
        return RewardResponse(
            rewards=rewards,
            component_rewards={name: [score.parts.get(name, math.nan) for score in scores] for name in names},
            successes=[neutral or score.scored for score in scores],
            errors=[score.error for score in scores],
            compute_time=time.monotonic() - start,
        )

    def is_available(self) -> bool:
        """Whether the reward can say who it is: for a service, whether it answers."""
        try:
            return bool(self.host_reward.reward.provenance)
        except ValueError:
            return False
