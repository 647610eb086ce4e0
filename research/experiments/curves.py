"""The picture beside Table 2 in miniature: how often each model's clips break, and how its training
went.

verdicts by model, log.jsonl by model → three panels (anomaly rate with intervals; score; normal-flow speed) →
one SVG
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cac_align.evaluation.statistics import share
from cac_align.runs.metrics_log import read_rows

SMOOTHED = 5
"""Steps averaged for one point of a curve: a step's four prompts differ in how hard they are."""


def draw(anomalous: Mapping[str, Sequence[Sequence[bool]]], logs: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Write the SVG. anomalous: per model and training seed, whether each clip broke. logs: per
    model, the log.jsonl of each seed.

    A bar's interval is Wilson's over all clips of a model (95 %); dots are its seeds. Curves are
    means over ``SMOOTHED`` steps.
    """
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    rates, score, speed = figure.subplots(1, 3)
    colours = {name: f"C{number}" for number, name in enumerate(anomalous)}
    for at, (name, runs) in enumerate(anomalous.items()):
        clips = [clip for run in runs for clip in run]
        found = share(sum(clips), len(clips))
        error = [[found.value - found.low], [found.high - found.value]]
        rates.bar(at, found.value, 0.7, yerr=error, color=colours[name], ecolor="0.3", capsize=3, alpha=0.7)
        rates.plot([at] * len(runs), [np.mean(run) for run in runs], "o", color="0.15", markersize=3)
    rates.set_xticks(range(len(anomalous)), list(anomalous), rotation=20, ha="right")
    rates.set_ylim(bottom=0)
    rates.set_title("anomaly rate (oracle)", loc="left", fontsize=10)
    for axes, key, title in (
        (score, "score", "reward of the sampled videos"),
        (speed, "normal_flow_speed", "normal-flow speed against step 1"),
    ):
        for name, paths in logs.items():
            for number, log in enumerate(paths):
                steps, values = running_means(log, key)
                values = values / values[0] if key == "normal_flow_speed" and len(values) else values
                axes.plot(steps, values, color=colours[name], label=name if number == 0 else None, linewidth=1.5)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step", fontsize=9)
    speed.axhline(0.95, color="0.5", linewidth=0.8, linestyle=":")
    if logs:
        score.legend(frameon=False, fontsize=8)
    for axes in (rates, score, speed):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    with matplotlib.rc_context({"svg.hashsalt": "cac-align"}):  # the same numbers give the same file
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def running_means(log: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (from 1) and running means of a log's numbers; steps without one (skipped, nothing
    scored) are left out.
    """
    found = [(row["step"] + 1, row[key]) for row in read_rows(log) if row.get(key) is not None]
    steps, values = np.array([at for at, _ in found]), np.array([value for _, value in found], float)
    means = [values[max(0, at - SMOOTHED + 1) : at + 1].mean() for at in range(len(values))]
    return steps, np.array(means)
