"""The model that is trained: loaded once, and asked for log p of answers it is shown, with each
video encoded once.

folder or hub id → load → Qwen3-VL + processor → (lora) → AnswerLogProbs: segments → batch → log p
of every answer token

A ``Segment`` is one prompt with one answer. Segments that show the same frames share their vision
features: the encoder runs once per distinct video of a batch, and gradients of all its segments
reach it through that one pass. Rollouts of one prompt share the prompt as well, if asked: it goes
through the language model once, and a mask keeps its answers from seeing each other. The word table
is applied to answer tokens only, in chunks that are recomputed in the backward pass, so memory
holds no (tokens × vocabulary) table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cac_align.core.weights import shipped
from cac_align.vlm.inputs import VIDEO, collate, pad_id, set_frame_pixel_cap

CHUNK = 512
IGNORED_LABEL = -100

Store = Mapping[Any, tuple[Tensor, Tensor]]
"""Video key → its patches (t·h·w, channels) and its grid (1, 3)."""


@dataclass(frozen=True)
class ModelRecipe:
    """The recipe section ``model``: what a stage starts from."""

    # "miniature" (the shipped judge), a folder, or a hub id.
    path: str = "miniature"
    # Revision of a hub id; None takes the newest one.
    revision: str | None = None
    # Data type of the stored weights: "float32" for full training (at lr 1e-6 a bfloat16 weight would lose every
    # update to rounding), "bfloat16" for a frozen base under LoRA.
    dtype: str = "float32"
    # "bf16" computes in bfloat16; "no" in the weights' own type.
    mixed_precision: str = "no"
    # Recompute layers in the backward pass: less memory, more time.
    gradient_checkpointing: bool = False
    # Limit on the pixels of all frames of one video together; None takes the checkpoint's own.
    max_pixels: int | None = None
    # transformers' attn_implementation; prompts are shared between rollouts only under "sdpa".
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
    """(model in train mode, processor). Raises ``ValueError`` when there is no such Qwen3-VL or
    weights are missing.
    """
    from transformers import AutoConfig, AutoProcessor, Qwen3VLForConditionalGeneration
    from transformers.utils import logging as loud

    loud.disable_progress_bar()  # a stage shows its own
    try:
        kind = AutoConfig.from_pretrained(recipe.source, revision=recipe.revision).model_type
        if kind != "qwen3_vl":
            raise ValueError(f"its model_type is {kind!r}, expected 'qwen3_vl'")
        processor = AutoProcessor.from_pretrained(recipe.source, revision=recipe.revision)
        set_frame_pixel_cap(processor)
        loader: Any = Qwen3VLForConditionalGeneration.from_pretrained  # its stub knows no output_loading_info
        model, found = loader(
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
        raise ValueError(
            f"model.path: {recipe.path} lacks {len(absent)} weights, e.g. {absent[0]}; the checkpoint is broken"
        )
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train(), processor


def with_lora(model: Any, rank: int, alpha: int, seed: int) -> Any:
    """Adapters of rank ``rank`` on every linear layer of vision encoder, merger and language model;
    all else is frozen.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", bias="none")
    adapted = get_peft_model(model, config)
    model.enable_input_require_grads()  # checkpointed layers need an input that asks for gradients
    return adapted


def base_model(model: Any) -> Any:
    """The Qwen3-VL itself, also inside a PEFT wrapper (its adapters live in the layers, so they
    still act).
    """
    return model.get_base_model() if hasattr(model, "get_base_model") else model


# ---- segments -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Segment:
    """A prompt and the answer whose tokens count. ids: prompt (1, L). answer: token ids, end token
    included where it was written. videos: keys of the prompt's videos in a store, in order.
    """

    ids: Int64[Tensor, "1 L"]
    answer: tuple[int, ...]
    videos: tuple[Any, ...] = ()


def store_videos(row: Mapping[str, Tensor], keys: Sequence[Any], store: dict[Any, tuple[Tensor, Tensor]]) -> None:
    """Put the videos of an encoded prompt (``vlm.inputs.encode_one``) under their keys; those
    already there are left alone.
    """
    grids = row.get("video_grid_thw")
    counts = [] if grids is None else grids.prod(1).tolist()
    if len(counts) != len(keys):
        raise ValueError(f"the prompt shows {len(counts)} videos, received {len(keys)} keys")
    start = 0
    for key, count, grid in zip(keys, counts, [] if grids is None else grids, strict=True):
        if key not in store:
            store[key] = (row["pixel_values_videos"][start : start + count], grid[None])
        start += count


