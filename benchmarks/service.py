"""Service throughput: 16 clients post packed requests of 21 JPEG frames of 480 × 832, the judge is scripted; what is lost, what it costs.

    python benchmarks/service.py [--frames shapes|photo|forwarded|decoded] [--clients 16] [--seconds 10]

shapes: flat shapes on flat ground. photo: a photograph (matplotlib's sample), seven times the bytes. Their judge is scripted and looks at
no frame. forwarded: the photograph, with a judge that also writes the chat request a remote model would be sent, of the JPEGs as they
came. decoded: the photograph, with a judge that reads every pixel, as a model in this process does. Clients run in a process of their own. Also measured: bytes of one
81 × 480 × 832 video on the wire. What a host adapter adds per video: benchmarks/adapter.py.
Target (two cores): ≥ 50 requests/s, none lost; ≤ 5 MB per video.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import threading
import time

import httpx
import numpy as np
import uvicorn

from cac_align.core.video import Video
from cac_align.rewards.cac import CaC
from cac_align.serving.app import create_app
from cac_align.serving.frame_plan import FramePlan
from cac_align.serving.server import listening_socket, uvicorn_config
from cac_align.serving.service import ServiceSettings
from cac_align.serving.video_parts import frames_part
from cac_align.serving.wire import PACKED, ScoreItem, ScoreRequest, pack
from cac_align.vlm.protocol import Conversation
from cac_align.vlm.scripted import ScriptedVlm
from cac_align.vlm.server.chat import chat_fields

NORMAL = json.dumps({"COT": "looked", "status": "normal", "anomalies": []})


def passing_on(conversation: Conversation) -> str:
    """A judge behind a server, but for the server: the whole request is written."""
    json.dumps(chat_fields(conversation, as_video=False, quality=90))
    return NORMAL


def looking(conversation: Conversation) -> str:
    """A judge that runs here: it needs pixels."""
    assert all(message.frames is None or message.frames.pixels.any() for message in conversation)
    return NORMAL


def clip(kind: str) -> Video:
    """81 frames of 480 × 832 at 16 fps that move three pixels per frame."""
    if kind == "shapes":
        rows, columns = np.mgrid[:480, :832]
        scene = np.full((480, 832, 3), (70, 110, 160), np.uint8)
        for x, y, radius, colour in (
            (200, 200, 90, (220, 60, 40)),
            (520, 300, 120, (240, 220, 90)),
            (700, 120, 50, (30, 160, 80)),
        ):
            scene[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] = colour
    else:
        from matplotlib.cbook import get_sample_data
        from PIL import Image

        with Image.open(get_sample_data("grace_hopper.jpg")) as photo:
            scene = np.asarray(
                photo.convert("RGB").resize((832, 975), Image.Resampling.LANCZOS).crop((0, 100, 832, 580))
            )
    return Video.open(np.stack([np.roll(scene, 3 * frame, axis=1) for frame in range(81)]), fps=16)


def clients(url: str, body: bytes, count: int, seconds: float, results: multiprocessing.Queue) -> None:
    """``count`` threads that post and wait, again and again; (answered with a score, refused with 429, anything else)."""
    answers = {"scored": 0, "busy": 0, "lost": 0}
    for _ in range(3):  # both sides warm before the clock starts
        httpx.post(f"{url}/v1/score", content=body, headers={"Content-Type": PACKED}, trust_env=False, timeout=60)
    results.put("ready")
    lock, ends = threading.Lock(), time.monotonic() + seconds

    def one() -> None:
        with httpx.Client(trust_env=False, timeout=60) as client:
            while time.monotonic() < ends:
                try:
                    answer = client.post(f"{url}/v1/score", content=body, headers={"Content-Type": PACKED})
                    scored = answer.status_code == 200 and answer.json()["scores"][0]["score"] is not None
                    what = "scored" if scored else "busy" if answer.status_code == 429 else "lost"
                except httpx.HTTPError:
                    what = "lost"
                with lock:
                    answers[what] += 1

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(answers)


def throughput(kind: str, count: int, seconds: float) -> None:
    video = clip("shapes" if kind == "shapes" else "photo")
    body = pack(ScoreRequest(items=(ScoreItem(prompt="a red ball", video=frames_part(video, video.indices_at(4.0))),)))
    script = {"forwarded": passing_on, "decoded": looking}.get(kind, lambda conversation: NORMAL)
    vlm = ScriptedVlm(
        lambda conversation: vlm.asked.clear() or script(conversation)
    )  # it remembers all it was asked: 1 GB here
    reward = CaC(vlm)
    settings = ServiceSettings()
    with listening_socket("127.0.0.1", 0, settings) as listening:
        server = uvicorn.Server(uvicorn_config(create_app(reward, settings), settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        process = context.Process(target=clients, args=(url, body, count, seconds, results))
        process.start()
        assert results.get() == "ready"
        started, cpu = time.monotonic(), time.process_time()
        answers = results.get()
        elapsed, cpu = time.monotonic() - started, time.process_time() - cpu
        process.join()
        server.should_exit = True
        thread.join(30)
    done = answers["scored"]
    print(
        f"{kind}: {len(body) / 1e6:.2f} MB per request of 21 frames, {count} clients, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"  {done / elapsed:.1f} requests/s ({done} in {elapsed:.1f} s); lost {answers['lost']}, refused with 429 {answers['busy']}"
    )
    print(f"  {1e3 * cpu / max(done, 1):.1f} ms of processor time per request in the service")


def wire_bytes() -> None:
    video = clip("photo")
    indices = FramePlan().indices(video)
    size = len(pack(ScoreRequest(items=(ScoreItem(prompt="a portrait", video=frames_part(video, indices)),))))
    print(f"wire: {len(indices)} of 81 frames of a photograph, {size / 1e6:.2f} MB (target 5)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", choices=("shapes", "photo", "forwarded", "decoded"), action="append")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    for kind in options.frames or ("shapes", "photo", "forwarded", "decoded"):
        throughput(kind, options.clients, options.seconds)
    wire_bytes()
