"""Recipes: YAML files that mirror dataclasses through OmegaConf; a wrong key is an error that names the nearest valid one.

recipe file + key=value overrides → read_recipe(Dataclass) → a value → load_reward → Reward
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cac_align.core.video import Video
from cac_align.rewards.reward import Reward

if TYPE_CHECKING:
    from cac_align.rewards.cac import CaC

T = TypeVar("T")


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
    revision: of weights on the hub; of a server's, any text that changes with them: it enters the passport by which the ledger goes,
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


def read_recipe(
    kind: type[T], path: str | os.PathLike[str] | None, overrides: Sequence[str] = (), *, section: str | None = None
) -> T:
    """Read a YAML recipe into dataclass ``kind``, apply ``key=value`` overrides, and check every key and type.

    section: read only this top-level key of the file, where the file has it. path None: the dataclass's own defaults.
    Raises ``ValueError`` that names the file, the key, and the nearest valid key.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    where = "recipe" if path is None else str(path)
    try:
        layers = [OmegaConf.structured(kind)]
        if path is not None:
            if not Path(path).is_file():
                raise ValueError(
                    f"{where}: no such recipe file, looked for from {Path.cwd()}; go to the folder it is relative to, or give the whole path"
                )
            chosen = _keys_of(OmegaConf.load(path), where, section)
            _forget_default_components(layers[0], chosen)
            layers.append(chosen)
        if overrides:
            wrong = [item for item in overrides if "=" not in item]
            if wrong:
                raise ValueError(f"{where}: expected key=value, received {wrong[0]!r}")
            layers.append(OmegaConf.from_dotlist(list(overrides)))
        try:
            merged = OmegaConf.merge(*layers)
            if overrides:
                _check_components(OmegaConf.merge(*layers[:-1]), overrides, where)
        except TypeError as error:
            raise ValueError(f"{where}: a list or a single value stands where keys and values are expected ({error})") from error
        value = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(f"{where}: {_explain(kind, error)}") from error
    except OSError as error:
        raise ValueError(f"{where}: cannot be read: {error}") from error
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            raise ValueError(f"{where}: not YAML: {str(error).splitlines()[0]}") from error
        raise
    return value  # type: ignore[return-value]


def _keys_of(loaded: Any, where: str, section: str | None) -> Any:
    """What a recipe file says, or its ``section`` where it has one. Raises ``ValueError`` for anything but keys and values."""
    from omegaconf import DictConfig

    part = section is not None and isinstance(loaded, DictConfig) and section in loaded
    chosen = loaded[section] if part else loaded
    if isinstance(chosen, DictConfig):
        return chosen
    if part and isinstance(chosen, str):
        raise ValueError(f"{where}: its {section} is the recipe {chosen}; pass that one")
    raise ValueError(f"{where}: expected keys and values{f' under {section}' if part else ''}, found {chosen!r:.80}")


def flat(recipe: Any, prefix: str = "") -> dict[str, Any]:
    """A recipe's values by dotted key."""
    values: dict[str, Any] = {}
    for item in fields(recipe):
        value = getattr(recipe, item.name)
        key = f"{prefix}{item.name}"
        values.update(flat(value, f"{key}.") if is_dataclass(value) else {key: value})
    return values


def _forget_default_components(defaults: Any, chosen: Any) -> None:
    """A recipe that lists components means these and no others."""
    if "components" in defaults and "components" in chosen:
        defaults.components = {}
    if "reward" in defaults and chosen.get("reward") and "components" in chosen.reward:
        defaults.reward.components = {}


def _check_components(known: Any, overrides: Sequence[str], where: str) -> None:
    """Raise ``ValueError`` for an override of a component that there is not: it would be a miniature judge more, at equal weight. One that
    is meant to be new says its kind or model."""
    keys = [item.partition("=")[0].split(".") for item in overrides]
    for key in keys:
        own, reward = key[1:] if key[0] == "reward" else key, known.get("reward") if key[0] == "reward" else known
        if len(own) < 3 or own[0] != "components":
            continue
        names = list(reward.components) if reward is not None and "components" in reward else []
        new = any(other[:-1] == key[:-1] and other[-1] in ("kind", "model") for other in keys)
        if own[1] not in names and not new:
            near = difflib.get_close_matches(own[1], names, n=1, cutoff=0.0)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{where}: no component {own[1]!r}; {meant}A new one needs its kind or model")


