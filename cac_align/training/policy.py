"""The model that is trained: loaded once, and asked for log p of answers it is shown, with each video encoded once.

folder or hub id → load → Qwen3-VL + processor → (lora) → AnswerLogProbs: segments → batch → log p of every answer token

A ``Segment`` is one prompt with one answer. Segments that show the same frames share their vision features: the encoder runs once per
distinct video of a batch, and gradients of all its segments reach it through that one pass. The word table is applied to answer tokens
only, in chunks that are recomputed in the backward pass, so memory holds no (tokens × vocabulary) table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from cac_align.vlm.inputs import VIDEO, collate, pad_id
from cac_align.weights import shipped

CHUNK = 512
IGNORED = -100

Store = Mapping[Any, tuple[Tensor, Tensor]]
"""Video key → its patches (t·h·w, channels) and its grid (1, 3)."""


@dataclass(frozen=True)
class ModelRecipe:
    """The model a stage starts from. path: "miniature" (shipped), a folder, or a hub id.

    dtype: of the stored weights; float32 for full training (at lr 1e-6 a bfloat16 weight would swallow every update), bfloat16 for a
    frozen base under LoRA. mixed_precision: "bf16" computes in bfloat16. gradient_checkpointing: recompute layers in the backward pass.
    max_pixels: limit over all frames of one video (None: the checkpoint's own). attention: transformers' attn_implementation.
    """

    path: str = "miniature"
    revision: str | None = None
    dtype: str = "float32"
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    max_pixels: int | None = None
    attention: str = "sdpa"

    def __post_init__(self) -> None:
        if self.mixed_precision not in ("no", "bf16"):
            raise ValueError(f"model.mixed_precision must be 'no' or 'bf16', received {self.mixed_precision!r}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"model.dtype must be float32 or bfloat16, received {self.dtype!r}")

    @property
    def source(self) -> str:
        if self.path == "miniature":
            return str(shipped("cac"))
        return str(Path(self.path).resolve()) if Path(self.path).is_dir() else self.path


def load(recipe: ModelRecipe) -> tuple[Any, Any]:
    """(model in train mode, processor). Raises ``ValueError`` when there is no such Qwen3-VL or weights are missing."""
    from transformers import AutoConfig, AutoProcessor, Qwen3VLForConditionalGeneration
    from transformers.utils import logging as loud

    loud.disable_progress_bar()  # a stage shows its own
    try:
        kind = AutoConfig.from_pretrained(recipe.source, revision=recipe.revision).model_type
        if kind != "qwen3_vl":
            raise ValueError(f"its model_type is {kind!r}, expected 'qwen3_vl'")
        processor = AutoProcessor.from_pretrained(recipe.source, revision=recipe.revision)
        model, found = Qwen3VLForConditionalGeneration.from_pretrained(
            recipe.source,
            revision=recipe.revision,
            dtype=getattr(torch, recipe.dtype),
            attn_implementation=recipe.attention,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        hint = (
            ""
            if Path(recipe.source).is_dir()
            else "; if an earlier stage makes it, run that first or pass model.path=ITS_OUT/final"
        )
        raise ValueError(
            f"model.path: {recipe.path} could not be loaded as a folder or hub id of a Qwen3-VL: {error}{hint}"
        ) from error
    if absent := sorted([*found["missing_keys"], *map(str, found["mismatched_keys"])]):
        raise ValueError(f"model.path: {recipe.path} lacks {len(absent)} weights, e.g. {absent[0]}; the checkpoint is broken")
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train(), processor


def with_lora(model: Any, rank: int, alpha: int, seed: int) -> Any:
    """Adapters of rank ``rank`` on every linear layer of vision encoder, merger and language model; all else is frozen."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", bias="none")
    adapted = get_peft_model(model, config)
    model.enable_input_require_grads()  # checkpointed layers need an input that asks for gradients
    return adapted


def core(model: Any) -> Any:
    """The Qwen3-VL itself, also inside a PEFT wrapper (its adapters live in the layers, so they still act)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


# ---- segments -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Segment:
    """A prompt and the answer whose tokens count. ids: prompt (1, L). answer: token ids, end token included where it was written.
    videos: keys of the prompt's videos in a store, in order."""

    ids: Int64[Tensor, "1 L"]
    answer: tuple[int, ...]
    videos: tuple[Any, ...] = ()


def keep_videos(row: Mapping[str, Tensor], keys: Sequence[Any], store: dict[Any, tuple[Tensor, Tensor]]) -> None:
    """Put the videos of an encoded prompt (``vlm.inputs.encode_one``) under their keys; those already there are left alone."""
    grids = row.get("video_grid_thw")
    counts = [] if grids is None else grids.prod(1).tolist()
    if len(counts) != len(keys):
        raise ValueError(f"the prompt shows {len(counts)} videos, received {len(keys)} keys")
    start = 0
    for key, count, grid in zip(keys, counts, [] if grids is None else grids, strict=True):
        if key not in store:
            store[key] = (row["pixel_values_videos"][start : start + count], grid[None])
        start += count


