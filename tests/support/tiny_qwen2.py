"""Tiny random Qwen2-VL and Qwen2.5-VL with their real processors, and a chat server's answers from one of them."""

from __future__ import annotations

import base64
import copy
import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from tests.support.chat_server import Answer, completion
from tests.support.tiny_qwen import CHAT_TEMPLATE, small_tokenizer

HIDDEN = 64


def tokenizer_with(*words: str) -> PreTrainedTokenizerFast:
    """The small tokenizer, in which each of these words is one token."""
    tokenizer = copy.deepcopy(small_tokenizer())
    tokenizer.add_tokens(list(words))
    return tokenizer


def processor(tokenizer: PreTrainedTokenizerFast, kind: type = Qwen2VLProcessor) -> Any:
    """The real processor (Qwen2VLProcessor or Qwen2_5_VLProcessor); small frames stay small."""
    size = {"shortest_edge": 28 * 28, "longest_edge": 16_777_216}
    images = Qwen2VLImageProcessor(patch_size=14, temporal_patch_size=2, merge_size=2, size=size)
    videos = Qwen2VLVideoProcessor(patch_size=14, temporal_patch_size=2, merge_size=2, size=size)
    return kind(images, tokenizer, videos, chat_template=CHAT_TEMPLATE)


def _text(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": -(-(len(tokenizer) + 5) // 32) * 32,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "max_window_layers": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
        "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    }


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    ids = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }


def qwen2_vl(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Any:
    """A random Qwen2-VL, float32, eval mode."""
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(text_config=_text(tokenizer), vision_config=vision, **_ids(tokenizer))
    return _random(Qwen2VLForConditionalGeneration, config, tokenizer, seed)


def qwen25_vl(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Any:
    """A random Qwen2.5-VL, float32, eval mode."""
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": HIDDEN,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(text_config=_text(tokenizer), vision_config=vision, **_ids(tokenizer))
    return _random(Qwen2_5_VLForConditionalGeneration, config, tokenizer, seed)


def _random(kind: type, config: Any, tokenizer: PreTrainedTokenizerFast, seed: int) -> Any:
    torch.manual_seed(seed)
    net = kind(config).eval()
    net.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    net.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return net


def answering(net: Any, tokenizer: PreTrainedTokenizerFast) -> Callable[[dict[str, Any], int], Answer]:
    """A chat server's answers by a Qwen2.5-VL: greedy, with the log-probabilities of the 20 likeliest tokens."""
    reader = processor(tokenizer, Qwen2_5_VLProcessor)

    def respond(body: dict[str, Any], number: int) -> Answer:
        images: list[Image.Image] = []
        messages = [{"role": one["role"], "content": _content(one["content"], images)} for one in body["messages"]]
        text = reader.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = reader(text=[text], images=images or None, return_tensors="pt")
        with torch.no_grad():
            made = net.generate(
                **inputs,
                max_new_tokens=min(body["max_tokens"], 16),
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        tokens = made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        rows = [_row(tokenizer, token, logits[0]) for token, logits in zip(tokens, made.logits, strict=True)]
        if tokens[-1] == net.generation_config.eos_token_id:
            tokens, rows, finish = tokens[:-1], rows[:-1], "stop"
        else:
            finish = "length"
        logprobs = {"content": rows} if body.get("logprobs") else None
        return Answer(completion(tokenizer.decode(tokens), logprobs, finish))

    return respond


def _content(content: Any, images: list[Image.Image]) -> Any:
    if isinstance(content, str):
        return content
    parts = []
    for part in content:
        if part["type"] == "image_url":
            images.append(Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2]))))
            parts.append({"type": "image"})
        else:
            parts.append(part)
    return parts


def _row(tokenizer: PreTrainedTokenizerFast, token: int, logits: torch.Tensor) -> dict[str, Any]:
    log_p = logits.float().log_softmax(-1)
    best = log_p.topk(20)
    pairs: Sequence[tuple[int, float]] = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    shown = [{"token": tokenizer.decode([each]), "logprob": p, "bytes": None} for each, p in pairs]
    return {"token": tokenizer.decode([token]), "logprob": float(log_p[token]), "bytes": None, "top_logprobs": shown}
