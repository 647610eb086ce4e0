"""A resumable optimisation: the loop that trains the small Wan's parts, its optimizers, its running average, its checkpoint.

Schedule (steps, batch, learning rates) + modules + loss(step) → Optimisation.run → checkpoints/, log.jsonl (``cac_align.runs``)

A checkpoint holds weights, their running average (EMA), the optimizers and the number of the step. On one machine and thread count
the same recipe gives the same weights to the last bit; another processor or torch build rounds differently.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cac_align.runs.checkpoint import claim_folder, read_state, save_state
from cac_align.runs.lr_schedule import learning_rate
from cac_align.runs.metrics_log import JsonlLog

MIN_LR_RATIO = 0.05  # of the peak, at the last step


@dataclass(frozen=True)
class Schedule:
    """Optimisation of one job. Steps are optimizer steps; ``lr`` rises over ``warmup`` steps and falls on a cosine to a twentieth.

    stop_after: end early, at this step, with the learning rate still high (0: at the last one); for a stage that another continues.
    matrix_lr: learning rate of Muon for the matrices inside (0: AdamW for everything).
    threads: torch threads (on a shared machine one is often the fastest). save_every, log_every: steps.
    """

    steps: int = 1000
    stop_after: int = 0
    batch: int = 16
    lr: float = 1e-3
    matrix_lr: float = 0.0
    warmup: int = 50
    weight_decay: float = 0.0
    beta2: float = 0.99
    max_grad_norm: float = 1.0
    ema: float = 0.99
    save_every: int = 100
    log_every: int = 20
    threads: int = 1


class Optimisation:
    """A resumable optimisation: modules, their running average, the optimizers and the step. ``run`` takes the steps that remain."""

    def __init__(self, out: Path, modules: dict[str, nn.Module], schedule: Schedule, recipe: Any) -> None:
        self.out, self.modules, self.schedule = out, modules, schedule
        self.step = 0
        self.parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        named = [(name, p) for module in modules.values() for name, p in module.named_parameters() if p.requires_grad]
        # The DiT's linear layers and the VAE's convolutions; what is at either end of the DiT, and vectors, are Adam's.
        inner = [
            p
            for name, p in named
            if (name.startswith("blocks.") and p.ndim == 2) or (p.ndim >= 4 and "patch" not in name)
        ]
        matrices = inner if schedule.matrix_lr else []
        others = [p for _, p in named if not any(p is matrix for matrix in matrices)]
        adam = torch.optim.AdamW(
            others, lr=schedule.lr, betas=(0.9, schedule.beta2), weight_decay=schedule.weight_decay
        )
        self.optimizers = [adam, *([Muon(matrices, schedule.matrix_lr)] if matrices else [])]
        claim_folder(out, "optimise", recipe, free=("out",))
        saved = read_state(out)
        if saved is not None:
            for name, module in modules.items():
                module.load_state_dict(saved["modules"][name])
            for average, stored in zip(self.average, saved["average"], strict=True):
                average.copy_(stored)
            for optimizer, stored in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(stored)
            self.step = saved["step"]
        self.rows = JsonlLog(out / "log.jsonl", before=self.step + 1)

    def save(self) -> None:
        """Write a checkpoint of this step."""
        state = {
            "step": self.step,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        save_state(self.out, state)

    def run(
        self,
        loss_at: Callable[[int], tuple[Tensor, dict[str, float]]],
        *,
        stop_at: int | None = None,
        after: Callable[[int], None] | None = None,
    ) -> bool:
        """Take the remaining steps, up to ``stop_at``; True when the schedule is finished. ``after(step)`` runs after each step."""
        s = self.schedule
        last = s.stop_after or s.steps
        began, seen = time.time(), []
        while self.step < last and (stop_at is None or self.step < stop_at):
            for optimizer, lr in zip(self.optimizers, (s.lr, s.matrix_lr), strict=False):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(
                        self.step, s.steps, lr, warmup_steps=s.warmup, min_lr_ratio=MIN_LR_RATIO
                    )
            loss, numbers = loss_at(self.step)
            if not torch.isfinite(loss):
                raise ValueError(
                    f"step {self.step}: the loss is {loss.item()}; lower schedule.lr and resume from the last checkpoint"
                )
            for p in self.parameters:
                p.grad = None
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.parameters, s.max_grad_norm)
            for optimizer in self.optimizers:
                optimizer.step()
            self.step += 1
            # A young average would remember the random weights for long; it starts short and lengthens to ``ema``.
            keep = min(s.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - keep)
            seen.append({"loss": loss.item(), "norm": float(norm), **numbers})
            if self.step % s.log_every == 0 or self.step == last:
                means = {name: float(np.mean([row[name] for row in seen])) for name in seen[0]}
                self.log({**means, "seconds": round(time.time() - began, 1)})
                seen.clear()
            if self.step % s.save_every == 0 or self.step in (last, stop_at):
                self.save()
            if after is not None:
                after(self.step)
        return self.step >= last

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to ``log.jsonl`` and show it on stderr."""
        row = {"step": self.step, **{k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}}
        print(json.dumps(self.rows.add(row)), file=sys.stderr, flush=True)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the modules hold the running average of their weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for p, average in zip(self.parameters, self.average, strict=True):
            kept = p.detach().clone()
            p.copy_(average)
            average.copy_(kept)


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal: every direction of a weight matrix moves equally far. Needs about half of Adam's steps here.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; torch's own computes in bfloat16, which many
    CPUs emulate at a tenth of their speed.
    """

    def __init__(self, matrices: Sequence[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["mean"] = torch.zeros_like(p)
                state["mean"].lerp_(p.grad, 1 - group["momentum"])
                direction = orthogonalise(p.grad.lerp(state["mean"], group["momentum"]).flatten(1))
                rows, columns = direction.shape
                p.add_(direction.view_as(p), alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonalise(matrix: Float[Tensor, "M N"], steps: int = 5) -> Float[Tensor, "M N"]:
    """About U Vᵀ of the singular value decomposition, by a quintic Newton–Schulz iteration; singular values end in about [0.7, 1.2]."""
    x = matrix / (matrix.norm() + 1e-7)
    if matrix.shape[0] > matrix.shape[1]:
        x = x.T
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def step_generator(seed: int, step: int) -> torch.Generator:
    """The source of everything random in one step; a function of its two numbers alone."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def muon_and_adam(
    model: nn.Module, heads: nn.Module, lr: float, matrix_lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside a judge's two transformers (``matrix_lr`` > 0), AdamW for everything else and for its heads.

    Every group keeps its peak as ``initial_lr``.
    """
    inner, outer, plain = [], [], []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim == 2 and not any(word in name for word in ("embed", "lm_head"))
        (inner if matrix and matrix_lr else outer if parameter.ndim > 1 else plain).append(parameter)
    groups = [
        {"params": [*outer, *heads.parameters()], "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-8, foreach=True)
    ]
    if inner:
        optimizers.append(Muon(inner, matrix_lr))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers
