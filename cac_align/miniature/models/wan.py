"""The small Wan: the real diffusers classes at a size that trains on one CPU core and ships inside
the package.

vocabulary → tokenizer
MiniWan → UMT5 encoder, AutoencoderKLWan, WanTransformer3DModel, UniPC
tokenizer, models → WanPipeline → folder

Only the numbers are small, and half as large where size forbids more: the VAE's strides are 4 in
space and 2 in time with the first frame alone (Wan: 8 and 4), the DiT's patches (1, 4, 4) (Wan: (1,
2, 2)), so that a token is 16 × 16 pixels of one latent frame in both. A 33-frame 64 × 64 clip is 8
× 17 × 16 × 16 latents, 272 tokens of 128 numbers: fewer than the DiT is wide, as they must be,
because what it predicts holds the noise of every one of them. Everything reads strides and patches
from the checkpoint; nothing assumes these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
    from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

SPECIAL_PIECES = ("<pad>", "</s>", "<unk>")
"""T5's order: padding is token 0, the end of the prompt token 1, anything unknown token 2."""


@dataclass(frozen=True)
class MiniWan:
    """The sizes of the small Wan; the defaults are the shipped ones."""

    # The VAE: channels of its first level, multipliers of its levels (each but the last halves space and time),
    # residual blocks per level, and channels of a latent.
    vae_dim: int = 16
    vae_mult: tuple[int, ...] = (1, 2)
    vae_blocks: int = 1
    latent_channels: int = 8
    # The UMT5 text encoder.
    text_dim: int = 64
    text_layers: int = 1
    text_heads: int = 4
    # Length to which prompts are padded; cross-attention sees all of it.
    prompt_tokens: int = 16
    # The DiT.
    dim: int = 224
    heads: int = 4
    layers: int = 4
    ffn_dim: int = 672
    freq_dim: int = 64
    # Its patch in latent frames, rows and columns.
    patch: tuple[int, int, int] = (1, 4, 4)
    # The schedule's shift s in σ' = sσ / (1 + (s - 1)σ), for training and sampling.
    flow_shift: float = 5.0


def build_prompt_tokenizer(vocabulary: Sequence[str], prompt_tokens: int) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer with an explicit vocabulary: nothing is learned, so the same words always
    give the same ids.

    vocabulary: whole words, case and all. A word outside it becomes ``<unk>``. Raises
    ``ValueError`` for duplicates or blanks.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = list(vocabulary)
    if len(set(words)) != len(words) or any(not word or word.split() != [word] for word in words):
        raise ValueError(
            "vocabulary must be distinct words without blanks; received a duplicate, an empty word or one with a blank"
        )
    pieces = [(piece, 0.0) for piece in SPECIAL_PIECES]
    pieces += [("▁" + word, -1.0) for word in words]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern=" ", behavior="removed"),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Metaspace(),
        ]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=prompt_tokens,
    )


def build_text_encoder(shape: MiniWan, vocabulary_size: int) -> UMT5EncoderModel:
    """A UMT5 encoder (d_model = ``text_dim``), freshly initialised from torch's current random
    state.
    """
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=vocabulary_size,
        d_model=shape.text_dim,
        d_kv=shape.text_dim // shape.text_heads,
        d_ff=2 * shape.text_dim,
        num_layers=shape.text_layers,
        num_heads=shape.text_heads,
        dropout_rate=0.0,
        tie_word_embeddings=False,  # pyright: ignore[reportCallIssue]
    )
    return UMT5EncoderModel(config)


def build_vae(shape: MiniWan) -> AutoencoderKLWan:
    """A Wan VAE: 2 × 2 pixels folded into channels, then levels that halve space and time; one by
    default: strides 4 and 2.

    With two (8 and 4, as the real one) a network of this size still blurred limbs and letters when
    this one drew them.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    halvings = len(shape.vae_mult) - 1
    return AutoencoderKLWan(
        base_dim=shape.vae_dim,
        z_dim=shape.latent_channels,
        dim_mult=list(shape.vae_mult),
        num_res_blocks=shape.vae_blocks,
        attn_scales=[],
        temperal_downsample=[True] * halvings,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=2 * 2**halvings,
        scale_factor_temporal=2**halvings,
        latents_mean=[0.0] * shape.latent_channels,
        latents_std=[1.0] * shape.latent_channels,
    )


def build_transformer(shape: MiniWan) -> WanTransformer3DModel:
    """A Wan DiT, initialised from torch's current random state. Its last layer starts at zero, so
    that it predicts 0 at first.
    """
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    transformer = WanTransformer3DModel(
        patch_size=shape.patch,
        num_attention_heads=shape.heads,
        attention_head_dim=shape.dim // shape.heads,
        in_channels=shape.latent_channels,
        out_channels=shape.latent_channels,
        text_dim=shape.text_dim,
        freq_dim=shape.freq_dim,
        ffn_dim=shape.ffn_dim,
        num_layers=shape.layers,
    )
    transformer.proj_out.weight.data.zero_()
    transformer.proj_out.bias.data.zero_()
    return transformer


def build_scheduler(shape: MiniWan) -> UniPCMultistepScheduler:
    """Wan's own sampler: UniPC on flow-matching sigmas."""
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shape.flow_shift)


def build_pipeline(shape: MiniWan, vocabulary: Sequence[str], seed: int) -> WanPipeline:
    """An untrained pipeline; every weight follows from ``seed``. torch's global random state is
    left as it was.
    """
    import torch
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_prompt_tokenizer(vocabulary, shape.prompt_tokens)
        return WanPipeline(
            tokenizer=tokenizer,  # pyright: ignore[reportArgumentType]
            text_encoder=build_text_encoder(shape, len(tokenizer)).eval(),
            vae=build_vae(shape).eval(),
            scheduler=build_scheduler(shape),  # pyright: ignore[reportArgumentType]
            transformer=build_transformer(shape).eval(),
        )


def save_pipeline(pipeline: WanPipeline, folder: Path, defaults: dict[str, float | int]) -> None:
    """Write a pipeline folder with ``cac_align.json``: the size, frames, steps and guidance it was
    trained for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part in (pipeline, pipeline.vae, pipeline.transformer):
        part.register_to_config(_name_or_path="")  # where it was trained is nobody's business
    pipeline.save_pretrained(folder, safe_serialization=True)
    (folder / "cac_align.json").write_text(json.dumps(defaults, indent=2) + "\n")
