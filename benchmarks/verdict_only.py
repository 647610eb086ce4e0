"""How far the verdict alone agrees with the full two-turn judgement, on the same held-out clips by the same judge.

python benchmarks/verdict_only.py [--model FOLDER] [--clips 64] [--tokens 640]

Per form ("readout", "json"): share of equal verdicts, mean |ΔR|, rank correlation of R, area under the ROC curve of R for normal
against broken clips beside that of the full mode, and CPU seconds per clip. Without --model the judge that ships with the package.
"""

from __future__ import annotations

import argparse
import math
import time

from cac_align.cac import two_turn
from cac_align.cac.two_turn import TwoTurn
from cac_align.cac.verdict_only import VerdictOnly
from cac_align.core.judgement import Judgement
from cac_align.core.weights import shipped
from cac_align.miniature.world.settings import PLAYGROUND, VALID_SEEDS
from cac_align.miniature.world.world import make_clip
from cac_align.rewards.cac import CaC
from cac_align.vlm.local import LocalVlm, set_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=640)
    options = parser.parse_args()
    set_threads(1)
    vlm = LocalVlm.load(options.model or str(shipped("cac")), device="cpu", batch_size=16)
    clips = [
        make_clip(VALID_SEEDS.start + number, PLAYGROUND, anomalous=number % 2 == 1) for number in range(options.clips)
    ]
    prompts, videos = [clip.prompt for clip in clips], [clip.video() for clip in clips]
    truth = [clip.status for clip in clips]
    start = time.process_time()
    full = two_turn.judge(vlm, prompts, videos, TwoTurn(wording="brief", max_new_tokens=options.tokens))
    spent_s = time.process_time() - start
    print(f"{options.clips} clips, {sum(one.error is not None for one in full)} without a verdict in the full mode")
    print(f"{'full':8s} AUROC {auroc(full, truth):.3f}   {spent_s / len(clips):.3f} CPU s/clip")
    for form in ("readout", "json"):
        start = time.process_time()
        short = CaC(vlm, VerdictOnly(form=form, wording="brief")).judge(prompts, videos)
        short_s = time.process_time() - start
        both = [(a, b) for a, b in zip(full, short, strict=True) if a.error is None and b.error is None]
        if not both:
            print(f"{form:8s} no clip has a verdict in both modes")
            continue
        same = sum(a.status == b.status for a, b in both) / len(both)
        apart = sum(abs(a.reward - b.reward) for a, b in both) / len(both)
        ranks = correlation(*(ranked([pair[side].log_odds for pair in both]) for side in (0, 1)))
        print(
            f"{form:8s} AUROC {auroc(short, truth):.3f}   {short_s / len(clips):.3f} CPU s/clip ({spent_s / short_s:.1f}x faster)   "
            f"same verdict {same:.3f}, mean |dR| {apart:.3f}, rank correlation {ranks:.3f}, n {len(both)}"
        )


def auroc(judgements: list[Judgement], truth: list[str]) -> float:
    """Share of (normal, broken) pairs in which the normal clip has the higher odds, ties counted half."""
    by = {
        status: [j.log_odds for j, t in zip(judgements, truth, strict=True) if t == status and j.error is None]
        for status in set(truth)
    }
    pairs = [(high > low) + 0.5 * (high == low) for high in by["normal"] for low in by["abnormal"]]
    return sum(pairs) / len(pairs) if pairs else math.nan


def ranked(values: list[float]) -> list[float]:
    """Average ranks."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2 for value in values
    ]


def correlation(first: list[float], second: list[float]) -> float:
    n = len(first)
    a, b = ([value - sum(values) / n for value in values] for values in (first, second))
    norm = math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else math.nan


if __name__ == "__main__":
    main()
