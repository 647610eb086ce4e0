"""The figures by which weights are let in or refused: of the judge and of the small Wan, each with its 95 % interval.

judge + playground clips → accuracy, AUROC, temporal and spatial IoU; judge + clips of the small Wan (oracle's truth) →
AUROC, agreement with the oracle; the small Wan + prompts that no alignment trains on → anomaly rate, prompt following

    python -m research.build.figures cac_align/miniature/weights/cac cac_align/miniature/weights/wan [SHARE]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cac_align.evaluation.bench.calibration import auroc
from cac_align.evaluation.bench.localisation import GRID_FPS, localisation_ious
from cac_align.evaluation.statistics import NO_ESTIMATE, Estimate, mean_interval, prompt_interval, share
from cac_align.generation.wan import Wan
from cac_align.miniature.oracle.oracle import judge_clip
from cac_align.miniature.world.settings import PLAYGROUND
from cac_align.miniature.world.world import make_clip
from cac_align.rewards.cac import CaC
from cac_align.rewards.reward import Score
from cac_align.vlm.local import set_threads
from research.experiments.table2 import BATCH, FIRST_SEED, prompts_judged
from research.training.generated import held_out_clips

RESAMPLES = 1000


@dataclass(frozen=True)
class Measured:
    """On which clips the figures are measured."""

    # Rendered playground clips, half of them anomalous, and the first of their seeds.
    playground_clips: int = 1000
    first_seed: int = 2_700_000
    # Clips of the small Wan, and the first of their noise seeds (held out from all lessons).
    generated_clips: int = 320
    first_noise: int = 90_000_400
    # How the judge looks.
    looks: tuple[str, ...] = ("as_is", "later_1_16", "later", "later_3_16")


def judge_figures(judge: Path, wan: Path, asked: Measured) -> dict[str, Estimate]:
    """The figures of a judge's folder, on rendered clips and on clips of a small Wan's folder."""
    set_threads(1)
    cac = CaC.load(str(judge), tta=asked.looks, batch_size=32, allow_out_of_domain=True)
    seeds = range(asked.first_seed, asked.first_seed + asked.playground_clips)
    rendered = [make_clip(seed, PLAYGROUND, anomalous=bool(seed % 2)) for seed in seeds]
    scores = cac([clip.prompt for clip in rendered], [clip.video() for clip in rendered])
    found = {"accuracy": right_share(rendered, scores), "auroc": auroc_interval(rendered, scores)}
    found |= ious(rendered, scores)
    drawn = held_out_clips(asked.generated_clips, model=str(wan), first=asked.first_noise)
    scores = cac([clip.prompt for clip in drawn], [clip.video() for clip in drawn])
    return found | {"auroc_generated": auroc_interval(drawn, scores), "oracle_agreement": right_share(drawn, scores)}


def as_json(figures: Mapping[str, Estimate]) -> dict[str, dict[str, Any]]:
    """{name: {value, low, high, n}}; value is None where nothing could be measured."""
    return {name: figure.to_json() for name, figure in figures.items()}


def right_share(clips: Sequence[Any], scores: Sequence[Score]) -> Estimate:
    """The share of right verdicts among all clips; a clip without a verdict is not right."""
    pairs = zip(clips, scores, strict=True)
    right = sum(
        score.scored and score.evidence is not None and score.evidence.status == clip.status for clip, score in pairs
    )
    return share(right, len(clips))


def auroc_interval(clips: Sequence[Any], scores: Sequence[Score]) -> Estimate:
    """AUROC of the log-odds over the clips with a verdict, and its bootstrap interval over the clips of each class."""
    rows = [(score.parts["log_odds"], clip.status) for clip, score in zip(clips, scores, strict=True) if score.scored]
    kinds = [np.array([value for value, status in rows if status == kind]) for kind in ("normal", "abnormal")]
    value = auroc(np.concatenate(kinds), np.repeat([True, False], [len(kind) for kind in kinds]))
    if value is None:
        return NO_ESTIMATE
    rng = np.random.default_rng(0)
    labels = np.repeat([True, False], [len(kind) for kind in kinds])
    drawn = [
        auroc(np.concatenate([rng.choice(kind, len(kind)) for kind in kinds]), labels) or 0.0 for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high), len(rows))


def ious(clips: Sequence[Any], scores: Sequence[Score]) -> dict[str, Estimate]:
    """Mean temporal and spatial IoU over the anomalous clips that were caught."""
    pointed = []
    for clip, score in zip(clips, scores, strict=True):
        judgement = score.evidence
        if score.scored and judgement is not None and clip.status == judgement.status == "abnormal":
            video = clip.video()
            grid_s = [video.times_s[index] for index in video.indices_at(GRID_FPS)]
            pointed.append(localisation_ious(clip.anomalies, judgement, grid_s))
    return {
        f"{name}_iou": mean_interval([value for one in pointed if (value := getattr(one, name)) is not None])
        for name in ("temporal", "spatial")
    }


def wan_figures(folder: Path, part: float = 1.0) -> dict[str, Estimate]:
    """Anomaly rate and prompt following by the oracle, on this part of the 228 clips of 76 unseen prompts; intervals
    over prompts, whose clips go together.
    """
    prompts = prompts_judged()
    prompts = prompts[: max(2, round(len(prompts) * part))]
    wan, broken, follows = Wan.load(folder, device="cpu"), dict[str, list[bool]](), dict[str, list[bool]]()
    for first in range(0, len(prompts), BATCH):
        asked = prompts[first : first + BATCH]
        videos = wan.batch(asked, range(FIRST_SEED + first, FIRST_SEED + first + len(asked)))
        for prompt, video in zip(asked, videos, strict=True):
            verdict = judge_clip(prompt, video)
            broken.setdefault(prompt, []).append(verdict.status == "abnormal")
            follows.setdefault(prompt, []).append(all(verdict.follows.values()))
    return {
        name: prompt_interval([float(np.mean(held)) for held in by_prompt.values()])
        for name, by_prompt in (("base_anomaly_rate", broken), ("prompt_following", follows))
    }


def main(arguments: Sequence[str]) -> int:
    """``figures JUDGE WAN [SHARE]``: the figures of these folders as JSON, on this share of the clips."""
    if len(arguments) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    part = float(arguments[2]) if len(arguments) == 3 else 1.0
    full = Measured()
    asked = Measured(round(full.playground_clips * part), generated_clips=round(full.generated_clips * part))
    judge, wan = map(Path, arguments[:2])
    found = judge_figures(judge, wan, asked) | wan_figures(wan, part)
    print(json.dumps(as_json(found), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
