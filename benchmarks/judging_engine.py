"""Two-turn judging by the engine against the naive loop, at forced answer lengths: the ratio, from one run.

python benchmarks/judging_engine.py [--videos 16] [--tokens 512] [--slots 16] [--repeats 3] [--full]

Naive loop: transformers' ``generate``, one video at a time, turn 2 prefilled from scratch; it is not charged for any readout. Engine:
LocalVlm.run_dialogues, P(normal) and P(abnormal) of both turns included. The weights are random, so what is said is noise; every answer is
forced to its full length (the end token can never win), turn 2 always follows, and the cost does not depend on what is said.

Default: the miniature's shape, 33 frames at 64×64 and 16 fps, on the CPU. --full: Qwen3-VL-8B's published shape in bfloat16, 81 frames
at 480×832, on a GPU; without one it prints "not measured". Goals: >= 4x on two CPU cores; on an H200 >= 20x, <= 1.5 s per video,
<= 40 GB. Both print whether text is equal; in float32 it must be.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cac_align.core.video import Video, Window
from cac_align.vlm.dialogue import Dialogue, Question, run_dialogues
from cac_align.vlm.inputs import encode_one
from cac_align.vlm.local import LocalVlm, set_threads
from cac_align.vlm.protocol import Conversation, Message, Readout

TURN_ONE = "A caption of some words. Is the video broken? Walk through every frame, then compare them, then conclude. Answer in JSON."
TURN_TWO = (
    "Close look at the suspicious window. Is it really broken? Answer in JSON with COT, status, anomalies and boxes."
)


def somewhere(text: str) -> int | None:
    """A place inside the answer."""
    return 4 if len(text) >= 4 else None


READOUT = Readout(("normal", "abnormal"), somewhere)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=512, help="length of every answer, per turn")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=1, help="of the engine's run; the fastest counts")
    parser.add_argument("--naive", type=int, help="videos of the naive loop, scaled up to all of them; default: all")
    parser.add_argument("--context", choices=("fresh", "continued"), default="fresh")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="Qwen3-VL-8B's shape on a GPU")
    options = parser.parse_args()
    if options.full and not torch.cuda.is_available():
        print(
            "Qwen3-VL-8B, 16 videos of 81 frames at 480x832, 512 tokens per turn: not measured (this machine has no GPU)"
        )
        return
    set_threads(options.threads)
    vlm = full_size(options.slots) if options.full else miniature(options.slots)
    shape = (81, 480, 832, 3) if options.full else (33, 64, 64, 3)
    rng = np.random.default_rng(0)
    videos = [Video.open(rng.integers(0, 256, shape, dtype=np.uint8), fps=16.0) for _ in range(options.videos)]
    judged(vlm, videos[:2], min(8, options.tokens), options.context)  # warm up
    if options.full:
        torch.cuda.reset_peak_memory_stats()
    engine_s, texts = min(
        (judged(vlm, videos, options.tokens, options.context) for _ in range(options.repeats)), key=lambda r: r[0]
    )
    peak = f", peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if options.full else ""
    count = options.naive or options.videos
    naive_s, naive_texts = naive(vlm, videos[:count], options.tokens, options.context)
    naive_s *= options.videos / count
    where = torch.cuda.get_device_name() if options.full else f"CPU, {options.threads} thread(s), CPU seconds"
    print(
        f"{where}; {options.videos} videos, {options.tokens} tokens per turn, {options.slots} slots, context {options.context}"
    )
    print(f"engine      {engine_s:8.2f} s   {engine_s / options.videos:7.3f} s/video{peak}")
    print(
        f"naive loop  {naive_s:8.2f} s   {naive_s / options.videos:7.3f} s/video"
        + (f" (from {count})" if options.naive else "")
    )
    same = sum(a == b for a, b in zip(texts, naive_texts, strict=False))
    print(
        f"ratio {naive_s / engine_s:.1f}x (goal {20 if options.full else 4}x); text equal for {same} of {count} videos"
    )


def two_turns(video: Video, tokens: int, context: str) -> Dialogue[tuple[str, str]]:
    """Turn 1 on the whole video at 4 fps, turn 2 on 1.5 s of it at 8 fps, each with its readout."""
    scan = (Message("user", TURN_ONE, video.sample(4.0)),)
    (first,) = yield [Question(scan, tokens, None, READOUT)]
    (second,) = yield [Question(look(video, scan, first.text, context), tokens, None, READOUT)]
    for reply in (first, second):
        if reply.error or reply.num_tokens != tokens or reply.log_p is None:
            raise SystemExit(f"an answer failed: {reply.error or f'{reply.num_tokens} tokens, log_p {reply.log_p}'}")
    return first.text, second.text


def look(video: Video, scan: Conversation, said: str, context: str) -> Conversation:
    ask = Message("user", TURN_TWO, video.clip(Window(0.25, 1.75), 8.0))
    return (ask,) if context == "fresh" else (*scan, Message("assistant", said), ask)


def judged(vlm: LocalVlm, videos: list[Video], tokens: int, context: str) -> tuple[float, list[tuple[str, str]]]:
    start = clock_s()
    texts = run_dialogues(vlm, [two_turns(video, tokens, context) for video in videos])
    return clock_s() - start, texts


def clock_s() -> float:
    """Seconds: of the CPU's work where it does the work (other programs on the machine then count for nothing), else of the wall."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def naive(vlm: LocalVlm, videos: list[Video], tokens: int, context: str) -> tuple[float, list[tuple[str, str]]]:
    start = clock_s()
    texts = [tuple(generated(vlm, video, tokens, context)) for video in videos]
    return clock_s() - start, texts


