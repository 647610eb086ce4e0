"""Before the first step: the processes, the checkpoint with its LoRA, the prompts, the reward and its ledger.

recipe → check → Accelerator, Wan + LoRA, prompts, chunk size        recipe → reward in a ledger, in a thread (Judging)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, DynamoBackend, InitProcessGroupKwargs

from cac_align.align.async_reward import Judging
from cac_align.align.local_advantages import Grid
from cac_align.align.lora import add_lora
from cac_align.align.recipe import FlowGrpoRecipe, check, chunk_prompts, prompts_at, read_prompts
from cac_align.core.weights import shipped
from cac_align.generation.wan import Wan
from cac_align.rewards.build import load_reward
from cac_align.rewards.combine import Combined, bounds_of
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.normalise import NEEDS_GROUP
from cac_align.rewards.reward import Reward
from cac_align.runs.device import pick_device


def prepare(recipe: FlowGrpoRecipe) -> tuple[Accelerator, Wan, list[str], int]:
    """(processes, Wan with a LoRA on its DiT, training prompts, prompts per chunk).

    Raises ``ValueError`` for a recipe that cannot run, a device that is not to be had, a checkpoint that is not Wan, or prompts
    that cannot be read.
    """
    check(recipe)
    wish = None if recipe.device is None else pick_device(recipe.device)
    # LoRA gradients are few: they are averaged in every backward pass. Buffers (rotary tables) never change.
    # One process may wait for a judge that answers after its last retry; the others must not end the run for it.
    kwargs = [DistributedDataParallelKwargs(broadcast_buffers=False), InitProcessGroupKwargs(timeout=timedelta(days=1))]
    accelerator = Accelerator(cpu=wish is not None and wish.type == "cpu", kwargs_handlers=kwargs)
    check_launch(accelerator)
    check_device(wish, accelerator.device)
    chunk = chunk_prompts(recipe, accelerator.num_processes)
    prompts = read_prompts(recipe.prompts, recipe.prompt_first, recipe.prompt_count, note=accelerator.is_main_process)
    prompts_at(0, prompts, recipe)
    wan = load_wan(recipe, accelerator.device)
    check_one_expert(wan)
    transformer = wan.pipeline.transformer
    if accelerator.distributed_type == DistributedType.FSDP and transformer.dtype != torch.float32:
        raise ValueError(
            f"FSDP 2 wants one dtype per block, and the LoRA is float32: give dtype=float32, received {transformer.dtype}"
        )
    for part in (wan.pipeline.vae, wan.pipeline.text_encoder):
        part.requires_grad_(False)
    add_lora(transformer, rank=recipe.lora_rank, alpha=recipe.lora_alpha, ffn=recipe.lora_ffn, seed=recipe.seed)
    if recipe.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return accelerator, wan, prompts, chunk


def check_device(wish: torch.device | None, given: torch.device) -> None:
    """Raise ``ValueError`` unless this process got the device that the recipe asks for. None: any; plain cuda: any GPU."""
    if wish is None or (wish.type == given.type and (wish.index is None or wish.index == (given.index or 0))):
        return
    if wish.type == given.type:
        way = f"accelerate takes the GPUs that it sees in order: set CUDA_VISIBLE_DEVICES={wish.index} and leave device out"
    else:
        way = "leave device out, or mend what accelerate was told (ACCELERATE_USE_CPU, --cpu, its config file)"
    raise ValueError(f"device={wish}, but accelerate runs this process on {given}; {way}")


def check_launch(accelerator: Accelerator) -> None:
    """Raise ``ValueError`` for a setting of accelerate (its default config counts, too) under which this loop would train something else."""
    state, kind = accelerator.state, accelerator.distributed_type
    sharded = kind == DistributedType.FSDP and accelerator.is_fsdp2
    if not (sharded or kind == DistributedType.NO or kind.value.startswith("MULTI_")):
        which = "FSDP 1" if kind == DistributedType.FSDP else kind.value
        wrong = f"{which} is not supported: use DDP, or FSDP with fsdp_version 2"
    elif sharded and not state.fsdp_plugin.reshard_after_forward:
        wrong = "fsdp_reshard_after_forward must be true: averages and references are exchanged in the shards, not in what was gathered"
    elif accelerator.mixed_precision not in ("no", "bf16"):
        wrong = f"mixed_precision {accelerator.mixed_precision} is not supported: use no or bf16"
    elif state.dynamo_plugin.backend != DynamoBackend.NO:
        wrong = (
            "dynamo_backend must be no: the LoRA's names would be those of the compiled model, which nothing can load"
        )
    elif accelerator.gradient_accumulation_steps != 1:
        wrong = "gradient_accumulation_steps must be 1: the loop adds up its micro-batches itself (micro_batch)"
    else:
        return
    raise ValueError(
        f"accelerate's settings: {wrong}; pass --config_file recipes/align/accelerate/ddp.yaml (or fsdp.yaml)"
    )


def check_one_expert(wan: Wan) -> None:
    """Raise ``ValueError`` for a checkpoint that changes its transformer on the way (Wan 2.2's A14B): only one of them would be trained and
    sampled with, in videos that the pipeline never makes."""
    if (
        getattr(wan.pipeline, "transformer_2", None) is not None
        or wan.pipeline.config.get("boundary_ratio") is not None
    ):
        raise ValueError(
            f"this checkpoint has two transformers, one for high and one for low noise (boundary_ratio "
            f"{wan.pipeline.config.get('boundary_ratio')}); align trains one: take Wan 2.1, or Wan 2.2's 5B"
        )


def load_wan(recipe: FlowGrpoRecipe, device: object = None) -> Wan:
    """The recipe's checkpoint at the recipe's size, length, steps and guidance."""
    names = (
        "height",
        "width",
        "num_frames",
        "num_inference_steps",
        "guidance_scale",
        "negative_prompt",
        "fps",
        "dtype",
    )
    given = {name: value for name in names if (value := getattr(recipe, name)) is not None}
    return Wan.load(model_folder(recipe.model), device=device, **given)


def model_folder(model: str) -> str:
    """A folder or hub id as it is; "miniature": the shipped small Wan."""
    if model != "miniature":
        return model
    return str(shipped("wan"))


def grid_of(wan: Wan) -> Grid:
    """The latent grid of the videos this Wan makes, with its VAE's own strides."""
    pipeline, setting = wan.pipeline, wan.setting
    strides = int(pipeline.vae_scale_factor_temporal), int(pipeline.vae_scale_factor_spatial)
    return Grid(setting.num_frames, setting.height, setting.width, *strides)


def build_judging(recipe: FlowGrpoRecipe, out: Path, processes: int) -> Judging:
    """The recipe's reward behind ``out/ledger.jsonl``.

    Raises ``ValueError`` when it compares videos that lie on different processes, or that the watched prompts do not have; and for local
    credit by a component that has no boxes, or whose scale is not R's.
    """
    reward = load_reward(recipe.reward or None)
    normalise = getattr(reward, "normalise", None)
    if processes > 1 and normalise in NEEDS_GROUP:
        raise ValueError(
            f"reward normalise={normalise} compares the videos of a prompt, which lie on {processes} processes; use range or reference "
            "(advantages are normalised within the whole group in any case)"
        )
    if recipe.watch.every and recipe.watch.prompts > 0 and normalise in NEEDS_GROUP:
        raise ValueError(
            f"reward normalise={normalise} compares the videos of a prompt, and a watched prompt has one: it would never have a score; use "
            "range or reference, or watch.every=0"
        )
    if recipe.credit == "local" and isinstance(reward, Combined):
        reward = replace(reward, evidence_of=recipe.credit_component)
    judging = Judging(reward, Ledger(out / "ledger.jsonl"), overlap=recipe.overlap)
    if recipe.credit == "local":
        _check_component(reward, recipe.credit_component, judging.components)
    return judging


def _check_component(reward: Reward, name: str, components: Iterable[str]) -> None:
    """Raise ``ValueError`` unless local credit can take this component of the reward."""
    if name not in components:
        raise ValueError(
            f"credit_component {name!r} is no component of the reward; it has {', '.join(components)}, and "
            "local credit needs the one whose judgements have boxes"
        )
    bounds = bounds_of(reward.components[name] if isinstance(reward, Combined) else reward)
    if bounds != (0.0, 1.0):
        raise ValueError(f"credit_component {name!r} has bounds {bounds}; local credit takes R in [0, 1] (credit.py)")
