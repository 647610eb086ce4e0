"""The language model's schooling: its visual tokens must know what is broken by now, before a word is said about it.

lessons (clips as turn 1 and turn 2 show them) → image encoder → language model up to ``layer`` → visual tokens → ``marks.Heads`` → loss

The tokens are asked before layer ``layer`` so that the layers after it are free to fetch what they know when the answer is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from research.training.examples import Lesson
from research.training.token_labels import Heads, marks_of


@contextmanager
def tapped(model: Any, layer: int) -> Iterator[list[torch.Tensor]]:
    """While open, every forward pass appends what enters the language model's layer number ``layer`` (B, L, D) to the list."""
    kept: list[torch.Tensor] = []

    def keep(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        kept.append(arguments[0] if arguments else named["hidden_states"])

    hook = model.model.language_model.layers[layer].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield kept
    finally:
        hook.remove()


def watch_loss(
    hidden: torch.Tensor, batch: dict[str, torch.Tensor], lessons: Sequence[Lesson], heads: Heads
) -> tuple[torch.Tensor, float]:
    """Loss and share of right verdicts of the visual tokens among ``hidden`` (B, L, D); one video per lesson."""
    tokens = hidden[batch["mm_token_type_ids"] == 2]
    shown = [(lesson.clip, lesson.conversation[-1].frames.indices) for lesson in lessons]
    side = math.isqrt(len(tokens) // sum((len(indices) + 1) // 2 for _, indices in shown))
    return heads(tokens.view(-1, side * side, hidden.shape[-1]), marks_of(shown, side))
