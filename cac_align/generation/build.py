"""Generators from recipes: what a recipe may say of who makes the videos, and the callable that it describes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cac_align.config import import_name, refuse_unread
from cac_align.core.video import Video
from cac_align.rewards.build import RewardRecipe


@dataclass
class GeneratorRecipe:
    """Who makes the videos. ``model``: "miniature" (the shipped small Wan), a diffusers Wan checkpoint (folder or hub id), or
    "module:Name" of a callable class. lora: a folder of LoRA weights that `cac-align align` wrote. None: the checkpoint's default."""

    model: str = "miniature"
    lora: str | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    fps: float | None = None
    device: str | None = None
    dtype: str | None = None


@dataclass
class BestOfNRecipe:
    """`cac-align best-of-n`: how many candidates per prompt, the first seed, whether prompts share seeds (``best_of_n``), who generates,
    who judges."""

    n: int = 5
    seed: int = 0
    distinct_seeds: bool = False
    generator: GeneratorRecipe = field(default_factory=GeneratorRecipe)
    reward: RewardRecipe = field(default_factory=RewardRecipe)


def load_generator(recipe: GeneratorRecipe) -> Callable[[str, int], Video]:
    """The generator a recipe describes: a callable from prompt and seed to Video. Raises ``ValueError`` when it cannot be loaded."""
    if ":" in recipe.model and not Path(recipe.model).exists():
        refuse_unread(f"generator {recipe.model}", recipe, ("model",))
        return import_name(recipe.model)()
    from cac_align.core.weights import shipped
    from cac_align.generation.wan import Wan

    options: dict[str, Any] = {
        name: value
        for name in recipe.__dataclass_fields__
        if name != "model" and (value := getattr(recipe, name)) is not None
    }
    return Wan.load(shipped("wan") if recipe.model == "miniature" else recipe.model, **options)
