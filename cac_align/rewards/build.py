"""Rewards from recipes: what a recipe may say of a judge, and the reward that it describes.

recipe → JudgeRecipe per component → load_reward → Reward; offered → that reward and each of its components, by name
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cac_align.config import import_name, read_recipe, refuse_unread
from cac_align.rewards.reward import Reward

if TYPE_CHECKING:
    from cac_align.rewards.cac import CaC


@dataclass
class JudgeRecipe:
    """One component. ``kind``: cac | unified | motion (``rewards.motion``; it knows ``weight`` and ``full_speed`` alone).
    ``model``: "miniature", a folder or hub id, or a server's URL.

    mode: two_turn; single_turn, or the verdict alone as "readout" or "json" (cheaper, other rewards: ``cac.single_turn``, ``verdict_only``).
    wording to margin_s, max_new_tokens: as in ``TwoTurn``. temperature: T of R = σ(log-odds / T); 1 is the paper's Eq. 7. ``None`` means: what the judge's folder says
    (``cac.folder``), or else the reward's own default. For a server, ``served_model`` names the model and ``api_key_env`` the environment
    variable that holds the key; retries and backoff_s say how long an outage may last (``ServerVlm``). max_pixels: limit over all
    frames of one video. views: of cac, how each video is shown; of several, R is that of their mean log-odds (``cac.views``).
    threshold: of several views, the mean log-odds at or below which their verdict is "abnormal", where a view says so (no R moves with it).
    revision: of weights on the hub; of a server's, any text that changes with them: it enters the provenance by which the ledger goes,
    and a server cannot say that a checkpoint was overwritten.
    """

    kind: str = "cac"
    model: str = "miniature"
    weight: float = 1.0
    # cac
    mode: str = "two_turn"
    wording: str | None = None
    context: str | None = None
    windows: str | None = None
    constrained: bool | None = None
    scan_fps: float | None = None
    look_fps: float | None = None
    margin_s: float | None = None
    max_new_tokens: int | None = None
    min_mass: float = 0.01
    temperature: float | None = None
    views: list[str] = field(default_factory=lambda: ["as_is"])
    threshold: float | None = None
    # unified
    prompt_file: str | None = None
    allow_other_prompt: bool = False
    # motion
    full_speed: float = 0.15
    # a model, here or behind a server
    revision: str | None = None
    # a model that runs here
    device: str | None = None
    dtype: str | None = None
    batch_size: int | None = None
    max_pixels: int | None = None
    # a server
    served_model: str | None = None
    api_key_env: str | None = None
    concurrency: int | None = None
    timeout_s: float | None = None
    retries: int | None = None
    backoff_s: float | None = None
    dialect: str | None = None
    frames: str | None = None


@dataclass
class RewardRecipe:
    """A reward: one component as it is, several combined. ``normalise``: range | reference | group | rank (see ``combine``)."""

    normalise: str = "range"
    statistics: str | None = None
    components: dict[str, JudgeRecipe] = field(
        default_factory=lambda: {"unified": JudgeRecipe(kind="unified"), "cac": JudgeRecipe(kind="cac")}
    )


def load_reward(recipe: str | os.PathLike[str] | RewardRecipe | None = None, overrides: Sequence[str] = ()) -> Reward:
    """The reward a recipe describes.

    recipe: a YAML file; a ``RewardRecipe``; "module:Name" (called without arguments); None for the shipped miniature,
        UnifiedReward + CaC, averaged on their known ranges.
    Raises ``ValueError`` when the recipe is wrong or a model cannot be loaded.
    """
    if isinstance(recipe, str) and ":" in recipe and not Path(recipe).exists():
        if overrides:
            raise ValueError(
                f"{overrides[0]} would not be read: {recipe} is called as it is; leave it out, or write a recipe"
            )
        return made(recipe)
    if not isinstance(recipe, RewardRecipe):
        recipe = read_recipe(RewardRecipe, recipe, overrides, section="reward")
    if not recipe.components:
        raise ValueError(
            "a reward recipe needs at least one component, e.g. components: {cac: {kind: cac, model: miniature}}"
        )
    for name, component in recipe.components.items():
        if component.kind not in ("cac", "unified", "motion") and ":" not in component.kind:
            raise ValueError(
                f"component {name!r}: kind must be cac, unified, motion or 'module:Name', received {component.kind!r}"
            )
        refuse_unread(f"component {name!r}: kind {component.kind}", component, _read_of(component))
    rewards = {name: _load_component(component) for name, component in recipe.components.items()}
    if len(rewards) == 1 and recipe.normalise == "range":  # as it is: its scale is its own
        return next(iter(rewards.values()))
    from cac_align.rewards.combine import combine

    weights = {name: component.weight for name, component in recipe.components.items()}
    statistics = Path(recipe.statistics) if recipe.statistics else None
    return combine(rewards, normalise=recipe.normalise, weights=weights, statistics=statistics)


def load_cac(recipe: str | os.PathLike[str] | RewardRecipe | None = None, overrides: Sequence[str] = ()) -> CaC:
    """The one two-turn CaC of a reward recipe, without its other components. Raises ``ValueError`` where there is none, or several."""
    if not isinstance(recipe, RewardRecipe):
        recipe = read_recipe(RewardRecipe, recipe, overrides, section="reward")
    chosen = {name: one for name, one in recipe.components.items() if one.kind == "cac" and one.mode == "two_turn"}
    if len(chosen) != 1:
        raise ValueError(f"expected one component of kind cac, mode two_turn, received {', '.join(chosen) or 'none'}")
    return load_reward(RewardRecipe(components=chosen))


_ASKED = ("wording", "context", "windows", "constrained", "scan_fps", "look_fps", "margin_s", "max_new_tokens")
"""What a recipe may say of how a judge is asked; of what it leaves out, the judge's folder decides."""


