"""TRL-style reward functions: keyword arguments in, one float per video out; a missing score raises, as the policy says.

    trainer = GRPOTrainer(…, reward_funcs=[VideoReward(reward="http://127.0.0.1:8000")])

TRL sums what its functions return with ``nansum``, so that a None counts as 0. From 1.10 on its GRPOTrainer leaves a completion
out of the group, but only when every function said None: ``leave_out=True`` allows None there, for a trainer with this function
alone.

The videos are the completions, or a dataset column named ``videos`` or ``video``: tensors, arrays, PIL frames or file paths.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cac_align.plugins.host import Wiring, hosted


class VideoReward:
    """A reward function with a name, as TRL logs it. Options are those of ``Wiring``.

    leave_out: this is the GRPOTrainer's only function; a video without a score is None, whatever ``on_missing`` says, within the
        budget.
    Raises ``ValueError`` for leave_out on a trl that would count None as 0, or an option there is not.
    """

    def __init__(self, *, leave_out: bool = False, **options: Any) -> None:
        if leave_out and not excludes_none():
            raise ValueError(
                f"leave_out needs trl >= 1.10, found {_trl() or 'none'}: an older one may count None as 0; leave it away"
            )
        self.leave_out = leave_out
        self.wiring = Wiring.read(options)
        self.__name__ = self.wiring.component or "cac_unified"

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        """One float per video; None for a missing score under ``leave_out``, else ``Unscored`` as the policy says.

        Raises ``ValueError`` when no videos are given or their number differs from the prompts'.
        """
        videos = next((columns[name] for name in ("videos", "video") if columns.get(name) is not None), completions)
        if videos is None:
            raise ValueError(
                f"no videos: expected completions, or a column videos or video; received {sorted(columns)}"
            )
        here, texts = hosted(self.wiring, "trl"), [prompt_text(prompt) for prompt in prompts]
        scores = here.scores(texts, list(videos))
        return here.optional(texts, scores) if self.leave_out else [*here.values(texts, scores)]


def excludes_none() -> bool:
    """Whether the installed trl leaves a completion out of its group when every function returned None: 1.10 and later."""
    return tuple(int(part) for part in re.findall(r"\d+", _trl())[:2]) >= (1, 10)


def _trl() -> str:
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
