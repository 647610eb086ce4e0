"""What a miles_diffusion command gets wrong about a video reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cac_align.plugins.common.host import environment_options
from cac_align.plugins.doctor.checks import Check, check_options

_FUNCTION = "cac_align.plugins.miles_diffusion.microgroup_rewards"


def check_miles_diffusion(config: Mapping[str, Any]) -> Iterator[Check]:
    """What the command of ``train_diffusion.py`` says about our function and the groups it sees."""
    path = config.get("--custom-rm-path")
    fix = "" if path == _FUNCTION else f"--custom-rm-path {_FUNCTION}"
    yield Check("reward", path == _FUNCTION, f"--custom-rm-path {path}", fix)
    if config.get("--reward-key") is not None:
        yield Check("reward key", False, "our function returns a float per sample, not a dict", "remove --reward-key")
    group, micro = int(config.get("--n-samples-per-prompt", 1)), int(config.get("--diffusion-microgroup-size", 1))
    by_group, evaluates = "--group-rm" in config, bool(config.get("--eval-prompt-data") or config.get("--eval-config"))
    if by_group and evaluates:
        yield Check("groups", False, "--group-rm: its evaluation asserts that this is off", "remove --group-rm")
    whole = by_group or micro >= group
    text = f"a call holds {group if by_group else micro} samples, a group {group}"
    yield Check("groups", True if whole else None, text, "" if whole else f"--diffusion-microgroup-size {group}")
    options = environment_options()
    if config.get("--rm-url"):
        options["reward"] = config["--rm-url"]
    yield from check_options("environment", options, whole_groups=whole)
    yield Check("model", None, "at 2929e49 it trains image models only; our function refuses samples of one frame")
