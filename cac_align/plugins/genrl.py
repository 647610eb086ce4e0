"""GenRL (ModelTC, Wan 2.1): our rewards as its ``reward_module``.

    reward_module: cac_align.plugins.genrl
    reward_fn: {cac_unified: 1.0}
    eval_reward_module: cac_align.plugins.genrl
    eval_reward_fn: {cac_unified_eval: 1.0}

    CAC_ALIGN_REWARD=http://127.0.0.1:8000 torchrun … train.py --config CONFIG

GenRL calls ``<name>_score(device)`` of the module for every name in ``reward_fn``, and what that
returns for every batch. Its config has no place for our options: they come from the environment
(``environment_options``). It passes a function nothing that tells an evaluation from training, so
that evaluations have names of their own, which end in ``_eval``.

Without ``reward_module`` GenRL gives a name that it does not know the score 0 for every video and
goes on; ``cac-align doctor --host genrl`` finds that. With one, every name is looked up there, and
its own rewards cannot be mixed in.

Read at ModelTC/GenRL 82a867e (``genrl/rewards.py``, ``genrl/trainer/``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cac_align.plugins.common.host import HostOptions, environment_options, host_reward
from cac_align.plugins.flow_grpo import REWARD_NAMES

ScoreFunction = Callable[..., tuple[dict[str, Any], dict[str, Any]]]


def _builder(name: str, *, evaluation: bool) -> Callable[[Any], ScoreFunction]:
    """The ``<name>_score`` that GenRL looks up."""

    def build(device: Any) -> ScoreFunction:
        options = HostOptions.read(environment_options(), component=REWARD_NAMES[name], layout="TCHW")
        ours = host_reward(options, f"genrl/{name}")

        def score(images: Any, prompts: Sequence[str], metadata: Any = None, only_strict: bool = True):
            """images: (B, T, C, H, W) in [0, 1]. Returns ({"avg": B numbers as a tensor}, {})."""
            import torch

            if images.ndim != 5:
                raise ValueError(f"{name} judges video: expected (B, T, C, H, W), received shape {tuple(images.shape)}")
            values = ours.values(list(prompts), list(images), evaluation=evaluation)
            return {"avg": torch.tensor(values, device=device)}, {}

        return score

    return build


cac_score = _builder("cac", evaluation=False)
unifiedreward_video_score = _builder("unifiedreward_video", evaluation=False)
cac_unified_score = _builder("cac_unified", evaluation=False)
cac_eval_score = _builder("cac", evaluation=True)
unifiedreward_video_eval_score = _builder("unifiedreward_video", evaluation=True)
cac_unified_eval_score = _builder("cac_unified", evaluation=True)
