"""The small Qwen3-VL that judges clips of the miniature world: real classes, small numbers, one
folder that loads everywhere.

texts → byte-pair merges → tokenizer + ChatML template → Qwen3VLProcessor
JudgeSize → Qwen3VLConfig → Qwen3VLForConditionalGeneration
processor, model → folder for AutoProcessor

The tokenizer is a byte-level BPE with Qwen's special tokens. Like Qwen's own table it has no token
``abnormal``: inside quotes the word is ``ab`` + ``normal``, and that second part is the very token
of ``normal`` (see ``cac_align.cac.readout`` for the trap it sets). Its pre-tokenizer keeps a JSON
key, a "Frame n" mark and a time stamp in one piece each, so that answers stay short. The merges are
counted here, in thirty lines, because they must come out the same on every machine.

Source: Qwen3-VL as in transformers (vision patches, deepstack, interleaved M-RoPE, time stamps as
text); BPE after Sennrich et al. 2016.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from cac_align.vlm.protocol import CONTROL_TOKENS

PIECES = "|".join(
    (
        r"<\p{N}+\.\p{N} seconds>",  # the time stamp that Qwen3VLProcessor writes before each pair of frames
        r' ?[{]?"?Frame \p{N}{1,3}(?:"?:(?: \[+)?)?',  # "Frame 12", "Frame 12:", and a box's key "Frame 12": [
        r" ?Step \p{N}:",
        r' ?[\[{]*"[\p{L} ]+":',  # a JSON key; the value after it starts a piece of its own, as in Qwen's table
        r" from \p{N}+\.\p{N}+ s at \p{N}+ fps",  # the instruction's clock
        r" ?[A-Z]\p{L}*(?: \p{L}+)+(?=[.,?:])",  # a short sentence's beginning, as the instructions have them
        r", then(?: \p{L}+)+",
        r" \([\p{L}, ]+\)",
        r" [a-d][1-4](?= )",  # a place in the frame: row and column
        r' ?\p{L}+\.(?=[ "])',  # "fine."
        r"[\p{N}]{1,4}",
        r" ?\p{L}+",
        r"[^\s\p{L}\p{N}]+ (?=\p{N})",  # ", " between two numbers
        r" ?[^\s\p{L}\p{N}]+",
        r"\s+",
    )
)
"""The pre-tokenizer: what a merge may never cross. A quote that opens a value is always cut from
the word behind it.
"""

_FIRST_MERGES = (("n", "o"), ("no", "r"), ("nor", "m"), ("norm", "a"), ("norma", "l"), ("a", "b"))
_NEVER_MERGED = frozenset({"abnormal"})

CHAT_TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- else -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""
"""ChatML with Qwen3-VL's placeholders for images and videos."""


FRAME_PX = 64
"""Height and width of the miniature world's clips."""


@dataclass(frozen=True)
class JudgeSize:
    """The sizes that make the judge small. ``patch_px`` × ``merge`` pixels squared become one
    visual token.
    """

    # The language model.
    text_hidden: int = 96
    text_layers: int = 5
    text_heads: int = 4
    text_kv_heads: int = 4
    text_intermediate: int = 256
    # The image encoder.
    vision_hidden: int = 96
    vision_depth: int = 3
    vision_heads: int = 4
    vision_intermediate: int = 256
    # Encoder layers whose features also enter the first language layers.
    deepstack: tuple[int, ...] = (0, 1)
    # Side of a patch in px, and how many patches per side are merged into one token.
    patch_px: int = 8
    merge: int = 2
    # Bounds of height × width × frames, to which clips are resized with their aspect ratio kept.
    min_pixels: int = 2 * 32 * 32
    max_pixels: int = 49 * 64 * 64
    # Largest number of pixels of a frame that is passed as an image.
    max_image_pixels: int = 2 * 64 * 64
    # Largest number of the tokenizer's byte-pair merges.
    num_merges: int = 1000


