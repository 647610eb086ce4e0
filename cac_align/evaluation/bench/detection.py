"""How well one judge does on one set of records: its verdicts, recalls, localisation and
calibration.

Definitions, where the paper leaves a choice (Sec. 4, Appendices A and D):

- Recall, precision and F1 are computed for each class in turn as the positive class, accuracy
  over both. F1 = 2 TP / (2 TP + FP + FN).
- A video without a score is unscored: it is counted per class, and belongs to neither verdict.
- Hard's four groups follow from the ground truth's windows and boxes (``difficulty.split_of``).
  Normal videos are in none.
- For each type t, over the anomalous videos whose truth has t: ``recall`` is the share called
  abnormal, ``type_recall`` the share where the judge also names t (only where it gives a
  judgement). Table S3's row for CaC lies below .91 in all five columns while Table 1 finds 91 %
  of the anomalous videos, so on that set it cannot be the first; the second is the closest
  reading.
- Intervals: Wilson for shares; for precision, F1 and accuracy those that follow from each class's
  recall by Jeffreys' posterior; bootstrap over videos for IoUs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cac_align.core.judgement import ANOMALY_TYPES, Judgement, Status
from cac_align.data.records import Record
from cac_align.evaluation.bench.bench_warnings import bench_warnings
from cac_align.evaluation.bench.calibration import Calibration, calibrate
from cac_align.evaluation.bench.confusion import ConfusionCounts, confusion_metrics
from cac_align.evaluation.bench.difficulty import SPLITS, split_of
from cac_align.evaluation.bench.localisation import localise, mean_ious
from cac_align.evaluation.bench.thresholds import FIT, FittedThresholds, fit_thresholds, two_halves
from cac_align.evaluation.statistics import Estimate, share
from cac_align.rewards.domain import domain_name, page_notice
from cac_align.rewards.reward import Score

# ---- verdicts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VideoVerdict:
    """A judge's verdict on one record.

    ``status`` is None when there is no verdict, and then ``error`` gives the reason: there is no
    score, or no threshold to compare it with. ``source`` is "judgement" when the judgement's status
    decided, "threshold" when the score did, and "none" without a verdict.
    """

    id: str
    truth: Status
    status: Status | None
    value: float
    source: str
    error: str | None = None

    @property
    def right(self) -> bool:
        return self.status == self.truth

    def to_json(self) -> dict[str, Any]:
        value = None if math.isnan(self.value) else self.value
        return {
            "id": self.id,
            "truth": self.truth,
            "status": self.status,
            "value": value,
            "source": self.source,
            "error": self.error,
        }


def check_threshold(judge: str, threshold: float | str | None, bounds: tuple[float, float] | None) -> None:
    """Raise ``ValueError`` for a threshold that is not finite or lies outside the judge's range of
    values. "fit" is none yet.
    """
    if threshold is None or threshold == FIT:
        return
    if isinstance(threshold, str):
        raise ValueError(f"threshold must be a number or {FIT!r}, received {threshold!r}")
    low, high = bounds or (-math.inf, math.inf)
    if not (math.isfinite(threshold) and low <= threshold <= high):
        among = "" if bounds is None else f" between {low:g} and {high:g}, where judge {judge!r} has its values"
        raise ValueError(f"threshold must be a finite number{among}; received {threshold}")


def evidence_of(given: Score | Judgement | float | None) -> Judgement | None:
    """The judgement in a judge's answer, if it holds one that reached a verdict."""
    judgement = given if isinstance(given, Judgement) else given.evidence if isinstance(given, Score) else None
    return judgement if judgement is not None and judgement.error is None and judgement.status is not None else None


