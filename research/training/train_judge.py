"""Train a small judge by supervised fine-tuning: one recipe in, one folder of weights out,
resumable at any moment.

recipe → tokenizer, processor, fresh model → its eyes (see, watch) → frame pairs → whole clips and
close looks → folder + log.jsonl

Every step is a function of (seed, step): the batch is drawn from a generator seeded with both, so a
run that was killed and started again goes on with the same batches and ends with the same weights
(``cac_align.runs.checkpoint``); ``research.build`` runs it. Loss: cross-entropy on the answer's tokens only, mean over the
batch's answer tokens. AdamW, linear warm-up, cosine to ``min_lr``.

Source: CaC (arXiv 2605.11723) Sec. 3.2 and Appendix C.1 (stages 1 and 2, here with full parameters
in both).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from cac_align.cac.judge_settings import write_settings
from cac_align.cac.two_turn import TwoTurn
from cac_align.miniature.models.judge import (
    FRAME_PX,
    JudgeSize,
    build_judge_tokenizer,
    build_model,
    build_processor,
    write_folder,
)
from cac_align.runs.checkpoint import claim_folder, read_state, save_state
from cac_align.runs.lr_schedule import learning_rate
from cac_align.runs.metrics_log import JsonlLog
from cac_align.vlm.inputs import collate as join_rows
from cac_align.vlm.inputs import encode_one, pad_id
from research.experiments.judge_figures import evaluate
from research.training.auxiliary_loss import auxiliary_loss, tapped
from research.training.encoder_loss import draw_pairs, encoder_loss
from research.training.examples import Example, cac_examples, tokenizer_texts, unified_examples
from research.training.judge_loss import answer_loss, batch_vision_attention, collate
from research.training.optimise import muon_and_adam
from research.training.pool import GENERATED_DEGRADE_STRENGTH, ClipPool, MixtureConfig
from research.training.start_from import take_all, take_body, take_probe_heads
from research.training.token_labels import ProbeHeads
from research.training.workers import PartResult, Workers

MAX_NEW_TOKENS = 400
"""Per turn of the small judge; its longest right answers (24 boxed frames of the full world) have
330.
"""

PROBE_HEADS = "probe_heads.safetensors"
"""The questions to the visual tokens, in the run's folder beside its final weights."""

FREE = ("out", "pool", "threads", "save_every", "log_every", "eval_every", "eval_clips")
"""Recipe keys that may differ between a run and its continuation."""

STAGES = ("encoder", "auxiliary", "pair", "joint")


