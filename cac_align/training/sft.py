"""Stages 1 and 2: supervised fine-tuning on single frames (LoRA), then on whole videos and close
looks (all weights).

SftRecipe → read_stage → draw(step) → segments → log p of the answers → mean cross-entropy over the
batch's answer tokens → out/final

Stage 1 adapts vision encoder, merger and language model with LoRA and merges it at the end; stage 2
trains every weight on turn-1 tasks (4 fps, whole video) and turn-2 tasks (8 fps, one window) mixed;
with ``data.turns`` 1 on both at once. Evaluation is the same loss on held-out records; the best is
kept.

Source: CaC (arXiv 2605.11723) Sec. 3.2, Appendix C.2.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cac_align.cac.two_turn import TwoTurn
from cac_align.data.synthesis.questions import LOOK_FPS, SCAN_FPS
from cac_align.runs.background import BackgroundThread
from cac_align.runs.progress import working
from cac_align.training.policy import (
    AnswerLogProbs,
    ModelRecipe,
    Segment,
    answer_mask,
    load,
    make_batch,
    to_device,
    with_lora,
)
from cac_align.training.processes import gather_reasons, micro_batches, start_accelerator
from cac_align.training.run import RunConfig, TrainingRun
from cac_align.training.samples import DataRecipe, Sample, Stage, draw, read_stage, sample_name, segment, usable_segment

TASKS_OF: dict[int, tuple[str, ...]] = {1: ("frame",), 2: ("scan", "look")}
SINGLE_TURN: dict[int, tuple[str, ...]] = {1: ("frame",), 2: ("single",)}
"""What the stages learn from in the single-turn formulation (``data.turns`` 1)."""


@dataclass(frozen=True)
class SftRecipe:
    """The recipe of stages 1 and 2."""

    # 1: single frames; 2: whole videos at 4 fps and windows at 8 fps, mixed.
    stage: int = 1
    # Folder for checkpoints, log.jsonl and the weights.
    out: str = "runs/cac/stage1"
    # Samples per step over all processes; even, for half of them are normal. The paper does not state it.
    batch: int = 16
    # Samples per forward and backward pass.
    micro_batch: int = 2
    # Rank of the LoRA on every linear layer; 0 trains all weights instead.
    lora_rank: int = 32
    # The LoRA is scaled by lora_alpha / lora_rank.
    lora_alpha: int = 64
    # Held-out micro-batches per evaluation and process.
    eval_batches: int = 16
    # Whether the next step's samples are decoded and encoded while this one runs, in the memory of one more step.
    overlap: bool = True
    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.stage not in TASKS_OF:
            raise ValueError(f"stage must be 1 (single frames) or 2 (videos and clips), received {self.stage}")
        if self.batch < 2 or self.batch % 2:
            raise ValueError(f"batch must be even and at least 2 (half normal, half abnormal), received {self.batch}")
        if self.micro_batch < 1 or self.lora_rank < 0:
            raise ValueError(
                f"expected micro_batch >= 1 and lora_rank >= 0, received {self.micro_batch} and {self.lora_rank}"
            )
        for name, written in (("scan_fps", SCAN_FPS), ("look_fps", LOOK_FPS)):
            if getattr(self.data, name) != written:
                raise ValueError(
                    f"data.{name} must be {written:g}, received {getattr(self.data, name):g}: the answers count frames "
                    "at that rate, and would name other times at any other"
                )

    @property
    def two_turn(self) -> TwoTurn:
        """How the judge is asked at inference."""
        return self.data.two_turn


def train_sft(recipe: SftRecipe) -> Path:
    """Run or resume stage 1 or 2; returns the folder with the final weights (``out/final``).
    ``out/best``: the best evaluation's.

    Raises ``ValueError`` for unusable data, another recipe's folder, or a batch that the processes
    cannot share; ``Stopped`` for a loss that is not finite.
    """
    tasks = (SINGLE_TURN if recipe.data.turns == 1 else TASKS_OF)[recipe.stage]
    stage = read_stage(recipe.data, tasks, recipe.run.seed)
    accelerator = start_accelerator(recipe.model.mixed_precision, cpu=recipe.run.cpu, threads=recipe.run.threads)
    rank, world = accelerator.process_index, accelerator.num_processes
    accelerator.gradient_accumulation_steps = len(micro_batches(range(recipe.batch), recipe.micro_batch, rank, world))
    with working(f"loading {Path(recipe.model.path).name}"):
        model, processor = load(recipe.model)
    if recipe.lora_rank:
        model = with_lora(model, recipe.lora_rank, recipe.lora_alpha, recipe.run.seed)
    run = TrainingRun(recipe, accelerator, AnswerLogProbs(model), processor)
    if run.finished:
        return run.out / "final"
    with run.rank_status.guard():
        _steps(run, stage, recipe)
        return run.save_model("final")


def _steps(run: TrainingRun, stage: Stage, recipe: SftRecipe) -> None:
    """Take the steps that remain. The samples of the next step are read while this one runs."""
    began = time.time()
    last = recipe.run.last_step
    with run.progress_bar(f"stage {recipe.stage}") as progress, BackgroundThread("reading") as reader:
        ahead: Future[StepSamples] | None = None
        while run.step < last:
            ahead = ahead or reader.submit(_read, stage, run.step, recipe, run)
            run.rank_status.report(f"step {run.step}, reading {_names(_own_samples(stage, run.step, recipe, run))}")
            samples = reader.wait(ahead)
            more = recipe.overlap and run.step + 1 < last
            ahead = reader.submit(_read, stage, run.step + 1, recipe, run) if more else None
            stage.leave_out_all(gather_reasons(run.accelerator, samples.bad))
            own = torch.tensor(float(samples.tokens), device=run.device)
            count = run.accelerator.reduce(own, "sum").item()
            norm, loss = _descend(run, samples.batches, count)
            run.step += 1
            progress.update(1)
            progress.set_description(f"stage {recipe.stage}, loss {loss:.4f}", refresh=False)
            if run.step % recipe.run.log_every == 0 or run.step == last:
                row = {"loss": loss, "norm": norm, "lr": run.optimizer.param_groups[0]["lr"], "tokens": int(count)}
                times = {"seconds": time.time() - began, "waited_for_samples": reader.waited_s}
                times = {name: round(seconds, 2) for name, seconds in times.items()}
                run.write_row({**row, "left_out": len(stage.bad), **times})
            due = recipe.run.eval_every and (run.step % recipe.run.eval_every == 0 or run.step == recipe.run.steps)
            if due and stage.held_out:
                if ahead is not None:
                    wait([ahead])  # the processor is not to be used by two threads at once
                run.rank_status.report(f"step {run.step}, evaluating")
                loss_now = held_out_loss(run, stage, recipe)
                best = run.keep_best(-loss_now, "-held_out_loss")
                run.write_row({"held_out_loss": loss_now, "best": best})
            if due or run.step % recipe.run.save_every == 0 or run.step == last:
                run.save()


Named = tuple[str, dict[str, Any]]
"""The names of a micro-batch's videos, and the micro-batch."""


