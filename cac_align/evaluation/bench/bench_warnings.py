"""What a reader must know before believing a bench's numbers, one sentence each.

A judge that calls everything abnormal has a recall of 1 on anomalous videos; only the recall of the
normal class shows it. CaC's Table 1 contains such judges.
"""

from __future__ import annotations

from collections.abc import Mapping

from cac_align.evaluation.bench.calibration import Calibration
from cac_align.evaluation.bench.confusion import ConfusionCounts
from cac_align.evaluation.statistics import Estimate, counts_interval

COLLAPSED_RECALL = 0.25
"""Below this recall a class counts as lost. The paper calls .244, .108, .066 and .018 biased, .382
not.
"""

RANKING_AUROC = 0.65
"""From this AUROC on a score is said to rank the videos (our choice)."""


def _bias_warning(name: str, lost: Estimate, other: Estimate, status: str) -> str | None:
    if lost.value is None or other.value is None or lost.value >= COLLAPSED_RECALL or other.value < 0.5:
        return None
    return (
        f"Bias: {name} recall is {lost.value:.3f} while the other class has {other.value:.3f}: this judge calls "
        f"nearly every video {status}, so its high recall there is a habit, not detection."
    )


def _threshold_warning(
    metrics: Mapping[str, Estimate], verdicts_by_threshold: int, calibration: Calibration
) -> str | None:
    """For a score that ranks the videos, but whose threshold misses one class."""
    point, recalls = calibration.operating_point, (metrics["anomalous.recall"].value, metrics["normal.recall"].value)
    if not verdicts_by_threshold or point.threshold is None:
        return None
    if calibration.auroc is None or calibration.auroc < RANKING_AUROC:
        return None
    if all(recall is None or recall >= COLLAPSED_RECALL for recall in recalls):
        return None
    return (
        f"Threshold: {verdicts_by_threshold} of the verdicts compare the judge's score with a threshold that misses "
        f"one "
        f"class, although the score ranks the videos (AUROC {calibration.auroc:.3f}). Choose another: on these videos "
        f"{point.threshold:.4g} calls {point.target_false_alarm_rate:.0%} of the normal ones abnormal."
    )


def bench_warnings(
    metrics: Mapping[str, Estimate],
    counts: ConfusionCounts,
    unscored: Mapping[str, int],
    *,
    hard_unassigned: int,
    verdicts_by_threshold: int,
    calibration: Calibration,
) -> tuple[str, ...]:
    """The warnings of one judge's report.

    unscored: number of unscored videos by the truth's status.
    hard_unassigned: anomalous videos that belong to none of Hard's groups.
    verdicts_by_threshold: verdicts that were decided by comparing the score with a threshold.
    """
    anomalous, normal = metrics["anomalous.recall"], metrics["normal.recall"]
    warnings = [
        _bias_warning("normal", normal, anomalous, "abnormal"),
        _bias_warning("anomalous", anomalous, normal, "normal"),
    ]
    if anomalous.value is not None and normal.value is not None:
        balanced = counts_interval(
            [(counts.true_positives, anomalous.n), (counts.true_negatives, normal.n)],
            lambda tp, tn: (tp / anomalous.n + tn / normal.n) / 2,
        )
        if balanced and balanced[0] <= 0.5 <= balanced[1]:
            warnings.append(
                f"Chance: the mean of the two recalls is {(anomalous.value + normal.value) / 2:.3f} with interval "
                f"[{balanced[0]:.3f}, {balanced[1]:.3f}]; on these videos the judge cannot be told from a coin."
            )
    missing, total = sum(unscored.values()), counts.n + sum(unscored.values())
    if missing:
        warnings.append(
            f"Unscored: {missing} of {total} videos have no score ({unscored['abnormal']} anomalous, "
            f"{unscored['normal']} normal) and are left out of every rate; accuracy_bounds shows what they could "
            f"change."
        )
    if hard_unassigned:
        warnings.append(
            f"Hard: {hard_unassigned} anomalous videos lack windows or boxes in the ground truth and belong to none of "
            "the groups."
        )
    if not counts.anomalous or not counts.normal:
        warnings.append(
            "One class only: precision, F1, AUROC and bias cannot be measured on this set; read the recall."
        )
    warnings.append(_threshold_warning(metrics, verdicts_by_threshold, calibration))
    return tuple(sentence for sentence in warnings if sentence)
