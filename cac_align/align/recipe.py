"""The recipe of an alignment, and the checks that name what is wrong with it before anything is
loaded.

YAML → ``read_recipe(AlignRecipe, path, overrides)`` → ``check_align_recipe``

Defaults are those of the miniature where a cost is involved; recipes/align/wan2.1_1.3b.yaml has the
paper's numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from cac_align.align.advantages.uniform import AGGREGATIONS
from cac_align.align.sampling.sde import DYNAMICS

OBJECTIVES = ("grpo", "nft")
SAMPLERS = ("euler", "checkpoint")
ADVANTAGES = ("uniform", "local")
DTYPES = ("float32", "bfloat16")


@dataclass
class SdeWindow:
    """Which sampling steps are stochastic (SDE); the others follow the ODE.

    They are drawn anew for every update.
    """

    # How many steps are stochastic; 0: all from first to last. Each costs a forward and a backward pass per video.
    size: int = 3
    # The first step that may be drawn, counted from 0.
    first: int = 1
    # The last step that may be drawn. The schedule's last step is never one: its noise would stay in the video.
    last: int = 6


@dataclass
class EvalRecipe:
    """The evaluation videos: the same prompts and seeds, sampled before the first step and every
    few steps.
    """

    # Steps between evaluations; 0: never. The first and the last step are always among them.
    every: int = 10
    # How many prompts, with one video each. 64 videos show a 5 % loss of normal-flow speed, 16 do not.
    prompts: int = 16
    # Where the prompts come from, as the recipe's `prompts`. Empty: the seeds after the training prompts where a
    # function makes them, else the first training prompts.
    source: str = ""
    # Recipe of a held-out reward, which is measured and never trained on; empty: none. It shows reward hacking.
    reward: str = ""
    # How far a number may fall before an alarm, as a share of its value before training.
    tolerance: float = 0.05
    # Whether an alarm ends the run. Off, because an alarm can be wrong and the run can be stopped by hand.
    stop: bool = False


@dataclass
class AlignRecipe:
    """The recipe of `cac-align align`. A value of None means the checkpoint's own default."""

    # The folder to write to and to resume from.
    out: str = "runs/align"
    # "miniature" (the shipped small Wan), a diffusers Wan folder, or a hub id.
    model: str = "miniature"
    # The training prompts: a file (lines, or JSON Lines with a `prompt`), or "module:function" from seeds to prompts.
    prompts: str = "cac_align.miniature.world.world:make_prompts"
    # The first seed given to a prompt function. 3,000,000: the first of the miniature's seeds for prompts.
    prompt_first: int = 3_000_000
    # How many seeds are given to a prompt function. 240: as many prompts as in the paper.
    prompt_count: int = 240
    # The reward: a recipe file, the URL of `cac-align serve`, or "module:Name".
    reward: str = "recipes/reward/miniature.yaml"
    # The seed of everything random in the run.
    seed: int = 0

    # Height of the videos in pixels.
    height: int | None = None
    # Width of the videos in pixels.
    width: int | None = None
    # Frames per video, 4k + 1.
    num_frames: int | None = None
    # Sampling steps per video.
    num_inference_steps: int | None = None
    # Weight of classifier-free guidance, in sampling and in the loss; 1 or less: none.
    guidance_scale: float | None = None
    # The prompt that guidance leads away from.
    negative_prompt: str | None = None
    # Frames per second of the videos.
    fps: float | None = None
    # Who takes the steps that are not stochastic: "euler", or "checkpoint" (its own scheduler; objective nft only,
    # because UniPC uses the steps before). Evaluation videos always use the checkpoint's.
    sampler: str = "euler"
    # The SDE of stochastic steps: flow, dance or cps (see `align/sampling/sde.py`).
    dynamics: str = "flow"
    # The noise level a of the SDE. 0.7 was best for the miniature; the paper has 0.3.
    noise_level: float = 0.7
    # Which steps are stochastic (objective grpo only).
    sde_window: SdeWindow = field(default_factory=SdeWindow)
    # Whether all videos of a group start from the same noise and differ by their stochastic steps only (grpo only).
    shared_noise: bool = False

    # How many steps. The paper takes 120, recipes/align/miniature.yaml 80.
    steps: int = 30
    # Videos per prompt. 16: as in the paper.
    group_size: int = 16
    # Prompts per step.
    prompts_per_step: int = 4
    # Videos per forward pass, in sampling and in the loss. As many as fit into memory.
    micro_batch: int = 16

    # The loss: grpo (Flow-GRPO) or nft (DiffusionNFT).
    objective: str = "grpo"
    # The probability ratio is clipped to 1 ± this. Means over elements change little, hence the small number.
    clip_range: float = 1e-3
    # Advantages are clipped to ± this.
    advantage_clip: float = 5.0
    # How components of the reward become one advantage: sum (of scores) or decoupled (GDPO).
    aggregation: str = "sum"
    # Whether advantages are divided by the std of the whole step instead of the group's (with sum and uniform only).
    # Then a group whose videos differ only by the judge's noise has little weight.
    global_std: bool = False
    # The least std within a group that counts, in units of the combined score; below it the group has advantage 0.
    # With decoupled and local it applies to each component. 0: any. A reward normalised by group or rank has enlarged
    # small differences already.
    min_group_std: float = 1e-3
    # Weight of the KL penalty to the model without LoRA (grpo only); 0: none, and one forward pass less.
    kl_beta: float = 0.0
    # Whether probability ratios are corrected and weighed alike over steps (GRPO-Guard, grpo only).
    normalise_ratio: bool = False
    # Optimizer steps per batch of videos.
    num_inner_epochs: int = 1
    # One advantage per video (uniform), or one per latent position from the judgement's boxes (local).
    advantages: str = "uniform"
    # With local advantages: the component whose judgement has the boxes.
    local_component: str = "cac"
    # With local advantages: the weight of the other components' group advantage, the same at every position.
    local_others_weight: float = 0.5
    # With local advantages: the audit.json that `cac-align evaluate reward --out DIR` wrote about this judge. Where its
    # localisation is not clearly above chance, advantages are uniform. Empty: not checked.
    local_audit: str = ""
    # β of the nft loss: how far the positive and negative policies lie from the old one. 1: as its authors.
    nft_beta: float = 1.0
    # Noise levels per video and update (nft only), drawn for each video by itself. Each costs two forward passes and
    # a backward pass.
    nft_timesteps: int = 4
    # Decay of the old policy (nft only): the share that it keeps per step. 0: it is the policy of the last step.
    nft_decay: float = 0.0

    # Rank of the LoRA. 32: as in the paper.
    lora_rank: int = 32
    # Scale of the LoRA; twice the rank is usual.
    lora_alpha: int = 64
    # Whether the feed-forward layers get a LoRA, too, beside the attention layers.
    lora_ffn: bool = False
    # The learning rate of the first step.
    lr: float = 5e-4
    # The learning rate falls along half a cosine to this share of lr at the last step; 1: it stays.
    min_lr_ratio: float = 1.0
    # AdamW's weight decay.
    weight_decay: float = 0.0
    # AdamW's eps, to be far below the gradients' size. The first step prints and logs the median |gradient|.
    adam_eps: float = 1e-8
    # The norm that gradients are clipped to.
    max_grad_norm: float = 1.0
    # Decay of the moving average that is saved as `lora`, in [0, 1); 0: no average, the last weights are saved.
    ema_decay: float = 0.0

    # cpu, cuda or cuda:N; None: what accelerate chooses.
    device: str | None = None
    # float32 or bfloat16, of DiT and text encoder; None: bfloat16 on a GPU. LoRA and VAE are always float32.
    dtype: str | None = None
    # Whether activations are computed again in the backward pass: less memory, about a third slower.
    gradient_checkpointing: bool = False
    # Whether the reward scores videos while the next ones are sampled.
    overlap: bool = True

    # The evaluation videos.
    eval: EvalRecipe = field(default_factory=EvalRecipe)
    # The run stops when more than this share of the videos of the last `patience` steps has no score.
    max_unscored: float = 0.1
    # Over how many steps `max_unscored` is measured. 4: one failed step does not stop a run.
    patience: int = 4
    # How many steps may be skipped for numbers that are not finite before the run stops.
    max_skipped: int = 3
    # Steps between checkpoints.
    save_every: int = 5
    # How many checkpoints are kept.
    keep_checkpoints: int = 2
    # Whether to go on although the reward scores differently than when the run began (another judge or recipe).
    allow_changed_reward: bool = False
    # Training videos kept as files per step, for the report.
    clips_per_step: int = 4
    # Where numbers are sent beside log.jsonl: tensorboard, wandb, or empty for nowhere.
    track: str = ""


