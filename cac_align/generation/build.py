"""Generators from recipes: what a recipe can say about who makes the videos, and the callable that
it describes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cac_align.config import import_name, refuse_unread
from cac_align.core.video import Video
from cac_align.rewards.build import RewardRecipe


@dataclass
class GeneratorRecipe:
    """Who makes the videos. A value of None means the checkpoint's own default."""

    # "miniature" (the shipped small Wan), a diffusers Wan folder or hub id, or "module:Name" of a callable class.
    model: str = "miniature"
    # A folder with LoRA weights, as `cac-align align` writes it; None: no LoRA.
    lora: str | None = None
    # Height of the videos in pixels.
    height: int | None = None
    # Width of the videos in pixels.
    width: int | None = None
    # Frames per video, 4k + 1.
    num_frames: int | None = None
    # Sampling steps per video.
    num_inference_steps: int | None = None
    # Weight of classifier-free guidance; 1 or less: none.
    guidance_scale: float | None = None
    # The prompt that guidance leads away from.
    negative_prompt: str | None = None
    # Frames per second of the videos.
    fps: float | None = None
    # cpu, cuda or cuda:N; None: a GPU where there is one, else the CPU.
    device: str | None = None
    # float32, bfloat16 or float16, of DiT and text encoder; None: bfloat16 on a GPU, else float32.
    dtype: str | None = None


@dataclass
class BestOfNRecipe:
    """The recipe of `cac-align best-of-n`."""

    # Candidates per prompt. 5: as in the paper.
    n: int = 5
    # The seed of the first candidate; the next ones follow.
    seed: int = 0
    # Whether every prompt has seeds of its own, which a rate over prompts with an interval needs. Off: prompts share
    # their seeds, so that a prompt's videos do not depend on the others in the file.
    distinct_seeds: bool = False
    # Whether one prompt's candidates are judged while the next one's are generated. False where the generator and a
    # local judge do not fit into memory when both work at once; the results are the same.
    overlap: bool = True
    # Who makes the videos.
    generator: GeneratorRecipe = field(default_factory=GeneratorRecipe)
    # Who scores them.
    reward: RewardRecipe = field(default_factory=RewardRecipe)


def check_generator(recipe: GeneratorRecipe) -> None:
    """Raise ``ValueError`` for what can be known to be wrong before the generator is loaded."""
    if ":" in recipe.model and not Path(recipe.model).exists():
        refuse_unread(f"generator {recipe.model}", recipe, ("model",))
        return
    if (
        recipe.model != "miniature"
        and not Path(recipe.model).is_dir()
        and not re.fullmatch(r"\w[\w.-]*/[\w.-]+", recipe.model)
    ):
        raise ValueError(
            f"generator.model {recipe.model}: no such folder; expected the folder of a diffusers Wan, a hub id such as "
            "Wan-AI/Wan2.1-T2V-1.3B-Diffusers, miniature, or module:Name"
        )
    if recipe.lora is not None and not Path(recipe.lora).is_dir():
        raise ValueError(f"generator.lora {recipe.lora}: no such folder; expected one that `cac-align align` wrote")
    for name in ("height", "width", "num_frames", "num_inference_steps", "fps"):
        value = getattr(recipe, name)
        if value is not None and not value > 0:
            raise ValueError(f"generator.{name} must be positive, received {value}")


def load_generator(recipe: GeneratorRecipe) -> Callable[[str, int], Video]:
    """The callable (prompt, seed) → Video that a recipe describes.

    Raises ``ValueError`` when it cannot be loaded.
    """
    check_generator(recipe)
    if ":" in recipe.model and not Path(recipe.model).exists():
        return import_name(recipe.model)()
    from cac_align.core.weights import shipped
    from cac_align.generation.wan import Wan
    from cac_align.runs.progress import working

    options: dict[str, Any] = {
        name: value
        for name in recipe.__dataclass_fields__
        if name != "model" and (value := getattr(recipe, name)) is not None
    }
    with working(f"loading {Path(recipe.model).name}"):
        return Wan.load(shipped("wan") if recipe.model == "miniature" else recipe.model, **options)
