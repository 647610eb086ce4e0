"""What each host's config gets wrong about a video reward: pure reading of mappings, one function per host.

config mapping → flow_factory | flow_grpo | unirl | verl_omni → checks, each wrong one with the line that mends it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cac_align.plugins.doctor.host_lines import LINES
from cac_align.plugins.host import Wiring


@dataclass(frozen=True)
class Check:
    """One finding. ok: True right, False wrong, None a remark. fix: what to write where, when something is to be done."""

    name: str
    ok: bool | None
    text: str
    fix: str = ""


# ---- one reward of a config ------------------------------------------------------------------------------------------


def _wiring(name: str, options: Mapping[str, Any], *, whole_groups: bool) -> Iterator[Check]:
    """Checks of our own options, wherever the host keeps them."""
    try:
        wiring = Wiring.read(options)
        policy = wiring.policy
    except (ValueError, TypeError) as error:
        yield Check(f"{name} options", False, str(error), "see cac_align.plugins.host.Wiring")
        return
    fps = float(wiring.fps)
    fix = "" if fps == 16 else f"fps: 16 on {name}, unless the videos really have {fps:g} frames per second"
    yield Check(
        f"{name} fps", True if fps == 16 else None, f"{fps:g} frames per second (Wan: 16; the hosts tag files 8)", fix
    )
    if wiring.on_missing == "neutral":
        text = f"{policy}: neutral needs all {wiring.group_size} videos of a prompt in one call, or a gap stops the run"
        split = "" if whole_groups else "; this host's calls hold fragments of groups"
        yield Check(
            f"{name} policy", None, text + split, f"on_missing: raise on {name}, unless one call holds the whole group"
        )
    else:
        yield Check(f"{name} policy", True, str(policy))
    yield from _reward_source(name, wiring)
    if wiring.ledger is None:
        yield Check(
            f"{name} evidence",
            None,
            "every host drops explanations; no ledger is set",
            f"ledger: ledger.jsonl on {name}",
        )


def _refused(name: str, options: dict[str, Any], keys: Sequence[str], why: str) -> Iterator[Check]:
    """Options that this host's adapter does not take; they are taken out, so that each is said once."""
    for key in keys:
        if options.pop(key, None) is not None:
            yield Check(f"{name} {key}", False, why, f"remove {key} from {name}")


def _frame_rate(name: str, options: Mapping[str, Any], rate: Any) -> Iterator[Check]:
    """Where the host's config says how many frames per second its model makes, that is what the reward must be told."""
    told = float(options.get("fps", 16))
    if rate is not None and float(rate) != told:
        yield Check(
            f"{name} frame rate",
            False,
            f"train.frame_rate is {rate}, and the reward takes the videos for {told:g} fps",
            f"fps: {rate} on {name}",
        )


def _reward_source(name: str, wiring: Wiring) -> Iterator[Check]:
    source = wiring.reward
    if source is None:
        yield Check(
            f"{name} reward",
            None,
            "the shipped miniature, made for the miniature world only",
            "reward: your recipe, or http://… of `cac-align serve`",
        )
    elif source.startswith(("http://", "https://")):
        yield _service(name, source, wiring.component)
    elif source.endswith((".yaml", ".yml")):
        yield _recipe(name, Path(source), wiring.component)


def _service(name: str, url: str, component: str | None) -> Check:
    from cac_align.serving.client import RemoteReward

    try:
        health = RemoteReward(url, timeout_s=5, retries=0).health()
    except ValueError as error:
        return Check(f"{name} service", False, str(error), "cac-align serve --reward RECIPE, and the address it prints")
    if health.rewards and component is not None and component not in health.rewards:
        return Check(
            f"{name} service",
            False,
            f"{url} offers {', '.join(health.rewards)}, not {component!r}",
            "serve a recipe that has it",
        )
    return Check(
        f"{name} service",
        health.status == "ok",
        f"{url}: {health.status}, offers {', '.join(health.rewards) or 'nothing without a token'}",
    )


