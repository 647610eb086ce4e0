"""What an injected pair of two seconds at 480p costs, and what a thousand would.

    python benchmarks/injection.py [--n 20]

Made footage: textured ground, sensor noise and two things that cross it, 832 × 480 at 30 frames per
second, coded as H.264. Measured: CPU seconds of one process from file to pair, records and features
included, and its peak memory. Reading, scaling and finding objects are most of it.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from cac_align.core.encoding import write_mp4
from cac_align.data.injection.run import SourceFile, inject
from cac_align.data.injection.settings import Injection

HEIGHT, WIDTH, FPS, SECONDS = 480, 832, 30, 6


def footage(seed: int) -> np.ndarray:
    """Frames of two discs that cross a textured ground."""
    rng = np.random.default_rng(seed)
    ground = np.kron(rng.integers(60, 190, (HEIGHT // 8, WIDTH // 8, 3)), np.ones((8, 8, 1))).astype(np.float32)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    frames = np.empty((FPS * SECONDS, HEIGHT, WIDTH, 3), np.uint8)
    colours = rng.integers(0, 256, (2, 3))
    for t in range(len(frames)):
        picture = ground.copy()
        for index, (y, speed) in enumerate(((150, 4.2), (330, -3.4))):
            x = (speed * t + (80 if speed > 0 else 760)) % WIDTH
            disc = (rows - y) ** 2 + (columns - x) ** 2 < 48**2
            picture[disc] = 0.7 * colours[index] + 0.3 * picture[disc][:, ::-1]
        frames[t] = np.clip(picture + rng.normal(0, 2, (HEIGHT, WIDTH, 1)), 0, 255)
    return frames


def main() -> None:
    """Print seconds per pair, the extrapolation to a thousand, and the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for seed in range(4):
            path = Path(folder) / f"{seed}.mp4"
            write_mp4(path, footage(seed), FPS)
            files.append(SourceFile(path, path.name))
        began, clock = time.process_time(), time.perf_counter()
        result = inject(files, Path(folder) / "out", Injection(), n=options.n, seed=0, workers=1)
        cpu, wall = time.process_time() - began, time.perf_counter() - clock
        size = sum(path.stat().st_size for path in (Path(folder) / "out" / "videos").iterdir())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    each = cpu / max(result.pairs, 1)
    print(f"{result.pairs} pairs: {each:.1f} CPU s each ({wall / max(result.pairs, 1):.1f} s by the clock)")
    print(f"1,000 pairs on two cores: {1000 * each / 2 / 60:.0f} min of computing, extrapolated from {result.pairs}")
    print(f"peak memory of the process: {peak:.1f} GiB; {size / result.pairs / 2**20:.1f} MiB of videos per pair")
    print(f"injectors: {result.audit['injectors']}")


if __name__ == "__main__":
    main()
