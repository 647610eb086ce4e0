"""Stage 3: two-turn GRPO. Sample whole two-turn rollouts, score them, and move the policy towards
the better of each group.

GrpoRecipe → draw(step) → roll_out (G per video) → terms → advantages → log p under policy and
reference → loss (Eq. 12) → out/final

A step is one batch of videos with G rollouts each and ``num_inner_epochs`` optimizer steps on them.
The reference is the model that the stage started from, frozen. ``rollouts.jsonl`` holds every
rollout: both answers, terms and advantage. Under FSDP all processes would have to sample token by
token together, so this stage runs under DDP or DeepSpeed ZeRO-2.

Source: CaC (arXiv 2605.11723) Sec. 3.2-3.3, Appendix C.1-C.2.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cac_align.cac.two_turn import TwoTurn
from cac_align.runs.files import append_lines
from cac_align.runs.metrics_log import cut_rows
from cac_align.runs.progress import working
from cac_align.training import objective
from cac_align.training.early_stopping import EarlyStopping, Stopped, stop_reason
from cac_align.training.evaluate import evaluate, mean
from cac_align.training.policy import AnswerLogProbs, ModelRecipe, answer_mask, load, make_batch, to_device
from cac_align.training.processes import gather_all, gather_reasons, micro_batches, start_accelerator
from cac_align.training.rollout import Rollout, RolloutRecipe, RolloutSettings, VideoPrompt, open_video_prompt, roll_out
from cac_align.training.run import RunConfig, TrainingRun
from cac_align.training.samples import DataRecipe, Sample, Stage, draw, read_stage
from cac_align.training.terms import TERM_NAMES, Terms, TermWeights


@dataclass(frozen=True)
class ObjectiveRecipe:
    """The recipe section ``grpo``: the objective of Eq. 8-12."""

    # ε of Eq. 9: the ratio is clipped to 1 ± ε. The paper does not state it.
    epsilon: float = 0.2
    # β of Eq. 12: weight of the KL term; 0 loads no reference model. The paper does not state it.
    beta: float = 0.04
    # Optimizer steps per batch of rollouts.
    num_inner_epochs: int = 1
    # ε_A of Eq. 8, added to the standard deviation of a group's rewards.
    eps_advantage: float = 1e-4
    # Data type of the frozen reference model: "float32" or "bfloat16".
    reference_dtype: str = "float32"


@dataclass(frozen=True)
class GrpoRecipe:
    """The recipe of stage 3."""

    # Folder for checkpoints, log.jsonl, rollouts.jsonl and the weights.
    out: str = "runs/cac/stage3"
    # Videos per step over all processes; even, for half of them are normal.
    batch: int = 8
    # Videos that one process rolls out together; memory grows with it.
    rollout_videos: int = 4
    # Rollouts per forward and backward pass; must divide the rollouts of a process.
    micro_batch: int = 8
    # Held-out records per evaluation, half of each class.
    eval_videos: int = 32
    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    rollout: RolloutRecipe = field(default_factory=RolloutRecipe)
    weights: TermWeights = field(default_factory=TermWeights)
    grpo: ObjectiveRecipe = field(default_factory=ObjectiveRecipe)
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    run: RunConfig = field(default_factory=lambda: RunConfig(steps=250, warmup_steps=0, lr=1e-6, min_lr_ratio=1.0))

    def __post_init__(self) -> None:
        if self.batch < 2 or self.batch % 2:
            raise ValueError(f"batch must be even and at least 2 (half normal, half abnormal), received {self.batch}")
        if self.grpo.num_inner_epochs < 1 or self.rollout_videos < 1 or self.micro_batch < 1:
            raise ValueError("expected grpo.num_inner_epochs, rollout_videos and micro_batch to be at least 1")
        if self.run.log_every != 1:
            raise ValueError(
                "run.log_every must be 1 in stage 3, whose early stopping reads every step; "
                f"received {self.run.log_every}"
            )
        if self.grpo.beta < 0 or not 0 < self.grpo.epsilon < 1:
            raise ValueError(
                f"expected grpo.beta >= 0 and epsilon in (0, 1), received {self.grpo.beta} and {self.grpo.epsilon}"
            )

    @property
    def two_turn(self) -> TwoTurn:
        """How the judge is asked at inference: as in its rollouts."""
        return replace(self.data.two_turn, context=self.rollout.context)


def train_grpo(recipe: GrpoRecipe) -> Path:
    """Run or resume stage 3; returns the folder with the final weights (``out/final``).
    ``out/best``: the best evaluation's.

    Raises ``ValueError`` for unusable data and another recipe's folder; ``Stopped`` for a loss that
    is not finite, and when a limit of ``early_stopping`` is passed. With ``data.turns`` 1 a rollout
    is a single turn.
    """
    stage = read_stage(recipe.data, ("scan",), recipe.run.seed)
    accelerator = start_accelerator(recipe.model.mixed_precision, cpu=recipe.run.cpu, threads=recipe.run.threads)
    deepspeed = accelerator.state.deepspeed_plugin
    fsdp, zero3 = str(accelerator.distributed_type).endswith("FSDP"), deepspeed is not None and deepspeed.zero_stage > 2
    if fsdp or zero3:  # processes would wait for each other at tokens that only some of them draw
        raise ValueError(
            "stage 3 samples from whole weights: use recipes/train/accelerate/ddp.yaml or zero2.yaml instead of "
            + ("FSDP" if fsdp else "ZeRO-3")
        )
    rank, world = accelerator.process_index, accelerator.num_processes
    own = len(micro_batches(range(recipe.batch), 1, rank, world)) * recipe.rollout.group_size
    accelerator.gradient_accumulation_steps = len(micro_batches(range(own), recipe.micro_batch, 0, 1))
    with working(f"loading {Path(recipe.model.path).name}"):
        model, processor = load(recipe.model)
    run = TrainingRun(recipe, accelerator, AnswerLogProbs(model, recipe.rollout.temperature), processor)
    if run.finished:
        return run.out / "final"
    reference = _reference(recipe, run) if recipe.grpo.beta else None
    table = run.out / "rollouts.jsonl"
    if run.log is not None:
        cut_rows(table, before=run.step + 1)
    with run.rank_status.guard(), run.progress_bar("stage 3") as bar:
        _steps(run, stage, recipe, reference, table, bar)
        return run.save_model("final")


def _steps(
    run: TrainingRun, stage: Stage, recipe: GrpoRecipe, reference: AnswerLogProbs | None, table: Path, bar: Any
) -> None:
    while run.step < recipe.run.last_step:
        began = time.time()
        batch = _collect(stage, recipe, run)
        sampled_s = time.time() - began
        stage.leave_out_all(gather_reasons(run.accelerator, stage.bad))
        row = _update(batch, recipe, run, reference)
        run.step += 1
        bar.update(1)
        everyone = sorted(gather_all(run.accelerator, batch.rows), key=lambda row: (row["slot"], row["rollout"]))
        figures = summary(everyone)
        bar.set_description(f"stage 3, reward {figures['reward']:.3f}", refresh=False)
        run.write_row(
            {
                **figures,
                **row,
                "left_out": len(stage.bad),
                "rollout_s": round(sampled_s, 3),
                "seconds": round(time.time() - began, 3),
            }
        )
        stop = None
        if run.log is not None:
            append_lines(table, "".join(json.dumps({"step": run.step, **one}) + "\n" for one in everyone))
            stop = stop_reason(run.log.rows, recipe.early_stopping)
        stop = gather_all(run.accelerator, [stop])[0]
        due = recipe.run.eval_every and (run.step % recipe.run.eval_every == 0 or run.step == recipe.run.steps)
        if due and stage.held_out:
            run.rank_status.report(f"step {run.step}, evaluating")
            settings = _settings(recipe, run.step)
            measured = evaluate(
                run, stage, settings, recipe.weights, videos=recipe.eval_videos, together=recipe.rollout_videos
            )
            best = run.keep_best(measured["held_out_reward"], "held_out_reward")
            run.write_row({**measured, "best": best})
        if due or run.step % recipe.run.save_every == 0 or run.step == recipe.run.last_step or stop:
            run.save()
        if stop:
            raise Stopped(f"stopped after step {run.step}: {stop}", run.out)


def _reference(recipe: GrpoRecipe, run: TrainingRun) -> AnswerLogProbs:
    """The model the stage started from, frozen."""
    from dataclasses import replace

    model, _ = load(replace(recipe.model, dtype=recipe.grpo.reference_dtype, gradient_checkpointing=False))
    return AnswerLogProbs(model.to(run.device).eval().requires_grad_(False), recipe.rollout.temperature)


# ---- a batch of rollouts --------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Collected:
    """This process's rollouts of one step, with their advantages, the videos they saw, and one
    table row each.
    """

    rollouts: list[Rollout]
    advantages: list[float]
    store: dict[Any, tuple[Tensor, Tensor]]
    rows: list[dict[str, Any]]


def _collect(stage: Stage, recipe: GrpoRecipe, run: TrainingRun) -> _Collected:
    accelerator = run.accelerator
    drawn = list(enumerate(draw(stage, run.step, recipe.batch)))
    own = split_pairs(drawn, accelerator.process_index, accelerator.num_processes)
    prompts = [_open(stage, slot, sample) for slot, sample in own]
    settings = _settings(recipe, run.step)
    store: dict[Any, tuple[Tensor, Tensor]] = {}
    rollouts: list[Rollout] = []
    run.module.eval()  # no gradient checkpointing while a cache is in use
    for at in range(0, len(prompts), recipe.rollout_videos):
        asked = prompts[at : at + recipe.rollout_videos]
        run.rank_status.report(f"step {run.step}, rolling out {', '.join(prompt.record.id for prompt in asked)}")
        with run.autocast():
            rollouts += roll_out(run.model, run.processor, asked, settings, store)
    run.module.train()
    earned = [None if rollout.error else rollout.reward_terms(recipe.weights) for rollout in rollouts]
    rewards = torch.tensor([math.nan if one is None else one.total for one in earned], dtype=torch.float64).view(
        len(prompts), recipe.rollout.group_size
    )
    gains = objective.advantages(rewards, recipe.grpo.eps_advantage).flatten().tolist()
    rows = [rollout_row(*each) for each in zip(rollouts, earned, gains, strict=True)]
    return _Collected(rollouts, gains, store, rows)


def split_pairs(drawn: Sequence[Any], rank: int, world: int) -> list[Any]:
    """This process's videos, in pairs of one normal and one abnormal where the batch divides so:
    mostly abnormal ones take two turns.
    """
    size = 2 if len(drawn) % (2 * world) == 0 else 1
    return [one for part in micro_batches(drawn, size, rank, world) for one in part]


def _settings(recipe: GrpoRecipe, step: int) -> RolloutSettings:
    data, seed = recipe.data, recipe.run.seed
    return RolloutSettings(
        recipe.rollout, data.wording, data.look_fps, recipe.model.max_pixels, seed, step, data.turns, data.margin_s
    )


def _open(stage: Stage, slot: int, sample: Sample) -> VideoPrompt:
    """The drawn video, or the next readable one of its class where it cannot be read (it is
    counted).
    """
    pool = stage.training[sample.task, stage.records[sample.record].status]
    at = pool.index(sample)
    for step in range(len(pool)):
        candidate = pool[(at + step) % len(pool)]
        record = stage.records[candidate.record]
        try:
            return open_video_prompt(slot, record, stage.video(record), stage.recipe.scan_fps)
        except ValueError as error:
            stage.leave_out(candidate, str(error))
    raise ValueError(f"no readable {stage.records[sample.record].status} video is left")


def rollout_row(rollout: Rollout, earned: Terms | None, advantage: float) -> dict[str, Any]:
    """One line of rollouts.jsonl."""
    return {
        "slot": rollout.slot,
        "rollout": rollout.number,
        "record": rollout.record.id,
        "truth": rollout.record.status,
        "ending": rollout.ending,
        "status": [turn.status for turn in (rollout.first, rollout.second) if turn is not None],
        "malformed": rollout.malformed,
        "tokens": rollout.num_tokens,
        "error": rollout.error,
        "terms": None if earned is None else earned.to_json(),
        "advantage": advantage,
        "turns": [turn.to_json() for turn in (rollout.first, rollout.second) if turn is not None],
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The step's figures over all processes' rollouts; IoU terms over anomalous videos.

    accuracy: of those that could be rolled out; one that names no usable window never comes to a
    verdict, which is wrong.
    """
    count = len(rows)
    scored = [row["terms"] for row in rows if row["terms"] is not None]
    groups: dict[int, list[float]] = {}
    for row in rows:
        groups.setdefault(row["slot"], []).append(row["advantage"])
    verdicts = [row["status"][-1] for row in rows]
    right = [
        float(row["ending"] != "window" and row["status"][-1] == row["truth"]) for row in rows if row["error"] is None
    ]
    figures = {
        "reward": mean([one["total"] for one in scored]),
        "accuracy": mean(right),
        "normal_rate": verdicts.count("normal") / count,
        "answer_tokens": sum(row["tokens"] for row in rows) / count,
        "zero_std_groups": sum(not any(group) for group in groups.values()) / len(groups),
        "malformed": sum(row["malformed"] for row in rows) / count,
        "unscored": 1 - len(scored) / count,
        "second_turns": sum(row["ending"] == "second turn" for row in rows) / count,
    }
    for name in TERM_NAMES:
        figures[f"term_{name}"] = mean([one[name] for one in scored if one[name] is not None])
    return figures