@dataclass(frozen=True, eq=False)
class StepSamples:
    """This process's samples of a step: its micro-batches, the number of their answer tokens, and
    why samples could not be used, by name.
    """

    batches: list[Named]
    tokens: int
    bad: dict[str, str]


def _own_samples(stage: Stage, step: int, recipe: SftRecipe, run: TrainingRun) -> list[list[Sample]]:
    """This process's micro-batches of a step."""
    rank, world = run.accelerator.process_index, run.accelerator.num_processes
    return micro_batches(draw(stage, step, recipe.batch), recipe.micro_batch, rank, world)


def _names(parts: Sequence[Sequence[Sample]]) -> str:
    return ", ".join(sample.record for part in parts for sample in part)


def _read(stage: Stage, step: int, recipe: SftRecipe, run: TrainingRun) -> StepSamples:
    """Decode and encode this process's samples of a step. It runs beside other steps: it changes
    neither stage nor run, and exchanges nothing with other processes.
    """
    batches: list[Named] = []
    bad: dict[str, str] = {}
    for part in _own_samples(stage, step, recipe, run):
        store: dict[Any, Any] = {}
        pixels = recipe.model.max_pixels
        segments = [usable_segment(stage, sample, run.processor, store, bad, pixels) for sample in part]
        batches.append((_names([part]), make_batch(run.processor, segments, store)))
    return StepSamples(batches, sum(int(answer_mask(batch).sum()) for _, batch in batches), bad)


