"""The evaluation of stage 3: the policy as it will be used, greedy and in two turns, on held-out
records.

held-out records → roll_out (greedy, one rollout each) → terms → mean reward, accuracy, IoUs

There is one answer per turn and no retry: an answer that cannot be used is wrong and counts as
malformed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cac_align.training.processes import gather_all
from cac_align.training.rollout import Rollout, RolloutSettings, VideoPrompt, open_video_prompt, roll_out
from cac_align.training.run import TrainingRun
from cac_align.training.samples import Sample, Stage
from cac_align.training.terms import TermWeights


def evaluate(
    run: TrainingRun, stage: Stage, settings: RolloutSettings, weights: TermWeights, *, videos: int, together: int
) -> dict[str, float]:
    """Metrics over at most ``videos`` held-out records, half of each class where there are enough.

    together: videos rolled out at once. Every process judges its share of them.
    """
    records = [stage.records[name] for name in dict.fromkeys(sample.record for sample in stage.held_out)]
    sides = [[record for record in records if record.status == status] for status in ("normal", "abnormal")]
    chosen = [record for side in sides for record in side[: max(1, videos // 2)]]
    rank, world = run.accelerator.process_index, run.accelerator.num_processes
    prompts: list[VideoPrompt] = []
    for slot, record in list(enumerate(chosen))[rank::world]:
        try:
            prompts.append(open_video_prompt(slot, record, stage.video(record), stage.recipe.scan_fps))
        except ValueError as error:
            stage.leave_out(Sample(record.id, "scan", ""), str(error))
    rows: list[dict[str, Any]] = []
    run.module.eval()
    for at in range(0, len(prompts), together):
        with run.autocast():
            rollouts = roll_out(run.model, run.processor, prompts[at : at + together], settings, {}, greedy=True)
        rows += [evaluation_row(rollout, weights) for rollout in rollouts if rollout.error is None]
    run.module.train()
    return metrics(gather_all(run.accelerator, rows))


def evaluation_row(rollout: Rollout, weights: TermWeights) -> dict[str, Any]:
    """Verdict and terms of one held-out video. A rollout without a verdict has None as "predicted",
    which is wrong.
    """
    deciding = rollout.second or rollout.first
    predicted = None if rollout.ending == "window" else deciding.status
    return {
        "truth": rollout.record.status,
        "predicted": predicted,
        "malformed": rollout.malformed,
        "terms": rollout.reward_terms(weights).to_json(),
    }


def metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the rows; IoUs over anomalous videos, where a missed one counts 0."""
    found = [row["terms"] for row in rows]
    abnormal = [one for one in found if one["temporal"] is not None]
    return {
        "held_out_reward": mean([one["total"] for one in found]),
        "held_out_accuracy": mean([float(row["predicted"] == row["truth"]) for row in rows]),
        "held_out_temporal_iou": mean([one["temporal"] for one in abnormal]),
        "held_out_spatial_iou": mean([one["spatial"] for one in abnormal]),
        "held_out_malformed": mean([float(row["malformed"]) for row in rows]),
        "held_out_videos": len(rows),
    }


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