# ---- the update -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Micro:
    """Some rollouts ready to be scored: their videos' names, their segments' batches, which lines
    each rollout has, and what does not change.
    """

    names: str
    batches: list[dict[str, Tensor]]
    owners: list[list[int]]
    advantage: Tensor
    reference: Tensor | None = None
    old: Tensor | None = None


def _update(
    collected: _Collected, recipe: GrpoRecipe, run: TrainingRun, reference: AnswerLogProbs | None
) -> dict[str, float]:
    """``num_inner_epochs`` optimiser steps on these rollouts; returns the figures of the last one."""
    device = run.device
    total = recipe.batch * recipe.rollout.group_size
    size = recipe.micro_batch
    micros = [_micro(run, recipe, collected, at, size) for at in range(0, len(collected.rollouts), size)]
    for micro in micros:
        with torch.no_grad(), run.autocast():
            if reference is not None:
                micro.reference = _score(reference, micro, device)
            if recipe.grpo.num_inner_epochs > 1:
                micro.old = _score(run.module, micro, device)
    figures: dict[str, float] = {}
    for _ in range(recipe.grpo.num_inner_epochs):
        seen: list[tuple[float, float, float]] = []
        norm = run.descend(_losses(micros, recipe, run, total, seen))
        sums = torch.tensor(seen, dtype=torch.float64, device=device).sum(0) if seen else torch.zeros(3, device=device)
        loss, kl, outside = run.accelerator.reduce(sums, "sum").tolist()
        figures = {"loss": loss, "kl": kl / total, "clipped_share": outside / total, "norm": norm}
    return {**figures, "lr": run.optimizer.param_groups[0]["lr"]}


