"""The LoRA on Wan's DiT: add it, average it, swap other weights in, and save it as diffusers loads
it.

Weights are swapped in place, so that one code path serves a single process, DDP and FSDP 2 (whose
parameters are sharded). The KL penalty's reference is the LoRA with its second matrix at zero: the
same numbers as without LoRA.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cac_align.runs.files import make_weights_readable

ATTENTION_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD_LAYERS = ("ffn.net.0.proj", "ffn.net.2")

Weights = dict[str, Tensor]
"""Tensors by the name of the LoRA parameter."""


def add_lora(transformer: Any, *, rank: int, alpha: int, ffn: bool, seed: int) -> None:
    """Freeze the DiT and add a LoRA in float32 to its attention layers, with ``ffn`` also to its
    feed-forward layers.

    seed: of the random values of the first matrix; the second matrix starts at zero.
    """
    from peft import LoraConfig

    transformer.requires_grad_(False)
    targets = [*ATTENTION_LAYERS, *(FEED_FORWARD_LAYERS if ffn else ())]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(
            LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights="gaussian")
        )
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The LoRA's parameters by their name in the DiT, also where accelerate has wrapped the model."""
    return {name.removeprefix("module."): parameter for name, parameter in model.named_parameters() if ".lora_" in name}


def copy_weights(parameters: Mapping[str, Tensor]) -> Weights:
    """A copy of these weights."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def zero_lora(parameters: Mapping[str, Tensor]) -> Weights:
    """The weights (second matrices of zeros) with which the LoRA changes nothing."""
    return {name: torch.zeros_like(parameter) for name, parameter in parameters.items() if ".lora_B" in name}


@torch.no_grad()
def ema_update(average: Weights, parameters: Mapping[str, Tensor], decay: float) -> None:
    """average ← decay·average + (1 − decay)·parameters, in place."""
    for name, kept in average.items():
        kept.lerp_(parameters[name].detach(), 1 - decay)


@contextmanager
def swapped(parameters: Mapping[str, Tensor], others: Weights | None) -> Iterator[None]:
    """Within the block the parameters have the values ``others``, and gradients are off; then their
    own again.

    With None the block runs as it is.
    """
    if others is None:
        yield
        return
    with torch.no_grad():
        own = {name: parameters[name].detach().clone() for name in others}
        try:
            _write(parameters, others)
            yield
        finally:
            _write(parameters, own)


def _write(parameters: Mapping[str, Tensor], values: Weights) -> None:
    for name, value in values.items():
        parameters[name].data.copy_(value)


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a sharded tensor (every process must call this); any other tensor as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def gather_weights(parameters: Mapping[str, Tensor]) -> Weights:
    """Copies of the full weights on the CPU. Every process must call this."""
    return {name: full_tensor(parameter.detach()).cpu() for name, parameter in parameters.items()}


def save_lora(folder: Path, weights: Weights, config: Any) -> None:
    """Write the LoRA with its rank and alpha (``config``: PEFT's) so that
    ``pipe.load_lora_weights(folder)`` loads it.
    """
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline

    layers = {name.replace(".default.", "."): tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    metadata = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    WanPipeline.save_lora_weights(
        folder, transformer_lora_layers={**layers}, transformer_lora_adapter_metadata=metadata
    )
    make_weights_readable(folder)
