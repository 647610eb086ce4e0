"""How good a small judge is on clips it has never seen: one dictionary of figures per world.

weights folder → LocalVlm → CaC (two turns, or as asked) / UnifiedReward on held-out clips →
accuracy, recalls, IoU, AUROC

    python -m research.experiments.judge_figures cac_align/miniature/weights/cac cac 200
    python -m research.experiments.judge_figures cac_align/miniature/weights/cac cac 200 --tta as_is,later    # R is that of the mean log-odds
    python -m research.experiments.judge_figures cac_align/miniature/weights/cac cac 200 --lora runs/align/lora  # what was made to please it
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cac_align.cac.augmentations import AS_IS
from cac_align.cac.judge_settings import read_threshold, read_two_turn
from cac_align.cac.single_turn import SingleTurn
from cac_align.cac.two_turn import TwoTurn
from cac_align.evaluation.bench.difficulty import SHORT_S, SMALL_AREA, duration_s, mean_area
from cac_align.evaluation.bench.localisation import GRID_FPS, Localisation, localisation_ious
from cac_align.miniature.world.settings import FULL, PLAYGROUND, STUDIO, TEST_SEEDS, VALID_SEEDS, World
from cac_align.miniature.world.world import Clip, make_clip
from cac_align.rewards.cac import CaC
from cac_align.rewards.unified import UnifiedReward
from cac_align.vlm.local import LocalVlm, set_threads
from research.training.generated import held_out_clips


def evaluate(
    folder: Path,
    job: str,
    clips: int,
    *,
    first_seed: int | None = None,
    worlds: Sequence[World] = (FULL, STUDIO, PLAYGROUND),
    settings: TwoTurn | SingleTurn | None = None,
    tta: Sequence[str] = (AS_IS,),
    device: str = "cpu",
) -> dict[str, Any]:
    """Held-out figures of the weights in ``folder``: ``clips`` in all, half of them normal, as many
    of each world (VALID_SEEDS).

    cac: accuracy and recalls of turn 1 alone and of both turns, temporal and spatial IoU
    (``evaluation.localisation``) over the anomalous clips that were caught, AUROC of R, how many
    had no verdict, recall by type, by defect (of how many clips turn 1 was shown a broken frame;
    caught in turn 1, in the end) and on sparse defects (all of them together shorter than 1 s and
    on less than 20 % of the frame, as CaC-Bench-Hard measures it). All of these are over the clips
    with a verdict, but for right_of_all: the share of right verdicts among all clips. settings: how
    CaC is asked (None: as its folder says); tta: its test-time augmentations
    (``cac.augmentations``); of several, verdict (by the folder's threshold for them, where it is
    asked as the folder says) and AUROC are those of their mean log-odds, and the rest is that of
    the judgement that agrees with it. unified: mean scores and AUROC.
    """
    first = VALID_SEEDS.start if first_seed is None else first_seed
    vlm = LocalVlm.load(folder, device=device, batch_size=32)
    threshold = read_threshold(folder, tta) if settings is None else 0.0
    settings = settings or read_two_turn(folder)
    found: dict[str, Any] = {}
    for world in worlds:
        shown = [make_clip(first + number, world, anomalous=number % 2 == 1) for number in range(clips // len(worlds))]
        found[world.name] = (
            cac_figures(vlm, shown, settings, tta, threshold) if job == "cac" else _unified_figures(vlm, shown)
        )
    return found


def main(arguments: Sequence[str]) -> int:
    """Figures on ``count`` held-out clips of each world (TEST seeds) and of the small Wan, as JSON
    lines; with a LoRA folder of the small Wan with that LoRA alone, which is where a judge meets
    what was made to please it.
    """
    parser = argparse.ArgumentParser(
        "python -m research.experiments.judge_figures", description="a small judge on held-out clips"
    )
    parser.add_argument("folder", type=Path, help="the judge's weights")
    parser.add_argument("job", choices=("cac", "unified"))
    parser.add_argument("count", type=int, help="clips of each world")
    parser.add_argument(
        "--tta", default=AS_IS, help="test-time augmentations of CaC, with commas between (default: %(default)s)"
    )
    parser.add_argument("--lora", help="only clips of the small Wan with this LoRA folder")
    asked = parser.parse_args(arguments)
    tta = tuple(asked.tta.split(","))
    set_threads(1)
    for world in (PLAYGROUND, STUDIO) if asked.lora is None else ():
        first = TEST_SEEDS.start + 100_000
        found = evaluate(asked.folder, asked.job, asked.count, first_seed=first, worlds=(world,), tta=tta)
        print(json.dumps(found), flush=True)
    vlm = LocalVlm.load(asked.folder, device="cpu", batch_size=32)
    clips = held_out_clips(asked.count, lora=asked.lora)
    if asked.job == "cac":
        told = cac_figures(vlm, clips, read_two_turn(asked.folder), tta, read_threshold(asked.folder, tta))
    else:
        told = _unified_figures(vlm, clips)
    print(json.dumps({"generated": told}))
    return 0


def cac_figures(
    vlm: Any,
    shown: Sequence[Any],
    settings: TwoTurn | SingleTurn,
    tta: Sequence[str] = (AS_IS,),
    threshold: float = 0.0,
) -> dict[str, Any]:
    """The dictionary of ``evaluate`` for one world's clips."""
    reward = CaC(vlm, settings, tta=tuple(tta), threshold=threshold)
    given = reward([clip.prompt for clip in shown], [clip.video() for clip in shown])
    first, final, types, defects = {"normal": [], "abnormal": []}, {"normal": [], "abnormal": []}, {}, {}
    sparse: list[bool] = []
    pointed: list[Localisation] = []
    scores: tuple[list[float], list[float]] = ([], [])
    for clip, score in zip(shown, given, strict=True):
        if not score.scored:
            continue
        judgement = score.evidence
        turn_one = [turn for turn in judgement.turns if turn.number == 1][-1]
        first[clip.status].append(turn_one.status == clip.status)
        final[clip.status].append(judgement.status == clip.status)
        scores[clip.status == "normal"].append(score.parts["log_odds"])  # R orders alike, without rounding to 1
        if clip.status == "abnormal" and clip.anomalies:  # of a generated clip the oracle may have nothing to box
            types.setdefault(clip.anomalies[0].type, []).append(judgement.status == "abnormal")
            if isinstance(clip, Clip):
                shown_broken = not clip.defects[0].frames.isdisjoint(turn_one.frames)
                defects.setdefault(clip.defects[0].subtype, []).append(
                    (shown_broken, first["abnormal"][-1], final["abnormal"][-1])
                )
            if _is_sparse(clip):
                sparse.append(judgement.status == "abnormal")
            if judgement.status == "abnormal":
                video = clip.video()
                grid_s = [video.times_s[index] for index in video.indices_at(GRID_FPS)]
                pointed.append(localisation_ious(clip.anomalies, judgement, grid_s))
    return {
        "clips": len(shown),
        "no_verdict": sum(not score.scored for score in given),
        "faults": sum(bool(turn.faults) for score in given for turn in score.evidence.turns),
        "turn_1_accuracy": _mean(first["normal"] + first["abnormal"]),
        "turn_1_recall_normal": _mean(first["normal"]),
        "turn_1_recall_abnormal": _mean(first["abnormal"]),
        "accuracy": _mean(final["normal"] + final["abnormal"]),
        "recall_normal": _mean(final["normal"]),
        "recall_abnormal": _mean(final["abnormal"]),
        "right_of_all": round(sum(final["normal"] + final["abnormal"]) / len(shown), 4),
        "sparse_clips": len(sparse),
        "recall_sparse": _mean(sparse),
        "temporal_iou": _mean([one.temporal for one in pointed if one.temporal is not None]),
        "spatial_iou": _mean([one.spatial for one in pointed if one.spatial is not None]),
        "auroc": _auroc(*scores),
        "recall_by_type": {name: _mean(hits) for name, hits in sorted(types.items())},
        "recall_by_defect": {
            name: {
                "clips": len(hits),
                "shown": sum(seen for seen, _, _ in hits),
                "turn_1": _mean([hit for _, hit, _ in hits]),
                "both": _mean([hit for _, _, hit in hits]),
            }
            for name, hits in sorted(defects.items())
        },
    }


