"""What a flow_grpo config gets wrong about a video reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cac_align.plugins.common.host import typed_options
from cac_align.plugins.doctor.checks import Check, check_modules, check_options, check_paths
from cac_align.plugins.doctor.config_lines import CONFIG_LINES
from cac_align.plugins.flow_grpo import REWARD_NAMES

_TAKE_VIDEOS = ("video_ocr", "reward_3d", "reward_general")
"""Rewards of flow_grpo and World-R1 that take a batch of videos; reward_general draws one of its frames."""

_MODULES = ("absl", "ml_collections", "wandb", "peft", "imageio", "imageio_ffmpeg")


def check_flow_grpo(config: Mapping[str, Any]) -> Iterator[Check]:
    """What flow_grpo's config says about our reward names, its groups and its epochs.

    config: with "launch" where it came from a launch script (see ``read_config``).
    """
    table = dict(config.get("reward_fn") or {})
    ours = {name: float(weight) for name, weight in table.items() if name in REWARD_NAMES}
    fix = "" if ours else CONFIG_LINES["flow_grpo"]
    yield Check("reward_fn", bool(ours), f"{table}; ours: {', '.join(REWARD_NAMES)}", fix)
    for name in table:
        if name not in REWARD_NAMES and name not in _TAKE_VIDEOS:
            yield Check(
                f"reward {name}",
                False,
                f"{name} scores images and fails on videos (B, T, C, H, W)",
                f"leave {name} out of config.reward_fn",
            )
    if ours and len(table) > len(ours):
        yield Check(
            "aggregation", None, "raw scores are summed: ours lie in [0, 1], the others' ranges decide who drowns whom"
        )
    elif ours:
        total = sum(ours.values())
        yield Check("aggregation", True, f"weighted sum of scores in [0, 1], weights sum to {total:g}")
    yield from _launch(config.get("launch"), ours)
    yield _groups(config.get("sample") or {}, (config.get("launch") or {}).get("processes"))
    yield from check_modules("flow_grpo", dict.fromkeys(_MODULES, "its Wan script"))
    yield from check_paths({"dataset": config.get("dataset")})
    yield Check(
        "noise",
        None,
        "its Wan kernel has no noise_level: the std follows sigma; the paper's 0.3 cannot be expressed here",
    )
    epochs = int(config.get("num_epochs", 0))
    yield Check(
        "epochs",
        epochs > 2,
        f"num_epochs {epochs}: the script samples nothing in epochs 0 and 1",
        "" if epochs > 2 else "config.num_epochs = more than 2",
    )
    yield Check(
        "resume",
        None,
        "the script looks for checkpoint_N but writes checkpoint-N, and never saves optimiser state: it cannot resume",
    )


def _launch(launch: Mapping[str, Any] | None, ours: Mapping[str, float]) -> Iterator[Check]:
    """What the command that starts the script says: our launcher, and its options."""
    if launch is None:
        yield Check("command", None, "our options stand on the command line", "--config LAUNCH.sh checks them as well")
        return
    given = launch["options"]
    if given is None:
        fix = CONFIG_LINES["flow_grpo"].split("\n", 1)[1]
        text = "the script is started without our launcher, and does not know " + (", ".join(ours) or "our names")
        yield Check("command", False, text, fix)
        return
    try:
        options = typed_options(given)
    except ValueError as error:
        yield Check("command", False, str(error), "see cac_align.plugins.common.host.HostOptions")
        return
    yield from check_options("command", options, whole_groups=True)


def _groups(sample: Mapping[str, Any], processes: int | None) -> Check:
    """Whether the calls of all ranks hold whole groups, which the script asserts before it samples."""
    batch, group = int(sample.get("train_batch_size", 1)), int(sample.get("num_image_per_prompt", 1))
    spread = ", spread over the ranks of one step: neutral gathers it" if batch < group else ""
    text = f"a call holds {batch} videos, a group {group}{spread}"
    if processes is None or processes * batch % group == 0:
        return Check("groups", True, text)
    fix = f"config.sample.train_batch_size = {group // processes or 1}, or another --num_processes"
    return Check("groups", False, f"{processes} processes × {batch} videos are no multiple of a group of {group}", fix)
