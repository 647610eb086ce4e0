"""Flow-Factory: our rewards by dotted path in its YAML, pointwise, synchronous or asynchronous, on
tensors.

    rewards:
      - {name: cac, reward_model: cac_align.plugins.flow_factory.CaCReward, weight: 0.5, device: cpu,
         batch_size: 16, reward: URL}

Every key that Flow-Factory does not know reaches us as ``extra_kwargs`` and is an option of
``HostOptions``. ``__call__`` names exactly the fields it needs: with ``**kwargs`` Flow-Factory
would pass every field it has, and move all of them to the device.

A group may be spread over ranks, and an evaluation holds one video per prompt. Flow-Factory's
trainers keep a trajectory of every training sample and of no evaluation sample, so that
``latent_index_map`` (a few integers) tells one from the other.
"""

from __future__ import annotations

from typing import Any

from flow_factory.rewards.abc import PointwiseRewardModel, RewardModelOutput

from cac_align.plugins.common.host import HostOptions, host_reward


def _samples_have_trajectories() -> bool:
    """Whether this Flow-Factory's samples have the field that tells training from evaluation."""
    try:
        from flow_factory.samples import BaseSample
    except ImportError:
        return False
    return hasattr(BaseSample, "latent_index_map")


class CaCUnifiedReward(PointwiseRewardModel):
    """The whole reward: the mean of the normalised UnifiedReward and CaC scores."""

    required_fields = ("prompt", "video")
    use_tensor_inputs = True
    component: str | None = None

    def __init__(self, config: Any, accelerator: Any) -> None:
        super().__init__(config, accelerator)
        given = dict(getattr(config, "extra_kwargs", None) or {})
        options = HostOptions.read(given, component=self.component, layout="TCHW")
        self.host_reward = host_reward(options, f"flow-factory/{config.name}")

    def __call__(
        self, prompt: list[str], video: list[Any] | None = None, latent_index_map: list[Any] | None = None
    ) -> RewardModelOutput:
        """prompt: B texts. video: B tensors (T, C, H, W) in [0, 1], or one tensor (B, T, C, H, W).
        latent_index_map: where the trajectory of a training sample is; None in an evaluation.
        """
        if video is None:
            raise ValueError(
                "Flow-Factory passed no video: these rewards judge video, use a video model such as wan2_t2v"
            )
        evaluation = latent_index_map is None and _samples_have_trajectories()
        return RewardModelOutput(rewards=self.host_reward.values(prompt, list(video), evaluation=evaluation))


class CaCReward(CaCUnifiedReward):
    """CaC alone, in [0, 1]."""

    component = "cac"


class UnifiedVideoReward(CaCUnifiedReward):
    """UnifiedReward's video point score alone, normalised as in the whole."""

    component = "unified"
