"""The loop that all three stages share: optimizer steps on accelerate, exact resume, the log, the
best weights.

RunConfig (recipe) + AnswerLogProbs → TrainingRun (resumed from its newest checkpoint) → descend,
log, keep_best, save

Why not TRL's trainers: (1) transformers' Trainer writes a checkpoint in place, so a kill leaves
half a folder that its resume then picks up; here a complete folder is moved to its place
(``cac_align.runs.checkpoint``). (2) Here a batch is a function of (seed, step), so every batch has
as many normal as abnormal samples and the same mix of tasks, and a resumed run replays nothing. The
loss is a sum over the whole batch divided by the whole batch's count, so one process and two agree
to rounding. (3) GRPOTrainer scores text and images only; a video of its own per rollout needs three
private methods overridden (TRL 1.16). accelerate carries devices, DDP, FSDP2, ZeRO-2 and mixed
precision; peft carries LoRA.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cac_align.cac.judge_settings import read_two_turn, write_settings
from cac_align.runs.checkpoint import checkpoints, claim_folder, recipe_values, save_checkpoint
from cac_align.runs.files import atomic_folder, atomic_write
from cac_align.runs.lr_schedule import learning_rate
from cac_align.runs.metrics_log import TRACKERS, JsonlLog, open_tracker, track
from cac_align.runs.progress import progress_bar, show_note
from cac_align.runs.rank_status import RankStatus
from cac_align.training.early_stopping import Stopped
from cac_align.training.policy import AnswerLogProbs
from cac_align.training.save_model import save_model
from cac_align.training.trained_state import load_trained, save_trained


@dataclass(frozen=True)
class RunConfig:
    """The recipe section ``run``: schedule, optimizer, and how often a stage writes something down."""

    # Optimizer steps of the whole schedule.
    steps: int = 1000
    # Steps over which the learning rate rises to ``lr``.
    warmup_steps: int = 50
    # Peak learning rate of AdamW.
    lr: float = 1e-4
    # Share of ``lr`` that the last step has, at the end of half a cosine; 1 keeps it constant after the warm-up.
    min_lr_ratio: float = 0.1
    # AdamW's weight decay of matrices; vectors (biases, norms) have none.
    weight_decay: float = 0.0
    # AdamW's decay of the second moment.
    beta2: float = 0.95
    # Largest norm of the gradient; a longer one is scaled down to it.
    max_grad_norm: float = 1.0
    # Of adapters, of the order of samples and of rollouts.
    seed: int = 0
    # Steps between checkpoints; the newest one is kept.
    save_every: int = 100
    # Steps between evaluations on held-out records; 0 switches them off.
    eval_every: int = 100
    # Steps between rows of log.jsonl.
    log_every: int = 1
    # End after this step, although the learning rate follows the schedule of ``steps``; 0 takes all of them.
    stop_after: int = 0
    # Where the log's numbers go as well: "tensorboard" (out/tensorboard), "wandb", or "" for nowhere.
    track: str = ""
    # torch threads on a CPU; 0 leaves torch's default.
    threads: int = 0
    # Train on the CPU although there is a GPU.
    cpu: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} must be at least 1, received {getattr(self, name)}")
        if self.lr <= 0 or self.max_grad_norm <= 0:
            raise ValueError(
                f"run.lr and run.max_grad_norm must be positive, received {self.lr} and {self.max_grad_norm}"
            )
        if self.track not in TRACKERS:
            raise ValueError(f"run.track must be 'tensorboard', 'wandb' or '', received {self.track!r}")

    @property
    def last_step(self) -> int:
        """The number of steps after which the run ends."""
        return min(self.steps, self.stop_after or self.steps)

    def lr_at(self, step: int) -> float:
        """The learning rate of ``step``, counted from 0."""
        return learning_rate(step, self.steps, self.lr, warmup_steps=self.warmup_steps, min_lr_ratio=self.min_lr_ratio)


_FREE = (
    "out",
    "overlap",
    "early_stopping",
    *(f"run.{name}" for name in ("stop_after", "threads", "save_every", "log_every", "track", "cpu")),
)
"""Recipe keys that may differ between a run and its continuation; so may ``run.steps`` once all were taken."""


class TrainingRun:
    """A resumable optimization of one stage.

    ``module`` is what accelerate prepared; ``scorer`` and ``model`` are what lies inside. ``step``
    counts the steps taken; ``best`` is the best evaluation so far, {"step", "measure", "value"} or
    None. ``log`` is None but on the main process.
    """

    def __init__(self, recipe: Any, accelerator: Any, scorer: AnswerLogProbs, processor: Any) -> None:
        self.out, self.config, self.recipe = Path(recipe.out), recipe.run, recipe
        self.accelerator, self.scorer, self.processor = accelerator, scorer, processor
        start = read_two_turn(recipe.model.source, recipe.model.revision)
        # How long an answer may be is no matter of training: the start's own limit goes on.
        self.two_turn = replace(recipe.two_turn, max_new_tokens=start.max_new_tokens)
        claim_folder(self.out, "stage", recipe, free=_FREE, steps="run.steps", write=accelerator.is_main_process)
        accelerator.wait_for_everyone()
        self.rank_status = RankStatus(self.out / "processes", accelerator.process_index, accelerator.num_processes)
        self.module, self.optimizer = self._prepare()
        self.step: int = 0
        self.best: dict[str, Any] | None = None
        if found := checkpoints(self.out):
            progress = json.loads((found[-1] / "progress.json").read_text(encoding="utf-8"))
            load_trained(accelerator, self.module, found[-1])
            # accelerate stores its count of micro-batches; another number of processes takes another number per step.
            accelerator.step = 0
            self.step, self.best = progress["step"], progress["best"]
        self.log = self.tracker = None
        if accelerator.is_main_process:
            self.log = JsonlLog(self.out / "log.jsonl", before=self.step + 1, digits=6)
            self.tracker = open_tracker(self.config.track, self.out, self.step + 1, recipe_values(recipe))

    def _prepare(self) -> tuple[Any, Any]:
        """Scorer and AdamW as accelerate wraps them."""
        config, accelerator = self.config, self.accelerator
        vectors = [p for p in self.scorer.parameters() if p.requires_grad and p.ndim < 2]
        matrices = [p for p in self.scorer.parameters() if p.requires_grad and p.ndim >= 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=(0.9, config.beta2), eps=1e-8)
        if accelerator.state.deepspeed_plugin is not None:  # without a dataloader accelerate cannot know these
            known = {
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": accelerator.gradient_accumulation_steps,
                "gradient_clipping": config.max_grad_norm,
                # Both are the model's precision unless named, and bfloat16 loses .6 % of a step's gradient.
                "data_types": {"grad_accum_dtype": "fp32"},
                "communication_data_type": "fp32",
            }
            accelerator.state.deepspeed_plugin.deepspeed_config.update(known)
        return accelerator.prepare(self.scorer, adam)

    @property
    def model(self) -> Any:
        """The model without wrappers (adapters included)."""
        return self.accelerator.unwrap_model(self.module).model

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def finished(self) -> bool:
        """Whether all steps were taken and the final weights were written."""
        return self.step >= self.config.last_step and (self.out / "final").is_dir()

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which the model computes in the recipe's precision."""
        return self.accelerator.autocast()

    def progress_bar(self, title: str) -> Any:
        """A bar on stderr that stands at this step, with what is being done; on the main process only."""
        bar = progress_bar(
            self.config.last_step, title, "step", initial=self.step, shown=self.accelerator.is_main_process
        )
        self.rank_status.listener = partial(show_note, bar)
        return bar

    def descend(self, losses: Iterable[Callable[[], Tensor]]) -> float:
        """Take one optimizer step and return the gradient's norm.

        Each callable gives one micro-batch's part of the loss; all parts of all processes add up to
        the step's loss. Raises ``Stopped`` when the loss or the gradient is not finite; the weights
        are then unchanged.
        """
        # accelerate and DDP both average; the step wants the sum.
        scale = self.accelerator.num_processes * self.accelerator.gradient_accumulation_steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(self.step)
        norm: Any = None
        for part in losses:
            with self.accelerator.accumulate(self.module):
                value = part()
                if not torch.isfinite(value):
                    raise Stopped(self._not_finite("loss", value.item()))
                self.accelerator.backward(value * scale)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.max_grad_norm)
                    if norm is not None and not math.isfinite(float(norm)):
                        raise Stopped(self._not_finite("gradient's norm", float(norm)))
                self.optimizer.step()
                self.optimizer.zero_grad()
        return float("nan") if norm is None else float(norm)

    def _not_finite(self, what: str, value: float) -> str:
        found = checkpoints(self.out)
        where = f"the last checkpoint is kept ({found[-1]})" if found else "no checkpoint was written yet"
        return (
            f"step {self.step}: the {what} is {value}; nothing of this step was saved, {where}. Lower run.lr (now "
            f"{self.config.lr_at(self.step):.2e}) and start in a fresh out=, or look at the batch"
        )

    # ---- what is written ---------------------------------------------------------------------------------------------

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Append a row to log.jsonl under this step's number, and send its numbers to the tracker."""
        if self.log is not None:
            track(self.tracker, self.log.add({"step": self.step, **row}), "train")

    def save(self) -> None:
        """Make this step the checkpoint, on all processes together."""

        def fill(folder: Path) -> None:
            save_trained(self.accelerator, self.module, folder)
            if self.accelerator.is_main_process:
                atomic_write(folder / "progress.json", json.dumps({"step": self.step, "best": self.best}) + "\n")

        save_checkpoint(self.out, self.step, fill, accelerator=self.accelerator)

    def keep_best(self, value: float, measure: str) -> bool:
        """Write ``out/best`` when ``value`` (higher is better) beats every evaluation before. A NaN
        never does.
        """
        better = not math.isnan(value) and (self.best is None or value > self.best["value"])
        if better:
            self.best = {"step": self.step, "measure": measure, "value": value}
            self.save_model("best")
        return better

    def save_model(self, name: str) -> Path:
        """Write the model (adapters merged), its processor and its judge settings to ``out/name``,
        for ``from_pretrained``.
        """
        state = self.accelerator.get_state_dict(self.module)  # gathered, where FSDP has sharded it

        def fill(folder: Path) -> None:
            save_model(self.scorer, state, self.processor, folder)
            write_settings(folder, self.two_turn, self.recipe.model.max_pixels)

        if self.accelerator.is_main_process:
            atomic_folder(self.out / name, fill)
        self.accelerator.wait_for_everyone()
        return self.out / name