def _micro(run: TrainingRun, recipe: GrpoRecipe, collected: _Collected, at: int, size: int) -> _Micro:
    """Rollouts of one video share its prompt where attention takes a mask of its own (sdpa). First
    and second turns are of unlike length and go apart, unless the second turn's prompt begins
    with the first: then they show the same video, which is encoded once.
    """
    part = collected.rollouts[at : at + size]
    turns = [
        [rollout.segments[0] for rollout in part],
        [rollout.segments[1] for rollout in part if len(rollout.segments) > 1],
    ]
    if recipe.rollout.context == "continued":
        turns = [turns[0] + turns[1]]
    shared = recipe.model.attention == "sdpa"
    batches = [make_batch(run.processor, segments, collected.store, shared=shared) for segments in turns if segments]
    owners, second = [], len(part)
    for line, rollout in enumerate(part):
        owners.append([line] if len(rollout.segments) == 1 else [line, second])
        second += len(rollout.segments) - 1
    gains = torch.tensor(collected.advantages[at : at + size], dtype=torch.float32, device=run.device)
    names = ", ".join(sorted({rollout.record.id for rollout in part}))
    return _Micro(names, batches, owners, gains)


def _score(scorer: Any, micro: _Micro, device: torch.device) -> Tensor:
    return side_by_side(scorer(*(to_device(device, batch) for batch in micro.batches)), micro.owners)


def _losses(
    micros: Sequence[_Micro], recipe: GrpoRecipe, run: TrainingRun, total: int, seen: list[tuple[float, float, float]]
) -> Iterator[Any]:
    for micro in micros:

        def part(micro: _Micro = micro) -> Tensor:
            run.rank_status.report(f"step {run.step}, learning from {micro.names}")
            log_p = _score(run.module, micro, run.device)
            mask = side_by_side(answer_mask(*micro.batches).to(run.device), micro.owners)
            old = log_p.detach() if micro.old is None else micro.old
            found = objective.loss(
                log_p, old, micro.reference, micro.advantage, mask, epsilon=recipe.grpo.epsilon, beta=recipe.grpo.beta
            )
            value = found.loss / total
            seen.append((value.item(), found.kl, found.clipped_share))
            return value

        yield part


def side_by_side(values: Tensor, owners: Sequence[Sequence[int]]) -> Tensor:
    """(segments, T) → (rollouts, 2 T): each rollout's turns in one row, zeros (False) without a second turn."""
    blank = torch.zeros_like(values[0])
    return torch.stack([torch.cat([values[rows[0]], values[rows[1]] if len(rows) > 1 else blank]) for rows in owners])