def check_align_recipe(recipe: AlignRecipe) -> None:
    """Raise ``ValueError`` for a recipe that cannot run, naming the key, the value received and
    those allowed.
    """
    choices = {"objective": OBJECTIVES, "advantages": ADVANTAGES, "aggregation": AGGREGATIONS, "dynamics": DYNAMICS}
    choices |= {"sampler": SAMPLERS, "dtype": (*DTYPES, None), "track": ("", "tensorboard", "wandb")}
    for name, allowed in choices.items():
        if getattr(recipe, name) not in allowed:
            given = ", ".join(str(value) or "''" for value in allowed)
            raise ValueError(f"{name} must be one of {given}; received {getattr(recipe, name)!r}")
    lowest = {"group_size": 2, "clips_per_step": 0, "max_skipped": 0}
    at_least_one = ("steps", "prompts_per_step", "micro_batch", "num_inner_epochs", "nft_timesteps", "lora_rank")
    lowest |= dict.fromkeys((*at_least_one, "save_every", "keep_checkpoints", "patience", "prompt_count"), 1)
    for name, least in lowest.items():
        if getattr(recipe, name) < least:
            raise ValueError(f"{name} must be at least {least}, received {getattr(recipe, name)}")
    for name in ("lr", "noise_level", "clip_range", "advantage_clip", "adam_eps", "max_grad_norm"):
        if not (math.isfinite(getattr(recipe, name)) and getattr(recipe, name) > 0):
            raise ValueError(f"{name} must be a positive number, received {getattr(recipe, name)}")
    if not 0 <= recipe.min_lr_ratio <= 1:
        raise ValueError(
            f"min_lr_ratio is the share of lr that the last step has, in [0, 1]; received {recipe.min_lr_ratio}"
        )
    for name in ("ema_decay", "nft_decay"):
        if not 0 <= getattr(recipe, name) < 1:
            raise ValueError(f"{name} must lie in [0, 1), received {getattr(recipe, name)}")
    if not (math.isfinite(recipe.min_group_std) and recipe.min_group_std >= 0):
        raise ValueError(f"min_group_std must be a number of at least 0, received {recipe.min_group_std}")
    if recipe.kl_beta < 0:
        raise ValueError(f"kl_beta must not be negative, received {recipe.kl_beta}")
    if recipe.kl_beta > 0 and recipe.objective == "nft":
        raise ValueError(f"kl_beta belongs to objective grpo; with nft it must be 0, received {recipe.kl_beta}")
    if recipe.sampler == "checkpoint" and recipe.objective != "nft":
        raise ValueError(
            "sampler checkpoint takes no stochastic steps, which objective grpo needs; use sampler "
            "euler, or objective nft"
        )
    if recipe.shared_noise and recipe.objective == "nft":
        raise ValueError(
            "shared_noise needs stochastic steps, which objective nft does not take: a group would be one video"
        )
    if recipe.advantages == "local" and recipe.aggregation == "decoupled":
        raise ValueError(
            "advantages local normalises its components by itself; use aggregation sum with it, received decoupled"
        )
    if recipe.global_std and (recipe.advantages == "local" or recipe.aggregation == "decoupled"):
        raise ValueError(
            "global_std belongs to aggregation sum and advantages uniform: the others normalise each "
            "component in its group"
        )


def draw_sde_steps(window: SdeWindow, num_steps: int, rng: np.random.Generator) -> tuple[int, ...]:
    """The stochastic steps of one update, in order, drawn from the ``num_steps`` steps of the
    schedule.

    Raises ``ValueError`` when the window does not fit into the schedule. The last step is always an
    ODE step, because noise added there would stay in the video.
    """
    if not 0 <= window.first <= window.last <= num_steps - 2:
        raise ValueError(
            f"sde_window needs 0 <= first <= last <= {num_steps - 2} (of {num_steps} steps the last, "
            f"{num_steps - 1}, stays without "
            f"noise), received first={window.first}, last={window.last}"
        )
    steps = np.arange(window.first, window.last + 1)
    if not 0 <= window.size <= len(steps):
        raise ValueError(
            f"sde_window.size must lie in [0, {len(steps)}] (0: all of first … last), received {window.size}"
        )
    return tuple(sorted(int(step) for step in rng.choice(steps, window.size or len(steps), replace=False)))
