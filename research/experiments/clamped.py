"""How good first-frame clamping is on the small Wan: clips that go on from the last frame of a clip, by the oracle.

python -m research.experiments.clamped [--prompts 24]: the share of normal continuations beside that of free clips of the same
prompts and seeds, and how much changes at the seam: mean |difference| between the given frame and the next one, in grey
levels, beside that between neighbouring frames within clips and that to the first frame of a free clip.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from cac_align.core.weights import shipped
from cac_align.evaluation.statistics import share
from cac_align.generation.stepwise.continuation import ClampedContinuation
from cac_align.generation.wan import Wan
from cac_align.miniature.oracle.oracle import judge_clip
from cac_align.miniature.world.settings import TEST_SEEDS
from cac_align.miniature.world.world import make_prompts
from research.training.generated import HELD_OUT

FIRST_PROMPT, FIRST_SEED = TEST_SEEDS[500_000], HELD_OUT[980_000]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=24)
    count = parser.parse_args(arguments).prompts
    torch.set_num_threads(1)
    wan = Wan.load(shipped("wan"), device="cpu")
    clamped = ClampedContinuation(wan)
    # Things that rest or bounce can go on where they are; one that rolls leaves the frame.
    found = [p for p in make_prompts(range(FIRST_PROMPT, FIRST_PROMPT + 20 * count)) if "rests" in p or "bounces" in p]
    prompts = found[:count]
    free = wan.batch(prompts, [FIRST_SEED + n for n in range(count)])
    others = wan.batch(prompts, [FIRST_SEED + 1000 + n for n in range(count)])
    normal: dict[str, list[bool]] = {"free": [], "clamped": []}
    seams: dict[str, list[float]] = {"within free clips": [], "at the seam": [], "to a free clip": []}
    for number, (prompt, first, other) in enumerate(zip(prompts, free, others, strict=True)):
        pixels = first.frames(range(len(first))).pixels.astype(float)
        normal["free"].append(judge_clip(prompt, other).status == "normal")
        if judge_clip(prompt, first).status != "normal":
            continue
        last = pixels[-1].astype(np.uint8)
        following = clamped(prompt, last, len(first), FIRST_SEED + 1000 + number)
        normal["clamped"].append(judge_clip(prompt, following).status == "normal")
        after = following.frames((0, 1)).pixels.astype(float)
        seams["within free clips"].append(float(np.abs(np.diff(pixels, axis=0)).mean()))
        seams["at the seam"].append(float(np.abs(after[1] - after[0]).mean()))
        seams["to a free clip"].append(float(np.abs(other.frames((0,)).pixels[0] - pixels[-1]).mean()))
    for name, flags in normal.items():
        print(f"{name}: normal {share(sum(flags), len(flags))} of {len(flags)}")
    for name, values in seams.items():
        print(f"{name}: {np.mean(values):.2f} ± {np.std(values):.2f} grey levels")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
