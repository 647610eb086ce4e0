"""When stage 3 should not go on: collapse to one verdict, answers that shrink or break, groups that teach nothing.

rows of log.jsonl → alarm → a sentence, or None

The known trap: without a KL term and with a high step size, Eq. 9 collapses to "always normal", because a normal answer is one short
turn and the per-sequence mean favours short ones. It shows in these figures long before the loss does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Stopped(ValueError):
    """A training that stopped itself; nothing is wrong with how it was called. sentence: what happened, and the cure. where: its folder."""

    def __init__(self, sentence: str, where: Path | None = None) -> None:
        super().__init__(sentence if where is None else f"{where}: {sentence}")
        self.sentence = sentence


@dataclass(frozen=True)
class WatchRecipe:
    """Limits on the mean over the last ``patience`` steps; a run that passes one is stopped (1 or more switches a share's limit off).

    one_verdict: share of rollouts with the same verdict, normal or abnormal, over normal and abnormal videos together (1:1).
    zero_std_groups: share of groups whose rollouts all earn the same. malformed: share of rollouts that break a schema or name no usable window.
    unscored: share of rollouts without a score. shrink: mean answer length relative to the first ``patience`` steps (0: off).
    """

    patience: int = 10
    one_verdict: float = 0.97
    zero_std_groups: float = 0.95
    malformed: float = 0.5
    unscored: float = 0.1
    shrink: float = 0.2

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"watch.patience must be at least 1 step, received {self.patience}")


def alarm(rows: Sequence[Mapping[str, Any]], limits: WatchRecipe) -> str | None:
    """What the last ``patience`` rows say, as one sentence with the cure; None while all is well or it is too early to tell."""
    steps = [row for row in rows if "normal_rate" in row]
    if len(steps) < limits.patience:
        return None

    def mean(name: str, part: Sequence[Mapping[str, Any]]) -> float:
        return sum(row[name] for row in part) / len(part)

    last, first = steps[-limits.patience :], steps[: limits.patience]
    over = f"over the last {limits.patience} steps"
    for name, limit, cure in (  # first: what cannot be read says neither verdict
        (
            "malformed",
            limits.malformed,
            "train stage 2 longer, or raise rollout.max_new_tokens if answers are truncated",
        ),
        ("unscored", limits.unscored, "see why in rollouts.jsonl and mend the data"),
    ):
        if (share := mean(name, last)) > limit:
            return f"{share:.1%} of rollouts are {name} {over} (limit {limit:.0%}); {cure}"
    normal = mean("normal_rate", last)
    length, began = mean("answer_tokens", last), mean("answer_tokens", first)
    if max(normal, 1 - normal) > limits.one_verdict:
        verdict = "normal" if normal > 0.5 else "abnormal"
        return (
            f"collapse: {max(normal, 1 - normal):.1%} of all rollouts say {verdict} {over}, with answers of {length:.0f} tokens "
            f"({began:.0f} at first); raise grpo.beta, lower run.lr, or start from a better stage 2"
        )
    if limits.shrink and length < limits.shrink * began:
        return (
            f"collapse: answers shrank from {began:.0f} to {length:.0f} tokens {over}; raise grpo.beta or lower run.lr"
        )
    if (share := mean("zero_std_groups", last)) > limits.zero_std_groups:
        return (
            f"{share:.1%} of groups are dead {over} (limit {limits.zero_std_groups:.0%}); raise rollout.temperature or rollout.group, or choose "
            "harder videos"
        )
    return None
