"""What a UniRL config gets wrong about a video reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cac_align.plugins.doctor.checks import Check, check_options, check_unsupported
from cac_align.plugins.doctor.config_lines import CONFIG_LINES


def check_unirl(config: Mapping[str, Any]) -> Iterator[Check]:
    """What UniRL's config says about our backend, or its own client of our service, and its
    advantages.
    """
    backend = (config.get("reward") or {}).get("backend") or {}
    target, spec = str(backend.get("_target_", "")), dict(backend.get("config") or {})
    if target.startswith("cac_align."):
        yield Check(
            "backend",
            target == "cac_align.plugins.unirl.CaCBackend",
            target,
            "" if target.endswith(".CaCBackend") else CONFIG_LINES["unirl"],
        )
        built = spec.get("_target_") == "cac_align.plugins.unirl.CaCSpec"
        yield Check(
            "backend config", built, f"config of {spec.get('_target_')}", "" if built else CONFIG_LINES["unirl"]
        )
        merged = bool(set(map(str, config.get("defaults") or ())) - {"_self_"}) and "cac_reward" not in config
        if merged:
            text = (
                "Hydra merges reward into that of the recipe in defaults, "
                "whose options (device, model_id, …) stay in its config"
            )
            yield Check("composition", False, text, CONFIG_LINES["unirl"])
        options = {key: value for key, value in spec.items() if key not in ("_target_", "batch_size")}
        yield from check_unsupported("reward", options, ("layout",), "UniRL's videos are (C, T, H, W)")
        yield from check_options("reward", options, whole_groups=False)
    elif target.endswith("RemoteRewardBackend"):
        yield Check("backend", True, f"{target} at {spec.get('base_url')}, rewards {spec.get('required_rewards')}")
        fps = float(spec.get("video_fps", 8))
        yield Check(
            "fps",
            fps == 16,
            f"video_fps {fps:g}: the mp4 is tagged with it (our service believes its own --fps)",
            "" if fps == 16 else "video_fps: 16",
        )
        loud = spec.get("raise_on_failure", True)
        yield Check(
            "failures",
            bool(loud),
            f"raise_on_failure {loud}",
            "" if loud else "raise_on_failure: true; false turns failures into 0.0",
        )
        first = spec.get("sub_metric_reduce", "first")
        yield Check(
            "sub-metrics",
            first == "first",
            f"sub_metric_reduce {first}",
            "" if first == "first" else "sub_metric_reduce: first; the parts are not scores",
        )
        kind = spec.get("input_kind", "image")
        yield Check("media", kind == "video", f"input_kind {kind}", "" if kind == "video" else "input_kind: video")
        yield Check(
            "pixels",
            None,
            "it ships a lossy mp4; for small defects use our backend (cac_align.plugins.unirl.CaCBackend)",
        )
    else:
        yield Check("backend", False, f"{target or 'none'} is not ours", CONFIG_LINES["unirl"])
    shared = config.get("adv_use_global_std", True)
    yield Check(
        "advantage",
        True if not shared else None,
        f"adv_use_global_std {shared}",
        "adv_use_global_std: false" if shared else "",
    )
