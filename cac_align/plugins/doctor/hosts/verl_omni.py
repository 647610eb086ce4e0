"""What a verl-omni config gets wrong about a video reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cac_align.plugins.doctor.checks import Check, check_options, check_unsupported
from cac_align.plugins.doctor.config_lines import CONFIG_LINES


def check_verl_omni(config: Mapping[str, Any]) -> Iterator[Check]:
    """What verl-omni's config says about our reward functions and its reward manager."""
    section = config.get("reward") or {}
    functions = section.get("reward_functions") or {}
    ours = {key: dict(entry) for key, entry in functions.items() if "cac_align" in str(entry.get("path", ""))}
    yield Check(
        "reward",
        bool(ours),
        f"{len(ours)} of {len(functions)} reward functions are ours",
        "" if ours else CONFIG_LINES["verl-omni"],
    )
    for key, entry in ours.items():
        path, required = entry.get("path"), str(entry.get("required", False)).lower() == "true"
        right = path == "pkg://cac_align.plugins.verl_omni" and entry.get("name") == "compute_score"
        fix = "path=pkg://cac_align.plugins.verl_omni name=compute_score"
        yield Check(f"{key} path", right, f"{path} {entry.get('name')}", "" if right else fix)
        fix = "" if required else f"+reward.reward_functions.{key}.required=true; otherwise a failure becomes 0.0"
        yield Check(f"{key} failures", required, f"required={required}", fix)
        options = {name: value for name, value in entry.items() if name not in ("path", "name", "weight", "required")}
        policy = ("on_missing", "on_missing_evaluation", "group_size", "max_unscored_share", "min_seen")
        yield from check_unsupported(
            key, options, policy, "one call holds one video: neutral has no group, and a missing score ends the run"
        )
        yield from check_options(key, {**options, "on_missing": "raise"}, whole_groups=True)
    single = (section.get("custom_reward_function") or {}).get("path")
    if single is not None:
        yield Check(
            "custom_reward_function",
            False,
            f"the launch script also sets {single}, which excludes reward_functions",
            "reward.custom_reward_function.path=null",
        )
    manager = (section.get("reward_manager") or {}).get("name")
    fits = manager == "MultiVisualRewardManager"
    yield Check(
        "manager",
        fits if manager else None,
        f"reward_manager {manager}",
        "" if fits else "reward.reward_manager.name=MultiVisualRewardManager",
    )
