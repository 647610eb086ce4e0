"""Our client against vLLM's own benchmark client, and our local engine against vLLM, on one checkpoint.

python benchmarks/server.py http://127.0.0.1:8001 CHECKPOINT --vllm-python ENV/bin/python [--clips 64] [--rounds 3]

The server runs on this machine, without caches that would answer a second round:
ENV/bin/vllm serve CHECKPOINT --served-model-name cac --port 8001 --dtype float32 --enforce-eager --max-model-len 4096
    --max-num-seqs 8 --trust-request-mm-kwargs --no-enable-prefix-caching --mm-processor-cache-gb 0

client: turn 1 of every clip. The requests of our client are written down and sent again, at the same concurrency, by
``vllm.benchmarks.serve.benchmark``, what `vllm bench serve` runs; both in turn. Printed: videos per second, and how
busy the server is kept: requests that it has at hand, over those that it may have (goal: ours over vLLM's >= 0.95).
vLLM's client lets answers be streamed, which costs the server time per token.
engine: both turns with their readouts, by the engine in this process on one thread and by the server. Printed: videos
per CPU second (goal: not below 1). The time of our client is not charged to the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CONCURRENCY, MAX_NEW_TOKENS = 8, 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?")
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--vllm-python", type=Path)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--replay", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.checkpoint is None:
        print("client and engine against vLLM: not measured (pass the URL of a server and its checkpoint)")
        return
    if options.replay:
        replay(options.url, options.checkpoint, options.replay)
        return
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    with tempfile.TemporaryDirectory() as folder:
        clips = make_clips(Path(folder), options.clips)
        if options.vllm_python:
            client(options, clips, Path(folder) / "requests.jsonl")
        engine(options, clips)


def make_clips(folder: Path, count: int) -> list[tuple[str, Any]]:
    """(prompt, video) of clips of the world that the shipped judges know."""
    from cac_align.core.video import Video
    from cac_align.miniature.world.settings import PLAYGROUND
    from cac_align.miniature.world.world import write_world

    write_world(count, 2_000_000, folder, PLAYGROUND)
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [(row["prompt"], Video.open(folder / row["video"])) for row in rows]


def client(options: argparse.Namespace, clips: list[tuple[str, Any]], file: Path) -> None:
    """The same requests by our client and by vLLM's, in turn."""
    from cac_align.cac.prompts import turn_one_conversation
    from cac_align.vlm.dialogue import Question
    from cac_align.vlm.server.server import ServerVlm

    vlm = ServerVlm(options.url, "cac", concurrency=CONCURRENCY)
    asked = [turn_one_conversation(prompt, video.sample(4), wording="brief") for prompt, video in clips]
    stop = threading.Event()
    requests = [vlm._request(Question(one, MAX_NEW_TOKENS, None, None), stop)[0] for one in asked]
    file.write_text("".join(json.dumps(request) + "\n" for request in requests))

    attempt, at_hand_s = vlm._attempt, [0.0]
    lock = threading.Lock()

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return attempt(*arguments)
        finally:
            with lock:
                at_hand_s[0] += time.perf_counter() - began

    vlm._attempt = timed  # type: ignore[method-assign]

    def ours() -> tuple[float, float]:
        began, at_hand_s[0] = time.perf_counter(), 0.0
        replies = vlm.answer(asked, max_new_tokens=MAX_NEW_TOKENS)
        assert not any(reply.error for reply in replies)
        return time.perf_counter() - began, at_hand_s[0]

    def theirs() -> tuple[float, float]:
        command = [options.vllm_python, __file__, options.url, options.checkpoint, "--replay", file]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        took_s, at_hand_s = json.loads(done.stdout.splitlines()[-1])
        return took_s, at_hand_s

    ours()  # warm up
    rates: dict[str, list[tuple[float, float]]] = {"ours": [], "vLLM's": []}
    for _ in range(options.rounds):
        for name, run in (("ours", ours), ("vLLM's", theirs)):
            took_s, at_hand = run()
            rates[name].append((len(clips) / took_s, at_hand / (CONCURRENCY * took_s)))
    for name, found in rates.items():
        videos, busy = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"client, {name:7} {videos:6.2f} videos/s, busy {busy:.3f} (median of {len(found)})")
    for column, name in enumerate(("videos per second", "busy")):
        found = [a[column] / b[column] for a, b in zip(rates["ours"], rates["vLLM's"], strict=True)]
        spread = ", ".join(f"{ratio:.2f}" for ratio in sorted(found))
        print(f"  {name}, ours over vLLM's: {statistics.median(found):.2f} ({spread})")