def decide_verdict(
    record: Record, given: Score | Judgement | float | None, *, threshold: float | None = None
) -> VideoVerdict:
    """The verdict that follows from a judge's answer to a record.

    None, NaN, a failed ``Score`` and a ``Judgement`` with an error are unscored.

    Without ``threshold``, the judgement's status decides, also that of a combination (UR + CaC),
    whose judgement is its CaC component's: the mean of several rewards ranks videos and has no
    threshold of its own. Only where there is no judgement, value < 0.5 means abnormal.

    With ``threshold``, every video whose value lies below it is abnormal, whatever the judgement
    says.

    A judgement with a status but without probabilities gives a verdict and no value: it counts for
    recall and not for calibration.
    """
    if isinstance(given, Score):
        value, error = given.value, given.error
    elif isinstance(given, Judgement):
        value, error = given.reward, given.error or (None if given.status else "the judgement has no status")
    elif given is None:
        value, error = math.nan, "no score stored for this video"
    else:
        value, error = float(given), "the stored score is not finite" if not math.isfinite(given) else None
    judgement = evidence_of(given)
    if error is None and threshold is None and judgement is not None:
        return VideoVerdict(record.id, record.status, judgement.status, value, "judgement")
    if error is None and math.isnan(value):
        error = f"no probability to compare with the threshold {threshold}"
    if error is not None:
        return VideoVerdict(record.id, record.status, None, math.nan, "none", error)
    status = "abnormal" if value < (0.5 if threshold is None else threshold) else "normal"
    return VideoVerdict(record.id, record.status, status, value, "threshold")


# ---- the report ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TypeRecall:
    """One column of Table S3. ``type_recall`` is None where the judge gave no judgement on such
    videos.
    """

    recall: Estimate
    type_recall: Estimate

    def to_json(self) -> dict[str, Any]:
        return {
            "n": self.recall.n,
            "recall": self.recall.value,
            "interval": [self.recall.low, self.recall.high],
            "type_recall": self.type_recall.value,
            "type_interval": [self.type_recall.low, self.type_recall.high],
        }


@dataclass(frozen=True)
class JudgeReport:
    """How one judge does on one set of records. ``to_json`` has the keys that other tools rely on."""

    judge: str
    counts: ConfusionCounts
    unscored_of: Mapping[str, int]
    metrics: Mapping[str, Estimate]
    per_type: Mapping[str, TypeRecall]
    hard: Mapping[str, Estimate]
    hard_unassigned: int
    localisation: Mapping[str, Estimate]
    localisation_all: Mapping[str, Estimate]
    calibration: Calibration
    warnings: tuple[str, ...]
    verdicts: tuple[VideoVerdict, ...]
    provenance: Mapping[str, str]
    # Below which value a video counts as abnormal: one, or one per half; None for the judge's own verdict.
    threshold: float | FittedThresholds | None = None
    # Which of the paper's two protocols the judge was asked under (``bench.protocols``); "" where nobody chose one.
    protocol: str = ""

    @property
    def n(self) -> int:
        """The number of all records, scored or not."""
        return self.counts.n + self.unscored

    @property
    def unscored(self) -> int:
        """The number of videos without a score; ``unscored_of`` counts them by the truth's status."""
        return sum(self.unscored_of.values())

    def to_json(self, *, videos: bool = False) -> dict[str, Any]:
        """The report as JSON; ``videos`` adds one row per video. Undefined numbers are null."""
        metrics = self.metrics

        def of_class(name: str) -> dict[str, Any]:
            picked = {part: metrics[f"{name}.{part}"] for part in ("recall", "precision", "f1")}
            return {
                **{part: one.value for part, one in picked.items()},
                "intervals": {part: [one.low, one.high] for part, one in picked.items()},
                "n": self.counts.anomalous if name == "anomalous" else self.counts.normal,
                "unscored": self.unscored_of["abnormal" if name == "anomalous" else "normal"],
            }

        unscored, right = self.unscored, self.counts.true_positives + self.counts.true_negatives
        row = {
            "judge": self.judge,
            "n": self.n,
            "unscored": unscored,
            "accuracy": metrics["accuracy"].value,
            "accuracy_interval": [metrics["accuracy"].low, metrics["accuracy"].high],
            "balanced_accuracy": metrics["balanced_accuracy"].value,
            "balanced_accuracy_interval": [metrics["balanced_accuracy"].low, metrics["balanced_accuracy"].high],
            "accuracy_bounds": [right / self.n, (right + unscored) / self.n] if self.n else [None, None],
            "anomalous": of_class("anomalous"),
            "normal": of_class("normal"),
            "per_type": {kind: one.to_json() for kind, one in self.per_type.items()},
            "temporal_iou": self.localisation["temporal"].value,
            "spatial_iou": self.localisation["spatial"].value,
            "localisation": {
                "detected": {name: one.to_json() for name, one in self.localisation.items()},
                "all_anomalous": {name: one.to_json() for name, one in self.localisation_all.items()},
            },
            "hard": {
                **{
                    name: {"n": one.n, "recall": one.value, "interval": [one.low, one.high]}
                    for name, one in self.hard.items()
                },
                "unassigned": self.hard_unassigned,
            },
            "ece": self.calibration.ece,
            "auroc": self.calibration.auroc,
            "threshold": self.threshold.to_json() if isinstance(self.threshold, FittedThresholds) else self.threshold,
            "protocol": self.protocol or None,
            "calibration": self.calibration.to_json(),
            "warnings": list(self.warnings),
            "domain": domain_name(self.provenance),
            "provenance": dict(self.provenance),
        }
        if videos:
            row["videos"] = [one.to_json() for one in self.verdicts]
        return row


