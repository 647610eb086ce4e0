"""What a Flow-Factory config gets wrong about a video reward."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cac_align.plugins.doctor.checks import Check, check_frame_rate, check_modules, check_options, check_paths
from cac_align.plugins.doctor.config_lines import CONFIG_LINES

# Keys of a reward's entry that Flow-Factory reads itself; it passes the others on to us.
_OWN_KEYS = frozenset(
    ["name", "reward_model", "weight", "dtype", "device", "batch_size", "async_reward", "num_workers", "extra_kwargs"]
    + ["applicable_datasets"]
)
_LOGGERS = {"tensorboard": "tensorboard", "wandb": "wandb", "swanlab": "swanlab"}


def check_flow_factory(config: Mapping[str, Any]) -> Iterator[Check]:
    """What Flow-Factory's config says about our reward, its scheduler and its advantages."""
    train, scheduler, model = (config.get(section) or {} for section in ("train", "scheduler", "model"))
    entries = config.get("rewards") or []
    entries = [entries] if isinstance(entries, Mapping) else list(entries)
    geometry = _geometry(config, any(entry.get("async_reward") for entry in entries))
    ours = [entry for entry in entries if str(entry.get("reward_model", "")).startswith("cac_align.")]
    fix = "" if ours else CONFIG_LINES["flow-factory"]
    yield Check(
        "reward",
        bool(ours),
        f"{len(ours)} of {len(entries)} rewards are ours" if ours else "none of our rewards is listed",
        fix,
    )
    names = {"CaCUnifiedReward": None, "CaCReward": "cac", "UnifiedVideoReward": "unified", "GroupReward": None}
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
            options = {key: value for key, value in entry.items() if key not in _OWN_KEYS} | dict(
                entry.get("extra_kwargs") or {}
            )
            options = {"component": names.get(path.rpartition(".")[2]), **options}
            yield from check_frame_rate(name, options, train.get("frame_rate"))
            if path.endswith(".GroupReward"):
                yield from check_options(name, options, whole_groups=True, compares=True)
                yield from _groupwise_checks(name, entry, geometry)
                continue
            per_call = int(entry.get("batch_size", 16))
            yield from check_options(name, options, whole_groups=geometry.whole_groups(per_call))
            yield from _group_checks(name, options, per_call, geometry)
        elif "server_url" in entry:
            yield Check(
                f"{name} transport",
                False,
                "the remote template sends every frame as PNG (73 MB for 81 frames of 480P) and waits 60 s",
                "use our class with reward: http://…",
            )
    if len(ours) > 1:
        aggregation = train.get("advantage_aggregation", "gdpo")
        weights = [repr(entry.get("weight", 1.0)) for entry in ours]  # a number, or one per dataset
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
            else "train: {advantage_aggregation: sum}, CaCReward and UnifiedVideoReward once each, equal weights "
            "(gdpo z-scores each reward per group, which amplifies the noise of a near-constant one)"
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
    yield _host_memory(train, geometry.samples_per_rank)
    yield _evaluation(config, ours, train)
    logger = str((config.get("log") or {}).get("logging_backend"))
    needed = {_LOGGERS[logger]: f"log.logging_backend {logger}"} if logger in _LOGGERS else {}
    if "deepspeed" in str(config.get("config_file", "")):
        needed["deepspeed"] = f"config_file {config['config_file']}"
    yield from check_modules("flow_factory", needed)
    folders = {"config_file": config.get("config_file"), "dataset_dir": (config.get("data") or {}).get("dataset_dir")}
    yield from check_paths(folders)


@dataclass(frozen=True)
class _Geometry:
    """How an epoch's samples lie on the ranks, as Flow-Factory resolves it."""

    group_size: int
    processes: int
    sampler: str
    samples_per_rank: int

    def whole_groups(self, per_call: int) -> bool:
        """Whether the calls of all ranks that belong together, of ``per_call`` videos each, hold whole groups."""
        contiguous = self.sampler == "group_contiguous" and per_call % self.group_size == 0
        return contiguous or per_call >= self.samples_per_rank