_LOCAL = ("revision", "device", "dtype", "batch_size", "max_pixels")
_SERVED = (
    "served_model",
    "revision",
    "concurrency",
    "timeout_s",
    "retries",
    "backoff_s",
    "dialect",
    "frames",
    "api_key_env",
)
"""What a recipe may say of a judge that runs here, and of one behind a URL."""
_MODES = {
    "two_turn": _ASKED,
    "single_turn": ("scan_fps", "wording", "constrained", "max_new_tokens"),
    **dict.fromkeys(("readout", "json"), ("scan_fps", "wording")),
}
"""Which of them each mode of CaC knows."""


def _read_of(recipe: JudgeRecipe) -> tuple[str, ...]:
    """The keys that say something of this component, besides kind and weight. Raises ``ValueError`` for an unknown mode."""
    judge = ("model", *_LOCAL, *_SERVED)
    if recipe.kind == "cac":
        if recipe.mode not in _MODES:
            raise ValueError(f"mode must be two_turn, single_turn, readout or json, received {recipe.mode!r}")
        return (*judge, "mode", "min_mass", "temperature", "views", "threshold", *_MODES[recipe.mode])
    if recipe.kind == "unified":
        return judge if recipe.model == "miniature" else (*judge, "prompt_file", "allow_other_prompt", "max_new_tokens")
    return ("full_speed",) if recipe.kind == "motion" else ()


