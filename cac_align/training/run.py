"""What keeps a training alive: checkpoints that a kill cannot tear, exact resume, the log, the best weights.

Keeping (recipe) + AnswerLogProbs → Run (resumed where a checkpoint lies) → descend, write, keep_best, save → write_model

All three stages use this one loop on accelerate, not TRL's trainers. What decided: (1) transformers' Trainer writes a checkpoint in
place, so a kill while it writes leaves a half folder that its resume then picks up; here a checkpoint becomes current when one small
file is replaced. (2) Here a batch is a function of (seed, step), so 1:1 balance and the mix of tasks hold in every batch and a
resumed run replays nothing; its loss is a sum over the whole batch divided by the whole batch's count, so one process and two agree
to rounding. (3) GRPOTrainer scores text and images only; a video that belongs to one rollout needs three private methods overridden
(TRL 1.16), which the next release may rename. accelerate carries devices, DDP, FSDP2, ZeRO-2 and mixed precision; peft carries LoRA.

Everything random in step n is drawn from (seed, n, …): no generator state has to be kept.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cac_align.cac.judge_settings import settings_of, write_settings
from cac_align.config import flat
from cac_align.runs.files import write_whole
from cac_align.runs.lr_schedule import warm_cosine
from cac_align.runs.rank_status import RankStatus
from cac_align.training.alarms import Stopped
from cac_align.training.policy import AnswerLogProbs, core


@dataclass(frozen=True)
class Keeping:
    """One run's schedule. ``steps``: optimisation steps. lr rises over ``warmup_steps`` and falls on a cosine to lr × min_lr_ratio.

    save_every, eval_every, log_every: steps (eval_every 0: never). until: stop early at this step, with the schedule of ``steps`` (0: no).
    tensorboard: event files in out/tensorboard. wandb: project name ("": off). threads: of torch on a CPU (0: leave as it is).
    """

    steps: int = 1000
    warmup_steps: int = 50
    lr: float = 1e-4
    min_lr_ratio: float = 0.1
    weight_decay: float = 0.0
    beta2: float = 0.95
    clip_norm: float = 1.0
    seed: int = 0
    save_every: int = 100
    eval_every: int = 100
    log_every: int = 1
    until: int = 0
    tensorboard: bool = False
    wandb: str = ""
    threads: int = 0
    cpu: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} must be at least 1, received {getattr(self, name)}")
        if self.lr <= 0 or self.clip_norm <= 0:
            raise ValueError(f"run.lr and run.clip_norm must be positive, received {self.lr} and {self.clip_norm}")

    @property
    def last(self) -> int:
        return min(self.steps, self.until or self.steps)


def learning_rate(step: int, keeping: Keeping) -> float:
    """Of step ``step`` (from 0): linear warm-up, then a cosine from lr to lr × min_lr_ratio at the last step."""
    return keeping.lr * warm_cosine(step, keeping.steps, warmup=keeping.warmup_steps, floor=keeping.min_lr_ratio)


def start_accelerator(keeping: Keeping, mixed_precision: str, accumulation: int) -> Any:
    """accelerate's front: devices, processes, precision. ``accumulation``: micro-batches per process and step."""
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    # Qwen3-VL may tie its word table to its head; that the table is stored once is meant, not worth a warning per checkpoint.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    if keeping.threads:
        torch.set_num_threads(keeping.threads)
    sharding = fsdp_plugin(mixed_precision)
    # Under FSDP a micro-batch whose gradients are not reduced at once leaves all of them, unsharded, on every process.
    plugin = GradientAccumulationPlugin(
        num_steps=accumulation, sync_with_dataloader=False, sync_each_batch=sharding is not None
    )
    patient = InitProcessGroupKwargs(timeout=timedelta(days=1))  # one process may have far longer answers to wait for
    return Accelerator(
        mixed_precision=mixed_precision,
        gradient_accumulation_plugin=plugin,
        fsdp_plugin=sharding,
        cpu=keeping.cpu,
        kwargs_handlers=[patient],
    )


