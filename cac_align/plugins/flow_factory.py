"""Flow-Factory: our rewards by dotted path in its YAML, on tensors. Rewards that score each video by
itself are pointwise, synchronous or asynchronous; rewards that compare are groupwise and synchronous.

    rewards:
      - {name: cac, reward_model: cac_align.plugins.flow_factory.CaCReward, weight: 0.5, device: cpu,
         batch_size: 16, reward: URL}

Every key that Flow-Factory does not know reaches us as ``extra_kwargs`` and is an option of
``HostOptions``. ``__call__`` names exactly the fields it needs: with ``**kwargs`` Flow-Factory
would pass every field it has, and move all of them to the device.

A group may be spread over ranks, and an evaluation holds one video per prompt. Flow-Factory's
trainers keep a trajectory of every training sample and of no evaluation sample, so that
``latent_index_map`` (a few integers) tells one from the other.

``GroupReward`` is handed the videos of one prompt per call, whichever ranks made them.
Flow-Factory's evaluations ask no groupwise reward, so that none is logged there.
"""

from __future__ import annotations

from typing import Any

from flow_factory.rewards.abc import GroupwiseRewardModel, PointwiseRewardModel, RewardModelOutput

from cac_align.plugins.common.host import HostOptions, host_reward


def _samples_have_trajectories() -> bool:
    """Whether this Flow-Factory's samples have the field that tells training from evaluation."""
    try:
        from flow_factory.samples import BaseSample
    except ImportError:
        return False
    return hasattr(BaseSample, "latent_index_map")


def _options(config: Any, **defaults: Any) -> HostOptions:
    """Our options among the keys of a reward's entry."""
    return HostOptions.read(dict(getattr(config, "extra_kwargs", None) or {}), layout="TCHW", **defaults)


def _given(video: list[Any] | None) -> list[Any]:
    """The videos. Raises ``ValueError`` where the host's model makes none."""
    if video is None:
        raise ValueError("Flow-Factory passed no video: these rewards judge video, use a video model such as wan2_t2v")
    return list(video)


class CaCUnifiedReward(PointwiseRewardModel):
    """The whole reward: the mean of the normalised UnifiedReward and CaC scores."""

    required_fields = ("prompt", "video")
    use_tensor_inputs = True
    component: str | None = None

    def __init__(self, config: Any, accelerator: Any) -> None:
        super().__init__(config, accelerator)
        options = _options(config, component=self.component)
        self.host_reward = host_reward(options, f"flow-factory/{config.name}")

    def __call__(
        self, prompt: list[str], video: list[Any] | None = None, latent_index_map: list[Any] | None = None
    ) -> RewardModelOutput:
        """prompt: B texts. video: B tensors (T, C, H, W) in [0, 1], or one tensor (B, T, C, H, W).
        latent_index_map: where the trajectory of a training sample is; None in an evaluation.
        """
        evaluation = latent_index_map is None and _samples_have_trajectories()
        return RewardModelOutput(rewards=self.host_reward.values(prompt, _given(video), evaluation=evaluation))


class CaCReward(CaCUnifiedReward):
    """CaC alone, in [0, 1]."""

    component = "cac"


class UnifiedVideoReward(CaCUnifiedReward):
    """UnifiedReward's video point score alone, normalised as in the whole."""

    component = "unified"


class GroupReward(GroupwiseRewardModel):
    """A reward that compares the videos of a prompt, such as a judge of pairs: one tournament per group.

    A video without a score gets the mean of its group. Where no video of the group has a score, all
    get the same number. Either way its advantage is 0, and the policy counts it.
    """

    required_fields = ("prompt", "video")
    use_tensor_inputs = True

    def __init__(self, config: Any, accelerator: Any) -> None:
        super().__init__(config, accelerator)
        if getattr(config, "async_reward", False):
            raise ValueError(
                f"reward {config.name!r}: Flow-Factory cannot compute a groupwise reward asynchronously (its "
                "evaluations end with 'Incomplete groups'); set async_reward: false on it"
            )
        self.host_reward = host_reward(_options(config), f"flow-factory/{config.name}", whole_groups=True)

    def __call__(self, prompt: list[str], video: list[Any] | None = None) -> RewardModelOutput:
        """prompt: the prompt, G times. video: the G videos of its group, (T, C, H, W) in [0, 1].

        The prompt is the tokenizer's decoding of it where the group was spread over ranks. Raises
        ``ValueError`` for several prompts in one call.
        """
        if len(set(prompt)) > 1:
            raise ValueError(f"expected the videos of one prompt in a call, received {len(set(prompt))} prompts")
        return RewardModelOutput(rewards=self.host_reward.values(prompt, _given(video), over_ranks=False))
