"""A judge that starts from another one: from its layers, or from all of it.

folder of a trained judge + fresh model → take_all / take_body (and its run's questions: take_probe_heads) → the
model, weights in place
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration, Qwen3VLProcessor


def take_all(model: Qwen3VLForConditionalGeneration, folder: Path) -> None:
    """Start from another judge as it is. Raises ``ValueError`` when there is none or its size
    differs.
    """
    _put(model, _weights(folder, "start"), folder, "start")


def take_body(model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, folder: Path) -> None:
    """Take another judge's layers, and its word vectors where a token's text is the same. Raises
    ``ValueError`` when the sizes differ.
    """
    taken = _weights(folder, "body")
    table = "model.language_model.embed_tokens.weight"
    theirs = AutoProcessor.from_pretrained(folder).tokenizer.get_vocab()
    words = model.state_dict()[table].clone()
    for word, row in processor.tokenizer.get_vocab().items():
        if word in theirs and words.shape[1] == taken[table].shape[1]:
            words[row] = taken[table][theirs[word]]
    _put(model, {**taken, table: words}, folder, "body")


def take_probe_heads(heads: torch.nn.Module, file: Path) -> None:
    """Go on with a former run's questions to the visual tokens. Raises ``ValueError`` when it left
    none, or others.
    """
    if not file.is_file():
        raise ValueError(f"probe_heads: {file} does not exist; train that judge first, or leave probe_heads empty")
    try:
        heads.load_state_dict(load_file(file))
    except RuntimeError as error:
        raise ValueError(f"probe_heads: {file} holds other questions than this recipe's: {error}") from error


def _weights(folder: Path, key: str) -> dict[str, torch.Tensor]:
    """A trained judge's weights in fp32. key: the recipe's, for the words of a failure."""
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"{key}: {folder} holds no judge; train that one first, or leave {key} empty")
    return {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}


def _put(model: Qwen3VLForConditionalGeneration, taken: dict[str, torch.Tensor], folder: Path, key: str) -> None:
    """Put these weights in place (the output layer is the tied word table)."""
    try:
        missing, unexpected = model.load_state_dict(taken, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{key}: {folder} has another size than this recipe's: {error}") from error
    lacking = [name for name in missing if name != "lm_head.weight"]
    if unexpected or lacking:
        raise ValueError(f"{key}: {folder} has another depth than this recipe's: {sorted([*unexpected, *lacking])[:3]}")