def _recipe(name: str, path: Path, component: str | None) -> Check:
    from cac_align.config import read_recipe
    from cac_align.rewards.build import RewardRecipe

    try:
        recipe = read_recipe(RewardRecipe, path, section="reward")
    except ValueError as error:
        return Check(
            f"{name} recipe",
            False,
            str(error),
            "cac-align score VIDEO --prompt TEXT --reward RECIPE tries a recipe alone",
        )
    if component is not None and component not in (*recipe.components, "+".join(recipe.components)):
        text = f"{path} has {', '.join(recipe.components)}, not {component!r}"
        return Check(f"{name} recipe", False, text, "a recipe that has it, or another class")
    if recipe.normalise in ("group", "rank"):
        text = f"{path} normalises by {recipe.normalise!r} within a prompt's videos; the host's calls hold fragments of groups"
        return Check(f"{name} normalisation", False, text, "normalise: range   (or reference)")
    return Check(
        f"{name} normalisation", True, f"{recipe.normalise}: works for one video, the same under every aggregation"
    )


# ---- hosts -----------------------------------------------------------------------------------------------------------


def flow_factory(config: Mapping[str, Any]) -> Iterator[Check]:
    known = {
        "name",
        "reward_model",
        "weight",
        "dtype",
        "device",
        "batch_size",
        "async_reward",
        "num_workers",
        "extra_kwargs",
    }
    train, scheduler, model = (config.get(section) or {} for section in ("train", "scheduler", "model"))
    entries = config.get("rewards") or []
    entries = [entries] if isinstance(entries, Mapping) else list(entries)
    ours = [entry for entry in entries if str(entry.get("reward_model", "")).startswith("cac_align.")]
    fix = "" if ours else LINES["flow-factory"]
    yield Check(
        "reward",
        bool(ours),
        f"{len(ours)} of {len(entries)} rewards are ours" if ours else "none of our rewards is listed",
        fix,
    )
    names = {"CaCUnifiedReward": None, "CaCReward": "cac", "UnifiedVideoReward": "unified"}
    for entry in entries:
        name, path = str(entry.get("name", "default")), str(entry.get("reward_model", ""))
        if "." not in path and path.lower() != path and "cac" in path.lower():
            yield Check(
                f"{name} path",
                False,
                f"{path!r}: registered names are looked up in lower case and never found",
                "reward_model: cac_align.plugins.flow_factory.CaCUnifiedReward",
            )
        if entry in ours:
            right = path in {f"cac_align.plugins.flow_factory.{each}" for each in names}
            yield Check(
                f"{name} path", right, path, "" if right else f"cac_align.plugins.flow_factory.{{{', '.join(names)}}}"
            )
            options = {key: value for key, value in entry.items() if key not in known} | dict(
                entry.get("extra_kwargs") or {}
            )
            options = {"component": names.get(path.rpartition(".")[2]), **options}
            yield from _frame_rate(name, options, train.get("frame_rate"))
            yield from _wiring(
                name, options, whole_groups=int(entry.get("batch_size", 16)) >= int(train.get("group_size", 16))
            )
        elif "server_url" in entry:
            yield Check(
                f"{name} transport",
                False,
                "the remote template sends every frame as PNG (73 MB for 81 frames of 480P) and waits 60 s",
                "use our class with reward: http://…",
            )
    if len(ours) > 1:
        aggregation = train.get("advantage_aggregation", "gdpo")
        weights = [float(entry.get("weight", 1)) for entry in ours]
        both = sorted(str(entry.get("reward_model", "")).rpartition(".")[2] for entry in ours) == [
            "CaCReward",
            "UnifiedVideoReward",
        ]
        mean = aggregation == "sum" and len(set(weights)) == 1 and both
        text = f"advantage_aggregation {aggregation} with weights {weights}: " + (
            "the paper's mean of normalised scores" if mean else "not the paper's mean"
        )
        fix = (
            ""
            if mean
            else "train: {advantage_aggregation: sum}, CaCReward and UnifiedVideoReward once each, equal weights (gdpo z-scores each reward per group: noise of a near-constant one is amplified)"
        )
        yield Check("aggregation", True if mean else None, text, fix)
    video = str(model.get("model_type", "")).startswith(("wan", "ltx"))
    yield Check(
        "model",
        video,
        f"model_type {model.get('model_type')}",
        "" if video else "model: {model_type: wan2_t2v, …}: our rewards judge video",
    )
    yield _step_zero(scheduler, train)
    shared = train.get("global_std", True)
    yield Check(
        "advantage",
        True if not shared else None,
        f"global_std {shared}",
        "train: {global_std: false}: one prompt's spread then does not scale another's" if shared else "",
    )
    if "zero3" in str(config.get("config_file", "")).lower():
        yield Check(
            "sharding",
            False,
            "DeepSpeed ZeRO-3 shards reward models too",
            "config_file: config/deepspeed/deepspeed_zero2.yaml, or a service",
        )
    yield _host_memory(train, int(config.get("num_processes", 1)))