def make_batch(processor: Any, segments: Sequence[Segment], store: Store, *, shared: bool = False) -> dict[str, Tensor]:
    """Left-padded rows: each prompt with its answer, or (``shared``) each distinct prompt once, all
    of its answers one behind the other.

    input_ids, attention_mask, mm_token_type_ids: (B, L). labels: (S, T) the answers' tokens, a line
    per segment, −100 behind them. sources: (S, T) which of the B·L hidden states predicts each.
    Distinct videos' patches once, and ``shown``: which of them each placeholder run shows, row by
    row. Where a row has several answers: branch (B, L), which answer a token belongs to (0: the
    prompt), and ahead (B, L), how many tokens the answers before it have. Raises ``ValueError``
    when placeholders and patches do not agree.
    """
    trees: dict[Any, list[int]] = {}
    for at, segment in enumerate(segments):
        trees.setdefault((tuple(segment.ids[0].tolist()), segment.videos) if shared else at, []).append(at)
    rows = [_row(processor, [segments[at] for at in members], store) for members in trees.values()]
    batch = collate(rows, pad_id=pad_id(processor))
    length = batch["input_ids"].shape[1]
    if any(len(members) > 1 for members in trees.values()):
        for name in ("branch", "ahead"):
            batch[name] = torch.cat(
                [torch.nn.functional.pad(row[name], (length - row[name].shape[1], 0)) for row in rows]
            )
    longest = max(len(segment.answer) for segment in segments)
    batch["labels"] = torch.full((len(segments), longest), IGNORED_LABEL)
    batch["sources"] = torch.zeros((len(segments), longest), dtype=torch.long)
    for number, (row, members) in enumerate(zip(rows, trees.values(), strict=True)):
        last = (
            (number + 1) * length - row["input_ids"].shape[1] + segments[members[0]].ids.shape[1] - 1
        )  # of the prompt
        at = last + 1
        for member in members:
            answer = segments[member].answer
            batch["labels"][member, : len(answer)] = torch.tensor(answer, dtype=torch.long)
            batch["sources"][member, : len(answer)] = torch.tensor(
                [last, *range(at, at + len(answer) - 1)][: len(answer)]
            )
            at += len(answer)
    shown = [key for members in trees.values() for key in segments[members[0]].videos]
    keys = list(dict.fromkeys(shown))
    if keys:
        batch["pixel_values_videos"] = torch.cat([store[key][0] for key in keys])
        batch["video_grid_thw"] = torch.cat([store[key][1] for key in keys])
        batch["shown"] = torch.tensor([keys.index(key) for key in shown])
    return batch


def _row(processor: Any, segments: Sequence[Segment], store: Store) -> dict[str, Tensor]:
    """The prompt of these segments, which is one and the same, and their answers behind it: every
    entry (1, L).
    """
    prompt = segments[0]
    counts = torch.tensor([len(segment.answer) for segment in segments])
    ids = torch.cat(
        [prompt.ids, torch.tensor([[token for segment in segments for token in segment.answer]], dtype=torch.long)], 1
    )
    merge = processor.video_processor.merge_size**2
    patches = sum(int(store[key][1].prod()) for key in prompt.videos)
    pads = int((ids == processor.video_token_id).sum())
    if pads * merge != patches:
        raise ValueError(
            f"a segment has {pads} video placeholders for {patches} patches; its answer holds vision tokens"
        )
    before = (prompt.ids.shape[1], 0)
    branch = torch.arange(1, len(segments) + 1).repeat_interleave(counts)
    ahead = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == processor.video_token_id) * VIDEO,
        **{
            name: torch.nn.functional.pad(value, before)[None] for name, value in (("branch", branch), ("ahead", ahead))
        },
    }


