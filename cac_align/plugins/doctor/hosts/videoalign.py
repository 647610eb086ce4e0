"""What a command of DanceGRPO gets wrong about a video reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cac_align.plugins.common.host import environment_options
from cac_align.plugins.doctor.checks import Check, check_launcher, check_options, check_unsupported


def check_videoalign(config: Mapping[str, Any]) -> Iterator[Check]:
    """What the command of DanceGRPO's trainer says about our launcher and the keys that it reads.

    config: the flags of a launch script (see ``read_config``).
    """
    yield check_launcher(config, "cac_align.plugins.videoalign", "fastvideo/train_grpo_hunyuan.py")
    asked = "--use_videoalign" in config
    yield Check("reward", asked, "--use_videoalign" if asked else "no --use_videoalign", "" if asked else "add it")
    defaults = {"vq_coef": 1.0, "mq_coef": 0.0}  # of train_grpo_hunyuan.py
    coefficients = {name: float(config.get(f"--{name}") or value) for name, value in defaults.items()}
    text = ", ".join(f"{name} {value:g}" for name, value in coefficients.items())
    used = any(coefficients.values())
    yield Check(
        "keys",
        used,
        f"{text}: VQ and MQ both are the whole reward" if used else f"{text}: the loss is 0",
        "" if used else "--vq_coef 1.0",
    )
    options = environment_options()
    yield from check_unsupported("environment", options, ("group_size",), "one call holds one video, and no group")
    yield from check_options("environment", {"on_missing": "raise", **options}, whole_groups=False)
