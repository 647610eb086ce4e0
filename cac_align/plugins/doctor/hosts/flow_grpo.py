"""What a flow_grpo config gets wrong about a video reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cac_align.plugins.doctor.checks import Check
from cac_align.plugins.doctor.config_lines import CONFIG_LINES
from cac_align.plugins.flow_grpo import REWARD_NAMES


def check_flow_grpo(config: Mapping[str, Any]) -> Iterator[Check]:
    """What flow_grpo's config says about our reward names, its groups and its epochs."""
    table = dict(config.get("reward_fn") or {})
    ours = {name: float(weight) for name, weight in table.items() if name in REWARD_NAMES}
    fix = "" if ours else CONFIG_LINES["flow_grpo"]
    yield Check("reward_fn", bool(ours), f"{table}; ours: {', '.join(REWARD_NAMES)}", fix)
    for name in table:
        if name not in REWARD_NAMES and name != "video_ocr":
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
    sample = config.get("sample") or {}
    batch, k = int(sample.get("train_batch_size", 1)), int(sample.get("num_image_per_prompt", 1))
    spread = ", spread over the ranks of one step: neutral gathers it" if batch < k else ""
    yield Check("groups", True, f"a call holds {batch} videos, a group {k}{spread}")
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