def to_device(device: torch.device, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def video_features(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """The encoder's features per placeholder run, computed once per distinct video: keyword
    arguments for ``model.model``.
    """
    if "pixel_values_videos" not in batch:
        return {}
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    grids, shown = batch["video_grid_thw"], batch["shown"].tolist()
    once = base_model(model).model.get_video_features(batch["pixel_values_videos"], grids, return_dict=True)
    output: Any = BaseModelOutputWithDeepstackFeatures  # its stub knows no tuples
    spread = output(
        pooler_output=tuple(once.pooler_output[index] for index in shown),
        deepstack_features=[tuple(level[index] for index in shown) for level in once.deepstack_features],
    )
    return {"mm_encoder_outputs": {"video": spread}, "video_grid_thw": grids[batch["shown"]]}


def position_ids(
    model: Any, batch: Mapping[str, Tensor], grids: Tensor | None
) -> tuple[Int64[Tensor, "3 B L"], Int64[Tensor, " B"]]:
    """M-RoPE positions of the batch, and the position of the first token behind each row."""
    positions, deltas = base_model(model).model.get_rope_index(
        batch["input_ids"],
        mm_token_type_ids=batch["mm_token_type_ids"],
        video_grid_thw=grids,
        attention_mask=batch["attention_mask"],
    )
    return positions, batch["attention_mask"].sum(1) + deltas.squeeze(1)


class AnswerLogProbs(nn.Module):
    """log p of answer tokens: the one forward pass of all three stages, and the module that DDP,
    FSDP or DeepSpeed wraps.

    temperature: of the distribution the answers are scored under (the one that they were sampled
    from).
    """

    def __init__(self, model: Any, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, *batches: dict[str, Tensor]) -> Float[Tensor, "S T"]:
        """A line per segment of all batches, aligned with ``answer_mask``; 0 where it is False.
        float32. Each batch goes through the model apart: segments of unlike length need not be
        padded to one.
        """
        return _lines([self._one(batch) for batch in batches])

    def _one(self, batch: dict[str, Tensor]) -> Float[Tensor, "S T"]:
        net = base_model(self.model)
        seen = video_features(self.model, batch)
        positions, _ = position_ids(self.model, batch, seen.get("video_grid_thw"))
        attended = batch["attention_mask"]
        if "branch" in batch:
            positions, attended = positions - batch["ahead"], segment_attention_mask(batch)
        hidden = net.model(
            input_ids=batch["input_ids"],
            attention_mask=attended,
            mm_token_type_ids=batch["mm_token_type_ids"],
            **seen,
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        chosen = batch["labels"] != IGNORED_LABEL
        picked, targets = hidden.flatten(0, 1)[batch["sources"][chosen]], batch["labels"][chosen]
        parts = [
            checkpoint(
                _log_p,
                net.lm_head,
                picked[at : at + CHUNK],
                targets[at : at + CHUNK],
                self.temperature,
                use_reentrant=False,
            )
            for at in range(0, len(targets), CHUNK)
        ]
        log_p = torch.zeros(chosen.shape, dtype=torch.float32, device=hidden.device)
        return log_p.masked_scatter(chosen, torch.cat(parts)) if parts else log_p


def segment_attention_mask(batch: Mapping[str, Tensor]) -> Bool[Tensor, "B 1 L L"]:
    """What each token of a row with several answers attends to: the prompt, its own answer so far,
    and itself. Padding sees itself only, so that no line of the mask is empty.
    """
    branch, valid = batch["branch"], batch["attention_mask"].bool()
    related = (branch[:, :, None] == branch[:, None, :]) | (branch == 0)[:, None, :]
    sees = (related & valid[:, None, :]).tril()
    return (sees | torch.eye(sees.shape[1], dtype=torch.bool, device=sees.device))[:, None]


def answer_mask(*batches: dict[str, Tensor]) -> Bool[Tensor, "S T"]:
    """Where the lines of ``AnswerLogProbs`` hold a token's log p."""
    return _lines([batch["labels"] != IGNORED_LABEL for batch in batches])


def _lines(parts: Sequence[Tensor]) -> Tensor:
    """All lines in one tensor, as wide as the longest, zeros (False) behind the others."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])


def _log_p(
    head: nn.Module, hidden: Float[Tensor, "N H"], targets: Int64[Tensor, " N"], temperature: float
) -> Float[Tensor, " N"]:
    logits = head(hidden).float() / temperature
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(1)
