"""The learning rate of every training loop: a linear warm-up, then half a cosine down to a share of
the peak.
"""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float, *, warmup_steps: int = 0, min_lr_ratio: float = 0.0) -> float:
    """The learning rate of ``step`` (counted from 0) in a schedule of ``steps`` steps.

    While it rises it is peak · (step + 1) / warmup_steps; then it follows half a cosine from
    ``peak`` to peak · min_lr_ratio, which the last step and every later one has. With
    ``min_lr_ratio`` 1 it stays at the peak.
    """
    if step < warmup_steps:
        return peak * ((step + 1) / warmup_steps)
    progress = min(1.0, (step - warmup_steps) / max(1, steps - 1 - warmup_steps))
    return peak * (min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))
