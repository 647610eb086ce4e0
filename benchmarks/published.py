"""The published full-size configurations, so that cost can be measured or calculated without downloading weights.

qwen3vl_8b → Qwen3VLConfig of Qwen3-VL-8B-Instruct (UnifiedReward-2.0-qwen3vl-8b is fine-tuned from it: the same shape)
wan_1_3b   → arguments of diffusers' WanTransformer3DModel for Wan2.1-T2V-1.3B

PARAMETERS holds the published counts (bytes of the bf16 checkpoint's index over two; for Wan the float32 checkpoint over four);
tests/test_published.py builds both on the meta device and compares.
"""

from __future__ import annotations

from typing import Any

PARAMETERS = {"Qwen3-VL-8B-Instruct": 8_767_123_696, "Wan2.1-T2V-1.3B transformer": 1_418_996_800}


def qwen3vl_8b(tokenizer: Any = None) -> Any:
    """The configuration of Qwen3-VL-8B-Instruct. tokenizer: whose ids stand for vision tokens (default: Qwen's own ids)."""
    from transformers import Qwen3VLConfig

    def index(text: str, published: int) -> int:
        return published if tokenizer is None else tokenizer.convert_tokens_to_ids(text)

    return Qwen3VLConfig(
        text_config={
            "vocab_size": 151_936,
            "hidden_size": 4096,
            "intermediate_size": 12_288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 262_144,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000.0,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 4096,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24],
        },
        image_token_id=index("<|image_pad|>", 151_655),
        video_token_id=index("<|video_pad|>", 151_656),
        vision_start_token_id=index("<|vision_start|>", 151_652),
        vision_end_token_id=index("<|vision_end|>", 151_653),
        tie_word_embeddings=False,
    )


def wan_1_3b() -> dict[str, Any]:
    """Arguments of ``WanTransformer3DModel`` for Wan2.1-T2V-1.3B."""
    return {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 12,
        "attention_head_dim": 128,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": 8960,
        "num_layers": 30,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "rope_max_seq_len": 1024,
    }
