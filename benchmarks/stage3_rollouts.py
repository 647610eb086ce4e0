"""How many two-turn rollouts a second stage 3 takes and learns from, against a plain loop that encodes the video again for each of them.

python benchmarks/stage3_rollouts.py [--model miniature|FOLDER] [--videos 8] [--group 8] [--tokens 320] [--wording brief] [--threads 1]

Clips of the miniature world, G rollouts each. "shared" is ``training.rollout.roll_out``; "plain" is, per rollout, the processor, then
transformers' ``generate`` with sampling, for each turn. Printed: rollouts per second, tokens, and the ratio of one run. Goal: 3 ×.
All rows of a turn are decoded together; those that ended leave by halves. What remains of the gain depends on how many go on together.
Learning (one forward and backward pass over all of them, an update without the optimiser): each prompt once with all of its answers,
against rows of their own in batches as wide as the longest.
Last the peak of memory beyond weights at G and at 2 G, and the size of one rollout's keys and values, which alone may grow.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from cac_align.cac.prompts import turn_one_conversation, turn_two_conversation
from cac_align.cac.two_turn import unusable_reason
from cac_align.core.answer import read_answer
from cac_align.core.judgement import hull
from cac_align.data.records import Record
from cac_align.training.policy import AnswerLogProbs, ModelRecipe, load, make_batch
from cac_align.training.rollout import (
    RolloutRecipe,
    RolloutSettings,
    VideoPrompt,
    forbidden_tokens,
    open_video_prompt,
    roll_out,
)
from cac_align.vlm.inputs import encode_one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="miniature")
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=320)
    parser.add_argument("--wording", default="brief")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = load(ModelRecipe(path=options.model, dtype="bfloat16" if device == "cuda" else "float32"))
    model = model.to(device).eval()
    prompts = clips(options.videos)
    settings = RolloutSettings(RolloutRecipe(options.group, 1.0, options.tokens), options.wording, 8.0, None, 0, 0)
    roll_out(model, processor, prompts[:1], settings, {})  # warm
    began = time.perf_counter()
    shared = roll_out(model, processor, prompts, settings, {})
    shared_s = time.perf_counter() - began
    began = time.perf_counter()
    torch.manual_seed(0)
    plain = [plainly(model, processor, prompt, settings) for prompt in prompts for _ in range(options.group)]
    plain_s = time.perf_counter() - began
    count = len(shared)
    for name, seconds, tokens in (
        ("shared", shared_s, sum(r.num_tokens for r in shared)),
        ("plain", plain_s, sum(plain)),
    ):
        print(
            f"{name:7s} {seconds:7.2f} s  {count / seconds:7.2f} rollouts/s  {tokens} tokens  {tokens / seconds:8.1f} tokens/s"
        )
    print(
        f"ratio, rollouts per second: {plain_s / shared_s:.2f}x (goal 3x); per token: {plain_s / sum(plain) * sum(r.num_tokens for r in shared) / shared_s:.2f}x"
    )
    learning(model, processor, prompts, settings)
    memory(model, processor, prompts, settings)


def clips(count: int) -> list[VideoPrompt]:
    from cac_align.miniature.world.settings import STUDIO
    from cac_align.miniature.world.world import make_clip

    prompts = []
    for slot in range(count):
        clip = make_clip(2_000_000 + slot, STUDIO, anomalous=bool(slot % 2))
        length, height, width, _ = clip.pixels.shape
        record = Record(str(slot), "", clip.prompt, clip.fps, length, width, height, clip.status, clip.anomalies)
        prompts.append(open_video_prompt(slot, record, clip.video(), 4.0))
    return prompts


@torch.no_grad()
def plainly(model: Any, processor: Any, prompt: VideoPrompt, settings: RolloutSettings) -> int:
    """One rollout with nothing shared; returns how many tokens it wrote."""
    asked = turn_one_conversation(prompt.record.prompt, prompt.scan, wording=settings.wording)
    text, count = generate(model, processor, asked, settings)
    first = read_answer(text, number=1, frames=prompt.scan.indices, times_s=prompt.scan.times_s)
    if unusable_reason(first) is not None or first.status == "normal":
        return count
    clip = prompt.video.clip(hull([a.window for a in first.anomalies if a.window is not None]), settings.look_fps)
    asked = turn_two_conversation(prompt.record.prompt, clip, first, wording=settings.wording)
    return count + generate(model, processor, asked, settings)[1]


def generate(model: Any, processor: Any, asked: Any, settings: RolloutSettings) -> tuple[str, int]:
    row = {name: tensor.to(model.device) for name, tensor in encode_one(processor, asked).items()}
    forbidden = forbidden_tokens(processor, model.lm_head.weight.shape[0]).nonzero().flatten().tolist()
    limits = {"max_new_tokens": settings.rollout.max_new_tokens, "suppress_tokens": forbidden}
    out = model.generate(**row, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, **limits)[
        0, row["input_ids"].shape[1] :
    ]
    return processor.tokenizer.decode(out, skip_special_tokens=True), len(out)


def learning(model: Any, processor: Any, prompts: list[VideoPrompt], settings: RolloutSettings) -> None:
    store: dict[Any, Any] = {}
    rollouts = roll_out(model, processor, prompts, settings, store)
    turns = [[r.segments[number] for r in rollouts if len(r.segments) > number] for number in (0, 1)]
    together = make_batch(processor, turns[0] + turns[1], store)
    apart = [make_batch(processor, segments, store, shared=True) for segments in turns if segments]
    scorer = AnswerLogProbs(model)
    seconds = {}
    for name, batches in (
        ("shared", apart),
        ("rows", [together]),
        ("shared", apart),
        ("rows", [together]),
    ):  # the first of each warms
        model.zero_grad()
        began = time.perf_counter()
        scorer(*(on(model.device, batch) for batch in batches)).sum().backward()
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        seconds[name] = time.perf_counter() - began
        cells = sum(batch["input_ids"].numel() for batch in batches)
        print(f"learning, {name:6s} {seconds[name]:7.2f} s  {cells} tokens with padding")
    model.zero_grad()
    print(f"ratio, learning: {seconds['rows'] / seconds['shared']:.2f}x")


def memory(model: Any, processor: Any, prompts: list[VideoPrompt], settings: RolloutSettings) -> None:
    from dataclasses import replace

    for factor in (1, 2):
        more = replace(settings, rollout=replace(settings.rollout, group_size=factor * settings.rollout.group_size))
        rollouts, peak = peak_mib(lambda more=more: roll_out(model, processor, prompts, more, {}), model.device)
        config = model.config.text_config
        longest = max(
            sum(segment.ids.shape[1] for segment in r.segments[-1:]) + settings.rollout.max_new_tokens for r in rollouts
        )
        row = (
            2
            * config.num_hidden_layers
            * config.num_key_value_heads
            * config.head_dim
            * model.dtype.itemsize
            * longest
            / 2**20
        )
        print(
            f"{len(prompts)} videos, G = {more.rollout.group_size}: peak beyond weights {peak:.1f} MiB; "
            f"keys and values of one rollout at most {row:.2f} MiB"
        )


def peak_mib(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What it returns, and the most memory that its tensors held at a time, in MiB."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return call(), (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        found = call()
    events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return found, max(held) / 2**20


if __name__ == "__main__":
    main()
