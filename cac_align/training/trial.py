"""Stage 3's evaluation: the policy as it would be used, greedy and in two turns, on held-out records.

held-out records → cac.two_turn.judge → Judgement → terms → mean reward, accuracy, IoUs

One answer per turn, no retry: an answer that cannot be used is wrong and is counted as malformed.
"""

from __future__ import annotations

import math
from typing import Any

from cac_align.cac.two_turn import TwoTurn, judge
from cac_align.data.records import Record
from cac_align.judgement import Judgement
from cac_align.training.rollout import RolloutRecipe
from cac_align.training.run import Run
from cac_align.training.samples import Sample, Stage
from cac_align.training.terms import Ending, Terms, TermWeights, terms
from cac_align.video import Video
from cac_align.vlm.local import LocalVlm


def trial(
    run: Run, stage: Stage, rollout: RolloutRecipe, weights: TermWeights, max_pixels: int | None, videos: int
) -> dict[str, float]:
    """Figures over at most ``videos`` held-out records, half of each class where there are enough; every process judges its share."""
    records = [stage.records[name] for name in dict.fromkeys(sample.record for sample in stage.held_out)]
    sides = [[record for record in records if record.status == status] for status in ("normal", "abnormal")]
    chosen = [record for side in sides for record in side[: max(1, videos // 2)]]
    rank, world = run.accelerator.process_index, run.accelerator.num_processes
    own, videos_of = [], []
    for record in chosen[rank::world]:
        try:
            videos_of.append(stage.video(record))
            own.append(record)
        except ValueError as error:
            stage.leave_out(Sample(record.id, "scan", ""), str(error))
    data = stage.recipe
    asking = TwoTurn(data.scan_fps, data.look_fps, rollout.context, "hull", data.wording, False, rollout.max_new_tokens, 0)
    run.module.eval()
    vlm = LocalVlm(
        run.model, run.processor, name="policy", batch_size=rollout.prefill_rows, max_pixels=max_pixels, weights_hash="-"
    )
    with run.autocast():
        judgements = judge(vlm, [record.prompt for record in own], videos_of, asking)
    run.module.train()
    rows = [_row(stage, each, record, said, weights) for each, record, said in zip(videos_of, own, judgements, strict=True)]
    if world > 1:
        from accelerate.utils import gather_object

        rows = gather_object(rows)
    return _figures(rows)


def _row(stage: Stage, video: Video, record: Record, said: Judgement, weights: TermWeights) -> dict[str, Any]:
    first = next((turn for turn in said.turns if turn.number == 1), None)
    second = next((turn for turn in said.turns if turn.number == 2), None)
    row: dict[str, Any] = {"truth": record.status, "said": said.status, "malformed": said.error is not None, "terms": None}
    if first is not None:
        ending: Ending = "second turn" if second else "normal" if said.status == "normal" else "window"
        times = tuple(video.times_s[index] for index in video.indices_at(stage.recipe.scan_fps))
        row["terms"] = terms(first, second, ending, record, times, weights)
    return row


def _figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    found: list[Terms] = [row["terms"] for row in rows if row["terms"] is not None]
    broken = [one for one in found if one.temporal is not None]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else math.nan

    return {
        "held_out_reward": mean([one.total for one in found]),
        "held_out_accuracy": mean([float(row["said"] == row["truth"]) for row in rows]),
        "held_out_temporal_iou": mean([one.temporal for one in broken]),
        "held_out_spatial_iou": mean([one.spatial for one in broken]),
        "held_out_malformed": mean([float(row["malformed"]) for row in rows]),
        "held_out_videos": len(rows),
    }
