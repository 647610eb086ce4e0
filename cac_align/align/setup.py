"""Before the first step: the processes, the checkpoint with its LoRA, the prompts, and the reward
with its ledger.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, DynamoBackend, InitProcessGroupKwargs

from cac_align.align.async_reward import AsyncReward
from cac_align.align.lora import add_lora
from cac_align.align.recipe import AlignRecipe, check_align_recipe
from cac_align.align.sampling.prompts import prompts_per_chunk, read_training_prompts, step_prompts
from cac_align.core.weights import shipped
from cac_align.generation.wan import Wan
from cac_align.rewards.build import load_reward
from cac_align.rewards.combine import Combined, bounds_of, compares_videos, pointwise_remedy
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.reachable import check_reachable
from cac_align.rewards.reward import Reward
from cac_align.runs.device import pick_device
from cac_align.runs.progress import working


def prepare(recipe: AlignRecipe) -> tuple[Accelerator, Wan, list[str], int]:
    """(accelerator, Wan with a LoRA on its DiT, training prompts, prompts per chunk).

    Raises ``ValueError`` for a recipe that cannot run, a device that does not exist, a checkpoint
    that is not Wan, and prompts that cannot be read.
    """
    check_align_recipe(recipe)
    wanted = None if recipe.device is None else pick_device(recipe.device)
    # The LoRA's gradients are small, so they are averaged in every backward pass. Buffers (rotary tables) never change.
    # One process may wait long for a judge's last retry; the others must not time out meanwhile.
    kwargs = [DistributedDataParallelKwargs(broadcast_buffers=False), InitProcessGroupKwargs(timeout=timedelta(days=1))]
    accelerator = Accelerator(cpu=wanted is not None and wanted.type == "cpu", kwargs_handlers=kwargs)
    check_launch(accelerator)
    check_device(wanted, accelerator.device)
    chunk_size = prompts_per_chunk(recipe, accelerator.num_processes)
    prompts = read_training_prompts(
        recipe.prompts, recipe.prompt_first, recipe.prompt_count, note=accelerator.is_main_process
    )
    step_prompts(0, prompts, recipe)
    wan = load_wan(recipe, accelerator.device)
    check_one_expert(wan)
    transformer = wan.pipeline.transformer
    if accelerator.distributed_type == DistributedType.FSDP and transformer.dtype != torch.float32:
        raise ValueError(
            "FSDP 2 wants one dtype per block, and the LoRA is float32: give dtype=float32, received "
            f"{transformer.dtype}"
        )
    for part in (wan.pipeline.vae, wan.pipeline.text_encoder):
        part.requires_grad_(False)
    add_lora(transformer, rank=recipe.lora_rank, alpha=recipe.lora_alpha, ffn=recipe.lora_ffn, seed=recipe.seed)
    if recipe.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return accelerator, wan, prompts, chunk_size


def check_device(wanted: torch.device | None, given: torch.device) -> None:
    """Raise ``ValueError`` unless this process got the device that the recipe names.

    None: any; cuda: any GPU.
    """
    if wanted is None or (wanted.type == given.type and (wanted.index is None or wanted.index == (given.index or 0))):
        return
    if wanted.type == given.type:
        fix = (
            f"accelerate takes the GPUs it sees in order: set CUDA_VISIBLE_DEVICES={wanted.index} and leave device out"
        )
    else:
        fix = "leave device out, or change accelerate's settings (ACCELERATE_USE_CPU, --cpu, its config file)"
    raise ValueError(f"device={wanted}, but accelerate runs this process on {given}; {fix}")


def check_launch(accelerator: Accelerator) -> None:
    """Raise ``ValueError`` for settings of accelerate (also of its default config) that this loop
    does not support.
    """
    state, kind = accelerator.state, accelerator.distributed_type
    sharded = kind == DistributedType.FSDP and accelerator.is_fsdp2
    if not (sharded or kind == DistributedType.NO or kind.value.startswith("MULTI_")):
        which = "FSDP 1" if kind == DistributedType.FSDP else kind.value
        wrong = f"{which} is not supported: use DDP, or FSDP with fsdp_version 2"
    elif sharded and not (state.fsdp_plugin and state.fsdp_plugin.reshard_after_forward):
        wrong = (
            "fsdp_reshard_after_forward must be true: LoRA weights are swapped in the shards, not in gathered copies"
        )
    elif accelerator.mixed_precision not in ("no", "bf16"):
        wrong = f"mixed_precision {accelerator.mixed_precision} is not supported: use no or bf16"
    elif state.dynamo_plugin and state.dynamo_plugin.backend != DynamoBackend.NO:
        wrong = (
            "dynamo_backend must be no: the saved LoRA would have the compiled model's names, which nothing can load"
        )
    elif accelerator.gradient_accumulation_steps != 1:
        wrong = "gradient_accumulation_steps must be 1: the loop adds up its micro-batches itself (micro_batch)"
    else:
        return
    raise ValueError(
        f"accelerate's settings: {wrong}; pass --config_file recipes/align/accelerate/ddp.yaml (or fsdp.yaml)"
    )


def check_one_expert(wan: Wan) -> None:
    """Raise ``ValueError`` for a checkpoint with two transformers (Wan 2.2's A14B).

    Only one of them would be trained, on videos that the pipeline never makes.
    """
    if (
        getattr(wan.pipeline, "transformer_2", None) is not None
        or wan.pipeline.config.get("boundary_ratio") is not None
    ):
        raise ValueError(
            f"this checkpoint has two transformers, one for high and one for low noise (boundary_ratio "
            f"{wan.pipeline.config.get('boundary_ratio')}); align trains one: use Wan 2.1, or Wan 2.2's 5B"
        )


def load_wan(recipe: AlignRecipe, device: torch.device | None = None) -> Wan:
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
    with working(f"loading {Path(recipe.model).name}"):
        return Wan.load(model_folder(recipe.model), device=device, **given)


def model_folder(model: str) -> str:
    """A folder or hub id as it is; the folder of the shipped small Wan for "miniature"."""
    return str(shipped("wan")) if model == "miniature" else model


def build_async_reward(recipe: AlignRecipe, out: Path, processes: int) -> AsyncReward:
    """The recipe's reward with the ledger ``out/ledger.jsonl``.

    Raises ``ValueError`` when the reward compares videos of a prompt that lie on different
    processes, or that an evaluation prompt does not have; and, with local advantages, when their
    component is missing or is not in [0, 1].
    """
    reward = load_reward(recipe.reward or None)
    check_reachable(reward)
    reason = compares_videos(reward)
    if reason and processes > 1:
        raise ValueError(
            f"reward {reward.name!r}: {reason}, which lie on {processes} processes; use one process, or "
            f"{pointwise_remedy(reason)} (advantages are normalised within the whole group in any case)"
        )
    if reason and recipe.eval.every and recipe.eval.prompts > 0:
        raise ValueError(
            f"reward {reward.name!r}: {reason}, and an evaluation prompt has one video: it would never have a score; "
            f"{pointwise_remedy(reason)}, or set eval.every=0"
        )
    if recipe.advantages == "local" and isinstance(reward, Combined):
        reward = replace(reward, evidence_of=recipe.local_component)
    async_reward = AsyncReward(reward, Ledger(out / "ledger.jsonl"), overlap=recipe.overlap)
    if recipe.advantages == "local":
        _check_local_component(reward, recipe.local_component, async_reward.components)
    return async_reward


def _check_local_component(reward: Reward, name: str, components: Iterable[str]) -> None:
    """Raise ``ValueError`` unless local advantages can use this component of the reward."""
    if name not in components:
        raise ValueError(
            f"local_component {name!r} is no component of the reward; it has {', '.join(components)}, and local "
            "advantages need the one whose judgements have boxes"
        )
    bounds = bounds_of(reward.components[name] if isinstance(reward, Combined) else reward)
    if bounds != (0.0, 1.0):
        raise ValueError(f"local_component {name!r} has bounds {bounds}; local advantages need a score in [0, 1]")
