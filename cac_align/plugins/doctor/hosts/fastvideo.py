"""What a FastVideo config gets wrong about a video reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cac_align.plugins.common.host import environment_options
from cac_align.plugins.doctor.checks import Check, check_options


def check_fastvideo(config: Mapping[str, Any]) -> Iterator[Check]:
    """What FastVideo's config says about its method and the reward service that it asks."""
    method = config.get("method") or {}
    target = str(method.get("_target_", ""))
    served = target.endswith(".PromptRLMethod")
    text = target or "no method"
    if target.endswith("DiffusionNFTMethod"):
        text += ": it accepts pickscore and clipscore only"
    fix = "" if served else "method: {_target_: fastvideo.train.methods.rl.promptrl.PromptRLMethod, …}"
    yield Check("method", served, text, fix)
    reward = method.get("reward") or {}
    yield Check("service", None, f"endpoint_url {reward.get('endpoint_url', 'http://127.0.0.1:8100')}")
    options = environment_options()
    fps, stated = float(reward.get("fps", 16)), float(options.get("fps", 16))
    text = f"method.reward.fps {fps:g}, the reward takes the videos for {stated:g}"
    yield Check("frame rate", fps == stated, text, "" if fps == stated else f"CAC_ALIGN_FPS={fps:g}")
    wait = float(reward.get("timeout_sec", 300))
    text = f"timeout_sec {wait:g}: a group that is judged longer is asked for again"
    yield Check("patience", True if wait >= 600 else None, text, "" if wait >= 600 else "timeout_sec: 600")
    yield from check_options("environment", options, whole_groups=True)
