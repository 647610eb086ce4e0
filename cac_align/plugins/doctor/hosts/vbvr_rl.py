"""What a vbvr-rl config gets wrong about a video reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cac_align.plugins.common.host import environment_options
from cac_align.plugins.doctor.checks import Check, check_options
from cac_align.plugins.flow_grpo import REWARD_NAMES


def check_vbvr_rl(config: Mapping[str, Any]) -> Iterator[Check]:
    """What vbvr-rl's config says about our names, the frame rate and its ranks."""
    name = config.get("grpo_reward_fn", "neg_loss")
    ours = name in REWARD_NAMES
    text = f"grpo_reward_fn {name}" + (": known only to our launcher" if ours else "")
    fix = "" if ours else f"grpo_reward_fn: cac_unified   (or {', '.join(REWARD_NAMES)})"
    yield Check("reward", ours, text, fix)
    options = environment_options()
    fps, stated = config.get("fps"), float(options.get("fps", 16))
    if fps is not None:
        right = float(fps) == stated
        fix = "" if right else f"CAC_ALIGN_FPS={fps}"
        yield Check("frame rate", right, f"fps {fps}, the reward takes the videos for {stated:g}", fix)
    if int(config.get("tensor_parallel_size", 1)) > 1 and options.get("on_missing", "neutral") == "neutral":
        text = "of tensor-parallel ranks only one scores, so that groups cannot be gathered over all ranks"
        yield Check("ranks", False, text, "CAC_ALIGN_ON_MISSING=raise")
    yield from check_options("environment", options, whole_groups=True)
