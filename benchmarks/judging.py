"""How much faster a batch of videos is judged than the same videos one by one.

python benchmarks/judging.py [--model FOLDER] [--videos 16] [--tokens 64] [--repeats 3]

16 clips of 33 frames at 64×64, seen at 4 fps as turn 1 does, with the verdict's probabilities read from each answer. Without --model
the small judge's architecture with fresh weights is used: what it says is noise, what it costs is not. Printed: seconds and ratios of
LocalVlm in one batch, LocalVlm one conversation at a time, and transformers' own ``generate`` one at a time. Goal: batch ≥ 3 × one by one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from cac_align.core.video import Video
from cac_align.vlm.local import LocalVlm, encode, set_threads
from cac_align.vlm.protocol import Conversation, Message, Readout


def start_of_answer(text: str) -> int | None:
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a Qwen3-VL; default: a fresh model of the small judge's size")
    parser.add_argument("--videos", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    set_threads(options.threads)
    vlm = LocalVlm.load(options.model, batch_size=options.videos) if options.model else fresh(options.videos)
    rng = np.random.default_rng(0)
    conversations = [judge(rng.integers(0, 256, (33, 64, 64, 3), dtype=np.uint8)) for _ in range(options.videos)]
    readout = Readout(("normal", "abnormal"), start_of_answer)
    ways: dict[str, Callable[[], int]] = {
        "one batch": lambda: tokens(vlm.answer(conversations, max_new_tokens=options.tokens, readout=readout)),
        "one by one": lambda: sum(
            tokens(vlm.answer([conversation], max_new_tokens=options.tokens, readout=readout))
            for conversation in conversations
        ),
        "generate, one by one": lambda: sum(
            generate(vlm, conversation, options.tokens) for conversation in conversations
        ),
    }
    seconds = {name: min(timed(way) for _ in range(options.repeats)) for name, way in ways.items()}
    for name, spent in seconds.items():
        print(f"{name:22s} {spent:7.2f} s   {spent / options.videos * 1000:7.1f} ms/video   {ways[name]()} tokens")
    print(f"batch vs one by one: {seconds['one by one'] / seconds['one batch']:.1f}x (goal 3x)")
    print(f"batch vs generate:   {seconds['generate, one by one'] / seconds['one batch']:.1f}x")


def judge(pixels: np.ndarray) -> Conversation:
    return (Message("user", "Is anything wrong in this video? Answer in JSON.", Video.open(pixels, fps=16).sample(4)),)


def fresh(batch_size: int) -> LocalVlm:
    from cac_align.miniature.models.judge import build_judge_tokenizer, build_model, build_processor

    tokenizer = build_judge_tokenizer(
        ['{"COT": "", "status": "normal", "anomalies": []} Is anything wrong in this video? Answer in JSON.'] * 4
    )
    return LocalVlm(build_model(tokenizer), build_processor(tokenizer), name="fresh", batch_size=batch_size)


def tokens(replies: list) -> int:
    failed = [reply.error for reply in replies if reply.error]
    if failed:
        raise SystemExit(f"a conversation failed: {failed[0]}")
    return sum(reply.num_tokens for reply in replies)


def generate(vlm: LocalVlm, conversation: Conversation, limit: int) -> int:
    row = {key: value.to(vlm.model.device) for key, value in encode(vlm.processor, [conversation]).items()}
    with torch.inference_mode():
        out = vlm.model.generate(**row, max_new_tokens=limit, do_sample=False)
    return out.shape[1] - row["input_ids"].shape[1]


def timed(way: Callable[[], int]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
