"""Masked resampling against the same number of ordinary denoising steps, in processor time, in turn, in one run.

    python benchmarks/repair.py [--repeats 7] [--steps 10]

The shipped small Wan, one thread. Plain: `WanPipeline` to latents. Masked: `resample` with a mask over a quarter of the clip and a soft
border, from noise level 1, so that both take all steps. Text encoding is in both; the VAE is in neither (a repair decodes twice and
encodes a video without latents; those are printed beside it). Target: a ratio of at most 1.05. Memory: masked resampling holds three
tensors more, of the size of the latents (original, noise, and the held state), and takes the model's passes one by one as plain sampling.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cac_align.core.weights import shipped
from cac_align.generation.latent_masks import grow_and_soften, latent_grid
from cac_align.generation.repair.latent_video import decode_frames, encode_latents
from cac_align.generation.repair.resample import resample
from cac_align.generation.wan import Wan

PROMPT = "a red ball rolls to the right on grass"


def seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def peak_mib(work: Callable[[], Any]) -> float:
    """How far the resident memory rises above its present size while a forked process does the work."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts at the present size
        before = resident_kib("VmRSS")
        work()
        os.write(writer, str(resident_kib("VmHWM") - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(reader, 32)) / 1024


def resident_kib(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process, as Linux counts it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field + ":")))


def main(repeats: int, steps: int) -> None:
    torch.set_num_threads(1)
    wan = Wan.load(shipped("wan"), device="cpu", num_inference_steps=steps)
    video = wan(PROMPT, 0)
    grid, latents, setting = latent_grid(wan), encode_latents(wan, video), wan.setting
    mask = np.zeros(grid.shape, bool)
    mask[2:6, 4:12, 4:12] = True
    weights = torch.from_numpy(grow_and_soften(mask))[None]

    def plain() -> Any:
        pipeline: Any = wan.pipeline
        return pipeline(
            prompt=[PROMPT], height=setting.height, width=setting.width, num_frames=setting.num_frames,
            num_inference_steps=steps, guidance_scale=setting.guidance_scale, generator=[torch.Generator().manual_seed(0)],
            output_type="latent", max_sequence_length=setting.max_sequence_length,
        )  # fmt: skip

    def masked() -> Any:
        return resample(wan, [PROMPT], latents[None], weights, 1.0, [0])

    def coding() -> Any:
        return decode_frames(wan, latents), decode_frames(wan, encode_latents(wan, video))

    peaks = {work.__name__: peak_mib(work) for work in (plain, masked)}
    print("peak memory beyond the loaded model: " + ", ".join(f"{name} {mib:.0f} MiB" for name, mib in peaks.items()))
    for warm in (plain, masked, coding):
        warm()
    times = [(seconds(plain), seconds(masked), seconds(coding)) for _ in range(repeats)]
    ratios = [b / a for a, b, _ in times]
    a, b, c = (statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"{steps} steps: plain {a * 1000:.0f} ms, masked {b * 1000:.0f} ms, VAE (one encode, two decodes) {c * 1000:.0f} ms"
    )
    print(
        f"ratio masked / plain: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f} over {repeats}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10)
    main(**vars(parser.parse_args()))
