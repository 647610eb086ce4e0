"""A trained scorer as a plain Qwen3-VL folder: LoRA merged into the weights, processor beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cac_align.runs.files import make_weights_readable
from cac_align.training.policy import AnswerLogProbs, base_model


def save_model(scorer: AnswerLogProbs, state: Mapping[str, Tensor], processor: Any, folder: Path) -> None:
    """Save a model from a state dict of its scorer. LoRA is merged, W + (alpha / r) B A, on a copy
    of the state.
    """
    model = scorer.model
    state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    if hasattr(model, "peft_config"):
        state = merge_lora(state, model.peft_config["default"])
    base_model(model).save_pretrained(folder, state_dict={name: tensor.contiguous() for name, tensor in state.items()})
    processor.save_pretrained(folder)
    make_weights_readable(folder)


def merge_lora(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Plain weights from a LoRA model's state dict. The sum is taken in float32."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        key = name.removeprefix("base_model.model.")
        if ".base_layer." in key:
            down, up = (state.get(name.replace("base_layer.weight", f"lora_{side}.default.weight")) for side in "AB")
            if name.endswith(".base_layer.weight") and down is not None and up is not None:
                delta = up.float() @ down.float() * (config.lora_alpha / config.r)
                tensor = (tensor.float() + delta.to(tensor.device)).to(tensor.dtype)
            key = key.replace(".base_layer.", ".")
        plain[key] = tensor
    return plain
