"""When stage 3 stops itself: collapse to one verdict, answers that shrink or break, groups without
differences.

rows of log.jsonl → stop_reason → one sentence with the cure, or None

Without a KL term and with a high learning rate, Eq. 9 collapses to "always normal", because a
normal answer is one short turn and the mean per sequence favours short ones. These figures show it
long before the loss does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Stopped(ValueError):
    """A training that stopped itself, although it was called correctly.

    sentence: what happened, and the cure. out: the run's folder.
    """

    def __init__(self, sentence: str, out: Path | None = None) -> None:
        super().__init__(sentence if out is None else f"{out}: {sentence}")
        self.sentence = sentence


@dataclass(frozen=True)
class EarlyStopping:
    """The recipe section ``early_stopping``: limits on means over the last ``patience`` steps;
    passing one ends the run.

    All but ``patience`` and ``min_length_ratio`` are shares in [0, 1]; 1 switches a limit off.
    """

    # Steps over which the figures are averaged.
    patience: int = 10
    # Largest share of rollouts with one and the same verdict, over as many normal as abnormal videos.
    max_same_verdict: float = 0.97
    # Largest share of groups whose rollouts all earn the same reward.
    max_zero_std_groups: float = 0.95
    # Largest share of rollouts that break a schema or name no usable window.
    max_malformed: float = 0.5
    # Largest share of rollouts without a score.
    max_unscored: float = 0.1
    # Least mean length of an answer, relative to that of the first ``patience`` steps; 0 switches the limit off.
    min_length_ratio: float = 0.2

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"early_stopping.patience must be at least 1 step, received {self.patience}")


def stop_reason(rows: Sequence[Mapping[str, Any]], limits: EarlyStopping) -> str | None:
    """Which limit the last ``patience`` rows pass, in one sentence; None while all is well or there
    are too few rows.
    """
    steps = [row for row in rows if "normal_rate" in row]
    if len(steps) < limits.patience:
        return None

    def mean(name: str, part: Sequence[Mapping[str, Any]]) -> float:
        return sum(row[name] for row in part) / len(part)

    last, first = steps[-limits.patience :], steps[: limits.patience]
    over = f"over the last {limits.patience} steps"
    # Unreadable answers are checked first: they have neither verdict, so the other figures say little.
    for name, limit, cure in (
        (
            "malformed",
            limits.max_malformed,
            "train stage 2 longer, or raise rollout.max_new_tokens if answers are cut off",
        ),
        ("unscored", limits.max_unscored, "read the errors in rollouts.jsonl and repair the data"),
    ):
        if (share := mean(name, last)) > limit:
            return f"{share:.1%} of rollouts are {name} {over} (limit {limit:.0%}); {cure}"
    normal = mean("normal_rate", last)
    length, first_length = mean("answer_tokens", last), mean("answer_tokens", first)
    if max(normal, 1 - normal) > limits.max_same_verdict:
        verdict = "normal" if normal > 0.5 else "abnormal"
        return (
            f"collapse: {max(normal, 1 - normal):.1%} of all rollouts say {verdict} {over}, with answers of "
            f"{length:.0f} tokens ({first_length:.0f} at first); raise grpo.beta, lower run.lr, "
            "or start from a better stage 2"
        )
    if limits.min_length_ratio and length < limits.min_length_ratio * first_length:
        return (
            f"collapse: answers shrank from {first_length:.0f} to {length:.0f} tokens {over}; "
            "raise grpo.beta or lower run.lr"
        )
    if (share := mean("zero_std_groups", last)) > limits.max_zero_std_groups:
        return (
            f"{share:.1%} of groups have rewards without a spread {over} (limit {limits.max_zero_std_groups:.0%}); "
            "raise rollout.temperature or rollout.group_size, or choose harder videos"
        )
    return None