def _step_zero(scheduler: Mapping[str, Any], train: Mapping[str, Any]) -> Check:
    kind, level = scheduler.get("dynamics_type", "Flow-SDE"), scheduler.get("noise_level", 0.7)
    steps, count = scheduler.get("sde_steps"), int(train.get("num_inference_steps", 50))
    if kind != "Flow-SDE":
        return Check(
            "step-0 noise", True, f"{kind}: no singular first step; noise_level {level} means another amount there"
        )
    if steps is not None and 0 not in steps:
        return Check("step-0 noise", True, f"sde_steps {list(steps)} leave out step 0; noise_level {level}")
    text = "step 0 is eligible for noise; with UniPC its sigma escapes the guard for 1, and the noise there is 31.6 × noise_level"
    worse = f"; with {count} steps the sample is destroyed" if count < 20 else ""
    return Check("step-0 noise", False, text + worse, "scheduler: {sde_steps: [1, 2, …]}")


def _host_memory(train: Mapping[str, Any], processes: int) -> Check:
    size = train.get("resolution", [480, 832])
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    samples = int(train.get("unique_sample_num_per_epoch", 1)) * int(train.get("group_size", 16)) / max(processes, 1)
    gigabytes = samples * int(train.get("num_frames", 81)) * height * width * 12 / 1e9
    text = f"decoded videos stay until the epoch ends: {samples:g} per rank, {gigabytes:.1f} GB in float32"
    return Check(
        "host memory",
        True if gigabytes < 16 else None,
        text,
        "" if gigabytes < 16 else "lower unique_sample_num_per_epoch",
    )


def flow_grpo(config: Mapping[str, Any]) -> Iterator[Check]:
    from cac_align.plugins.flow_grpo import COMPONENTS

    table = dict(config.get("reward_fn") or {})
    ours = {name: float(weight) for name, weight in table.items() if name in COMPONENTS}
    fix = "" if ours else LINES["flow_grpo"]
    yield Check("reward_fn", bool(ours), f"{table}; ours: {', '.join(COMPONENTS)}", fix)
    for name in table:
        if name not in COMPONENTS and name != "video_ocr":
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
    fragment = batch < k
    text = f"a call holds {batch} videos, a group {k}" + (
        ": groups are split over calls and ranks, where neutral stops the run" if fragment else ""
    )
    yield Check(
        "groups",
        None if fragment else True,
        text,
        "on_missing: raise (the default); the mean of a fragment is not the group's" if fragment else "",
    )
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