def train_merges(texts: Iterable[str], num_merges: int) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, ties to the alphabetically smaller pair; starts
    with those of "normal" and "ab".

    Stops early when no pair occurs twice. Deterministic: depends on the multiset of texts only.
    """
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"), _byte_level()])
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(piece for piece, _ in split.pre_tokenize_str(text))
    words = [(list(piece), count) for piece, count in sorted(counts.items())]
    merges: list[tuple[str, str]] = []
    for pair in _FIRST_MERGES:
        merges.append(pair)
        _merge(words, pair)
    while len(merges) < num_merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, count in words:
            for pair in itertools.pairwise(symbols):
                if pair[0] + pair[1] not in _NEVER_MERGED:
                    pairs[pair] += count
        if not pairs:
            break
        best, count = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        if count < 2:
            break
        merges.append(best)
        _merge(words, best)
    return merges


def _merge(words: list[tuple[list[str], int]], pair: tuple[str, str]) -> None:
    for symbols, _ in words:
        position = 0
        while position < len(symbols) - 1:
            if (symbols[position], symbols[position + 1]) == pair:
                symbols[position : position + 2] = [pair[0] + pair[1]]
            position += 1


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def build_judge_tokenizer(texts: Iterable[str], num_merges: int = JudgeSize.num_merges) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer for these texts: 256 bytes, at most ``num_merges`` merges, Qwen's
    special tokens last.
    """
    merges = train_merges(texts, num_merges)
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet()) + [left + right for left, right in merges]
    vocabulary: dict[str, int] = {}
    for symbol in symbols:
        vocabulary.setdefault(symbol, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"), _byte_level()])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in CONTROL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        additional_special_tokens=list(CONTROL_TOKENS),
        model_max_length=32768,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, size: JudgeSize = JudgeSize()) -> Qwen3VLProcessor:
    """Qwen3-VL's own processor with this tokenizer and the judge's patch size; frames are taken as
    given, never resampled.
    """
    pixels = {"shortest_edge": size.min_pixels, "longest_edge": size.max_pixels}
    per_frame = {"shortest_edge": size.min_pixels // 2, "longest_edge": size.max_image_pixels}
    options: dict[str, Any] = {"patch_size": size.patch_px, "merge_size": size.merge, "temporal_patch_size": 2}
    options |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=per_frame, **options),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(
            size=pixels, do_sample_frames=False, cap_pixels_per_frame=False, **options
        ),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, size: JudgeSize = JudgeSize(), *, seed: int = 0
) -> Qwen3VLForConditionalGeneration:
    """A Qwen3-VL of this size with fresh weights (fp32, drawn from ``seed``), in evaluation mode."""
    head_dim = size.text_hidden // size.text_heads
    third = head_dim // 6
    ids = tokenizer.get_vocab()
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 32) * 32,
            "hidden_size": size.text_hidden,
            "intermediate_size": size.text_intermediate,
            "num_hidden_layers": size.text_layers,
            "num_attention_heads": size.text_heads,
            "num_key_value_heads": size.text_kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": 4096,
            "initializer_range": 0.04,
            # A third of the frequencies each for time, height and width (full size: 24, 20, 20 of 64).
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [head_dim // 2 - 2 * third, third, third],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "depth": size.vision_depth,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_intermediate,
            "num_heads": size.vision_heads,
            "patch_size": size.patch_px,
            "spatial_merge_size": size.merge,
            "temporal_patch_size": 2,
            "out_hidden_size": size.text_hidden,
            "num_position_embeddings": (FRAME_PX // size.patch_px) ** 2,
            "deepstack_visual_indexes": list(size.deepstack),
            "initializer_range": 0.04,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
    model.generation_config = generation_config(tokenizer)
    return model.eval()


def generation_config(tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    """Greedy, ends at <|im_end|>, and never writes a vision placeholder or a turn mark: a sampled
    <|video_pad|> would make the next forward pass look for pixels that do not exist.
    """
    return GenerationConfig(
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[
            tokenizer.convert_tokens_to_ids(t) for t in CONTROL_TOKENS if t not in ("<|im_end|>", "<|endoftext|>")
        ],
    )


def write_folder(
    folder: str | Path,
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write model (safetensors, in ``dtype``), processor and generation settings as one folder for
    ``from_pretrained``.

    The model in memory keeps its own precision. Raises ``ValueError`` when a weight does not fit
    into ``dtype``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # The word table serves at both ends; stored once, from_pretrained ties it again.
    weights = {
        name: tensor.detach().to(dtype) for name, tensor in model.state_dict().items() if name != "lm_head.weight"
    }
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"weight {name} is not finite in {dtype}; the training diverged, or write the folder in float32"
            )
    config = model.config
    kept = config.dtype
    try:
        config.dtype = dtype
        model.save_pretrained(folder, state_dict=weights, max_shard_size="100MB")
    finally:
        config.dtype = kept
    processor.save_pretrained(folder)


def num_parameters(model: Qwen3VLForConditionalGeneration) -> int:
    """How many numbers the model has, the tied word table counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
