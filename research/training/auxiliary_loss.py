"""The language model's schooling: its visual tokens must know what is anomalous by now, before a
word is said about it.

examples (clips as turn 1 and turn 2 show them) → image encoder → language model up to ``layer`` →
visual tokens → ``token_labels.ProbeHeads`` → loss

The tokens are asked before layer ``layer`` so that the layers after it are free to fetch what they
know when the answer is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from research.training.examples import Example
from research.training.token_labels import ProbeHeads, token_labels_of


@contextmanager
def tapped(model: Any, layer: int) -> Iterator[list[torch.Tensor]]:
    """While open, every forward pass appends what enters the language model's layer number
    ``layer`` (B, L, D) to the list.
    """
    kept: list[torch.Tensor] = []

    def keep(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        kept.append(arguments[0] if arguments else named["hidden_states"])

    hook = model.model.language_model.layers[layer].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield kept
    finally:
        hook.remove()


def auxiliary_loss(
    hidden: torch.Tensor, batch: dict[str, torch.Tensor], examples: Sequence[Example], heads: ProbeHeads
) -> tuple[torch.Tensor, float]:
    """Loss and share of right verdicts of the visual tokens among ``hidden`` (B, L, D); one video
    per example.
    """
    tokens = hidden[batch["mm_token_type_ids"] == 2]
    shown = [(example.clip, example.conversation[-1].frames.indices) for example in examples]
    side = math.isqrt(len(tokens) // sum((len(indices) + 1) // 2 for _, indices in shown))
    return heads(tokens.view(-1, side * side, hidden.shape[-1]), token_labels_of(shown, side))
