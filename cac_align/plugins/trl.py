"""TRL-style reward functions: keyword arguments in, ``list[float | None]`` out; None where there is no score, which TRL leaves out.

    trainer = GRPOTrainer(…, reward_funcs=[VideoReward(reward="http://127.0.0.1:8000")])

The videos are the completions, or a dataset column named ``videos`` or ``video``: tensors, arrays, PIL frames or file paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cac_align.plugins.host import Wiring, hosted


class VideoReward:
    """A reward function with a name, as TRL logs it. Options are those of ``Wiring``; ``on_missing`` plays no part: None says it."""

    def __init__(self, **options: Any) -> None:
        self.wiring = Wiring.read(options)
        self.__name__ = self.wiring.component or "cac_unified"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any] | None = None, **columns: Any) -> list[float | None]:
        """One float per video, or None. Raises ``ValueError`` when no videos are given or their number differs from the prompts'."""
        videos = next((columns[name] for name in ("videos", "video") if columns.get(name) is not None), completions)
        if videos is None:
            raise ValueError(f"no videos: expected completions, or a column videos or video; received {sorted(columns)}")
        scores = hosted(self.wiring, "trl").scores([prompt_text(prompt) for prompt in prompts], list(videos))
        return [score.value if score.scored else None for score in scores]


def prompt_text(prompt: Any) -> str:
    """A plain prompt, or the text of a chat's last message."""
    if isinstance(prompt, str):
        return prompt
    content = prompt[-1]["content"]
    return content if isinstance(content, str) else " ".join(part["text"] for part in content if part.get("type") == "text")
