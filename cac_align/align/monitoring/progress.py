"""How a step of an alignment went: numbers for the log, and one line for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def mean_metrics(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every metric over the rows that have it; of ``max_ratio_error`` the largest."""
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: [row[name] for row in rows if name in row] for name in names}
    return {
        name: max(values) if name == "max_ratio_error" else math.fsum(values) / len(values)
        for name, values in found.items()
    }


def step_seconds(step_s: float, seconds: Mapping[str, float], reward_s: float, wait_s: float) -> dict[str, float]:
    """Where the seconds of a step went.

    seconds: by name, as ``rollout.Stopwatch`` measured them. reward_s: how long the reward worked.
    wait_s: how long the loop waited for scores. In the result, ``overlapped`` is the reward's time
    that nobody waited for, and ``other`` is what remains beside model, VAE, backward, optimizer and
    waiting.
    """
    parts = {name: seconds.get(name, 0.0) for name in ("model", "vae", "backward", "optimizer")}
    other = step_s - sum(parts.values()) - wait_s
    return {
        "step": step_s,
        **parts,
        "reward": reward_s,
        "wait": wait_s,
        "overlapped": max(reward_s - wait_s, 0.0),
        "other": other,
    }


def progress_line(row: Mapping[str, Any], step: int, steps: int) -> str:
    """A row of the log as one line. step: how many steps are done."""
    names = {name: name for name in ("score", "loss", "ratio", "normal_flow_speed", "grad_norm")}
    names["normal_flow_speed"] = "normal-flow speed (frame heights/s)"
    numbers = " ".join(f"{words} {row[name]:.4f}" for name, words in names.items() if row.get(name) is not None)
    return (
        f"step {step}/{steps}  {numbers}  zero-std {row.get('zero_std_groups', 0)} unscored {row.get('unscored', 0)}  "
        f"{row['seconds']['step']:.1f} s" + (f"  skipped: {row['skipped']}" if row.get("skipped") else "")
    )
