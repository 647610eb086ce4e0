"""What a training run tells of itself besides its clips: curves, alarms and settings.

the run's folder (log.jsonl, eval.jsonl, recipe.json of ``cac-align align``) → ``read_run`` → ``RunRecord``

A number that was not measured is left out of its curve, never drawn as 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cac_align.evaluation.pages.page import COMPONENT_TITLES
from cac_align.runs.metrics_log import read_rows

_WIDTH, _HEIGHT, _MARGIN = 360, 130, 8


@dataclass(frozen=True)
class Curve:
    """One line of a chart. name: "training", "evaluation" or a component. points: (steps done,
    value) in order of steps.
    """

    name: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Chart:
    """Curves over the steps, with one vertical axis. unit: of that axis, in words."""

    title: str
    unit: str
    curves: tuple[Curve, ...]

    @property
    def values(self) -> list[float]:
        return [value for curve in self.curves for _, value in curve.points]

    @property
    def steps(self) -> tuple[int, int]:
        """The first and the last step."""
        found = [step for curve in self.curves for step, _ in curve.points]
        return min(found), max(found)

    def position(self, step: int, value: float) -> tuple[float, float]:
        """Where a point lies in a drawing of ``_WIDTH`` × ``_HEIGHT``."""
        (first, last), low, high = self.steps, min(self.values), max(self.values)
        across = (step - first) / (last - first) if last > first else 0.5
        up = (value - low) / (high - low) if high > low else 0.5
        return _MARGIN + across * (_WIDTH - 2 * _MARGIN), _HEIGHT - _MARGIN - up * (_HEIGHT - 2 * _MARGIN)

    def line(self, curve: Curve) -> str:
        """The curve as the points of an SVG polyline."""
        return " ".join("{:.1f},{:.1f}".format(*self.position(*point)) for point in curve.points)


@dataclass(frozen=True)
class RunRecord:
    """alarms: sentences, in the order in which they were raised. evaluations: how many there were;
    only they raise alarms. settings: (key, value) of the recipe. skipped: steps without an update.
    """

    charts: tuple[Chart, ...]
    alarms: tuple[str, ...]
    evaluations: int
    settings: tuple[tuple[str, str], ...]
    skipped: int


def read_run(folder: Path) -> RunRecord:
    """What the files of the folder tell; files that are not there tell nothing."""
    steps, evaluations = (
        [row for row in read_rows(folder / name) if "step" in row] for name in ("log.jsonl", "eval.jsonl")
    )
    recipe = folder / "recipe.json"
    settings = json.loads(recipe.read_text(encoding="utf-8"))["recipe"] if recipe.is_file() else {}
    return RunRecord(
        charts=tuple(_charts(steps, evaluations)),
        alarms=tuple(sentence for row in evaluations for sentence in row.get("alarms", ())),
        evaluations=len(evaluations),
        settings=tuple(_flat(settings)),
        skipped=sum(bool(row.get("skipped")) for row in steps),
    )


def _charts(steps: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> Iterable[Chart]:
    """The charts that have a value: reward, normal-flow speed, held-out reward, components, missing scores."""
    # A row of the log is about the videos that the weights after ``step`` steps made, as one of the evaluations is.
    components = dict.fromkeys(name for row in steps for name in row.get("components", {}))
    missing = [{"step": row["step"], "share": row["unscored"] / row["videos"]} for row in steps if row.get("videos")]
    wanted = (
        ("Reward", "mean score", [("training", steps, "score"), ("evaluation", evaluations, "total")]),
        (
            "Normal-flow speed",
            "frame heights per second",
            [(name, rows, "normal_flow_speed") for name, rows in (("training", steps), ("evaluation", evaluations))],
        ),
        ("Held-out reward", "mean score, never trained on", [("evaluation", evaluations, "held_out")]),
        *(
            (
                COMPONENT_TITLES.get(name, name),
                "component, mean",
                [("training", [_components(row) for row in steps], name)],
            )
            for name in components
        ),
        ("Without a score", "share of the training videos", [("training", missing, "share")]),
    )
    for title, unit, lines in wanted:
        curves = [Curve(name, _points(rows, key)) for name, rows, key in lines]
        chart = Chart(title, unit, tuple(curve for curve in curves if curve.points))
        if chart.curves and (title != "Without a score" or any(chart.values)):
            yield chart


def _components(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row.get("components", {}), "step": row["step"]}


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[tuple[int, float], ...]:
    return tuple(
        (int(row["step"]), float(row[key]))
        for row in rows
        if isinstance(row.get(key), (int, float)) and math.isfinite(row[key])
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings as they are overridden on the command line: ``eval.every``."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
