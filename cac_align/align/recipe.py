"""The recipe of a Flow-GRPO run, and the checks that say what is wrong with it before anything is loaded.

YAML → ``read_recipe(FlowGrpoRecipe, path, overrides)`` → ``check`` → ``read_prompts`` → ``plan`` (which prompts at which step)

Defaults are those of the miniature where a cost is involved; the paper's numbers stand in ``recipes/align/wan2.1_1.3b.yaml``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cac_align.align.advantages import AGGREGATIONS
from cac_align.align.sde import DYNAMICS
from cac_align.config import import_name
from cac_align.core.prompts import read_lines, rows_of
from cac_align.runs.lr_schedule import warm_cosine

OBJECTIVES = ("grpo", "nft")
SAMPLERS = ("euler", "checkpoint")
CREDITS = ("uniform", "local")
DTYPES = ("float32", "bfloat16")


@dataclass
class Window:
    """Which steps are stochastic: ``size`` of the steps first … last (counted from 0, both included), drawn anew at every update step.
    The others follow the ODE. size 0: all of them."""

    size: int = 3
    first: int = 1
    last: int = 6


@dataclass
class Watch:
    """The guard's own videos: the same ``prompts`` prompts and seeds before the first step and every ``every`` steps (0: never).

    source: where their prompts come from, as ``prompts`` of the recipe; empty: after the training prompts (of a function), or the
    training prompts themselves (of a file). reward: recipe of a held-out reward that is never trained on; empty: none.
    tolerance: how far a watched number may fall, as a share of its first value, before the alarm speaks. stop: end the run then.
    """

    every: int = 10
    prompts: int = 16
    source: str = ""
    reward: str = ""
    tolerance: float = 0.05
    stop: bool = False


@dataclass
class FlowGrpoRecipe:
    """`cac-align align`. model: "miniature", a diffusers Wan folder or a hub id. None: the checkpoint's own default.

    prompts: a file (lines or JSON Lines with a ``prompt``), or "module:function" that takes seeds and returns prompts (then
        ``prompt_first`` and ``prompt_count`` say which seeds). reward: a reward recipe, or "module:Name".
    group_size videos per prompt, prompts_per_step prompts per step. micro_batch: videos per forward pass, in sampling and loss alike.
    objective: grpo | nft. sampler: of the steps that are not stochastic: euler, or the checkpoint's own (nft only: UniPC looks back on the steps
    before it), with which the videos trained on are what its pipeline will make; those watched always are. dynamics: flow | dance | cps. noise_level: a of ``sde``. clip: of the ratio. advantage_clip: of advantages.
    shared_noise: the videos of a group begin with the same noise and differ by that of the stochastic steps alone (grpo).
    aggregation: sum | decoupled. global_std: advantages in units of the spread of all the step's scores, not of each group's own (with sum),
    so that a group which the judge finds sound throughout is not told apart by its noise.
    min_spread: the least standard deviation within a group, in units of the combined score, that counts as a difference (0: any);
    below it the group is dead, with decoupled and local the component in this group. A reward normalised by group or rank has
    blown up small differences before.
    credit: uniform | local; credit_component: the reward whose judgement says where.
    lr falls along half a cosine to lr × min_lr_ratio at the last step (1: it stays). updates: optimizer steps per batch of videos. nft_times: noise levels per video; nft_decay: how much of the slow copy stays per step.
    ema: decay of the averaged LoRA that is saved as ``lora`` (0: the last one is). dtype: float32 | bfloat16.
    allow_changed_reward: go on although the reward now judges otherwise than when the run began (its file was edited, its judge exchanged).
    max_unscored: largest share of videos without a score over the last ``patience`` steps. max_skipped: steps skipped for NaN before
    the run stops. clips_per_step: videos kept as files for the report. track: tensorboard | wandb, or empty.
    """

    out: str = "runs/flow_grpo"
    model: str = "miniature"
    prompts: str = "cac_align.miniature.world.world:make_prompts"
    prompt_first: int = 3_000_000
    prompt_count: int = 240
    reward: str = "recipes/reward/miniature.yaml"
    seed: int = 0
    # sampling
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    fps: float | None = None
    sampler: str = "euler"
    dynamics: str = "flow"
    noise_level: float = 0.7
    sde_window: Window = field(default_factory=Window)
    shared_noise: bool = False
    # batch
    steps: int = 30
    group_size: int = 16
    prompts_per_step: int = 4
    micro_batch: int = 16
    # objective
    objective: str = "grpo"
    clip: float = 1e-3
    advantage_clip: float = 5.0
    aggregation: str = "sum"
    global_std: bool = False
    min_spread: float = 1e-3
    kl_beta: float = 0.0
    normalise_ratio: bool = False
    num_inner_epochs: int = 1
    credit: str = "uniform"
    credit_component: str = "cac"
    partner_share: float = 0.5
    nft_beta: float = 1.0
    nft_times: int = 4
    nft_decay: float = 0.0
    # LoRA and optimizer
    lora_rank: int = 32
    lora_alpha: int = 64
    lora_ffn: bool = False
    lr: float = 5e-4
    min_lr_ratio: float = 1.0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema: float = 0.0
    # machine
    device: str | None = None
    dtype: str | None = None
    gradient_checkpointing: bool = False
    overlap: bool = True
    # guard and record
    watch: Watch = field(default_factory=Watch)
    max_unscored: float = 0.1
    patience: int = 4
    max_skipped: int = 3
    save_every: int = 5
    keep_checkpoints: int = 2
    allow_changed_reward: bool = False
    clips_per_step: int = 4
    track: str = ""


def check(recipe: FlowGrpoRecipe) -> None:
    """Raise ``ValueError`` for a recipe that cannot run, naming the key, what was received and what would do."""
    choices = {"objective": OBJECTIVES, "credit": CREDITS, "aggregation": AGGREGATIONS, "dynamics": DYNAMICS}
    choices |= {"sampler": SAMPLERS, "dtype": (*DTYPES, None), "track": ("", "tensorboard", "wandb")}
    for name, allowed in choices.items():
        if getattr(recipe, name) not in allowed:
            given = ", ".join(str(value) or "''" for value in allowed)
            raise ValueError(f"{name} must be one of {given}; received {getattr(recipe, name)!r}")
    lowest = {
        "steps": 1,
        "group_size": 2,
        "prompts_per_step": 1,
        "micro_batch": 1,
        "num_inner_epochs": 1,
        "nft_times": 1,
        "lora_rank": 1,
    }
    lowest |= {
        "save_every": 1,
        "keep_checkpoints": 1,
        "clips_per_step": 0,
        "patience": 1,
        "max_skipped": 0,
        "prompt_count": 1,
    }
    for name, least in lowest.items():
        if getattr(recipe, name) < least:
            raise ValueError(f"{name} must be at least {least}, received {getattr(recipe, name)}")
    for name in ("lr", "noise_level", "clip", "advantage_clip", "clip_norm"):
        if not (math.isfinite(getattr(recipe, name)) and getattr(recipe, name) > 0):
            raise ValueError(f"{name} must be a positive number, received {getattr(recipe, name)}")
    if not 0 <= recipe.min_lr_ratio <= 1:
        raise ValueError(
            f"min_lr_ratio is the share of lr that the last step has, in [0, 1]; received {recipe.min_lr_ratio}"
        )
    for name in ("ema", "nft_decay"):
        if not 0 <= getattr(recipe, name) < 1:
            raise ValueError(f"{name} must lie in [0, 1), received {getattr(recipe, name)}")
    if not (math.isfinite(recipe.min_spread) and recipe.min_spread >= 0):
        raise ValueError(f"min_spread must be a number of at least 0, received {recipe.min_spread}")
    if recipe.kl_beta < 0:
        raise ValueError(f"kl_beta must not be negative, received {recipe.kl_beta}")
    if recipe.kl_beta > 0 and recipe.objective == "nft":
        raise ValueError(f"kl_beta belongs to objective grpo; with nft it must be 0, received {recipe.kl_beta}")
    if recipe.sampler == "checkpoint" and recipe.objective != "nft":
        raise ValueError(
            "sampler checkpoint has no stochastic steps, which objective grpo learns from; use sampler euler, or objective nft"
        )
    if recipe.shared_noise and recipe.objective == "nft":
        raise ValueError(
            "shared_noise needs stochastic steps, which objective nft does not take: a group would be one video"
        )
    if recipe.credit == "local" and recipe.aggregation == "decoupled":
        raise ValueError(
            "credit local normalises its components by itself; use aggregation sum with it, received decoupled"
        )
    if recipe.global_std and (recipe.credit == "local" or recipe.aggregation == "decoupled"):
        raise ValueError(
            "global_std belongs to aggregation sum and credit uniform: the others normalise each component in its group"
        )


def learning_rate(step: int, recipe: FlowGrpoRecipe) -> float:
    """Of step ``step`` (from 0): half a cosine from lr to lr × min_lr_ratio at the last step."""
    return recipe.lr * warm_cosine(step, recipe.steps, floor=recipe.min_lr_ratio)


def window_steps(window: Window, num_steps: int, rng: np.random.Generator) -> tuple[int, ...]:
    """The stochastic steps of one update step, in order.

    Raises ``ValueError`` when the window does not fit into the schedule; its last step stays an ODE step, for noise added there
    would stay in the video.
    """
    if not 0 <= window.first <= window.last <= num_steps - 2:
        raise ValueError(
            f"sde_window needs 0 <= first <= last <= {num_steps - 2} (of {num_steps} steps the last, {num_steps - 1}, stays without "
            f"noise), received first={window.first}, last={window.last}"
        )
    steps = np.arange(window.first, window.last + 1)
    if not 0 <= window.size <= len(steps):
        raise ValueError(
            f"sde_window.size must lie in [0, {len(steps)}] (0: all of first … last), received {window.size}"
        )
    return tuple(sorted(int(step) for step in rng.choice(steps, window.size or len(steps), replace=False)))


def read_prompts(source: str, first: int, count: int, note: bool = True) -> list[str]:
    """Training prompts in order, each once. Blank lines and repetitions are left out, and their number is said on stderr.

    Raises ``ValueError`` when there is no such file or function, or no prompt in it.
    """
    if ":" in source and not Path(source).exists():
        lines = list(import_name(source)(range(first, first + count)))
        where = f"{source} for seeds {first} … {first + count - 1}"
    else:
        where = source
        try:
            rows = rows_of(read_lines(Path(source)), source)
        except ValueError as error:
            raise ValueError(f"prompts: {error}; give a text file or module:function") from error
        lines = ["" if row is None else row["prompt"] for row in rows]
        lines = lines[:-1] if lines and not lines[-1] else lines  # the file's last newline is no blank line
    kept = list(dict.fromkeys(line for line in lines if line))
    blanks = sum(not line for line in lines)
    if not kept:
        raise ValueError(f"prompts: {where} holds no prompt; write one per line")
    if note and (blanks or len(kept) < len(lines)):
        print(
            f"prompts: {where}: {len(kept)} prompts; left out {blanks} blank lines and {len(lines) - blanks - len(kept)} repetitions",
            file=sys.stderr,
        )
    return kept


def prompts_at(step: int, prompts: Sequence[str], recipe: FlowGrpoRecipe) -> list[str]:
    """The prompts of one step: all are used once per pass, in an order drawn anew for each pass.

    Raises ``ValueError`` when a step needs more prompts than there are: a prompt twice in a step would merge two groups.
    """
    per_step, count = recipe.prompts_per_step, len(prompts)
    if per_step > len(prompts):
        raise ValueError(
            f"prompts_per_step is {per_step}, but there are only {len(prompts)} prompts; lower it or add prompts"
        )
    turn, offset = divmod(step * per_step, count)
    chosen = _order(turn, count, recipe)[offset : offset + per_step]
    if len(chosen) < per_step:
        chosen = chosen + _order(turn + 1, count, recipe)[: per_step - len(chosen)]
    return [prompts[n] for n in chosen]


def _order(turn: int, count: int, recipe: FlowGrpoRecipe) -> list[int]:
    """The order of one pass. A step that begins in the pass before goes on with prompts that it does not have yet; the others wait."""
    order = [int(n) for n in np.random.default_rng((recipe.seed, 1, turn)).permutation(count)]
    begun = turn * count % recipe.prompts_per_step
    if not begun:
        return order
    there = set(_order(turn - 1, count, recipe)[-begun:])
    head = [n for n in order if n not in there][: recipe.prompts_per_step - begun]
    return head + [n for n in order if n not in head]


def chunk_prompts(recipe: FlowGrpoRecipe, processes: int) -> int:
    """How many prompts are sampled and judged together: the fewest whose videos divide evenly over the processes.

    Raises ``ValueError`` when not even all prompts of a step do.
    """
    for count in range(1, recipe.prompts_per_step + 1):
        if recipe.prompts_per_step % count == 0 and count * recipe.group_size % processes == 0:
            return count
    total = recipe.group_size * recipe.prompts_per_step
    below, above = recipe.group_size // processes * processes, -(-recipe.group_size // processes) * processes
    raise ValueError(
        f"group_size {recipe.group_size} × prompts_per_step {recipe.prompts_per_step} = {total} videos do not divide over {processes} "
        f"processes; the nearest group sizes that do are {max(below, processes)} and {above}"
    )
