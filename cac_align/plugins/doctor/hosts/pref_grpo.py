"""What a Pref-GRPO command gets wrong about a video reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cac_align.plugins.common.host import environment_options
from cac_align.plugins.doctor.checks import Check, check_launcher, check_options


def check_pref_grpo(config: Mapping[str, Any]) -> Iterator[Check]:
    """What the command of ``train_wan21.py`` says about our launcher, its reward and its groups."""
    yield check_launcher(config, "cac_align.plugins.pref_grpo", "fastvideo/train_wan21.py")
    spec = str(config.get("--reward_spec") or "")
    asked = "videoalign" in spec
    yield Check("reward", asked, f"--reward_spec {spec}", "" if asked else "--reward_spec videoalign:1.0")
    grouped = "--use_group" in config
    text = (
        "advantages within a prompt's videos" if grouped else "without --use_group all prompts of a step are one group"
    )
    yield Check("groups", grouped, text, "" if grouped else "--use_group")
    yield from check_options("environment", environment_options(), whole_groups=grouped)
