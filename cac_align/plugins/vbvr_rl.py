"""vbvr-rl (pufanyi, Wan 2.2 with DanceGRPO): our reward under a name in its registry.

    CAC_ALIGN_REWARD=http://127.0.0.1:8000 torchrun … -m cac_align.plugins.vbvr_rl --config CONFIG

    grpo_reward_fn: cac_unified          or cac, unifiedreward_video

This launcher registers the names and runs ``src.cli.train_grpo`` with the same arguments; options
come from the environment (``environment_options``), because its config drops keys of others.

The host hands over latents. They are decoded with the trainer's own VAE, one video at a time, and
kept as uint8. ``submit`` then returns at once and scores in a thread, as the host's own judge does,
so that scoring overlaps the next rollouts. A group comes in several chunks, on several ranks where
``grpo_shared_prompt_batch`` is set: the policy for missing scores is applied when the first result is
asked for, to all chunks submitted until then, which are whole groups over all ranks.

Its own judge turns a failure into reward 0 (``vlm_reward_fail_on_error: false``); ours never does.

Read at pufanyi/vbvr-rl 252c2ff (``src/trainer/rewards``, ``base_grpo_trainer.py``,
``dancegrpo_trainer.py``, ``dancegrpo_shared_prompt.py``).
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from cac_align.plugins.common.host import HostOptions, environment_options, host_reward
from cac_align.plugins.common.missing_scores import MissingScoreError
from cac_align.plugins.flow_grpo import REWARD_NAMES
from cac_align.rewards.reward import Score

if TYPE_CHECKING:
    import torch


@dataclass(eq=False)
class _Chunk:
    """Videos that were submitted together; ``result`` is what the host waits for."""

    reward: LatentReward
    prompts: list[str]
    device: Any
    scores: Future[list[Score]]
    values: list[float] = field(default_factory=list)

    def result(self) -> torch.Tensor:
        """(B,) float32. Raises ``MissingScoreError`` as the policy says."""
        import torch

        self.reward.resolve(self)
        return torch.tensor(self.values, dtype=torch.float32, device=self.device)


class LatentReward:
    """Our reward as vbvr-rl's ``BaseReward``: of latents, under one of ``REWARD_NAMES``."""

    requires_vae: ClassVar[bool] = True
    requires_policy_forward: ClassVar[bool] = False
    name: ClassVar[str] = "cac_unified"

    def __init__(self, trainer: Any, cfg: Any) -> None:
        """Raises ``ValueError`` for wrong options, another frame rate than the config's, and neutral
        where tensor-parallel ranks that score nothing would be waited for.
        """
        options = HostOptions.read(environment_options(), component=REWARD_NAMES[self.name], layout="THWC")
        fps = getattr(cfg, "fps", None)
        if fps is not None and float(fps) != options.fps:
            raise ValueError(
                f"the config says fps: {fps}, and the reward takes the videos for {options.fps:g} frames per second; "
                f"set CAC_ALIGN_FPS={fps}"
            )
        if getattr(trainer, "tensor_parallel_enabled", False) and options.on_missing == "neutral":
            raise ValueError(
                "with tensor parallelism only one rank of each group scores, so that groups cannot be gathered "
                "over all ranks; set CAC_ALIGN_ON_MISSING=raise"
            )
        self.trainer, self.host_reward = trainer, host_reward(options, f"vbvr-rl/{self.name}")
        self.threads = ThreadPoolExecutor(2, "cac-align")
        self.submitted: list[_Chunk] = []

    def __call__(self, generated_latents: Any, gt_video_latents: Any, condition: Any, prompt_embeds: Any, **more: Any):
        """(B,) rewards at once; as ``submit``."""
        return self.submit(generated_latents, gt_video_latents, condition, prompt_embeds, **more).result()

    def submit(
        self,
        generated_latents: Any,
        gt_video_latents: Any,
        condition: Any,
        prompt_embeds: Any,
        *,
        indices: Any = None,
        expert_filter: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> _Chunk:
        """Decode (B, z, t, h, w) latents and begin to score them.

        meta: holds ``sample_prompt``, B texts. Raises ``ValueError`` without it, and for one expert
        of two: the reward of a video cannot be split.
        """
        if expert_filter is not None:
            raise ValueError(f"this reward scores finished videos: expected expert_filter None, got {expert_filter!r}")
        if meta is None or "sample_prompt" not in meta:
            raise ValueError("meta has no sample_prompt; use a dataset that keeps its prompts, such as VBVR-Pro-RL")
        prompts = [str(prompt) for prompt in meta["sample_prompt"]]
        videos = [self._decoded(generated_latents[index : index + 1]) for index in range(len(generated_latents))]
        chunk = _Chunk(
            self, prompts, generated_latents.device, self.threads.submit(self.host_reward.scores, prompts, videos)
        )
        self.submitted.append(chunk)
        return chunk

    def resolve(self, asked: _Chunk) -> None:
        """Give every chunk submitted until now its values, unless ``asked`` has them.

        Raises ``MissingScoreError`` as the policy says, and again for every chunk that has none since then.
        """
        if asked not in self.submitted:
            if len(asked.values) < len(asked.prompts):
                raise MissingScoreError("these videos were to be scored with others, and that failed before")
            return
        chunks, self.submitted = self.submitted, []
        scores = [score for chunk in chunks for score in chunk.scores.result()]
        values = self.host_reward.apply_policy([prompt for chunk in chunks for prompt in chunk.prompts], scores)
        for chunk in chunks:
            chunk.values, values = values[: len(chunk.prompts)], values[len(chunk.prompts) :]

    def _decoded(self, latents: Any) -> Any:
        """uint8 (T, H, W, 3) of the latents (1, z, t, h, w) of one video; what is not finite stays as it
        is, so that it has no score.
        """
        import torch

        with torch.no_grad():
            pixels = self.trainer.model.decode_latents(latents)[0]  # (C, T, H, W) in [-1, 1]
        if not torch.isfinite(pixels).all():
            return pixels.movedim(0, -1).cpu()
        levels = pixels.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        return levels.permute(1, 2, 3, 0).cpu().numpy()


def main(arguments: Sequence[str]) -> None:
    """Register our names and run vbvr-rl's training with these arguments."""
    from src.trainer.rewards.registry import register_reward  # pyright: ignore[reportMissingImports]

    for name in REWARD_NAMES:
        register_reward(name)(type(f"LatentReward_{name}", (LatentReward,), {"name": name}))
    sys.argv = ["src.cli.train_grpo", *arguments]
    runpy.run_module("src.cli.train_grpo", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
