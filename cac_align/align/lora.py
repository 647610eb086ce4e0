"""The LoRA on Wan's DiT: added, averaged, swapped for another copy of itself, and saved the way diffusers loads it.

transformer → ``add_lora`` → parameters by name → ``Shadow`` (EMA, slow copy) · ``swapped`` · ``save_lora`` → pipe.load_lora_weights

Copies are exchanged in place, under no_grad, so that one code path serves a single process, DDP and FSDP 2 (whose parameters are sharded).
The reference of the KL is the LoRA with its second matrix at zero: the same numbers as without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ffn.net.0.proj", "ffn.net.2")

Weights = dict[str, Tensor]


def add_lora(transformer: nn.Module, *, rank: int, alpha: int, ffn: bool, seed: int) -> None:
    """Freeze the DiT and add a LoRA in float32 to its attention (and feed-forward) layers; the first matrix follows from ``seed``."""
    from peft import LoraConfig

    transformer.requires_grad_(False)
    targets = [*ATTENTION, *(FEED_FORWARD if ffn else ())]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(
            LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights="gaussian")
        )
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def lora_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The LoRA's parameters by their name in the DiT, whatever wraps it."""
    return {name.removeprefix("module."): parameter for name, parameter in model.named_parameters() if ".lora_" in name}


def copy_of(parameters: Mapping[str, Tensor]) -> Weights:
    """A copy of these weights as they are now."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def zeroed(parameters: Mapping[str, Tensor]) -> Weights:
    """The LoRA that does nothing."""
    return {name: torch.zeros_like(parameter) for name, parameter in parameters.items() if ".lora_B" in name}


@torch.no_grad()
def follow(copy: Weights, parameters: Mapping[str, Tensor], keep: float) -> None:
    """copy ← keep·copy + (1 − keep)·parameters, in place."""
    for name, kept in copy.items():
        kept.lerp_(parameters[name].detach(), 1 - keep)


@contextmanager
def swapped(parameters: Mapping[str, Tensor], others: Weights | None) -> Iterator[None]:
    """Inside, the parameters hold ``others`` (None: nothing happens), and gradients are off; afterwards their own values again."""
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


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered (every process must take part); any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gathered(parameters: Mapping[str, Tensor]) -> Weights:
    """Copies on the CPU; every process takes part where tensors are sharded."""
    return {name: whole(parameter.detach()).cpu() for name, parameter in parameters.items()}


def save_lora(folder: Path, weights: Weights, config: Any) -> None:
    """Write ``pytorch_lora_weights.safetensors`` with its rank and alpha, as ``pipe.load_lora_weights(folder)`` expects them."""
    from diffusers import WanPipeline

    layers = {name.replace(".default.", "."): tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    metadata = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    WanPipeline.save_lora_weights(folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata)