@dataclass(frozen=True)
class JudgeTraining:
    """One training of a small judge.

    job: "cac" (two-turn judge) or "unified" (alignment, physics, style). out: folder for
    checkpoints, log and the final weights. clips, first_seed: how many world clips, and the first
    of their seeds; text_clips: of how many the tokenizer reads the texts. pool: where rendered
    clips are kept (default: out/pool). generated: folders of pools of generated clips
    (``miniature.generated``), taken by lot for the mixture's share of batches (none: ()). Optimiser
    steps of the four stages: encoder_steps (the image encoder's schooling, encoder_batch frame
    pairs each), auxiliary_steps (the language model's: what is anomalous, asked of the visual
    tokens, before any answer), pair_steps (answers about frame pairs), steps (turn 1 and turn 2
    together). batch: clips per step. auxiliary_weight: how much the visual tokens' questions go on
    counting beside the answers. shape_error_weight: how much of those questions is about the
    measured shape of generated entities. lr, min_lr: peak and last learning rate of each stage;
    matrix_lr: peak of Muon's, for the inner matrices (0: AdamW for all). verdict_weight: how much a
    token that gives a verdict (a frame's, the status) weighs in the loss, the others weighing 1;
    miss_weight, turn_two_miss_weight: how much more it weighs where turn 1, or turn 2, must not
    miss a anomalous frame. seed: of weights, batches and augmentation. save_every, eval_every:
    steps; eval_clips: held-out clips per evaluation (0 switches it off). workers: threads that
    share a step, each with torch threads of its own (threads). body: a trained judge's folder from
    which this one takes all layers, and the vectors of the words that both tokenizers know; start:
    one from which it takes everything, tokenizer included (both empty: fresh weights). probe_heads:
    a run's folder whose questions to the visual
    tokens go on (empty: fresh ones). stop_after: write the final weights after this step, whatever
    the schedule still had in mind (0: all steps).
    """

    job: str = "cac"
    out: str = "runs/judge"
    clips: int = 8000
    text_clips: int = 400
    first_seed: int = 0
    pool: str = ""
    generated: tuple[str, ...] = ()
    encoder_steps: int = 0
    encoder_batch: int = 128
    auxiliary_steps: int = 0
    auxiliary_weight: float = 0.0
    shape_error_weight: float = 0.0
    pair_steps: int = 300
    steps: int = 1500
    batch: int = 32
    lr: float = 2e-3
    min_lr: float = 5e-5
    matrix_lr: float = 0.02
    verdict_weight: float = 8.0
    miss_weight: float = 1.0
    turn_two_miss_weight: float = 1.0
    warmup_steps: int = 60
    weight_decay: float = 0.02
    max_grad_norm: float = 1.0
    seed: int = 0
    save_every: int = 100
    log_every: int = 20
    eval_every: int = 500
    eval_clips: int = 100
    threads: int = 1
    workers: int = 1
    body: str = ""
    start: str = ""
    probe_heads: str = ""
    stop_after: int = 0
    size: JudgeSize = field(default_factory=JudgeSize)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)

    def __post_init__(self) -> None:
        if self.job not in ("cac", "unified"):
            raise ValueError(f"job must be 'cac' or 'unified', received {self.job!r}")
        for name in ("clips", "steps", "batch", "save_every", "log_every", "threads", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        for name in ("batch", "encoder_batch"):
            if getattr(self, name) % (2 * self.workers):
                raise ValueError(
                    f"{name} must be a multiple of 2 × workers = {2 * self.workers}, received {getattr(self, name)}"
                )


# ---- the run ------------------------------------------------------------------------------------------------------


def train(recipe: JudgeTraining, *, until: int | None = None) -> Path:
    """Run or resume the recipe; returns the folder with the final weights (``out/final``).

    until: stop dead after this step, as a kill would: nothing is written that is not there already.

    Raises ``ValueError`` when ``out`` holds another recipe's run or the loss is no longer finite.
    """
    torch.set_num_threads(recipe.threads)
    out = Path(recipe.out)
    claim_folder(out, "judge", recipe, free=FREE)
    pool = ClipPool.open(
        Path(recipe.pool or out / "pool"), recipe.mixture, recipe.first_seed, recipe.clips, progress=_say
    )
    drawn = [ClipPool(Path(folder)) for folder in recipe.generated]
    processor = _processor(out, recipe)
    model = build_model(processor.tokenizer, recipe.size, seed=recipe.seed)
    if recipe.start:
        take_all(model, Path(recipe.start))
    elif recipe.body:
        take_body(model, processor, Path(recipe.body))
    batch_vision_attention(model)
    model.train()
    heads = torch.nn.ModuleDict(
        {
            name: ProbeHeads(recipe.size.text_hidden, seed=recipe.seed, shape_error=recipe.shape_error_weight)
            for name in ("encoder", "auxiliary")
        }
    )
    if recipe.probe_heads:
        take_probe_heads(heads, Path(recipe.probe_heads) / PROBE_HEADS)
    optimizers = muon_and_adam(model, heads, recipe.lr, recipe.matrix_lr, recipe.weight_decay)
    done = 0
    if (state := read_state(out)) is not None:
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        done = state["step"]
        _say(f"resuming at step {done}")
    stages = (recipe.encoder_steps, recipe.auxiliary_steps, recipe.pair_steps, recipe.steps)
    total = min(sum(stages), recipe.stop_after or sum(stages))
    log = JsonlLog(out / "log.jsonl", before=done + 1, digits=None)
    workers = Workers((model, heads, processor), recipe.workers, recipe.threads)
    began, since, right, losses = time.time(), done, [], []
    for step in range(done, total):
        stage, within = _stage(step, stages)
        lr = learning_rate(  # the last step stays a little above min_lr, which a step after it would have
            within,
            stages[stage] + 1,
            recipe.lr,
            warmup_steps=recipe.warmup_steps,
            min_lr_ratio=recipe.min_lr / recipe.lr,
        )
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * lr / recipe.lr
        loss, exact, length = workers.backward(partial(_part_loss, recipe, pool, drawn, step, stage))
        if not math.isfinite(loss):
            raise ValueError(
                f"loss is {loss} at step {step} of {recipe.out}; lower lr (now {lr:.2e}) and start from a fresh folder"
            )
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss)
        right.append(exact)
        if (step + 1) % recipe.log_every == 0 or step + 1 == total:
            seconds = (time.time() - began) / (step + 1 - since)
            row = {
                "step": step + 1,
                "of": total,
                "lr": lr,
                "loss": sum(losses) / len(losses),
                "exact": sum(right) / len(right),
            }
            log.add({**row, "stage": STAGES[stage], "length": length, "seconds_per_step": round(seconds, 3)})
            _say(
                f"step {step + 1}/{total} loss {row['loss']:.4f} exact {row['exact']:.3f} length {length} {seconds:.2f} s/step"
            )
            losses, right = [], []
        if (step + 1) % recipe.save_every == 0 or step + 1 == total:
            save_state(
                out,
                {
                    "model": model.state_dict(),
                    "heads": heads.state_dict(),
                    "optimizers": [o.state_dict() for o in optimizers],
                    "step": step + 1,
                },
            )
        if (
            recipe.eval_clips
            and recipe.eval_every
            and ((step + 1) % recipe.eval_every == 0 or step + 1 == total)
            and stage == 3
        ):
            _write_final(out / "final", model, processor, recipe)
            log.add({"step": step + 1, "held_out": evaluate(out / "final", recipe.job, recipe.eval_clips)})
        if until is not None and step + 1 >= until:
            return out / "final"
    _write_final(out / "final", model, processor, recipe)
    save_file(heads.state_dict(), out / PROBE_HEADS)
    return out / "final"


