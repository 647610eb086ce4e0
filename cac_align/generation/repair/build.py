"""Repair from a recipe: who repairs, who judges, who guards.

recipe → ``RepairRecipe`` → ``load_backend``, ``load_guards`` → ``repair_videos``
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cac_align.cac.augmentations import FOUR_PHASES
from cac_align.config import refuse_unread
from cac_align.generation.build import GeneratorRecipe, load_generator
from cac_align.generation.repair.one_video import RepairBackend
from cac_align.generation.repair.resample import MaskedResampling
from cac_align.generation.repair.settings import RepairSettings
from cac_align.generation.repair.vace import VaceRepair
from cac_align.generation.wan import Wan
from cac_align.generation.wan_variants import load_variant
from cac_align.rewards.build import JudgeRecipe, RewardRecipe, load_reward
from cac_align.rewards.reward import Reward


@dataclass
class RepairRecipe:
    """The recipe of `cac-align repair`."""

    # How: resample (any plain Wan text-to-video checkpoint) or vace (a Wan-VACE checkpoint).
    backend: str = "resample"
    # Who repairs; size, length and rate are each video's own, so height, width, num_frames and fps are not read.
    generator: GeneratorRecipe = field(default_factory=GeneratorRecipe)
    # How often, how strongly, within which budget, and when it is kept.
    repair: RepairSettings = field(default_factory=RepairSettings)
    # Who finds the defects: a CaC, alone or among other components. By default the shipped one with four phases.
    reward: RewardRecipe = field(
        default_factory=lambda: RewardRecipe(components={"cac": JudgeRecipe(kind="cac", tta=list(FOUR_PHASES))})
    )
    # Who must not be worse off, each of them by itself: rewards that did not choose the windows. By default
    # UnifiedReward and motion.
    guard: RewardRecipe = field(
        default_factory=lambda: RewardRecipe(
            components={
                "unified": JudgeRecipe(kind="unified"),
                "normal_flow_speed": JudgeRecipe(kind="normal_flow_speed"),
            }
        )
    )


def load_backend(recipe: RepairRecipe) -> RepairBackend:
    """Who repairs. Raises ``ValueError`` for an unknown backend or a checkpoint that does not fit it."""
    given, own = recipe.generator, ("height", "width", "num_frames", "fps")
    refuse_unread("generator", given, tuple(name for name in given.__dataclass_fields__ if name not in own))
    if recipe.backend == "resample":
        wan = load_generator(recipe.generator)
        if not isinstance(wan, Wan):
            raise ValueError(f"backend resample needs a Wan checkpoint, received {recipe.generator.model}")
        return MaskedResampling(wan)
    if recipe.backend == "vace":
        options = {name: getattr(given, name) for name in ("num_inference_steps", "guidance_scale", "negative_prompt")}
        refuse_unread("generator of backend vace", given, ("model", "device", "dtype", *options))
        return VaceRepair(
            load_variant(given.model, "WanVACEPipeline", device=given.device, dtype=given.dtype, **options)
        )
    raise ValueError(f"backend must be resample or vace, received {recipe.backend!r}")


def load_guards(recipe: RewardRecipe) -> dict[str, Reward]:
    """Each component of the guard as a reward of its own; none where the recipe lists none.

    Raises ``ValueError`` where a component is wrong or cannot be loaded.
    """
    if recipe.normalise != "range" or recipe.statistics is not None:
        raise ValueError("guards are compared each on its own scale; leave normalise and statistics out of guard")
    return {
        name: load_reward(RewardRecipe(components={name: component}, allow_out_of_domain=recipe.allow_out_of_domain))
        for name, component in recipe.components.items()
    }
