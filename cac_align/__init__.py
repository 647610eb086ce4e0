"""cac-align: a video reward that finds small, short defects, and the training and selection built on it.

video → frames → turn 1 → window → clip → turn 2 → judgement → score → combined reward
    → selection, advantages or repair → report

Importing this package loads numpy only; the names below load what they need when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_MODULES = {
    "Video": "cac_align.core.video",
    "Frames": "cac_align.core.video",
    "Window": "cac_align.core.judgement",
    "Box": "cac_align.core.judgement",
    "Anomaly": "cac_align.core.judgement",
    "Turn": "cac_align.core.judgement",
    "Judgement": "cac_align.core.judgement",
    "Score": "cac_align.rewards.reward",
    "Reward": "cac_align.rewards.reward",
    "TwoTurn": "cac_align.cac.two_turn",
    "CaC": "cac_align.rewards.cac",
    "UnifiedReward": "cac_align.rewards.unified",
    "combine": "cac_align.rewards.combine",
    "Ledger": "cac_align.rewards.ledger",
    "best_of_n": "cac_align.generation.best_of_n",
    "load_reward": "cac_align.rewards.build",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'cac_align' has no attribute {name!r}; public names: {', '.join(_MODULES)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
