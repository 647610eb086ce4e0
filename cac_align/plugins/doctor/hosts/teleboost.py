"""What TeleBoost's overrides get wrong about a video reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cac_align.plugins.doctor.checks import Check, check_options

_LINES = {"path": "pkg://cac_align.plugins.teleboost", "name": "step_rewards"}


def check_teleboost(config: Mapping[str, Any]) -> Iterator[Check]:
    """What TeleBoost's overrides say about our function, and about maps that it would write."""
    use_rm = (config.get("trainer") or {}).get("use_rm", True)
    off = str(use_rm).lower() == "false"
    text = f"trainer.use_rm={use_rm}" + ("" if off else ": a reward model is used, and our function never called")
    yield Check("reward model", off, text, "" if off else "trainer.use_rm=false")
    function = (config.get("reward") or {}).get("custom_reward_function") or {}
    for key, value in _LINES.items():
        right = function.get(key) == value
        fix = "" if right else f"reward.custom_reward_function.{key}={value}"
        yield Check(key, right, f"{function.get(key)}", fix)
    options = dict(function.get("reward_kwargs") or {})
    maps = bool(options.pop("weight_maps", False))
    options.pop("contrast", None)
    rollout = (config.get("actor_rollout_ref") or {}).get("pixel_weight") or {}
    enabled = str(rollout.get("enable", False)).lower() == "true"
    if maps:
        fix = "" if enabled else "actor_rollout_ref.pixel_weight.enable=true"
        yield Check("weight maps", enabled, f"pixel_weight.enable={enabled}", fix)
        text = "they are as good as the judge's boxes; measure those first: cac-align evaluate reward"
        yield Check("localisation", None, text)
    elif enabled:
        text = "ViPO weighs advantages by saliency, not by what our judge saw"
        yield Check("weight maps", None, text, "+reward.custom_reward_function.reward_kwargs.weight_maps=true")
    yield from check_options("reward_kwargs", options, whole_groups=True)
