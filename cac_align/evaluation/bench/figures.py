"""A bench's results as plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cac_align.core.judgement import ANOMALY_TYPES
from cac_align.evaluation.bench.difficulty import SPLIT_TITLES, SPLITS
from cac_align.evaluation.bench.results import Bench
from cac_align.evaluation.bench.tables import number_text
from cac_align.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _plain(name: str) -> str:
    """A judge's name as matplotlib may draw it: no mathematics, no hidden label, one line of at
    most 40 characters.
    """
    name = " ".join(name.split()).replace("$", r"\$").lstrip("_") or "?"
    return name if len(name) <= 40 else name[:39] + "…"


def draw_figures(bench: Bench) -> dict[str, Figure]:
    """Figures by name: ``detection`` (recall of both classes), ``reliability``, ``splits`` (types
    and Hard's groups).

    They are drawn without a display.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    reports = bench.reports

    def bars(axes: Any, groups: Mapping[str, Sequence[Estimate]], labels: Sequence[str]) -> None:
        width = 0.8 / max(1, len(groups))
        for number, (name, found_values) in enumerate(groups.items()):
            for place, one in enumerate(found_values):
                if one.value is None:
                    continue
                at = place + (number - (len(groups) - 1) / 2) * width
                error = None
                if one.low is not None and one.high is not None:
                    error = [[max(0, one.value - one.low)], [max(0, one.high - one.value)]]
                label = name if place == next(i for i, v in enumerate(found_values) if v.value is not None) else None
                axes.bar(
                    at, one.value, width * 0.92, yerr=error, color=f"C{number}", label=label, ecolor="0.3", capsize=2
                )
        axes.set(xticks=range(len(labels)), xlim=(-0.6, len(labels) - 0.4), ylim=(0, 1.02))
        axes.set_axisbelow(True)
        axes.set_xticklabels(labels, rotation=20, ha="right")
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)

    drawn = {}
    figure = drawn["detection"] = Figure(figsize=(max(5, 1.6 + 1.3 * len(reports)), 3.6), layout="constrained")
    axes = figure.subplots()
    kinds = {"anomalous recall": "anomalous.recall", "normal recall": "normal.recall", "accuracy": "accuracy"}
    bars(
        axes,
        {title: [r.metrics[name] for r in reports] for title, name in kinds.items()},
        [_plain(r.judge) for r in reports],
    )
    axes.axhline(0.5, color="0.5", linewidth=0.8, linestyle=":")
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=3, loc="outside upper center")

    figure = drawn["splits"] = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(5, 4))
    bars(left, {_plain(r.judge): [r.per_type[kind].recall for kind in ANOMALY_TYPES] for r in reports}, ANOMALY_TYPES)
    left.set_title("recall by type of anomaly", fontsize=10)
    bars(right, {_plain(r.judge): [r.hard[name] for name in SPLITS] for r in reports}, list(SPLIT_TITLES.values()))
    right.set_title("recall by duration and area", fontsize=10)
    figure.legend(*left.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=6, loc="outside upper center")

    figure = drawn["reliability"] = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
    for number, report in enumerate(reports):
        points = [
            (column.mean_value, column.share_normal)
            for column in report.calibration.bins
            if column.mean_value is not None and column.share_normal is not None
        ]
        if points:
            label = f"{_plain(report.judge)} (ECE {number_text(report.calibration.ece)})"
            axes.plot([x for x, _ in points], [y for _, y in points], "o-", color=f"C{number}", label=label)
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="score (mean of the bin)", ylabel="share of normal videos", aspect="equal"
    )
    if any(report.calibration.bins for report in reports):
        axes.legend(frameon=False, fontsize=8)
    for figure in drawn.values():
        FigureCanvasAgg(figure)
    return drawn
