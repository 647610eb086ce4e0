"""A training step shared by the cores of one machine: every worker takes a part of the batch on its
own copy of the modules.

modules + parts of a batch → one thread each: loss, backward → mean gradient on the modules → the
optimizers' turn

At the miniature's sizes torch's own threads gain little (two of them a third); half a batch per
core gains nearly all. The copies share the weights' memory, so the optimizers' step reaches them
all; gradients are added in the workers' order, so that the same recipe on the same number of
workers gives the same weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

PartResult = tuple[torch.Tensor, float, int]
"""Loss, share of right verdicts, length."""


class Workers:
    """``count`` copies of a tuple of modules and other things (tokenizers are not safe to share
    between threads).
    """

    def __init__(self, things: tuple[Any, ...], count: int, threads: int = 1) -> None:
        self.copies = [things, *(copy.deepcopy(things) for _ in range(count - 1))]
        for other in self.copies[1:]:
            for mine, theirs in zip(_parameters(things), _parameters(other), strict=True):
                theirs.data = mine.data
        self.pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads,))

    def backward(self, tell: Callable[..., PartResult]) -> tuple[float, float, int]:
        """Run ``tell(part, *things)`` for every part (0, 1, …) and leave the mean of the parts'
        gradients on the first copy's parameters.

        Returns mean loss, mean share and the greatest length; the gradients are those of this call
        alone.
        """

        def one(part: int) -> tuple[float, float, int]:
            for parameter in _parameters(self.copies[part]):
                parameter.grad = None
            loss, exact, length = tell(part, *self.copies[part])
            loss.backward()
            return loss.item(), exact, length

        told = list(self.pool.map(one, range(len(self.copies))))
        if len(self.copies) > 1:
            for mine, *others in zip(*(_parameters(things) for things in self.copies), strict=True):
                found = [p.grad for p in (mine, *others) if p.grad is not None]
                mine.grad = torch.stack(found).sum(0) / len(self.copies) if found else None
        losses, shares, lengths = zip(*told, strict=True)
        return sum(losses) / len(told), sum(shares) / len(told), max(lengths)


def _parameters(things: tuple[Any, ...]) -> list[torch.nn.Parameter]:
    return [p for module in things if isinstance(module, torch.nn.Module) for p in module.parameters()]
