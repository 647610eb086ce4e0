"""Does the shipped judge tell a sham from the clip that nothing was done to? It must not.

    python -m research.experiments.injection_shams --pairs 80

clean playground clip → injected pair → the judge's log-odds of the untouched clip, the sham and the
anomalous twin → AUROC of each against the untouched clips
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from cac_align.core.video import Video
from cac_align.data.injection.pairs import make_pair
from cac_align.data.injection.registry import usable_injectors
from cac_align.data.injection.settings import Injection
from cac_align.data.injection.sources.clips import UnusableSource, prepared_clip
from cac_align.miniature.world.settings import PLAYGROUND, TEST_SEEDS
from cac_align.miniature.world.world import make_clip
from cac_align.rewards.cac import CaC
from cac_align.vlm.local import set_threads

SMALL = Injection(seconds=1.0, min_seconds=1.0, short_side=64, judge_short_side=64)


def auroc(high: np.ndarray, low: np.ndarray) -> float:
    """The probability that a value of ``high`` lies above one of ``low``; ties count half."""
    return float((high[:, None] > low[None]).mean() + 0.5 * (high[:, None] == low[None]).mean())


def main() -> None:
    """Print both AUROCs with bootstrap intervals over clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=80)
    parser.add_argument("--first", type=int, default=TEST_SEEDS[600_000])
    options = parser.parse_args()
    set_threads(1)
    injectors, _ = usable_injectors(["core"], [])
    prompts: list[str] = []
    shown: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    seed, fps = options.first, PLAYGROUND.fps
    while len(shown) < options.pairs:
        clip = make_clip(seed, PLAYGROUND, anomalous=False)
        seed += 1
        try:
            source = prepared_clip(clip.pixels, clip.fps)
        except UnusableSource:
            continue
        pair, _ = make_pair(source, injectors, np.random.default_rng(seed), SMALL)
        if pair is not None:
            prompts.append(clip.prompt)
            shown.append((source.pixels, pair.edit.sham, pair.edit.anomalous))
    judge = replace(CaC.miniature(), threshold=0.0)
    odds = []
    for one in range(3):
        scores = judge(prompts, [Video.open(clips[one], fps=fps, layout="THWC") for clips in shown])
        odds.append(np.array([score.parts["log_odds"] if score.scored else np.nan for score in scores]))
    scored = np.isfinite(odds).all(0)
    untouched, sham, anomalous = (values[scored] for values in odds)
    print(f"{scored.sum()} of {options.pairs} pairs with all three scores, from {seed - options.first} clips")
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(sham), size=len(sham)) for _ in range(1000)]
    for name, values in (("sham", sham), ("anomalous", anomalous)):
        spread = np.quantile([auroc(untouched[draw], values[draw]) for draw in draws], (0.025, 0.975))
        print(f"untouched above {name}: AUROC {auroc(untouched, values):.3f} [{spread[0]:.3f}, {spread[1]:.3f}]")


if __name__ == "__main__":
    main()
