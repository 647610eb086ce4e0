"""Time of opening a ledger of 10,000 rows, of a hit, and of appending a row (goals: open ≤ 1 s, hit ≤ 1 ms).

write rows as large as a real two-turn judgement (about 8 kB) → open → look up random keys → append → medians

Run: python benchmarks/ledger.py [--rows 10000] [--kilobytes 8]
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from cac_align.core.judgement import Anomaly, Box, Judgement, Turn, Window
from cac_align.core.video import Video
from cac_align.rewards.cached import cached
from cac_align.rewards.ledger import Ledger, score_key
from cac_align.rewards.reward import Score


class Constant:
    """Any reward: only its provenance matters here."""

    name = "constant"
    bounds = (0.0, 1.0)

    def __init__(self, judgement: Judgement) -> None:
        self.score = Score(0.25, {"p_normal": 0.25}, judgement, None, self.provenance)

    @property
    def provenance(self) -> dict[str, str]:
        return {
            "reward": "constant",
            "model": "0" * 64,
            "prompt": "1" * 64,
            "frames": "4 fps, then 8 fps in the window",
        }

    def __call__(self, prompts, videos):
        return [self.score for _ in videos]


def judgement(kilobytes: int) -> Judgement:
    boxes = {frame: (Box(100, 100, 300, 400),) for frame in range(20, 40, 2)}
    anomaly = Anomaly("Human Distortion", Window(1.25, 2.5), "the left hand grows a sixth finger", "left hand", boxes)
    text = "The hand opens and closes while the camera pans. " * (kilobytes * 1024 // 2 // 49)
    turns = tuple(Turn(number, text, tuple(range(0, 81, 4)), "abnormal", (anomaly,)) for number in (1, 2))
    return Judgement("abnormal", (anomaly,), turns, -2.0, -0.145)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--kilobytes", type=int, default=8)
    options = parser.parse_args()
    reward = Constant(judgement(options.kilobytes))
    pixels = np.zeros((8, 64, 64, 3), np.uint8)
    video = Video.open(pixels, fps=16)
    prompts = [f"a prompt numbered {number}" for number in range(options.rows)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        start = time.perf_counter()
        cached(reward, Ledger(path))(prompts, [video] * options.rows)
        print(f"write {options.rows} rows, {path.stat().st_size / 2**20:.0f} MiB: {time.perf_counter() - start:.2f} s")

        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            ledger = Ledger(path)
            seconds.append(time.perf_counter() - start)
        print(f"open: median {statistics.median(seconds):.3f} s, worst {max(seconds):.3f} s (goal 1 s)")

        keys = [
            score_key(prompt, video, reward.provenance)
            for prompt in random.Random(0).sample(prompts, min(1000, options.rows))
        ]
        print("find:", *_each([lambda key=key: ledger.find(key) for key in keys]), "(goal 1 ms)")
        wrapped = cached(reward, ledger)
        picked = random.Random(1).sample(prompts, min(1000, options.rows))
        print("wrapped call, hit:", *_each([lambda prompt=prompt: wrapped([prompt], [video]) for prompt in picked]))
        print("wrapped call, miss + append:", *_each([lambda n=n: wrapped([f"new {n}"], [video]) for n in range(200)]))


def _each(calls) -> tuple[str, str]:
    milliseconds = []
    for call in calls:
        start = time.perf_counter()
        assert call() is not None
        milliseconds.append((time.perf_counter() - start) * 1e3)
    ordered = sorted(milliseconds)
    return f"median {statistics.median(ordered):.3f} ms,", f"99th percentile {ordered[int(len(ordered) * 0.99)]:.3f} ms"


if __name__ == "__main__":
    main()