def generated(vlm: LocalVlm, video: Video, tokens: int, context: str) -> Iterator[str]:
    scan = (Message("user", TURN_ONE, video.sample(4.0)),)
    yield (first := write(vlm, scan, tokens))
    yield write(vlm, look(video, scan, first, context), tokens)


def write(vlm: LocalVlm, conversation: Conversation, tokens: int) -> str:
    row = {key: value.to(vlm.model.device) for key, value in encode_one(vlm.processor, conversation).items()}
    banned = vlm._banned.nonzero()[:, 0].tolist()
    with torch.inference_mode():
        out = vlm.model.generate(**row, max_new_tokens=tokens, do_sample=False, suppress_tokens=banned)
    return vlm.processor.tokenizer.decode(out[0, row["input_ids"].shape[1] :], clean_up_tokenization_spaces=False)


def miniature(slots: int) -> LocalVlm:
    """The small judge's architecture with fresh weights."""
    from cac_align.miniature.models.judge import build_judge_tokenizer, build_model, build_processor

    words = '{"COT": "", "status": "normal", "anomalies": []} Is anything wrong in this video? Answer in JSON.'
    tokenizer = build_judge_tokenizer([words, TURN_ONE, TURN_TWO] * 4)
    return LocalVlm(
        endless(build_model(tokenizer), tokenizer), build_processor(tokenizer), name="fresh", batch_size=slots
    )


def full_size(slots: int) -> LocalVlm:
    """Qwen3-VL-8B's published shape, random weights in bfloat16, Qwen's real byte-pair table."""
    from published import qwen3vl_8b
    from transformers import Qwen3VLForConditionalGeneration

    from tests import tiny_qwen

    tokenizer = tiny_qwen.qwen_tokenizer()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Qwen3VLForConditionalGeneration(qwen3vl_8b(tokenizer)).eval()
    torch.set_default_dtype(torch.float32)
    # Rotary frequencies are buffers that a checkpoint would bring in float32.
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = module.compute_default_rope_parameters(module.config, device="cuda")[0].float()
    return LocalVlm(endless(model, tokenizer), tiny_qwen.processor(tokenizer), name="8B shape", batch_size=slots)


def endless(model: Any, tokenizer: Any) -> Any:
    """The end token gets logit 0, far below the best of a random vocabulary: no answer ends before its limit."""
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        model.lm_head.weight[end] = 0
    model.generation_config.eos_token_id = end
    return model


if __name__ == "__main__":
    main()