def _geometry(config: Mapping[str, Any], asynchronous: bool) -> _Geometry:
    """Flow-Factory's ``_resolve_sampler_type`` and ``_align_batch_geometry`` (hparams/args.py)."""
    train, processes = config.get("train") or {}, int(config.get("num_processes", 1))
    group_size, batch = int(train.get("group_size", 16)), int(train.get("per_device_batch_size", 1))
    groups, sampler = (
        int(train.get("unique_sample_num_per_epoch", 1)),
        (config.get("data") or {}).get("sampler_type", "auto"),
    )
    if sampler == "auto":
        tiles = groups // processes * group_size % batch == 0
        sampler = "distributed_k_repeat" if groups % processes and tiles else "group_contiguous"
    elif asynchronous:
        sampler = "group_contiguous"
    step = processes * batch // math.gcd(group_size, processes * batch) * int(train.get("gradient_step_per_epoch", 1))
    if sampler == "group_contiguous":
        step = math.lcm(step, processes)
    groups = -(-groups // step) * step
    return _Geometry(group_size, processes, str(sampler), groups * group_size // processes)


def _group_checks(name: str, options: Mapping[str, Any], per_call: int, geometry: _Geometry) -> Iterator[Check]:
    """Whether a video without a score can be given the mean of its group."""
    group, ranks, samples = geometry.group_size, geometry.processes, geometry.samples_per_rank
    if options.get("group_size") not in (None, group):
        stated = f"group_size {options['group_size']}, and train.group_size is {group}"
        yield Check(f"{name} group_size", False, stated, f"group_size: {group} on {name}")
    spread = (
        "on one rank each" if geometry.sampler == "group_contiguous" or ranks == 1 else f"spread over {ranks} ranks"
    )
    text = f"groups of {group}, {spread} ({geometry.sampler}); a rank makes {samples} videos per epoch and hands over "
    whole = geometry.whole_groups(per_call) or options.get("on_missing") == "raise"
    yield Check(
        f"{name} groups",
        whole,
        f"{text}{min(per_call, samples)} at a time",
        "" if whole else f"batch_size: {samples} on {name}: all videos of a rank's epoch in one call",
    )


def _groupwise_checks(name: str, entry: Mapping[str, Any], geometry: _Geometry) -> Iterator[Check]:
    """What a groupwise reward needs beside its options."""
    if entry.get("async_reward"):
        text = "async_reward with a groupwise reward ends Flow-Factory's evaluations with 'Incomplete groups'"
        yield Check(f"{name} async", False, text, f"async_reward: false on {name}")
    if geometry.processes > 1 and geometry.sampler != "group_contiguous":
        text = (
            f"{geometry.sampler} spreads groups over {geometry.processes} ranks: every rank receives the videos of "
            "all, and the judge reads prompts as the tokenizer decodes them"
        )
        yield Check(f"{name} groups", None, text, "data: {sampler_type: group_contiguous}")
    else:
        yield Check(f"{name} groups", True, f"groups of {geometry.group_size}, on one rank each")


def _evaluation(config: Mapping[str, Any], ours: list[Any], train: Mapping[str, Any]) -> Check:
    """Whether the host's evaluation asks our reward, about videos like those it trains on."""
    section, rewards = config.get("eval") or {}, config.get("eval_rewards")
    every = int(section.get("eval_freq", 0))
    if not every:
        return Check("evaluation", None, "eval_freq 0: no evaluation", "eval: {eval_freq: 20}")
    if rewards is not None:
        rewards = [rewards] if isinstance(rewards, Mapping) else rewards
        ours = [entry for entry in rewards if str(entry.get("reward_model", "")).startswith("cac_align.")]
    if ours and all(str(entry.get("reward_model", "")).endswith(".GroupReward") for entry in ours):
        text = f"every {every} epochs, and Flow-Factory asks no groupwise reward there: it logs no number of ours"
        return Check("evaluation", None, text, "eval_rewards: [{…: CaCUnifiedReward}] for a number per video")
    if not ours:
        return Check("evaluation", None, f"every {every} epochs, and none of its eval_rewards is ours")
    for key in ("num_frames", "resolution"):
        if key in section and key in train and section[key] != train[key]:
            text = f"eval.{key} is {section[key]}, train.{key} {train[key]}: its scores are of other videos"
            return Check("evaluation", None, text, f"eval: {{{key}: {train[key]}}}")
    return Check("evaluation", True, f"every {every} epochs; a video without a score is left out and counted")


def _step_zero(scheduler: Mapping[str, Any], train: Mapping[str, Any]) -> Check:
    """Whether denoising step 0 gets no noise: with UniPC its sigma is 1, where Flow-SDE's formula is
    singular.
    """
    kind, level = scheduler.get("dynamics_type", "Flow-SDE"), scheduler.get("noise_level", 0.7)
    steps, count = scheduler.get("sde_steps"), int(train.get("num_inference_steps", 50))
    if kind != "Flow-SDE":
        return Check(
            "step-0 noise", True, f"{kind}: no singular first step; noise_level {level} means another amount there"
        )
    if steps is not None and 0 not in steps:
        return Check("step-0 noise", True, f"sde_steps {list(steps)} leave out step 0; noise_level {level}")
    text = (
        "step 0 is eligible for noise; with UniPC its sigma escapes the guard for 1, "
        "and the noise there is 31.6 × noise_level"
    )
    worse = f"; with {count} steps the sample is destroyed" if count < 20 else ""
    return Check("step-0 noise", False, text + worse, "scheduler: {sde_steps: [1, 2, …]}")


def _host_memory(train: Mapping[str, Any], samples: int) -> Check:
    """How much memory the decoded videos of one epoch take in each process."""
    size = train.get("resolution", [480, 832])
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    gigabytes = samples * int(train.get("num_frames", 81)) * height * width * 12 / 1e9
    text = f"decoded videos stay until the epoch ends: {samples} per rank, {gigabytes:.1f} GB in float32"
    return Check(
        "host memory",
        True if gigabytes < 16 else None,
        text,
        "" if gigabytes < 16 else "lower unique_sample_num_per_epoch",
    )
