"""A judge that starts from another one: from its image encoder, from its layers, or from all of it
with finer patches.

folder of a trained judge + fresh model → take_all / take_encoder / take_body / take_finer (and its
run's questions: take_probe_heads) → the model, weights in place

Finer patches: a patch of half the width shows an object twice as large, so the kernel that reads it
is the coarse one read off a picture magnified twice (each small pixel stands for 2 × 2 large ones:
the sum of their weights), and the table of positions is stretched to the finer grid, as Qwen3-VL
itself stretches it for larger pictures.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration, Qwen3VLProcessor


def take_all(model: Qwen3VLForConditionalGeneration, folder: Path) -> None:
    """Start from another judge as it is. Raises ``ValueError`` when there is none or its size
    differs.
    """
    _put(model, _weights(folder, "start"), folder, "start")


def take_encoder(model: Qwen3VLForConditionalGeneration, folder: Path) -> None:
    """Start from another judge's image encoder. Raises ``ValueError`` when there is none or its
    size differs.
    """
    taken = {name: tensor for name, tensor in _weights(folder, "encoder").items() if ".visual." in name}
    _put(model, taken, folder, "encoder", inside=".visual.")


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


def take_finer(model: Qwen3VLForConditionalGeneration, folder: Path) -> None:
    """Take all of a judge whose patches are twice as wide. Raises ``ValueError`` when it is of
    another size otherwise.
    """
    taken = _weights(folder, "finer")
    kernel, table = "model.visual.patch_embed.proj.weight", "model.visual.pos_embed.weight"
    coarse, fine_px = taken[kernel], model.config.vision_config.patch_size
    if coarse.shape[-1] != 2 * fine_px:
        raise ValueError(f"finer: {folder} has patches of {coarse.shape[-1]} px, expected {2 * fine_px} px")
    side = math.isqrt(len(taken[table]))
    grid = taken[table].T.reshape(1, -1, side, side)
    finer = torch.nn.functional.interpolate(grid, scale_factor=2, mode="bilinear", align_corners=True)
    taken[kernel] = coarse.unflatten(3, (fine_px, 2)).unflatten(5, (fine_px, 2)).sum((4, 6))
    taken[table] = finer.flatten(2)[0].T
    _put(model, taken, folder, "finer")


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


def _put(
    model: Qwen3VLForConditionalGeneration, taken: dict[str, torch.Tensor], folder: Path, key: str, *, inside: str = ""
) -> None:
    """Put these weights in place: all of those whose name contains ``inside`` (the output layer is
    the tied word table).
    """
    try:
        missing, unexpected = model.load_state_dict(taken, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{key}: {folder} has another size than this recipe's: {error}") from error
    lacking = [name for name in missing if inside in name and name != "lm_head.weight"]
    if unexpected or lacking:
        raise ValueError(f"{key}: {folder} has another depth than this recipe's: {sorted([*unexpected, *lacking])[:3]}")
