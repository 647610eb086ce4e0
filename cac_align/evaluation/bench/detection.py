"""CaC-Bench on any records: who calls which video abnormal, how sure we can be of it, and where the judge points.

records, scores → Verdict per video → Counts → Report(both classes, per type, Hard's four splits, IoUs, calibration, warnings)

Definitions, where the paper leaves a choice (Sec. 4, Appendices A and D):
- Recall, precision and F1 are computed for each class in turn as "positive"; accuracy over both. F1 = 2 TP / (2 TP + FP + FN).
- A video without a score is *unscored*: counted apart, per class, and never taken for either class.
- Hard's four splits come from the ground truth's own windows and boxes (``localisation.split_of``). Normal videos take no part.
- Per type t, over anomalous videos whose truth carries t: ``recall`` = share called abnormal, ``type_recall`` = share where the
  judge also names t (only where it gives evidence). Table S3's CaC row lies below .91 in all five columns while Table 1 finds 91 %
  of the anomalous videos, so on that set it cannot be the first; the second is the closest reading.
- Intervals: Wilson for shares; bootstrap over videos, within each class, for precision, F1, accuracy and IoUs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cac_align.core.judgement import ANOMALY_TYPES, Judgement, Status
from cac_align.data.records import Record
from cac_align.evaluation.bench.calibration import Calibration, calibrate
from cac_align.evaluation.bench.confusion import Counts, cautions, estimates
from cac_align.evaluation.bench.localisation import SPLITS, averages, localise, split_of
from cac_align.evaluation.statistics import Estimate, share
from cac_align.rewards.reward import Score

# ---- verdicts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What the judge said about one record. ``status`` is None when there is no score, and then ``error`` says why.

    source: "judgement" when the judge's own words decided, "threshold" when its number did.
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


def check_threshold(judge: str, threshold: float | None, bounds: tuple[float, float] | None) -> None:
    """Raise ``ValueError`` for a threshold that is no number or that no value of this judge could lie below or above."""
    if threshold is None:
        return
    low, high = bounds or (-math.inf, math.inf)
    if not (math.isfinite(threshold) and low <= threshold <= high):
        among = "" if bounds is None else f" between {low:g} and {high:g}, where judge {judge!r} has its values"
        raise ValueError(f"threshold must be a finite number{among}; received {threshold}")


def evidence_of(given: Score | Judgement | float | None) -> Judgement | None:
    """The judgement in a judge's answer, where it holds one that reached a verdict."""
    judgement = given if isinstance(given, Judgement) else given.evidence if isinstance(given, Score) else None
    return judgement if judgement is not None and judgement.error is None and judgement.status is not None else None


def verdict(record: Record, given: Score | Judgement | float | None, *, threshold: float | None = None) -> Verdict:
    """What a judge's answer says about a record. None, NaN, a failed Score and a Judgement with an error are all unscored.

    Without ``threshold`` the judgement's own status decides where the value is the judgement's or CaC's (which may be read at a
    temperature, or be the mean of several views, whose verdict CaC's own threshold has decided), else value < 0.5 means abnormal:
    a combination (UR + CaC) hands on CaC's judgement as evidence, but what is judged here is its own number. With ``threshold``
    every video with value < ``threshold`` is abnormal, whatever the judgement said. A judgement with a status but without
    probabilities has a verdict and no value: it takes part in recall and not in calibration.
    """
    if isinstance(given, Score):
        value, error = given.value, given.error
    elif isinstance(given, Judgement):
        value, error = given.reward, given.error or (None if given.status else "the judgement has no status")
    elif given is None:
        value, error = math.nan, "no score stored for this video"
    else:
        value, error = float(given), "the stored score is not finite" if not math.isfinite(given) else None
    said = evidence_of(given)
    from_cac = isinstance(given, Score) and "log_odds" in given.parts  # a combination names them by component
    own = said is not None and (from_cac or math.isnan(said.reward) or abs(said.reward - value) < 1e-6)
    if error is None and threshold is None and own:
        return Verdict(record.id, record.status, said.status, value, "judgement")
    if error is None and math.isnan(value):
        error = f"no probability to compare with the threshold {threshold}"
    if error is not None:
        return Verdict(record.id, record.status, None, math.nan, "none", error)
    cut = 0.5 if threshold is None else threshold
    return Verdict(record.id, record.status, "abnormal" if value < cut else "normal", value, "threshold")


