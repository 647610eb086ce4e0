"""A tiny Qwen3-VL with the real architecture and the real processor, built from nothing, for tests and benchmarks.

small_tokenizer / qwen_tokenizer → processor (real Qwen3VLProcessor, our own ChatML template) → model (random, a few 100k parameters)

``qwen_tokenizer`` holds Qwen's real byte-pair table (151,643 ordinary tokens; the dashscope wheel carries it as qwen.tiktoken).
``teach_chain`` turns the random model into one that says a chosen sequence of tokens, with chosen log-odds, whatever it is shown.
"""

from __future__ import annotations

import base64
import functools
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from cac_align.core.video import Frames
from cac_align.vlm.protocol import Message, Readout

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

PRE_TOKENISER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SMALL_CORPUS = (
    '{"COT": "the square moves to the left and nothing breaks", "status": "normal", "anomalies": []}',
    '{"COT": "the disc becomes a cross", "status": "abnormal", "anomalies": [{"Attributed Time Region": "Frame 3-7", '
    '"Attributed Label": "Object Distortion", "Reason for Anomaly": "a disc has no corners", "Problem Region": "disc", '
    '"BBOX": {"Frame 3": [100, 200, 340, 560]}}]}',
    "<0.1 seconds><2.6 seconds> system user assistant Motion Anomalies Human Distortion Physical Violations Character",
)


def _wrap(core: Tokenizer) -> PreTrainedTokenizerFast:
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENISER), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


@functools.cache
def small_tokenizer(size: int = 420) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most ``size`` ordinary tokens, trained on a few lines of answers."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENISER), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(SMALL_CORPUS * 3, trainer)
    return _wrap(core)


@functools.cache
def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Qwen's real byte-pair table with the special tokens at their real ids (151643 …). About 3 s to build, then cached on disk."""
    saved = Path(tempfile.gettempdir()) / "cac-align-tests" / "qwen-table-1.json"
    if saved.exists():
        return _wrap(Tokenizer.from_file(str(saved)))
    import dashscope

    lines = (Path(dashscope.__file__).parent / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines if line.strip()}
    alphabet = _byte_alphabet()

    def shown(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    merges = []
    for token, rank in ranks.items():
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = sorted(
            (ranks[left], ranks[right], left, right) for left, right in halves if left in ranks and right in ranks
        )
        merges += [(rank, shown(left), shown(right)) for _, _, left, right in known]
    merges.sort(key=lambda merge: merge[0])
    core = Tokenizer(models.BPE({shown(token): rank for token, rank in ranks.items()}, [merge[1:] for merge in merges]))
    saved.parent.mkdir(exist_ok=True)
    partial = saved.with_suffix(f".{id(core)}.partial")
    core.save(str(partial))
    partial.replace(saved)
    return _wrap(core)


def _byte_alphabet() -> list[str]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def processor(tokenizer: PreTrainedTokenizerFast | None = None) -> Qwen3VLProcessor:
    """A real Qwen3VLProcessor. Pixel limits as in Qwen's checkpoints (total over a video), so small frames stay small."""
    tokenizer = small_tokenizer() if tokenizer is None else tokenizer
    size = {"shortest_edge": 4096, "longest_edge": 25_165_824}
    images = Qwen2VLImageProcessor(
        patch_size=16, temporal_patch_size=2, merge_size=2, size={**size, "longest_edge": 16_777_216}
    )
    videos = Qwen3VLVideoProcessor(patch_size=16, temporal_patch_size=2, merge_size=2, size=size)
    return Qwen3VLProcessor(images, tokenizer, videos, chat_template=CHAT_TEMPLATE)


def model(
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    seed: int = 0,
) -> Qwen3VLForConditionalGeneration:
    """A random Qwen3-VL on the CPU in float32, eval mode: deepstack, M-RoPE and all, about 0.3 M parameters without the table."""
    tokenizer = small_tokenizer() if tokenizer is None else tokenizer
    ids = tokenizer.convert_tokens_to_ids
    head = hidden // heads
    section = [head // 2 - 2 * (head // 6), head // 6, head // 6]
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": -(-(len(tokenizer) + 5) // 32)
            * 32,  # a little larger than the tokenizer, as in Qwen's checkpoints
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(1, heads // 2),
            "head_dim": head,
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": section,
                "mrope_interleaved": True,
            },
            "pad_token_id": ids("<|endoftext|>"),
        },
        vision_config={
            "depth": 2,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_heads": heads,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": hidden,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    net = Qwen3VLForConditionalGeneration(config).eval()
    net.generation_config.eos_token_id = ids("<|im_end|>")
    net.generation_config.pad_token_id = ids("<|endoftext|>")
    return net


def teach_chain(
    net: Any, chain: Sequence[int], *, log_odds: float = 6.0, rivals: Sequence[tuple[int, int, float]] = ()
) -> None:
    """Set weights so that after token ``chain[k]`` the model says ``chain[k+1]``, in any context.

    chain: distinct token ids. log_odds: logit of the successor above the noise of the random head.
    rivals: (after, token, logit) — further tokens with a logit of their own after ``after``.
    The random layers stay as they are, small beside the taught embeddings, so context still moves every probability a little.
    """
    if len(set(chain)) != len(chain):
        raise ValueError(f"a chain needs distinct tokens, received {list(chain)}")
    heads = list(dict.fromkeys([*chain[:-1], *(after for after, _, _ in rivals)]))
    hidden = net.config.text_config.hidden_size
    if len(heads) > hidden:
        raise ValueError(f"{len(heads)} tokens to teach, but hidden size is {hidden}")
    with torch.no_grad():
        embed, out = net.get_input_embeddings().weight, net.lm_head.weight
        axis = {token: number for number, token in enumerate(heads)}
        for token in heads:
            embed[token] = 0
            embed[token, axis[token]] = 4.0
        peak = hidden**0.5  # RMSNorm of a one-hot
        for before, after in itertools.pairwise(chain):
            out[after, axis[before]] += log_odds / peak
        for before, token, logit in rivals:
            out[token, axis[before]] += logit / peak


def after_status(text: str) -> int | None:
    """Where the value of the last ``"status": "`` starts."""
    key = '"status": "'
    at = text.rfind(key)
    return None if at < 0 else at + len(key)


WORDS = Readout(("normal", "abnormal"), after_status)


def frames(
    count: int = 5, height: int = 64, width: int = 64, seed: int = 0, times: tuple[float, ...] | None = None
) -> Frames:
    """Noise at 4 fps, or at the given times."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    times = tuple(n / 4 for n in range(count)) if times is None else times
    return Frames(pixels, tuple(4 * n for n in range(count)), times, 4.0, 4 * count)


def ask(text: str = "look", seen: Frames | None = None, *rest: Message) -> tuple[Message, ...]:
    """A conversation that opens with one question."""
    return (Message("user", text, seen), *rest)


def conversations() -> list[tuple[Message, ...]]:
    """Five different kinds: short and long video, two videos in one chat, text alone, images."""
    return [
        ask("hello", frames(5)),
        ask("a longer question about it", frames(9, seed=1)),
        ask("hi", frames(3, seed=2), Message("assistant", "so"), Message("user", "and", frames(2, 64, 96, seed=3))),
        ask("no picture"),
        (Message("user", "x", frames(2, seed=4), as_images=True),),
    ]