def make_batch(processor: Any, segments: Sequence[Segment], store: Store) -> dict[str, Tensor]:
    """Left-padded ids with labels (−100 but on answers), distinct videos' patches once, and ``shown``: which of them each
    placeholder run shows, row by row. Raises ``ValueError`` when placeholders and patches do not agree."""
    rows, labels = [], []
    keys = list(dict.fromkeys(key for segment in segments for key in segment.videos))
    for segment in segments:
        tail = torch.tensor([segment.answer], dtype=torch.long)
        ids = torch.cat([segment.ids, tail], dim=1)
        types = torch.nn.functional.pad((segment.ids == processor.video_token_id) * VIDEO, (0, tail.shape[1]))
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types})
        labels.append(torch.cat([torch.full_like(segment.ids, IGNORED), tail], dim=1))
        pads = int((ids == processor.video_token_id).sum())
        merge = processor.video_processor.merge_size**2
        patches = sum(int(store[key][1].prod()) for key in segment.videos)
        if pads * merge != patches:
            raise ValueError(f"a segment has {pads} video placeholders for {patches} patches; its answer holds vision tokens")
    batch = collate(rows, pad_id=pad_id(processor))
    length = batch["input_ids"].shape[1]
    batch["labels"] = torch.cat([torch.nn.functional.pad(row, (length - row.shape[1], 0), value=IGNORED) for row in labels])
    if keys:
        batch["pixel_values_videos"] = torch.cat([store[key][0] for key in keys])
        batch["video_grid_thw"] = torch.cat([store[key][1] for key in keys])
        batch["shown"] = torch.tensor([keys.index(key) for segment in segments for key in segment.videos])
    return batch


def on(device: torch.device, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def vision(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """The encoder's features per placeholder run, computed once per distinct video: keyword arguments for ``model.model``."""
    if "pixel_values_videos" not in batch:
        return {}
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    grids, shown = batch["video_grid_thw"], batch["shown"].tolist()
    once = core(model).model.get_video_features(batch["pixel_values_videos"], grids, return_dict=True)
    spread = BaseModelOutputWithDeepstackFeatures(
        pooler_output=tuple(once.pooler_output[index] for index in shown),
        deepstack_features=[tuple(level[index] for index in shown) for level in once.deepstack_features],
    )
    return {"mm_encoder_outputs": {"video": spread}, "video_grid_thw": grids[batch["shown"]]}


def position_ids(
    model: Any, batch: Mapping[str, Tensor], grids: Tensor | None
) -> tuple[Int64[Tensor, "3 B L"], Int64[Tensor, " B"]]:
    """M-RoPE positions of the batch, and the position of the first token behind each row."""
    positions, deltas = core(model).model.get_rope_index(
        batch["input_ids"],
        mm_token_type_ids=batch["mm_token_type_ids"],
        video_grid_thw=grids,
        attention_mask=batch["attention_mask"],
    )
    return positions, batch["attention_mask"].sum(1) + deltas.squeeze(1)


class AnswerLogProbs(nn.Module):
    """log p of answer tokens: the one forward pass of all three stages, and the module that DDP, FSDP or DeepSpeed wraps.

    temperature: of the distribution the answers are scored under (the one that they were sampled from).
    """

    def __init__(self, model: Any, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "B L1"]:
        """Shape (B, L − 1), aligned with ``labels[:, 1:]``; 0 where the label is −100. float32."""
        net = core(self.model)
        seen = vision(self.model, batch)
        positions, _ = position_ids(self.model, batch, seen.get("video_grid_thw"))
        names = ("input_ids", "attention_mask", "mm_token_type_ids")
        hidden = net.model(
            **{name: batch[name] for name in names}, **seen, position_ids=positions, use_cache=False
        ).last_hidden_state
        wanted = batch["labels"][:, 1:]
        chosen = wanted != IGNORED
        picked, targets = hidden[:, :-1][chosen], wanted[chosen]
        parts = [
            torch.utils.checkpoint.checkpoint(
                _log_p, net.lm_head, picked[at : at + CHUNK], targets[at : at + CHUNK], self.temperature, use_reentrant=False
            )
            for at in range(0, len(targets), CHUNK)
        ]
        log_p = torch.zeros(wanted.shape, dtype=torch.float32, device=hidden.device)
        return log_p.masked_scatter(chosen, torch.cat(parts)) if parts else log_p


def answer_mask(batch: Mapping[str, Tensor]) -> Bool[Tensor, "B L1"]:
    return batch["labels"][:, 1:] != IGNORED


def _log_p(
    head: nn.Module, hidden: Float[Tensor, "N H"], targets: Int64[Tensor, " N"], temperature: float
) -> Float[Tensor, " N"]:
    logits = head(hidden).float() / temperature
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(1)