def _descend(run: TrainingRun, batches: Sequence[Named], count: float) -> tuple[float, float]:
    """One step on the mean cross-entropy per answer token; returns the gradient's norm and the loss
    over all processes.
    """
    seen: list[torch.Tensor] = []

    def part(names: str, batch: dict[str, Any]) -> torch.Tensor:
        run.rank_status.report(f"step {run.step}, learning from {names}")
        value = -run.module(to_device(run.device, batch)).sum() / count
        seen.append(value.detach())
        return value

    norm = run.descend(partial(part, *each) for each in batches)
    return norm, run.accelerator.reduce(torch.stack(seen).sum(), "sum").item()


@torch.no_grad()
def held_out_loss(run: TrainingRun, stage: Stage, recipe: SftRecipe) -> float:
    """Mean cross-entropy per answer token on the held-out samples (the first ``eval_batches``
    micro-batches of every process).

    Every process takes as many passes, because FSDP's must meet: where it can read nothing, the
    pass is over another sample and does not count. Raises ``ValueError``, on all processes, where
    one can read no sample, and when too many cannot be used.
    """
    rank, world = run.accelerator.process_index, run.accelerator.num_processes
    asked = stage.held_out[: recipe.eval_batches * recipe.micro_batch * world]
    groups = [asked[at : at + recipe.micro_batch] for at in range(0, len(asked), recipe.micro_batch)]
    bad: dict[str, str] = {}
    spare = next(filter(None, (_readable([sample], stage, recipe, run, bad) for sample in asked)), None)
    blind = gather_reasons(run.accelerator, {} if spare else {f"process {rank}": next(iter(bad.values()))})
    if blind or spare is None:
        name, why = next(iter(blind.items()))
        raise ValueError(
            f"{name} can read none of {len(asked)} held-out samples of {stage.folder}: {why}; is the folder there?"
        )
    total = torch.zeros(2, device=run.device)
    run.module.eval()
    for number in range(rank, math.ceil(len(groups) / world) * world, world):
        own = _readable(groups[number], stage, recipe, run, bad) if number < len(groups) else None
        value = -run.module(to_device(run.device, own or spare)).sum()
        if own:
            total += torch.stack([value.float(), answer_mask(own).sum().to(run.device).float()])
    run.module.train()
    stage.leave_out_all(gather_reasons(run.accelerator, bad))
    total = run.accelerator.reduce(total, "sum")
    return (total[0] / total[1]).item() if total[1] else math.nan


def _readable(
    samples: Sequence[Sample], stage: Stage, recipe: SftRecipe, run: TrainingRun, bad: dict[str, str]
) -> dict[str, torch.Tensor] | None:
    """The micro-batch of those samples that can be used (None: of none); the others go into
    ``bad``, by name.
    """
    store: dict[Any, Any] = {}
    segments: list[Segment] = []
    for sample in samples:
        try:
            segments.append(segment(stage, sample, run.processor, store, recipe.model.max_pixels))
        except ValueError as error:
            bad[sample_name(sample)] = str(error)
    return make_batch(run.processor, segments, store) if segments else None