def _is_sparse(clip: Any) -> bool:
    """Whether the clip's defects are short (< 1 s) and small (< 20 % of the frame)."""
    lasts_s, area = duration_s(clip.anomalies, clip.video().fps), mean_area(clip.anomalies)
    return lasts_s is not None and area is not None and lasts_s < SHORT_S - 1e-6 and area < SMALL_AREA - 1e-9


def _unified_figures(vlm: Any, shown: Sequence[Any]) -> dict[str, Any]:
    scores = UnifiedReward(vlm, max_new_tokens=96)([clip.prompt for clip in shown], [clip.video() for clip in shown])
    rows = [(clip.status, score) for clip, score in zip(shown, scores, strict=True) if score.scored]
    by = {status: [score.value for label, score in rows if label == status] for status in ("normal", "abnormal")}
    swapped = UnifiedReward(vlm, max_new_tokens=96)(
        [clip.prompt for clip in shown[1:] + shown[:1]], [clip.video() for clip in shown]
    )
    return {
        "clips": len(shown),
        "unscored": len(shown) - len(rows),
        "mean_normal": _mean(by["normal"]),
        "mean_abnormal": _mean(by["abnormal"]),
        "alignment": _mean([score.parts["alignment"] for _, score in rows]),
        "alignment_of_another_prompt": _mean([score.parts["alignment"] for score in swapped if score.scored]),
        "auroc": _auroc(by["abnormal"], by["normal"]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def _auroc(low: Sequence[float], high: Sequence[float]) -> float | None:
    """Share of pairs in which the second list's value is the higher one, ties counted half."""
    pairs = [(h > l) + 0.5 * (h == l) for l in low for h in high]
    return _mean(pairs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
