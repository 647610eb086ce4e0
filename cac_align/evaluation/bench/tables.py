"""A bench's results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cac_align.core.judgement import ANOMALY_TYPES
from cac_align.evaluation.bench.detection import JudgeReport
from cac_align.evaluation.bench.difficulty import SPLIT_TITLES, SPLITS
from cac_align.evaluation.bench.results import Bench
from cac_align.evaluation.bench.thresholds import FittedThresholds
from cac_align.evaluation.statistics import Estimate


def to_markdown(bench: Bench) -> str:
    """The tables of the paper (1, S3, S4 and Fig. 4's splits) for these judges, then tests and
    warnings in sentences.
    """
    return "\n\n".join(section for section in _sections(bench) if section) + "\n"


def _sections(bench: Bench) -> Iterable[str]:
    reports = bench.reports
    metrics = [f"{name}.{part}" for name in ("anomalous", "normal") for part in ("recall", "precision", "f1")]
    head = [
        "judge",
        "anomalous recall",
        "precision",
        "F1",
        "normal recall",
        "precision",
        "F1",
        "accuracy",
        "videos",
        "unscored",
    ]
    yield "## Detection\n\n" + _table(
        head,
        (
            [r.judge, *(str(r.metrics[name]) for name in metrics), str(r.metrics["accuracy"]), r.n, r.unscored]
            for r in reports
        ),
    )
    yield "## Both classes alike\n\n" + _table(
        ["judge", "protocol", "anomalous recall", "normal recall", "balanced accuracy", "AUROC", "abnormal"],
        (
            [
                r.judge,
                r.protocol or "–",
                str(r.metrics["anomalous.recall"]),
                str(r.metrics["normal.recall"]),
                str(r.metrics["balanced_accuracy"]),
                number_text(r.calibration.auroc),
                _rule(r),
            ]
            for r in reports
        ),
    )
    if any(one.n for r in reports for one in r.hard.values()):
        yield "## Hard: recall by duration and area\n\n" + _table(
            ["judge", *SPLIT_TITLES.values()],
            ([r.judge, *(_with_count(r.hard[name]) for name in SPLITS)] for r in reports),
        )
    yield "## Recall by type (called abnormal / type named)\n\n" + _table(
        ["judge", *ANOMALY_TYPES],
        (
            [
                r.judge,
                *(
                    f"{number_text(one.recall.value)} / {number_text(one.type_recall.value)}"
                    for one in r.per_type.values()
                ),
            ]
            for r in reports
        ),
    )
    yield "## Localisation, over the anomalous videos judged abnormal\n\n" + _table(
        [
            "judge",
            "temporal IoU",
            "spatial IoU",
            "type IoU",
            "temporal IoU, all anomalous",
            "spatial IoU, all anomalous",
        ],
        (
            [
                r.judge,
                *map(str, r.localisation.values()),
                *(str(r.localisation_all[k]) for k in ("temporal", "spatial")),
            ]
            for r in reports
        ),
    )
    cuts = [(r, r.calibration, r.calibration.operating_point) for r in reports]
    yield "## The number behind the verdict\n\n" + _table(
        ["judge", "ECE", "AUROC", "false alarms allowed", "threshold", "recall there"],
        (
            [
                r.judge,
                number_text(c.ece),
                number_text(c.auroc),
                f"{o.target_false_alarm_rate:.0%}",
                number_text(o.threshold, 4),
                str(o.recall or "–"),
            ]
            for r, c, o in cuts
        ),
    )
    if bench.comparisons:
        yield "## Paired comparison (McNemar, exact)\n\n" + _table(
            ["first → second", "videos", "accuracy difference", "only first right", "only second right", "p"],
            (
                [
                    f"{c.first} → {c.second}",
                    c.test.n,
                    number_text(c.test.difference),
                    c.test.only_first,
                    c.test.only_second,
                    "–" if c.test.p_value is None else f"{c.test.p_value:.2g}",
                ]
                for c in bench.comparisons
            ),
        )
    words = [f"{r.judge}: {sentence}" for r in reports for sentence in r.warnings] + list(bench.notes)
    words += [f"{r.judge}: {r.calibration.note}" for r in reports if r.calibration.note]
    if words:
        yield "## Read before believing\n\n" + "\n".join(f"- {_cell(word)}" for word in words)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines: list[Sequence[object]] = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(_cell(str(cell)) for cell in row) + " |" for row in lines)


def _rule(report: JudgeReport) -> str:
    """When a video counts as abnormal, in a few words."""
    if isinstance(report.threshold, FittedThresholds):
        return "below " + " and ".join(number_text(one, 4) for one in report.threshold.thresholds) + " (two halves)"
    if report.threshold is not None:
        return f"below {report.threshold:g}"
    return "below 0.5" if any(one.source == "threshold" for one in report.verdicts) else "its own verdict"


def number_text(value: float | None, digits: int = 3) -> str:
    """A number with ``digits`` decimals, or a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def _with_count(one: Estimate) -> str:
    return "–" if one.value is None else f"{one.value:.3f} (n {one.n})"
