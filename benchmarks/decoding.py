"""Time of reading 21 of 81 frames (turn 1 of CaC: 4 of 16 fps) of an 832×480 mp4, beside bare decord and PyAV.

generate clip → alternate bare decord get_batch with Video.open + sample(4) → ratio of medians (the project holds it at ≤ 1.2)

Run: python benchmarks/decoding.py [--repeats 15]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np


def write_clip(path: Path, *, count: int = 81, width: int = 832, height: int = 480, fps: int = 16) -> None:
    """A moving pattern as H.264 with B-frames at crf 18, the shape of a Wan2.1 480P clip."""
    import av

    rows, columns = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 256, (height, 2 * width, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, fps)
        for n in range(count):
            pixels = np.stack([(columns + 3 * n) % 256, (2 * rows + 2 * n) % 256, (rows + columns + 5 * n) % 256], -1)
            pixels = pixels.astype(np.uint8)
            pixels[height // 4 : height // 2] = noise[height // 4 : height // 2, 4 * n : 4 * n + width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def compare(ways: dict[str, Callable[[], np.ndarray]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every run, the ways taking turns so that a busy machine slows all of them alike."""
    frames = {
        name: way() for name, way in ways.items()
    }  # warm the page cache and the imports; and check what is compared
    first = next(iter(frames.values()))
    for name, other in frames.items():
        if not np.array_equal(first, other):
            raise ValueError(f"{name} returned other frames than {next(iter(frames))}")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    import decord

    from cac_align.core.decoding import FileFrames, _read_av, read_index
    from cac_align.core.video import Video

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path)
        indices = tuple(range(0, 81, 4))
        stamps = FileFrames(path)
        read_index(stamps, path.name)
        seconds = compare(
            {
                "bare decord": lambda: decord.VideoReader(str(path)).get_batch(list(indices)).asnumpy(),
                "Video.sample(4)": lambda: Video.open(path).sample(4).pixels,
                "PyAV fallback": lambda: _read_av(path, indices, stamps._table.stamps, stamps.limits.max_pixels),
            },
            repeats,
        )
        reader = "decord" if stamps._table.decord_is_right else "PyAV"
        start = time.perf_counter()
        for _ in range(repeats):
            read_index(FileFrames(path), path.name)
        index_s = (time.perf_counter() - start) / repeats
        print(f"21 of 81 frames, 832×480, {path.stat().st_size / 1e6:.2f} MB, {repeats} runs each, read by {reader}")
    for name, runs in seconds.items():
        print(f"{name:16} median {statistics.median(runs) * 1e3:6.1f} ms   min {min(runs) * 1e3:6.1f} ms")
    print(f"{'index alone':16} mean   {index_s * 1e3:6.1f} ms")
    bare, ours = seconds["bare decord"], seconds["Video.sample(4)"]
    ratios = statistics.median(ours) / statistics.median(bare), min(ours) / min(bare)
    print(f"ratio {ratios[0]:.3f} (medians), {ratios[1]:.3f} (minima); limit 1.2")


if __name__ == "__main__":
    main()