def _load_component(recipe: JudgeRecipe) -> Reward:
    backend = _backend_options(recipe)
    if recipe.kind == "cac":
        from cac_align.cac.judge_settings import settings_of
        from cac_align.cac.single_turn import SingleTurn
        from cac_align.cac.verdict_only import VerdictOnly
        from cac_align.core.weights import shipped
        from cac_align.rewards.cac import CaC

        model = str(shipped("cac")) if recipe.model == "miniature" else recipe.model
        given = {name: getattr(recipe, name) for name in _ASKED if getattr(recipe, name) is not None}
        settings = asked = replace(settings_of(model, recipe.revision), **given)
        if recipe.mode == "single_turn":
            settings = SingleTurn(asked.scan_fps, asked.wording, asked.constrained, asked.max_new_tokens, asked.retries)
        elif recipe.mode != "two_turn":
            settings = VerdictOnly(form=recipe.mode, scan_fps=asked.scan_fps, wording=asked.wording)
        options = {name: getattr(recipe, name) for name in ("min_mass", "temperature", "threshold")}
        options["views"] = tuple(recipe.views)
        return CaC.load(model, settings=settings, **options, **backend)
    if recipe.kind == "unified":
        from cac_align.rewards.unified import UnifiedReward

        if recipe.model == "miniature":
            return UnifiedReward.miniature(**backend)
        options = {"prompt_file": Path(recipe.prompt_file)} if recipe.prompt_file else {}
        if recipe.max_new_tokens is not None:
            options["max_new_tokens"] = recipe.max_new_tokens
        return UnifiedReward.load(recipe.model, allow_other_prompt=recipe.allow_other_prompt, **options, **backend)
    if recipe.kind == "motion":
        from cac_align.rewards.motion import Motion

        return Motion(recipe.full_speed)
    return made(recipe.kind)


def made(name: str) -> Reward:
    """The reward behind "module:Name", called without arguments. Raises ``ValueError`` when that gives none."""
    try:
        reward = import_name(name)()
    except TypeError as error:
        raise ValueError(
            f"{name} cannot be called without arguments ({error}); expected what makes a reward so"
        ) from error
    if not (callable(reward) and hasattr(reward, "name") and hasattr(reward, "provenance")):
        raise ValueError(
            f"{name} gives a {type(reward).__name__}, which is no reward: it needs a name, a provenance and a call"
        )
    return reward


def _backend_options(recipe: JudgeRecipe) -> dict[str, Any]:
    """Only what the recipe states; each backend has its own defaults. Raises ``ValueError`` for what is said of the other backend."""
    server = recipe.model.startswith(("http://", "https://"))
    names, foreign = (_SERVED, _LOCAL) if server else (_LOCAL, _SERVED)
    for name in foreign:
        if name not in names and getattr(recipe, name) is not None:
            raise ValueError(
                f"{name} is for {'a judge that runs here' if server else 'a judge behind a URL'}, and model is {recipe.model}; leave it out"
            )
    options = {
        name: getattr(recipe, name) for name in names if name != "api_key_env" and getattr(recipe, name) is not None
    }
    if recipe.api_key_env:
        key = os.environ.get(recipe.api_key_env)
        if not key:
            raise ValueError(f"api_key_env names {recipe.api_key_env}, which is not set in the environment")
        options["api_key"] = key
    return options


def offered(reward: Reward) -> dict[str, Reward]:
    """A reward and, where it is a combination, each of its components normalised as in the whole; the whole stands first.

    One alone whose bounds are not 0 and 1 (UnifiedReward: 1 to 5) is brought there, too: hosts add up what they are given.

    Raises ``ValueError`` for a normaliser that compares the videos of one prompt: hosts and clients hand over fragments of groups.
    """
    normalise = getattr(reward, "normalise", None)
    if normalise in ("group", "rank"):
        raise ValueError(
            f"reward {reward.name!r} normalises by {normalise!r} within a prompt's videos, but a host's call holds only a fragment of "
            "them; use normalise: range or reference, or give the host the components one by one and let it normalise"
        )
    from cac_align.rewards.combine import Combined, bounds_of

    if normalise is None and bounds_of(reward) not in (None, (0.0, 1.0)):
        return {reward.name: Combined({reward.name: reward}, "range", {reward.name: 1.0})}
    choices = {reward.name: reward}
    if normalise is not None:
        assert isinstance(reward, Combined)
        for name, component in reward.components.items():
            statistics = {key: value for key, value in reward.statistics.items() if key == name}
            choices[name] = Combined({name: component}, reward.normalise, {name: 1.0}, statistics)
    return choices