def evaluate_judge(
    records: Sequence[Record],
    scores: Sequence[Score | Judgement | float | None] | Mapping[str, Score | Judgement | float | None],
    *,
    judge: str = "judge",
    threshold: float | str | None = None,
    groups: Sequence[str] | None = None,
    protocol: str = "",
    false_alarm_rate: float = 0.05,
    resamples: int = 1000,
    seed: int = 0,
    provenance: Mapping[str, str] | None = None,
) -> JudgeReport:
    """Evaluate one judge's answers on annotated records.

    scores: aligned with ``records``, or by record id (a missing id is an unscored video).
    threshold: see ``decide_verdict``; "fit" fits it on the half of the videos that it is not used on
        (``bench.thresholds``).
    groups: for "fit", a text per record that is equal where the videos are equal
        (``thresholds.file_groups``); None takes the path of each record's video.
    protocol: kept in the report.
    false_alarm_rate: the share of normal videos that the report's operating point may call
        abnormal.

    Raises ``ValueError`` for a threshold that is not finite, no records, an id that occurs twice,
    another number of scores than records, or a score for an unknown id.
    """
    records = list(records)
    ids = [record.id for record in records]
    check_threshold(judge, threshold, None)
    if not records:
        raise ValueError("evaluate needs at least one record, received none; is the records file empty?")
    if len(set(ids)) != len(ids):
        twice = sorted({name for name in ids if ids.count(name) > 1}) if len(ids) < 5000 else "(many)"
        raise ValueError(
            f"record ids must differ, {twice} occur more than once; several raters per video belong to `evaluate "
            f"experts`"
        )
    if isinstance(scores, Mapping):
        unknown = sorted(set(scores) - set(ids))
        if unknown:
            raise ValueError(
                f"{len(unknown)} scores belong to no record, first {unknown[0]!r}; score the same records file"
            )
        aligned = [scores.get(name) for name in ids]
    else:
        if len(scores) != len(records):
            raise ValueError(f"expected one score per record, received {len(scores)} scores and {len(records)} records")
        aligned = list(scores)

    fitted = None
    if threshold == FIT:
        halves = two_halves(groups or [record.video for record in records], [record.status for record in records])
        fitted = fit_thresholds([_value_of(given) for given in aligned], [record.status for record in records], halves)
        verdicts = [_fitted_verdict(*row, fitted) for row in zip(records, aligned, halves, strict=True)]
    else:
        fixed = None if threshold is None else float(threshold)
        verdicts = [
            decide_verdict(record, score, threshold=fixed) for record, score in zip(records, aligned, strict=True)
        ]
    scored = [one for one in verdicts if one.status is not None]
    counts = ConfusionCounts(
        true_positives=sum(one.right for one in scored if one.truth == "abnormal"),
        false_negatives=sum(not one.right for one in scored if one.truth == "abnormal"),
        false_positives=sum(not one.right for one in scored if one.truth == "normal"),
        true_negatives=sum(one.right for one in scored if one.truth == "normal"),
    )
    unscored = {
        name: sum(one.status is None and one.truth == name for one in verdicts) for name in ("abnormal", "normal")
    }
    metrics = confusion_metrics(counts, resamples=resamples, seed=seed)

    anomalous = [
        (record, evidence_of(given), one)
        for record, given, one in zip(records, aligned, verdicts, strict=True)
        if record.status == "abnormal" and one.status is not None
    ]
    grouped = [(split_of(record), one.right) for record, _, one in anomalous]
    unassigned = sum(split_of(record) is None for record in records if record.status == "abnormal")
    located = [(one, localise(record, judgement)) for record, judgement, one in anomalous if judgement is not None]
    with_value = [one for one in verdicts if math.isfinite(one.value)]
    by_threshold = sum(one.source == "threshold" for one in verdicts)
    calibration = calibrate(
        [one.value for one in with_value], [one.truth for one in with_value], false_alarm_rate=false_alarm_rate
    )
    return JudgeReport(
        judge=judge,
        counts=counts,
        unscored_of=unscored,
        metrics=metrics,
        per_type={kind: _type_recall(kind, anomalous) for kind in ANOMALY_TYPES},
        hard={
            name: share(sum(r for s, r in grouped if s == name), sum(s == name for s, _ in grouped)) for name in SPLITS
        },
        hard_unassigned=unassigned,
        localisation=mean_ious(
            [found for one, found in located if one.status == "abnormal"], resamples=resamples, seed=seed
        ),
        localisation_all=mean_ious([found for _, found in located], resamples=resamples, seed=seed),
        calibration=calibration,
        warnings=tuple(filter(None, [page_notice(provenance or {})]))
        + bench_warnings(
            metrics,
            counts,
            unscored,
            hard_unassigned=unassigned,
            verdicts_by_threshold=by_threshold,
            calibration=calibration,
        ),
        verdicts=tuple(verdicts),
        provenance=dict(provenance or {}),
        threshold=fitted or (None if threshold is None else float(threshold)),
        protocol=protocol,
    )