def _write_final(
    folder: Path, model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, recipe: JudgeTraining
) -> None:
    write_folder(folder, model, processor)
    if recipe.job == "cac":
        mixture = recipe.mixture
        asked = TwoTurn(
            mixture.scan_fps,
            mixture.look_fps,
            wording=mixture.wording,
            max_new_tokens=MAX_NEW_TOKENS,
            margin_s=mixture.margin_s,
        )
        write_settings(folder, asked)


def _part_loss(
    recipe: JudgeTraining,
    pool: ClipPool,
    drawn: Sequence[ClipPool],
    step: int,
    stage: int,
    part: int,
    model: Qwen3VLForConditionalGeneration,
    heads: torch.nn.ModuleDict,
    processor: Qwen3VLProcessor,
) -> PartResult:
    """A worker's part of this step: its frame pairs or its examples, from rendered clips or from
    generated ones, and their loss.
    """
    if stage == 0:
        side = FRAME_PX // recipe.size.patch_px // recipe.size.merge
        pool, mixture = _source(recipe, pool, drawn, step)
        pairs = draw_pairs(
            pool, mixture, recipe.encoder_batch // recipe.workers, side=side, seed=(recipe.seed, step), part=part
        )
        return *encoder_loss(model, heads["encoder"], pairs), 0
    examples = _examples(recipe, pool, drawn, step, pairs=stage == 2, part=part)
    return _example_loss(model, processor, heads["auxiliary"], examples, recipe, answers=stage > 1)


def _examples(
    recipe: JudgeTraining, pool: ClipPool, drawn: Sequence[ClipPool], step: int, *, pairs: bool, part: int = 0
) -> list[Example]:
    """A worker's part of this step's examples."""
    pool, mixture = _source(recipe, pool, drawn, step)
    teach = cac_examples if recipe.job == "cac" else unified_examples
    return teach(pool, mixture, recipe.batch // recipe.workers, seed=(recipe.seed, step), pairs=pairs, part=part)


def _source(
    recipe: JudgeTraining, pool: ClipPool, drawn: Sequence[ClipPool], step: int
) -> tuple[ClipPool, MixtureConfig]:
    """Where this step's clips come from, rendered or generated, and how they are shown."""
    rng = np.random.default_rng((recipe.seed, step, 2))
    if drawn and rng.random() < recipe.mixture.generated:
        chosen = drawn[int(rng.integers(len(drawn)))]
        return chosen, replace(
            recipe.mixture, degraded=recipe.mixture.generated_degraded, degrade_strength=GENERATED_DEGRADE_STRENGTH
        )
    return pool, recipe.mixture


def _example_loss(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    heads: ProbeHeads,
    examples: Sequence[Example],
    recipe: JudgeTraining,
    *,
    answers: bool,
) -> tuple[torch.Tensor, float, int]:
    """Loss, share of right verdict tokens (without ``answers``: of right verdicts of the visual
    tokens) and length of these examples.
    """
    with tapped(model, max(1, recipe.size.text_layers - 2)) as kept:
        if answers:
            batch = collate(processor, examples, recipe.verdict_weight, recipe.miss_weight, recipe.turn_two_miss_weight)
            loss, exact = answer_loss(model, batch)
        else:
            rows = [encode_one(processor, example.conversation, add_generation_prompt=False) for example in examples]
            batch = join_rows(rows, pad_id=pad_id(processor))
            model.model(**batch, use_cache=False)
            loss, exact = torch.zeros(()), 0.0
    if not answers or recipe.auxiliary_weight:
        watched, told = auxiliary_loss(kept[0], batch, examples, heads)
        loss, exact = (loss + recipe.auxiliary_weight * watched, exact) if answers else (watched, told)
    return loss, exact, batch["input_ids"].shape[1]


# ---- keeping a run --------------------------------------------------------------------------------------------------


def _processor(out: Path, recipe: JudgeTraining) -> Qwen3VLProcessor:
    """The run's processor: built once from the recipe's texts, then read back, so that a resumed
    run has the same tokens.
    """
    folder = Path(recipe.start) if recipe.start else out / "processor"
    if not (folder / "tokenizer.json").is_file():
        tokenizer = build_judge_tokenizer(
            tokenizer_texts(recipe.job, recipe.mixture, clips=recipe.text_clips), recipe.size.num_merges
        )
        build_processor(tokenizer, recipe.size).save_pretrained(folder)
    return AutoProcessor.from_pretrained(folder)


def _stage(step: int, stages: Sequence[int]) -> tuple[int, int]:
    """Which stage a step belongs to, and its number within it."""
    for stage, length in enumerate(stages):
        if step < length:
            return stage, step
        step -= length
    raise AssertionError("a step beyond the last stage")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
