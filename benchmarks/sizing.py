"""Memory and seconds per stage at full size for 1, 8 and 32 GPUs, calculated from the published configurations.

python benchmarks/sizing.py [--gpu H200] → the table of docs/sizing.md, every line marked "calculated" with what it was calculated from

Times are throughput: one GPU's time over the number of GPUs, with enough videos to keep all of them busy.
Rules, and nothing else: a matrix product costs 2 FLOPs per weight and token, attention 4 · tokens² · width per layer (half of it where
it is causal), a backward pass twice its forward, gradient checkpointing one forward more. A decode step reads all language weights and
all keys and values once. Time is FLOPs / (peak · MFU) or bytes / (bandwidth · MBU). MFU and MBU are assumptions, printed with the table.
Not included: VAE, text encoder, video decoding, HTTP, communication between GPUs, stragglers. Nothing here was measured.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from published import PARAMETERS, qwen3vl_8b, wan_1_3b

GIB = 2**30
MFU, MBU = 0.4, 0.6


@dataclass(frozen=True)
class Gpu:
    """peak: dense bfloat16 FLOP/s. bandwidth: bytes/s. memory: bytes. From the vendor's data sheets."""

    peak: float
    bandwidth: float
    memory: float


GPUS = {"H200": Gpu(989e12, 4.8e12, 141e9), "H100": Gpu(989e12, 3.35e12, 80e9), "A100": Gpu(312e12, 2.04e12, 80e9)}


@dataclass(frozen=True)
class Video:
    """What is judged and generated: 81 frames at 16 fps, 480×832."""

    num_frames: int = 81
    height: int = 480
    width: int = 832
    fps: float = 16.0


@dataclass(frozen=True)
class Judge:
    """Qwen3-VL-8B's costs, from its configuration. Sizes in bytes (bfloat16), costs in FLOPs."""

    weights: int
    text_weights: int
    vision_weights: int
    kv_per_token: int
    layers: int
    hidden: int
    vision_layers: int
    vision_hidden: int


def judge() -> Judge:
    config = qwen3vl_8b()
    text, vision = config.text_config, config.vision_config
    per_layer = text.hidden_size * text.head_dim * (2 * text.num_attention_heads + 2 * text.num_key_value_heads)
    per_layer += 3 * text.hidden_size * text.intermediate_size
    read = (
        text.num_hidden_layers * per_layer + text.vocab_size * text.hidden_size
    )  # the head; the embedding is one row a token
    total = PARAMETERS["Qwen3-VL-8B-Instruct"]
    return Judge(
        weights=2 * total,
        text_weights=2 * read,
        vision_weights=2 * (total - read - text.vocab_size * text.hidden_size),
        kv_per_token=2 * 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim,
        layers=text.num_hidden_layers,
        hidden=text.num_attention_heads * text.head_dim,
        vision_layers=vision.depth,
        vision_hidden=vision.hidden_size,
    )