def _value_of(given: Score | Judgement | float | None) -> float:
    """The number in a judge's answer; NaN where there is none."""
    if isinstance(given, Score):
        return given.value
    if isinstance(given, Judgement):
        return math.nan if given.error is not None else given.reward
    return math.nan if given is None or not math.isfinite(given) else float(given)


def _fitted_verdict(
    record: Record, given: Score | Judgement | float | None, half: int, fitted: FittedThresholds
) -> VideoVerdict:
    """The verdict by the threshold of this half; without one there is a value and no verdict."""
    threshold, value = fitted.thresholds[half], _value_of(given)
    if threshold is None and math.isfinite(value):
        error = f"no threshold could be fitted: {fitted.faults[half]}; give one with --threshold"
        return VideoVerdict(record.id, record.status, None, value, "none", error)
    return decide_verdict(record, given, threshold=0.0 if threshold is None else threshold)


def needs_fit(scores: Sequence[Score | Judgement | float | None], bounds: tuple[float, float] | None) -> bool:
    """Whether a judge gives numbers that no threshold of its own belongs to.

    That is one without any verdict whose values do not lie on [0, 1], where one half is the border. bounds: what the
    judge declares; where it declares none, its values tell.
    """
    if any(evidence_of(given) is not None for given in scores):
        return False
    if bounds is not None:
        return tuple(bounds) != (0.0, 1.0)
    values = [value for value in map(_value_of, scores) if math.isfinite(value)]
    return not all(0 <= value <= 1 for value in values)


def _type_recall(kind: str, anomalous: Sequence[tuple[Record, Judgement | None, VideoVerdict]]) -> TypeRecall:
    carrying = [row for row in anomalous if any(anomaly.type == kind for anomaly in row[0].anomalies)]
    explained = [
        one.status == "abnormal" and any(anomaly.type == kind for anomaly in judgement.anomalies)
        for _, judgement, one in carrying
        if judgement is not None
    ]
    return TypeRecall(
        share(sum(one.right for _, _, one in carrying), len(carrying)),
        share(sum(explained), len(explained)),
    )
