"""miles_diffusion: a batch of samples to one float each, by ``--custom-rm-path``.

    python train_diffusion.py … --custom-rm-path cac_align.plugins.miles_diffusion.microgroup_rewards \\
        --rm-url http://127.0.0.1:8000 --n-samples-per-prompt 16 --diffusion-microgroup-size 16

The reward is ``--rm-url``; every other option comes from the environment (``environment_options``).
One call holds one microgroup: with a microgroup as large as the group, the policy "neutral" has the
whole group. ``--group-rm`` would give whole groups too, but miles_diffusion then refuses to
evaluate. An evaluation asks for one sample per call and has no rollout log-probabilities.

The snapshot that was read trains image models only (Qwen-Image), whose samples have one frame: the
reward refuses those. Its samples are (C, T, H, W) and the function is the same for a video model.

Read at radixark/miles_diffusion 2929e49 (``miles/rollout/rm_hub``, ``miles/utils/types.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from cac_align.plugins.common.host import HostOptions, HostReward, environment_options, host_reward


async def microgroup_rewards(args: Any, samples: Sequence[Any], **kwargs: Any) -> list[float]:
    """One float per sample of a microgroup, or of an evaluation.

    samples: miles' ``Sample``, with ``prompt`` and ``generated_output`` (C, T, H, W), floats in
    [0, 1] or [0, 255]. Raises ``ValueError`` for images, and ``MissingScoreError`` as the policy
    says; both end the run.
    """
    options = environment_options()
    if getattr(args, "rm_url", None):
        options["reward"] = args.rm_url
    defaults = {"layout": "CTHW", "group_size": int(args.n_samples_per_prompt)}
    # In threads, because reaching and asking the reward block, and the event loop has to go on with other samples.
    ours = await asyncio.to_thread(host_reward, HostOptions.read(options, **defaults), "miles_diffusion")
    return await asyncio.to_thread(_values, ours, samples)


def _values(ours: HostReward, samples: Sequence[Any]) -> list[float]:
    prompts, videos = [sample.prompt for sample in samples], [_video(sample) for sample in samples]
    evaluation = all(sample.rollout_log_probs is None for sample in samples)
    # One process holds all samples, so that there are no other ranks to gather from.
    return ours.values(prompts, videos, evaluation=evaluation, over_ranks=False)


def _video(sample: Any) -> Any:
    pixels = sample.generated_output
    if pixels is None or pixels.ndim != 4 or pixels.shape[1] == 1:
        shape = None if pixels is None else tuple(pixels.shape)
        raise ValueError(f"this reward judges video: expected generated_output (C, T, H, W), T > 1, received {shape}")
    if pixels.is_floating_point() and float(pixels.max()) > 1 + 1e-3:  # miles' own rule for floats in [0, 255]
        pixels = pixels / 255
    return pixels
