"""The learning rate's share at each step: a linear warm-up, then half a cosine. Every loop of the package takes it from here."""

from __future__ import annotations

import math


def warm_cosine(step: int, steps: int, *, warmup: int = 0, floor: float = 0.0) -> float:
    """Of the peak, at ``step`` (from 0) of ``steps``: (step + 1) / warmup while it rises, then half a cosine from 1 to ``floor``,
    which the last step has and every later one. floor 1: constant after the warm-up."""
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, steps - 1 - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
