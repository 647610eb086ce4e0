"""What a host adapter costs per video, in processor time: pixels, identity, JPEG, message; and what it was with torch's own conversion.

    python benchmarks/adapter.py [--repeats 5]

The video is a photograph that moves, 81 × 480 × 832, as a host hands it over: float32 in [0, 1] on the CPU, 388 MB, or uint8. One thread;
the best of the repeats of each stage, all stages in turn. "identity" is the sha256 that the ledger files a video under, only taken where a
ledger is set. Reading the floats once (their smallest and largest) bounds from below what any conversion takes.
Target: 20 ms per video. A GPU's tensor becomes uint8 there, and only 97 MB reach the processor.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from service import clip

from cac_align.core.video import Video
from cac_align.plugins.common.pixels import open_pixels
from cac_align.serving.frame_plan import FramePlan
from cac_align.serving.video_parts import frames_part
from cac_align.serving.wire import ScoreItem, ScoreRequest, pack


def with_torch(pixels: torch.Tensor) -> np.ndarray:
    """The conversion as it was: every frame scaled, cast and interleaved by torch."""
    torch.aminmax(pixels)
    out = torch.empty((len(pixels), *pixels.shape[2:], 3), dtype=torch.uint8)
    for index, frame in enumerate(pixels):
        planes = frame.float().mul(255).round_().clamp_(0, 255).to(torch.uint8)
        out[index] = torch.stack(list(planes), dim=-1)
    return out.numpy()


def main(repeats: int) -> None:
    torch.set_num_threads(1)
    source = clip("photo").frames(range(81)).pixels
    whole = torch.from_numpy(source).permute(0, 3, 1, 2).contiguous()
    floats = whole.float() / 255
    assert np.array_equal(with_torch(floats), source)
    video = open_pixels(floats, 16.0, "TCHW", "video")
    assert np.array_equal(video.frames(range(81)).pixels, source)
    part = frames_part(video, FramePlan().indices(video))

    stages: dict[str, Callable[[], Any]] = {
        "floats read once": lambda: torch.aminmax(floats),
        "pixels of floats, formerly": lambda: with_torch(floats),
        "pixels of floats": lambda: open_pixels(floats, 16.0, "TCHW", "video"),
        "pixels of uint8, formerly": lambda: np.ascontiguousarray(whole.numpy().transpose(0, 2, 3, 1)),
        "pixels of uint8": lambda: open_pixels(whole, 16.0, "TCHW", "video"),
        "identity (sha256)": lambda: Video.open(source, fps=16).content_hash,
        f"JPEG of {len(part.images)} frames": lambda: frames_part(video, part.indices),
        "message": lambda: pack(ScoreRequest(items=(ScoreItem(prompt="a portrait", video=part),))),
    }
    times: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(repeats):
        for name, stage in stages.items():
            started = time.process_time()
            stage()
            times[name].append(1e3 * (time.process_time() - started))
    for name, taken in times.items():
        print(f"{name:28s} {min(taken):6.1f} ms (median {sorted(taken)[len(taken) // 2]:.1f})")
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores; best of {repeats}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    main(parser.parse_args().repeats)
