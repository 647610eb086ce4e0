"""The report's plots as SVG images that a page embeds: histograms before and after, and one point
per pair.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cac_align.evaluation.report.measure import Measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEFORE, AFTER = "#868e96", "#1864ab"
BETTER, WORSE = "#237032", "#c92a2a"


def distributions(measures: Sequence[Measure], before: str, after: str) -> str | None:
    """One figure with a column per measure: histograms above, pairs below. None without a measure."""
    if not measures:
        return None
    figure = _figure(max(3.4 * len(measures), 3.4), 5.4)
    axes = figure.subplots(2, len(measures), squeeze=False, height_ratios=(1, 1.35))
    for column, measure in enumerate(measures):
        _histogram(axes[0, column], measure, before, after, named=column == 0)
        _scatter(axes[1, column], measure, before, after)
    return _uri(figure)


def _histogram(axis: Axes, measure: Measure, before: str, after: str, *, named: bool) -> None:
    first, second = np.array(measure.values).T
    low, high = min(first.min(), second.min()), max(first.max(), second.max())
    edges = np.linspace(low, high if high > low else low + 1e-6, 13)
    for values, colour, name in ((first, BEFORE, before), (second, AFTER, after)):
        axis.hist(values, bins=edges, color=colour, alpha=0.45, label=_short(name))
        axis.axvline(values.mean(), color=colour, linewidth=2)
    axis.set_title(_short(measure.label), fontsize=11, loc="left", parse_math=False)
    axis.yaxis.get_major_locator().set_params(integer=True)  # pyright: ignore[reportCallIssue]
    if named:
        for text in axis.legend(fontsize=8, frameon=False).get_texts():
            text.set_parse_math(False)
        axis.set_ylabel("videos", fontsize=9)


def _scatter(axis: Axes, measure: Measure, before: str, after: str) -> None:
    first, second = np.array(measure.values).T
    gain = (second - first) * {True: 1, False: -1, None: 0}[measure.higher_is_better]
    colours = np.where(
        gain > 0, BETTER, np.where(gain < 0, WORSE, AFTER if measure.higher_is_better is None else BEFORE)
    )
    low, high = min(first.min(), second.min()), max(first.max(), second.max())
    margin = 0.06 * (high - low) or 0.06
    axis.plot([low - margin, high + margin], [low - margin, high + margin], color="#ced4da", linewidth=1)
    axis.scatter(first, second, c=colours.tolist(), s=22, alpha=0.8, linewidths=0)
    axis.set_xlim(low - margin, high + margin)
    axis.set_ylim(low - margin, high + margin)
    axis.set_xlabel(_short(before), fontsize=9, parse_math=False)
    axis.set_ylabel(_short(after), fontsize=9, parse_math=False)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 28 else flat[:27] + "…"


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    return Figure(figsize=(width, height), layout="constrained")


def _uri(figure: Any) -> str:
    import matplotlib

    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    buffer = io.BytesIO()
    # No date, no creator and no random ids: the same numbers give the same page.
    with matplotlib.rc_context({"svg.hashsalt": "cac-align"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
