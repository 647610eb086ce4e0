"""TRL-style reward functions: keyword arguments in, one float per video out; a missing score
raises, as the policy says.

    trainer = GRPOTrainer(…, reward_funcs=[VideoReward(reward="http://127.0.0.1:8000")])

TRL adds up what its functions return with ``nansum``, so that a None counts as 0. From 1.10 on its
GRPOTrainer leaves a completion out of the group, but only when every function returned None.
``leave_out=True`` allows None there, for a trainer whose only function this is.

The videos are the completions, or a dataset column named ``videos`` or ``video``: tensors, arrays,
PIL frames or file paths.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cac_align.plugins.common.host import HostOptions, host_reward


class VideoReward:
    """A reward function with a name, as TRL logs it. Options are those of ``HostOptions``.

    leave_out: return None for a video without a score, whatever ``on_missing`` says; only where
    this is the
        GRPOTrainer's only function.

    Raises ``ValueError`` for an unknown option, and for leave_out with a trl that would count None
    as 0.
    """

    def __init__(self, *, leave_out: bool = False, **options: Any) -> None:
        if leave_out and not leaves_out_none():
            raise ValueError(
                f"leave_out needs trl >= 1.10, found {_trl_version() or 'none'}: "
                "an older one may count None as 0; set leave_out=False"
            )
        self.leave_out = leave_out
        self.options = HostOptions.read(options)
        self.__name__ = self.options.component or "cac_unified"

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        """One float per video, or None for a missing score with ``leave_out``.

        Raises ``MissingScoreError`` as the policy says, and ``ValueError`` when no videos are given
        or their number differs from the prompts'.
        """
        videos = next((columns[name] for name in ("videos", "video") if columns.get(name) is not None), completions)
        if videos is None:
            raise ValueError(
                f"no videos: expected completions, or a column videos or video; received {sorted(columns)}"
            )
        reward, texts = host_reward(self.options, "trl"), [prompt_text(prompt) for prompt in prompts]
        scores = reward.scores(texts, list(videos))
        return reward.values_or_none(texts, scores) if self.leave_out else [*reward.apply_policy(texts, scores)]


def leaves_out_none() -> bool:
    """Whether the installed trl leaves a completion out of its group when every function returned
    None: 1.10 and later.
    """
    return tuple(int(part) for part in re.findall(r"\d+", _trl_version())[:2]) >= (1, 10)


def _trl_version() -> str:
    """The installed version of trl; empty where there is none."""
    try:
        return version("trl")
    except PackageNotFoundError:
        return ""


def prompt_text(prompt: Any) -> str:
    """A plain prompt, or the text of a chat's last message."""
    if isinstance(prompt, str):
        return prompt
    content = prompt[-1]["content"]
    return (
        content
        if isinstance(content, str)
        else " ".join(part["text"] for part in content if part.get("type") == "text")
    )