def visual(frames: int, video: Video) -> tuple[int, int]:
    """(patches into the vision encoder, tokens into the language model) of ``frames`` frames: 16 px patches, pairs of frames, 2×2 merged."""
    pairs = -(-frames // 2)
    patches = pairs * (video.height // 16) * (video.width // 16)
    return patches, patches // 4


def forward_flops(judge: Judge, frames: int, video: Video, tokens: int) -> float:
    """FLOPs of one forward pass over ``frames`` frames and ``tokens`` tokens, those of the frames included."""
    patches, _ = visual(frames, video)
    per_frame = patches // -(-frames // 2)
    vision = judge.vision_weights * patches + 4 * patches * per_frame * judge.vision_hidden * judge.vision_layers
    return vision + judge.text_weights * tokens + 2 * tokens**2 * judge.hidden * judge.layers


def turn(
    judge: Judge, gpu: Gpu, frames: int, video: Video, *, text: int, answer: int, together: int
) -> tuple[float, int]:
    """(seconds per video of one turn with ``together`` answers decoded at once, its tokens)."""
    _, tokens = visual(frames, video)
    prompt = tokens + text
    step_bytes = judge.text_weights + together * (prompt + answer / 2) * judge.kv_per_token
    decode_s = answer * step_bytes / (gpu.bandwidth * MBU) / together
    return forward_flops(judge, frames, video, prompt) / (gpu.peak * MFU) + decode_s, prompt + answer


def generate_flops(video: Video, steps: int, passes: int) -> tuple[float, float, int]:
    """(FLOPs of one video, of one forward, tokens) of Wan-1.3B: latents a quarter in time, an eighth in space, 2×2 patches."""
    shape = wan_1_3b()
    tokens = ((video.num_frames - 1) // 4 + 1) * (video.height // 16) * (video.width // 16)
    width = shape["num_attention_heads"] * shape["attention_head_dim"]
    forward = 2 * PARAMETERS["Wan2.1-T2V-1.3B transformer"] * tokens + 4 * tokens**2 * width * shape["num_layers"]
    return forward * steps * passes, forward, tokens


TRACED = 17.6
"""GiB beyond weights at the peak of one optimiser step of Wan-1.3B: 81 × 480 × 832, guidance, checkpointing. A shape-only trace."""


def rows(gpu: Gpu) -> list[tuple[str, str, str, dict[int, str]]]:
    """(stage, memory per GPU, what was calculated, {GPUs: time})."""
    video, brain = Video(), judge()
    one_s, one_tokens = turn(brain, gpu, 21, video, text=600, answer=512, together=16)
    two_s, two_tokens = turn(brain, gpu, 13, video, text=600, answer=512, together=16)
    cache = 16 * max(one_tokens, two_tokens) * brain.kv_per_token
    judge_s = one_s + two_s
    video_flops, forward, tokens = generate_flops(video, 50, 2)
    video_s = video_flops / (gpu.peak * MFU)
    shape = wan_1_3b()
    width, layers = shape["num_attention_heads"] * shape["attention_head_dim"], shape["num_layers"]
    block = tokens * (2 * shape["ffn_dim"] + 16 * width) * 2  # one block: about so many activations at once
    lora = (
        32 * layers * (8 * 2 * width + 2 * (width + shape["ffn_dim"]))
    )  # q, k, v, o of both attentions, both feed-forward layers
    wan = 2 * PARAMETERS["Wan2.1-T2V-1.3B transformer"]
    step_s = (
        2 * 4 * forward / (gpu.peak * MFU)
    )  # with and without the prompt; forward, forward again, and twice that backward
    full = 16 * PARAMETERS["Qwen3-VL-8B-Instruct"]  # float32 weights and gradients and two Adam moments
    sft_tokens = one_tokens
    patches, _ = visual(21, video)
    sft_s = 4 * forward_flops(brain, 21, video, sft_tokens) / (gpu.peak * MFU)

    # Per video: the policy's forward, forward again and twice that backward, and the reference's forward.
    learn_flops = forward_flops(brain, 21, video, one_tokens + 7 * 512) + 8 * forward_flops(
        brain, 13, video, two_tokens
    )
    learn_s = 5 * learn_flops / (gpu.peak * MFU)

    # Checkpointing keeps each block's input.
    kept_judge = 2 * (brain.layers * one_tokens * brain.hidden + brain.vision_layers * patches * brain.vision_hidden)
    rollouts = (
        4 * 8 * (one_tokens - 512 + 4096) * brain.kv_per_token
    )  # recipes/train/stage3.yaml: 4 videos × 8, up to 4096 tokens
    # Sharded: bf16 gradients, float32 master and two Adam moments. The bf16 weights stay whole.
    zero2 = 14 * PARAMETERS["Qwen3-VL-8B-Instruct"]

    def over(seconds: float, unit: str) -> dict[int, str]:
        return {gpus: f"{seconds / gpus:.3g} {unit}" for gpus in (1, 8, 32)}

    def shared(total: float, beside: float) -> str:
        """Bytes per GPU where ``total`` is split over all and ``beside`` stands on each, with a note where that does not fit."""
        each = {n: total / n + beside for n in (1, 8, 32)}
        return "; ".join(
            f"{n}: {b / GIB:.0f} GiB{' (does not fit)' if b > gpu.memory else ''}" for n, b in each.items()
        )

    group = 16
    sample_s = group * video_s
    trained = 2  # recipes/align/wan2.1_1.3b.yaml: sde_window of 2 steps
    train_s = group * trained * step_s
    return [
        (
            "judge, two turns",
            f"{(brain.weights + cache) / GIB:.0f} GiB (weights {brain.weights / GIB:.1f}, keys and values of 16 answers {cache / GIB:.1f})",
            "21 + 13 frames, 600 tokens of instruction, 512 tokens per turn, 16 together; one judge per GPU",
            over(judge_s, "s/video"),
        ),
        (
            "generate (Wan-1.3B)",
            f"{(wan + 3 * block) / GIB:.0f} GiB + text encoder and VAE",
            f"50 steps with guidance (2 passes), {tokens} tokens; one video per GPU at a time",
            over(video_s, "s/video"),
        ),
        (
            "Best-of-5, one prompt",
            "as the two above",
            "5 × (generate + judge)",
            over(5 * (video_s + judge_s), "s/prompt"),
        ),
        (
            "Flow-GRPO, one group of 16: sampling",
            f"{(wan + 3 * block) / GIB:.0f} GiB",
            "16 × generate; every step is kept as latents only",
            over(sample_s, "s"),
        ),
        (
            "Flow-GRPO, one group of 16: judging",
            "as judge",
            "16 × judge, beside the next group's sampling",
            over(group * judge_s, "s"),
        ),
        (
            "Flow-GRPO, one group of 16: learning",
            f"{(wan + 16 * lora) / GIB + TRACED:.0f} GiB (weights {wan / GIB:.1f}, LoRA 32 with Adam {16 * lora / GIB:.1f}, "
            f"traced: {TRACED}; see below)",
            f"micro-batch 1, {trained} of 50 steps trained (the recipe's sde_window), guidance in the loss, checkpointing: 2 × 4 forwards each",
            over(train_s, "s"),
        ),
        (
            "train the judge, all weights (stage 2)",
            shared(full, kept_judge),
            f"16 bytes per weight, sharded (FSDP2); one record of {sft_tokens} tokens and {patches} patches, checkpointing",
            over(sft_s, "s/record"),
        ),
        (
            "train the judge by GRPO (stage 3)",
            shared(zero2, 2 * brain.weights + kept_judge + rollouts),
            "ZeRO-2: policy and reference whole in bf16, 14 bytes per weight sharded, keys and values of 32 rollouts; "
            "a step is 64 videos × 8, judged, then learned from: turn 1's prompt once per video, turn 2's once per rollout",
            over(64 * (8 * judge_s + learn_s), "s/step"),
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=sorted(GPUS), default="H200")
    options = parser.parse_args()
    gpu = GPUS[options.gpu]
    print(
        f"{options.gpu}: {gpu.peak / 1e12:.0f} TFLOP/s bf16, {gpu.bandwidth / 1e12:.2f} TB/s, {gpu.memory / GIB:.0f} GiB;"
    )
    print(f"assumed: {MFU:.0%} of the peak in matrix products, {MBU:.0%} of the bandwidth in decoding.\n")
    print("| stage | memory per GPU | 1 GPU | 8 GPUs | 32 GPUs | how | |")
    print("|---|---|---|---|---|---|---|")
    for stage, memory, how, times in rows(gpu):
        print(f"| {stage} | {memory} | {' | '.join(times[n] for n in (1, 8, 32))} | {how} | calculated |")


if __name__ == "__main__":
    main()