def replay(url: str, checkpoint: Path, file: Path) -> None:
    """Send the requests by vLLM's own client, in its environment; the last line is the seconds of all, and their sum."""
    from vllm.benchmarks import serve  # pyright: ignore[reportMissingImports]
    from vllm.benchmarks.datasets.datasets import SampleRequest  # pyright: ignore[reportMissingImports]
    from vllm.tokenizers import get_tokenizer  # pyright: ignore[reportMissingImports]

    base = url.rstrip("/").removesuffix("/v1")
    sampled = []
    for line in file.read_text().splitlines():
        request = json.loads(line)
        messages = request.pop("messages")
        request.pop("model")
        request["max_completion_tokens"] = request.pop("max_tokens")
        sampled.append(SampleRequest("", 1, MAX_NEW_TOKENS, chat_messages=messages, request_overrides=request))
    result = asyncio.run(
        serve.benchmark(
            task_type=serve.TaskType.GENERATION, endpoint_type="openai-chat", api_url=f"{base}/v1/chat/completions",
            base_url=base, model_id=str(checkpoint), model_name="cac", tokenizer=get_tokenizer(str(checkpoint)),
            input_requests=sampled, logprobs=None, request_rate=float("inf"), burstiness=1.0, disable_tqdm=True,
            num_warmups=0, profile=False, selected_percentile_metrics=["e2el"], selected_percentiles=[50.0],
            ignore_eos=False,
            goodput_config_dict={}, max_concurrency=CONCURRENCY, lora_modules=None, extra_headers=None, extra_body=None,
        )
    )  # fmt: skip
    assert result["completed"] == len(sampled), result
    print(json.dumps([result["duration"], result["mean_e2el_ms"] / 1000 * len(sampled)]))


def engine(options: argparse.Namespace, clips: list[tuple[str, Any]]) -> None:
    """Both turns by the engine in this process and by the server, in videos per CPU second."""
    from cac_align.cac.two_turn import TwoTurn
    from cac_align.rewards.cac import CaC
    from cac_align.vlm.local import LocalVlm, set_threads
    from cac_align.vlm.server.server import ServerVlm

    set_threads(1)
    settings = TwoTurn(wording="brief", max_new_tokens=MAX_NEW_TOKENS, margin_s=0.25)
    prompts, videos = [prompt for prompt, _ in clips], [video for _, video in clips]
    local = CaC(LocalVlm.load(options.checkpoint), settings)
    served = CaC(ServerVlm(options.url, "cac", concurrency=CONCURRENCY), settings)
    local.judge(prompts[:8], videos[:8])
    served.judge(prompts[:8], videos[:8])  # warm up
    local_s, server_s = [], []
    for _ in range(options.rounds):
        began = time.process_time()
        here = local.judge(prompts, videos)
        local_s.append(time.process_time() - began)
        there: list[Any] = []

        def ask() -> float:
            began = time.perf_counter()
            there.extend(served.judge(prompts, videos))  # noqa: B023
            return time.perf_counter() - began

        server_s.append(charged(options.url, ask)[1])
        same = sum(a.status == b.status for a, b in zip(here, there, strict=True))
        print(f"engine: {same} of {len(clips)} verdicts are the same (local frames are not JPEGs)")
    for name, found in (("this process", local_s), ("vLLM", server_s)):
        print(f"engine, {name:12} {len(clips) / statistics.median(found):6.2f} videos per CPU second")
    ratios = sorted(there / here for here, there in zip(local_s, server_s, strict=True))
    print(f"  ours over vLLM's: {statistics.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)}; goal >= 1)")


def charged(url: str, run: Callable[[], float]) -> tuple[float, float]:
    """(what ``run`` returns, CPU seconds that the server's processes worked meanwhile)."""
    port = urlsplit(url).port
    root = next(
        pid for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
        if f"--port\0{port}" in _read(pid, "cmdline") and "vllm" in _read(pid, "cmdline")
    )  # fmt: skip
    before = _cpu_s(root)
    result = run()
    return result, _cpu_s(root) - before


def _cpu_s(root: int) -> float:
    """CPU seconds of a process and of all below it."""
    parents, ticks = {}, {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        fields = _read(pid, "stat").rpartition(")")[2].split()
        if fields:
            parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(ticks.get(pid, 0) for pid in family) / os.sysconf("SC_CLK_TCK")


def _read(pid: int, name: str) -> str:
    try:
        return Path("/proc", str(pid), name).read_text(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    main()
