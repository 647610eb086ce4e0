"""From examples to a number to descend: the prompt as at inference, the answer behind it,
cross-entropy on the answer alone.

examples → collate (left-padded ids, pixels, labels, weights) → answer_loss → loss

The few tokens that need eyes (a frame's place, a frame's verdict, the status) may weigh more than
the boilerplate around them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from cac_align.vlm.inputs import collate as join_rows
from cac_align.vlm.inputs import encode_one, pad_id
from research.training.examples import Example


def collate(
    processor: Qwen3VLProcessor,
    examples: Sequence[Example],
    verdict_weight: float = 1.0,
    miss_weight: float = 1.0,
    turn_two_miss_weight: float = 1.0,
) -> dict[str, torch.Tensor]:
    """What the model needs for these examples: the prompt exactly as at inference, then the answer
    and <|im_end|>; left-padded.

    ``weights`` (B, L) is ``verdict_weight`` on the tokens that decide: the first behind every
    "Frame n:" of the walk, and the status; a anomalous frame's verdict has ``miss_weight`` times
    that in turn 1 and ``turn_two_miss_weight`` times that in turn 2. ``labels`` (B, L) is −100
    except on the answer's tokens and the <|im_end|> that closes it. Raises ``ValueError`` when an
    answer holds one of the tokenizer's special tokens.
    """
    tokenizer = processor.tokenizer
    special = set(tokenizer.all_special_ids)
    rows, labels, weights = [], [], []
    for example in examples:
        answer = tokenizer(example.answer, add_special_tokens=False).input_ids
        if special & set(answer):
            raise ValueError(f"the answer {example.answer[:80]!r} holds a special token; answers are plain text")
        row = encode_one(processor, example.conversation, add_generation_prompt=True)
        tail = torch.tensor([[*answer, tokenizer.eos_token_id]])
        labels.append(torch.cat([torch.full_like(row["input_ids"], -100), tail], dim=1))
        # Turn 1 had better suspect too much than too little, for turn 2 can still say no; and turn 2 is asked about suspicions, nearly all
        # of which are right, where half of its examples are about normal clips.
        missed = miss_weight if '"BBOX"' not in example.answer else turn_two_miss_weight
        decides = [
            1.0 if not flag else verdict_weight if tokenizer.decode([token]) in _CALM else verdict_weight * missed
            for flag, token in zip(_deciding(tokenizer, answer), answer, strict=True)
        ] + [1.0]
        weights.append(torch.tensor([[*[1.0] * row["input_ids"].shape[1], *decides]]))
        row["input_ids"] = torch.cat([row["input_ids"], tail], dim=1)
        row["attention_mask"] = torch.ones_like(row["input_ids"])
        row["mm_token_type_ids"] = torch.nn.functional.pad(row["mm_token_type_ids"], (0, tail.shape[1]))
        rows.append(row)
    batch = join_rows(rows, pad_id=pad_id(processor))
    length = batch["input_ids"].shape[1]
    batch["labels"] = torch.cat(
        [torch.nn.functional.pad(row, (length - row.shape[1], 0), value=-100) for row in labels]
    )
    batch["weights"] = torch.cat(
        [torch.nn.functional.pad(row, (length - row.shape[1], 0), value=1.0) for row in weights]
    )
    return batch


_MARK = re.compile(r" ?Frame \d+:$")
_CALM = frozenset((" fine.", "normal", "ab", *(f" {row}{column}" for row in "abcd" for column in range(1, 5))))
_PLACE = re.compile(r" (?:[a-d][1-4]|away)")


def _deciding(tokenizer: Any, answer: Sequence[int]) -> list[bool]:
    """Which of an answer's tokens need eyes: those right behind a frame's mark (a place, a verdict)
    or its place, and the status.
    """
    pieces = ["", "", *(tokenizer.decode([token]) for token in answer)]
    flags = []
    for at in range(2, len(pieces)):
        before, last = pieces[at - 2 : at]
        place = bool(_MARK.fullmatch(before)) and bool(_PLACE.fullmatch(last))
        flags.append(bool(_MARK.fullmatch(last)) or place or (before == ' "status":' and last == ' "'))
    return flags


def answer_loss(model: Qwen3VLForConditionalGeneration, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
    """Weighted mean cross-entropy over the answers' tokens, and the share of the deciding tokens
    (all, without any) that is right.

    The word table is applied to the positions that carry a label only.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name not in ("labels", "weights")}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state
    wanted = batch["labels"][:, 1:]
    chosen = wanted != -100
    logits = model.lm_head(hidden[:, :-1][chosen])
    target, weights = wanted[chosen], batch["weights"][:, 1:][chosen]
    loss = (torch.nn.functional.cross_entropy(logits.float(), target, reduction="none") * weights).sum() / weights.sum()
    deciding = weights > 1 if bool((weights > 1).any()) else weights > 0
    return loss, (logits.argmax(-1) == target)[deciding].float().mean().item()


def _equal_chunks(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, **_):
    """Vision attention of all equally long chunks in one batched call; exact, and much faster on a
    CPU than one call per chunk.
    """
    lengths = (cu_seq_lens_q[1:] - cu_seq_lens_q[:-1]).tolist()
    if len(set(lengths)) == 1:
        groups = [(0, len(lengths), lengths[0])]
    else:
        groups, start = [], 0
        for length in lengths:
            groups.append((start, 1, length))
            start += length
    outputs = []
    for start, count, length in groups:
        q, k, v = (
            tensor[0, :, start : start + count * length].unflatten(1, (count, length)).transpose(0, 1)
            for tensor in (query, key, value)
        )
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scaling)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None], None


def batch_vision_attention(model: Qwen3VLForConditionalGeneration) -> None:
    """Let this model's image encoder attend to all frames of a batch at once (same numbers, fewer
    calls).
    """
    AttentionInterface.register("flash_equal_chunks", _equal_chunks)
    model.model.visual.config._attn_implementation = "flash_equal_chunks"