def fsdp_plugin(mixed_precision: str) -> Any:
    """FSDP 2 as the environment asks for it (None: it does not), with gradients reduced and log-probabilities returned in float32.

    accelerate's own policy for bf16 rounds both: a log-probability near 700 would move in steps of 4.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin, str_to_bool

    if not str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false")):
        return None
    if mixed_precision != "bf16" or os.environ.get("FSDP_VERSION", "1") != "2":
        return FullyShardedDataParallelPlugin()
    policy = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32, "output_dtype": torch.float32}
    return FullyShardedDataParallelPlugin(mixed_precision_policy=policy)


class Run:
    """A resumable optimisation. ``module`` is what accelerate prepared, ``scorer`` and ``model`` what lies inside."""

    def __init__(
        self, out: str, recipe: Any, keeping: Keeping, accelerator: Any, scorer: AnswerLogProbs, processor: Any
    ) -> None:
        self.out, self.keeping, self.accelerator, self.processor = Path(out), keeping, accelerator, processor
        self.scorer, self.recipe = scorer, recipe
        start = settings_of(recipe.model.source, recipe.model.revision)
        self.asked = replace(
            recipe.asked, max_new_tokens=start.max_new_tokens
        )  # how long an answer may be is no matter of training
        if accelerator.is_main_process:
            self.out.mkdir(parents=True, exist_ok=True)
            claim(self.out, recipe)
        accelerator.wait_for_everyone()
        self.here = RankStatus(self.out / "processes", accelerator.process_index, accelerator.num_processes)
        vectors = [p for p in scorer.parameters() if p.requires_grad and p.ndim < 2]
        matrices = [p for p in scorer.parameters() if p.requires_grad and p.ndim >= 2]
        groups = [{"params": matrices, "weight_decay": keeping.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        adam = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=keeping.lr, betas=(0.9, keeping.beta2), eps=1e-8
        )
        if accelerator.state.deepspeed_plugin is not None:  # without a dataloader accelerate cannot tell it
            accumulation = accelerator.gradient_accumulation_steps
            known = {
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": accumulation,
                "gradient_clipping": keeping.clip_norm,
            }
            accelerator.state.deepspeed_plugin.deepspeed_config.update(known)
        self.module, self.optimizer = accelerator.prepare(scorer, adam)
        self.step, self.best = 0, None
        pointer = self.out / "checkpoint.json"
        if pointer.is_file():
            state = json.loads(pointer.read_text(encoding="utf-8"))
            accelerator.load_state(str(self.out / state["folder"]))
            accelerator.step = (
                0  # its count of micro-batches, of which another number of processes makes another number per step
            )
            self.step, self.best = state["step"], state["best"]
        self.log = Log(self.out, self.step, keeping, recipe) if accelerator.is_main_process else None

    @property
    def model(self) -> Any:
        """The model without wrappers (adapters included)."""
        return self.accelerator.unwrap_model(self.module).model

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def finished(self) -> bool:
        return self.step >= self.keeping.last and (self.out / "final").is_dir()

    def autocast(self) -> AbstractContextManager[None]:
        return self.accelerator.autocast()

    def descend(self, losses: Iterable[Callable[[], Tensor]]) -> float:
        """One optimiser step: each callable gives this process's part of the loss, a part of a sum over all processes' parts.

        Returns the gradient's norm. Raises ``Stopped`` where loss or gradient is not finite; nothing is applied then.
        """
        scale = (
            self.accelerator.num_processes * self.accelerator.gradient_accumulation_steps
        )  # both average; we want the sum
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.keeping)
        norm: Any = None
        for part in losses:
            with self.accelerator.accumulate(self.module):
                value = part()
                if not torch.isfinite(value):
                    raise Stopped(self._not_finite("loss", value.item()))
                self.accelerator.backward(value * scale)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.keeping.clip_norm)
                    if norm is not None and not math.isfinite(float(norm)):
                        raise Stopped(self._not_finite("gradient's norm", float(norm)))
                self.optimizer.step()
                self.optimizer.zero_grad()
        return float("nan") if norm is None else float(norm)

    def _not_finite(self, what: str, value: float) -> str:
        kept = self.out / "checkpoint.json"
        where = f"the last checkpoint is kept ({kept})" if kept.is_file() else "no checkpoint was written yet"
        return (
            f"step {self.step}: the {what} is {value}; nothing of this step was saved, {where}. Lower run.lr (now "
            f"{learning_rate(self.step, self.keeping):.2e}) and start in a fresh out=, or look at the batch"
        )

    # ---- what is written ---------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Make this step the checkpoint. A kill at any moment leaves the former one or this one, never half of one."""
        name = f"checkpoint-{self.step:06d}"
        folder = self.out / name
        if self.accelerator.is_main_process and folder.exists():
            shutil.rmtree(folder)  # a torn attempt that never became current
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(folder))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_whole(
                self.out / "checkpoint.json",
                json.dumps({"folder": name, "step": self.step, "best": self.best}, indent=1) + "\n",
            )
            for other in self.out.glob("checkpoint-*"):
                if other != folder:
                    shutil.rmtree(other)
        self.accelerator.wait_for_everyone()

    def keep_best(self, value: float, name: str) -> bool:
        """Write ``out/best`` when ``value`` (higher is better) beats every evaluation before. A NaN never does."""
        better = not math.isnan(value) and (self.best is None or value > self.best["value"])
        if better:
            self.best = {"step": self.step, "measure": name, "value": value}
            self.write_model("best")
        return better

    def write_model(self, name: str) -> Path:
        """The model (adapters merged) with its processor, loadable with ``from_pretrained``, in ``out/name``: whole or not at all."""
        state = whole_state(self.accelerator, self.module)
        folder, partial = self.out / name, self.out / f"{name}.partial"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            write_model(self.scorer, state, self.processor, partial)
            write_settings(partial, self.asked, self.recipe.model.max_pixels)
            former = self.out / f"{name}.former"
            shutil.rmtree(former, ignore_errors=True)
            if folder.exists():
                os.replace(folder, former)
            os.replace(partial, folder)
            shutil.rmtree(former, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return folder

    def write(self, row: Mapping[str, Any]) -> None:
        if self.log is not None:
            self.log.write({"step": self.step, **row})


def whole_state(accelerator: Any, module: Any) -> dict[str, Tensor]:
    """All weights on this process (gathered, where FSDP has sharded them)."""
    return accelerator.get_state_dict(module)


def write_model(scorer: AnswerLogProbs, state: Mapping[str, Tensor], processor: Any, folder: Path) -> None:
    """Save a model from a state dict of its scorer. LoRA is merged: W + (alpha / r) B A, on a copy of the state."""
    model = scorer.model
    state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    if hasattr(model, "peft_config"):
        state = merged(state, model.peft_config["default"])
    net = core(model)
    net.save_pretrained(folder, state_dict={name: tensor.contiguous() for name, tensor in state.items()})
    processor.save_pretrained(folder)


def merged(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Plain weights from a LoRA model's state dict. The sum is taken in float32."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        key = name.removeprefix("base_model.model.")
        if ".base_layer." in key:
            down, up = (state.get(name.replace("base_layer.weight", f"lora_{side}.default.weight")) for side in "AB")
            if name.endswith(".base_layer.weight") and down is not None and up is not None:
                delta = up.float() @ down.float() * (config.lora_alpha / config.r)
                tensor = (tensor.float() + delta.to(tensor.device)).to(tensor.dtype)
            key = key.replace(".base_layer.", ".")
        plain[key] = tensor
    return plain


# ---- small files ----------------------------------------------------------------------------------------------------


FREE = ("out", "until", "threads", "save_every", "log_every", "tensorboard", "wandb", "cpu")
"""Recipe keys that may differ when a run is taken up again; so may all of ``watch``."""


def claim(out: Path, recipe: Any) -> None:
    """Write the recipe into its folder, or make sure that the run found there is this one. Raises ``ValueError`` that names what differs.

    A key that the run found there did not know yet had the value that is its default now.
    """
    path, values = out / "recipe.json", flat(recipe)
    if path.is_file():
        found = {**flat(type(recipe)()), **json.loads(path.read_text(encoding="utf-8"))}
        free = {key for key in values if key.rpartition(".")[2] in FREE or key.startswith("watch.")}
        differs = [key for key in values if key not in free and found.get(key) != values[key]]
        if differs:
            key = differs[0]
            raise ValueError(
                f"{out} holds a run with {key}={found.get(key)}, received {key}={values[key]}; give another out=, or remove it"
            )
        return
    write_whole(path, json.dumps(values, indent=1) + "\n")


class Log:
    """log.jsonl (and TensorBoard, W&B where asked), cut back to the checkpoint's step on resume so that no step stands there twice."""

    def __init__(self, out: Path, done: int, keeping: Keeping, recipe: Any) -> None:
        self.path = out / "log.jsonl"
        self.rows = [row for row in read_rows(self.path) if row["step"] <= done]
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._sinks: list[Callable[[dict[str, Any]], None]] = []
        if keeping.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(out / "tensorboard"), purge_step=done + 1)
            self._sinks.append(
                lambda row: [writer.add_scalar(k, v, row["step"]) for k, v in numbers(row).items()] and writer.flush()
            )
        if keeping.wandb:
            import wandb

            wandb.init(
                project=keeping.wandb, dir=str(out), name=out.name, id=out.name, resume="allow", config=flat(recipe)
            )
            self._sinks.append(lambda row: wandb.log(numbers(row), step=row["step"]))

    def write(self, row: dict[str, Any]) -> None:
        row = {key: _rounded(value) for key, value in row.items()}
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        for sink in self._sinks:
            sink(row)


def _rounded(value: Any) -> Any:
    """Floats to six digits; NaN and infinity are null, which JSON can say."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in row.items() if isinstance(value, (int, float)) and key != "step"}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; a last line that a kill tore is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def bar(run: Run, about: str) -> Any:
    from tqdm import tqdm

    quiet = not run.accelerator.is_main_process
    return tqdm(total=run.keeping.last, initial=run.step, desc=about, file=sys.stderr, disable=True if quiet else None)


def union(run: Run, found: Mapping[str, str]) -> dict[str, str]:
    """What any process has found, by name, on every process."""
    if run.accelerator.num_processes == 1:
        return dict(found)
    from accelerate.utils import gather_object

    return {name: why for each in gather_object([dict(found)]) for name, why in each.items()}


def shares(items: Sequence[Any], size: int, rank: int, world: int) -> list[list[Any]]:
    """This process's micro-batches of ``size`` items. Raises ``ValueError`` when the batch does not divide evenly."""
    if len(items) % (size * world):
        raise ValueError(
            f"a batch of {len(items)} cannot be cut into micro-batches of {size} on {world} processes; make it a multiple of {size * world}"
        )
    parts = [list(items[at : at + size]) for at in range(0, len(items), size)]
    return parts[rank::world]