def unirl(config: Mapping[str, Any]) -> Iterator[Check]:
    backend = (config.get("reward") or {}).get("backend") or {}
    target, spec = str(backend.get("_target_", "")), dict(backend.get("config") or {})
    if target.startswith("cac_align."):
        yield Check(
            "backend",
            target == "cac_align.plugins.unirl.CaCBackend",
            target,
            "" if target.endswith(".CaCBackend") else LINES["unirl"],
        )
        built = spec.get("_target_") == "cac_align.plugins.unirl.CaCSpec"
        yield Check("backend config", built, f"config of {spec.get('_target_')}", "" if built else LINES["unirl"])
        merged = bool(set(map(str, config.get("defaults") or ())) - {"_self_"}) and "cac_reward" not in config
        if merged:
            text = "Hydra merges reward into that of the recipe in defaults, whose options (device, model_id, …) stay in its config"
            yield Check("composition", False, text, LINES["unirl"])
        options = {key: value for key, value in spec.items() if key not in ("_target_", "batch_size")}
        yield from _refused("reward", options, ("layout",), "UniRL's videos are (C, T, H, W)")
        yield from _wiring("reward", options, whole_groups=False)
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
        yield Check("backend", False, f"{target or 'none'} is not ours", LINES["unirl"])
    shared = config.get("adv_use_global_std", True)
    yield Check(
        "advantage",
        True if not shared else None,
        f"adv_use_global_std {shared}",
        "adv_use_global_std: false" if shared else "",
    )


def verl_omni(config: Mapping[str, Any]) -> Iterator[Check]:
    section = config.get("reward") or {}
    functions = section.get("reward_functions") or {}
    ours = {key: dict(entry) for key, entry in functions.items() if "cac_align" in str(entry.get("path", ""))}
    yield Check(
        "reward",
        bool(ours),
        f"{len(ours)} of {len(functions)} reward functions are ours",
        "" if ours else LINES["verl-omni"],
    )
    for key, entry in ours.items():
        path, required = entry.get("path"), str(entry.get("required", False)).lower() == "true"
        right = path == "pkg://cac_align.plugins.verl_omni" and entry.get("name") == "compute_score"
        fix = "path=pkg://cac_align.plugins.verl_omni name=compute_score"
        yield Check(f"{key} path", right, f"{path} {entry.get('name')}", "" if right else fix)
        fix = "" if required else f"+reward.reward_functions.{key}.required=true; otherwise a failure becomes 0.0"
        yield Check(f"{key} failures", required, f"required={required}", fix)
        options = {name: value for name, value in entry.items() if name not in ("path", "name", "weight", "required")}
        yield from _refused(
            key, options, ("on_missing", "group_size"), "one call holds one video: neutral has no group"
        )
        yield from _wiring(key, options, whole_groups=True)
    manager = (section.get("reward_manager") or {}).get("name")
    fits = manager == "MultiVisualRewardManager"
    yield Check(
        "manager",
        fits if manager else None,
        f"reward_manager {manager}",
        "" if fits else "reward.reward_manager.name=MultiVisualRewardManager",
    )


def remarks(host: str) -> Iterator[Check]:
    layouts = {
        "flow-factory": "(T, C, H, W) float [0, 1] tensors; anything else, NaN or out of range has no score",
        "flow_grpo": "(B, T, C, H, W) float [0, 1]; anything else, NaN or out of range has no score",
        "unirl": "(C, T, H, W) float [0, 1]; anything else, NaN or out of range has no score",
        "verl-omni": "uint8 (T, C, H, W) or (C, T, H, W); state layout= where both could be 3",
        "videoalign": "files on disk; their frame rate is taken from fps=, never from the file; a failure ends the run "
        "(RunStopped), because DanceGRPO turns every Exception into VQ = MQ = -1.0",
        "trl": "tensors, arrays, PIL frames or paths; a missing score raises (None only with leave_out=True on trl >= 1.10)",
    }
    yield Check("layout and range", None, layouts[host])
    if host in ("flow-factory", "flow_grpo"):
        yield Check("ties", None, "CaC is near-binary: many groups have no spread; watch the share of zero-std groups")


READERS: dict[str, Callable[[Mapping[str, Any]], Iterator[Check]]] = {
    "flow-factory": flow_factory,
    "flow_grpo": flow_grpo,
    "unirl": unirl,
    "verl-omni": verl_omni,
}
"""Hosts whose config file we read."""