def _explain(kind: type, error: Exception) -> str:
    key = str(getattr(error, "key", "") or "")
    valid = sorted({item.name for owner in (kind, *_nested(kind)) for item in fields(owner)})
    if type(error).__name__ in ("ConfigKeyError", "ConfigAttributeError"):
        if inside := [name for name in flat(kind()) if name.endswith(f".{key}") and name != getattr(error, "full_key", key)]:
            return f"unknown key {getattr(error, 'full_key', key)!r}; did you mean {' or '.join(map(repr, inside))}?"
        near = difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
        return f"unknown key {getattr(error, 'full_key', key)!r}; did you mean {near[0]!r}? Valid keys: {', '.join(valid)}"
    said = f"{getattr(error, 'full_key', key) or 'value'}: {str(error).splitlines()[0]}"
    none = "Incompatible value 'None'" in said
    return f"{said}; nothing behind its name means null; an empty text is '{key}=\"\"'" if none else said


def _nested(kind: type) -> list[type]:
    """The dataclasses that appear as field defaults of ``kind``."""
    found: list[type] = []
    value = kind()
    for item in fields(kind):
        content = getattr(value, item.name)
        for part in content.values() if isinstance(content, dict) else [content]:
            if is_dataclass(part) and type(part) not in found:
                found.append(type(part))
    return found


def load_reward(recipe: str | os.PathLike[str] | RewardRecipe | None = None, overrides: Sequence[str] = ()) -> Reward:
    """The reward a recipe describes.

    recipe: a YAML file; a ``RewardRecipe``; "module:Name" (called without arguments); None for the shipped miniature,
        UnifiedReward + CaC, averaged on their known ranges.
    Raises ``ValueError`` when the recipe is wrong or a model cannot be loaded.
    """
    if isinstance(recipe, str) and ":" in recipe and not Path(recipe).exists():
        if overrides:
            raise ValueError(f"{overrides[0]} would not be read: {recipe} is called as it is; leave it out, or write a recipe")
        return made(recipe)
    if not isinstance(recipe, RewardRecipe):
        recipe = read_recipe(RewardRecipe, recipe, overrides, section="reward")
    if not recipe.components:
        raise ValueError("a reward recipe needs at least one component, e.g. components: {cac: {kind: cac, model: miniature}}")
    for name, component in recipe.components.items():
        if component.kind not in ("cac", "unified", "motion") and ":" not in component.kind:
            raise ValueError(
                f"component {name!r}: kind must be cac, unified, motion or 'module:Name', received {component.kind!r}"
            )
        _refuse_unread(f"component {name!r}: kind {component.kind}", component, _read_of(component))
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
_SERVED = ("served_model", "revision", "concurrency", "timeout_s", "retries", "backoff_s", "dialect", "frames", "api_key_env")
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


def _refuse_unread(what: str, recipe: Any, read: Collection[str]) -> None:
    """Raise ``ValueError`` for a key that was given a value and that nobody would read."""
    for item in fields(recipe):
        default = item.default if item.default is not MISSING else item.default_factory()
        if item.name not in (*read, "kind", "weight") and getattr(recipe, item.name) != default:
            takes = f" (it takes {', '.join(read)})" if read else ""
            raise ValueError(f"{what}: {item.name}={getattr(recipe, item.name)!r} would not be read; leave it out{takes}")


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
        raise ValueError(f"{name} cannot be called without arguments ({error}); expected what makes a reward so") from error
    if not (callable(reward) and hasattr(reward, "name") and hasattr(reward, "passport")):
        raise ValueError(f"{name} gives a {type(reward).__name__}, which is no reward: it needs a name, a passport and a call")
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
    options = {name: getattr(recipe, name) for name in names if name != "api_key_env" and getattr(recipe, name) is not None}
    if recipe.api_key_env:
        key = os.environ.get(recipe.api_key_env)
        if not key:
            raise ValueError(f"api_key_env names {recipe.api_key_env}, which is not set in the environment")
        options["api_key"] = key
    return options


def load_generator(recipe: GeneratorRecipe) -> Callable[[str, int], Video]:
    """The generator a recipe describes: a callable from prompt and seed to Video. Raises ``ValueError`` when it cannot be loaded."""
    if ":" in recipe.model and not Path(recipe.model).exists():
        _refuse_unread(f"generator {recipe.model}", recipe, ("model",))
        return import_name(recipe.model)()
    from cac_align.core.weights import shipped
    from cac_align.generation.wan import Wan

    options: dict[str, Any] = {
        name: value for name in recipe.__dataclass_fields__ if name != "model" and (value := getattr(recipe, name)) is not None
    }
    return Wan.load(shipped("wan") if recipe.model == "miniature" else recipe.model, **options)


def import_name(name: str) -> Any:
    """The object behind "module:Name". Raises ``ValueError`` when there is none."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import {name!r}: {error}; expected 'module:Name'") from error