# ---- the report ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TypeRecall:
    """One column of Table S3. ``type_recall`` is None where the judge gave no evidence on any such video."""

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
class Report:
    """How one judge does on one set of records. ``to_json`` has the keys that other tools rely on (DESIGN, section 7)."""

    judge: str
    counts: Counts
    unscored_of: Mapping[str, int]
    metrics: Mapping[str, Estimate]
    per_type: Mapping[str, TypeRecall]
    hard: Mapping[str, Estimate]
    hard_unplaced: int
    localisation: Mapping[str, Estimate]
    localisation_all: Mapping[str, Estimate]
    calibration: Calibration
    warnings: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    provenance: Mapping[str, str]

    @property
    def n(self) -> int:
        """All records, scored or not."""
        return self.counts.n + self.unscored

    @property
    def unscored(self) -> int:
        """How many videos have no score; ``unscored_of`` counts them by the truth's status."""
        return sum(self.unscored_of.values())

    def to_json(self, *, videos: bool = False) -> dict[str, Any]:
        """The report as JSON; ``videos`` adds one row per video. Numbers that nothing defines are null."""
        metrics = self.metrics

        def of_class(name: str) -> dict[str, Any]:
            picked = {part: metrics[f"{name}.{part}"] for part in ("recall", "precision", "f1")}
            return {
                **{part: one.value for part, one in picked.items()},
                "intervals": {part: [one.low, one.high] for part, one in picked.items()},
                "n": self.counts.anomalous if name == "anomalous" else self.counts.normal,
                "unscored": self.unscored_of["abnormal" if name == "anomalous" else "normal"],
            }

        unscored, right = self.unscored, self.counts.hits + self.counts.passes
        row = {
            "judge": self.judge,
            "n": self.n,
            "unscored": unscored,
            "accuracy": metrics["accuracy"].value,
            "accuracy_interval": [metrics["accuracy"].low, metrics["accuracy"].high],
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
                "unplaced": self.hard_unplaced,
            },
            "ece": self.calibration.ece,
            "calibration": self.calibration.to_json(),
            "warnings": list(self.warnings),
            "provenance": dict(self.provenance),
        }
        if videos:
            row["videos"] = [one.to_json() for one in self.verdicts]
        return row


def evaluate(
    records: Sequence[Record],
    scores: Sequence[Score | Judgement | float | None] | Mapping[str, Score | Judgement | float | None],
    *,
    judge: str = "judge",
    threshold: float | None = None,
    false_alarm_rate: float = 0.05,
    resamples: int = 1000,
    seed: int = 0,
    provenance: Mapping[str, str] | None = None,
) -> Report:
    """Judge the judge. ``scores`` align with ``records``, or map record ids to scores (an id that is missing is unscored).

    Raises ``ValueError`` for a threshold that is not finite, no records, an id that stands twice, scores of another length, or a score for an unknown id.
    """
    records = list(records)
    ids = [record.id for record in records]
    check_threshold(judge, threshold, None)
    if not records:
        raise ValueError("evaluate needs at least one record, received none; is the records file empty?")
    if len(set(ids)) != len(ids):
        twice = sorted({name for name in ids if ids.count(name) > 1}) if len(ids) < 5000 else "(many)"
        raise ValueError(
            f"record ids must differ, {twice} stand twice; several raters per video belong to `evaluate experts`"
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

    verdicts = [verdict(record, score, threshold=threshold) for record, score in zip(records, aligned, strict=True)]
    scored = [one for one in verdicts if one.status is not None]
    counts = Counts(
        hits=sum(one.right for one in scored if one.truth == "abnormal"),
        misses=sum(not one.right for one in scored if one.truth == "abnormal"),
        false_alarms=sum(not one.right for one in scored if one.truth == "normal"),
        passes=sum(one.right for one in scored if one.truth == "normal"),
    )
    unscored = {
        name: sum(one.status is None and one.truth == name for one in verdicts) for name in ("abnormal", "normal")
    }
    metrics = estimates(counts, resamples=resamples, seed=seed)

    anomalous = [
        (record, evidence_of(given), one)
        for record, given, one in zip(records, aligned, verdicts, strict=True)
        if record.status == "abnormal" and one.status is not None
    ]
    placed = [(split_of(record), one.right) for record, _, one in anomalous]
    unplaced = sum(split_of(record) is None for record in records if record.status == "abnormal")
    pointed = [(one, localise(record, said)) for record, said, one in anomalous if said is not None]
    valued = [one for one in scored if math.isfinite(one.value)]
    by_number = sum(one.source == "threshold" for one in verdicts)
    found = calibrate([v.value for v in valued], [v.truth for v in valued], false_alarm_rate=false_alarm_rate)
    return Report(
        judge=judge,
        counts=counts,
        unscored_of=unscored,
        metrics=metrics,
        per_type={kind: _type_recall(kind, anomalous) for kind in ANOMALY_TYPES},
        hard={
            name: share(sum(r for s, r in placed if s == name), sum(s == name for s, _ in placed)) for name in SPLITS
        },
        hard_unplaced=unplaced,
        localisation=averages(
            [found for one, found in pointed if one.status == "abnormal"], resamples=resamples, seed=seed
        ),
        localisation_all=averages([found for _, found in pointed], resamples=resamples, seed=seed),
        calibration=found,
        warnings=cautions(metrics, counts, unscored, hard_unplaced=unplaced, by_number=by_number, calibration=found),
        verdicts=tuple(verdicts),
        provenance=dict(provenance or {}),
    )


def _type_recall(kind: str, anomalous: Sequence[tuple[Record, Judgement | None, Verdict]]) -> TypeRecall:
    carrying = [row for row in anomalous if any(anomaly.type == kind for anomaly in row[0].anomalies)]
    explained = [
        one.status == "abnormal" and any(anomaly.type == kind for anomaly in said.anomalies)
        for _, said, one in carrying
        if said is not None
    ]
    return TypeRecall(
        share(sum(one.right for _, _, one in carrying), len(carrying)),
        share(sum(explained), len(explained)),
    )
