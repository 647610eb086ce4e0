"""How well the oracle agrees with the world's exact annotations.

python -m cac_align.miniature.oracle.agreement --n 1000
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from cac_align.core.judgement import ANOMALY_TYPES
from cac_align.core.video import Video
from cac_align.miniature.oracle.imaging import blur
from cac_align.miniature.oracle.oracle import judge_clip
from cac_align.miniature.world.settings import STUDIO, TEST_SEEDS, World
from cac_align.miniature.world.world import make_clip


@dataclass(frozen=True)
class Agreement:
    """The oracle's agreement with the annotations of rendered clips."""

    # Number of clips, half of them anomalous.
    n: int
    # Share of clips with the right status.
    accuracy: float
    # Share of anomalous clips whose anomaly type is among those that the oracle names.
    type_accuracy: float
    # Share of normal clips that the oracle calls abnormal.
    false_alarms: float
    # Share of anomalous clips that it finds, by anomaly type.
    recall: dict[str, float]
    # Seeds and descriptions of the anomalous clips that it misses, and of its false alarms.
    missed: tuple[tuple[int, str], ...]
    wrong: tuple[tuple[int, str], ...]
    # Share of clips that are said to follow each part of the prompt; all of them do.
    follows: dict[str, float]


def add_blur_noise_tint(
    pixels: UInt8[np.ndarray, "T H W 3"], seed: int, *, sigma: float = 1.0, noise: float = 4.0, tint: float = 10.0
):
    """A stand-in for a small VAE: blur of ``sigma`` px, noise of ``noise`` grey levels, a tint of
    up to ± ``tint`` levels.
    """
    rng = np.random.default_rng((seed, 77))
    soft = blur(pixels.astype(np.float32), sigma) + rng.normal(0, noise, pixels.shape) + rng.uniform(-tint, tint, 3)
    return np.clip(soft + 0.5, 0, 255).astype(np.uint8)


def measure_agreement(seeds: Iterable[int], world: World = STUDIO, *, blurred: bool = False) -> Agreement:
    """Judge the rendered clips of ``seeds``, every other one anomalous, and compare with their
    annotations.

    Raises ``ValueError`` without seeds.
    """
    counts: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    follows: Counter[str] = Counter()
    right = typed = alarms = normals = 0
    missed, wrong = [], []
    n = 0
    for n, seed in enumerate(seeds, 1):
        clip = make_clip(seed, world, anomalous=bool(n % 2))
        pixels = add_blur_noise_tint(clip.pixels, seed) if blurred else clip.pixels
        verdict = judge_clip(clip.prompt, Video.open(pixels, fps=clip.fps))
        right += verdict.status == clip.status
        for name, held in verdict.follows.items():
            follows[name] += held
            counts[f"follows {name}"] += 1
        if clip.status == "normal":
            normals += 1
            if verdict.status != "normal":
                alarms += 1
                wrong.append((seed, f"{clip.prompt}: {verdict.reason}"))
            continue
        truth = clip.anomalies[0].type
        counts[truth] += 1
        typed += truth in verdict.types
        caught[truth] += verdict.status == "abnormal"
        if verdict.status == "normal":
            missed.append(
                (seed, f"{clip.defects[0].subtype} {clip.defects[0].first}-{clip.defects[0].last}: {clip.prompt}")
            )
    if n == 0:
        raise ValueError("agreement needs at least one seed, received none")
    return Agreement(
        n,
        right / n,
        typed / max(n - normals, 1),
        alarms / max(normals, 1),
        {name: caught[name] / counts[name] for name in ANOMALY_TYPES if counts[name]},
        tuple(missed),
        tuple(wrong),
        {name: held / counts[f"follows {name}"] for name, held in follows.items()},
    )


def main() -> None:
    """Print the agreement on clean and on blurred clips."""
    parser = argparse.ArgumentParser(
        description="Agreement of the oracle with the world's ground truth (TEST seeds by default)."
    )
    parser.add_argument("--n", type=int, default=1000, help="clips, half of them anomalous")
    parser.add_argument("--seed", type=int, default=TEST_SEEDS.start + 1000, help="first seed")
    parser.add_argument("--show", action="store_true", help="list the clips on which it errs")
    options = parser.parse_args()
    for name, blurred in (("clean", False), ("blurred", True)):
        found = measure_agreement(range(options.seed, options.seed + options.n), blurred=blurred)
        recall = ", ".join(f"{kind} {value:.3f}" for kind, value in found.recall.items())
        print(
            f"{name}: n {found.n}  accuracy {found.accuracy:.4f}  type {found.type_accuracy:.3f}  "
            f"false alarms {found.false_alarms:.4f}"
        )
        print(f"  recall: {recall}")
        print("  follows: " + ", ".join(f"{kind} {value:.3f}" for kind, value in found.follows.items()))
        if options.show:
            for seed, words in (*found.missed, *found.wrong):
                print(f"  {seed} {words}")


if __name__ == "__main__":
    main()
