"""Recipes: YAML files that mirror dataclasses, read through OmegaConf. A wrong key is an error with
the nearest valid one.

recipe file + key=value overrides → read_recipe(Dataclass)
    → a value from which a room's ``build`` makes something
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Collection, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, cast

from cac_align.core.shipped_recipes import find_recipe
from cac_align.runs.checkpoint import recipe_values

T = TypeVar("T")

# Keys at the top of a recipe that only one kind of recipe has, and what that kind is for.
_KINDS = {
    "stage1": "cac-align train judge",
    "components": "a reward (--reward)",
    "guard": "cac-align repair (--recipe)",
    "generator": "cac-align best-of-n (--recipe)",
    "objective": "cac-align align",
    "group_size": "cac-align align",
    "grpo": "cac-align train stage3",
    "rollout": "cac-align train stage3",
    "stage": "cac-align train stage1 or stage2",
    "synthesis": "cac-align data synthesise (--recipe)",
    "splits": "cac-align data split (--recipe)",
    "injection": "cac-align data inject (--recipe)",
    "launcher": "Flow-Factory, whose command takes it (cac-align doctor --host flow-factory --config)",
    "stack": "UniRL, whose command takes it (cac-align doctor --host unirl --config)",
}


def read_recipe(
    kind: type[T],
    path: str | os.PathLike[str] | None,
    overrides: Sequence[str] = (),
    *,
    section: str | None = None,
    folder: str = "",
) -> T:
    """Read a YAML recipe into the dataclass ``kind``, apply overrides, and check every key and
    type.

    path: None for the dataclass's own defaults. overrides: ``key=value`` texts with dotted keys.
    section: a top-level key; when the file has it, only its content is read. folder: of the shipped
    recipes, in which a name is looked for first; by default the section's name. Raises ``ValueError``
    that names the file, the key and the nearest valid key.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    where = "recipe" if path is None else str(path)
    try:
        layers = [OmegaConf.structured(kind)]
        if path is not None:
            chosen = _mapping_of(OmegaConf.load(find_recipe(path, folder or section or "")), where, section)
            _check_kind(kind, chosen, where)
            _drop_default_components(layers[0], chosen)
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
            raise ValueError(
                f"{where}: a list or a single value stands where keys and values are expected ({error})"
            ) from error
        value = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(f"{where}: {_explain(kind, error)}") from error
    except OSError as error:
        raise ValueError(f"{where}: cannot be read: {error}") from error
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            raise ValueError(f"{where}: not YAML: {str(error).splitlines()[0]}") from error
        raise
    return cast(T, value)


def _mapping_of(loaded: Any, where: str, section: str | None) -> Any:
    """The keys and values of a recipe file, or of its ``section``. Raises ``ValueError`` when they
    are none.
    """
    from omegaconf import DictConfig

    chosen, under = loaded, ""
    if section is not None and isinstance(loaded, DictConfig) and section in loaded:
        chosen, under = loaded[section], f" under {section}"
    if isinstance(chosen, DictConfig):
        return chosen
    if under and isinstance(chosen, str):
        raise ValueError(f"{where}: its {section} is the recipe {chosen}; pass that one")
    raise ValueError(f"{where}: expected keys and values{under}, found {chosen!r:.80}")


def _check_kind(kind: type, chosen: Any, where: str) -> None:
    """Raise ``ValueError`` for a recipe of another kind, saying what it is for."""
    known = {item.name for item in fields(kind)}
    for key, use in _KINDS.items():
        if key in chosen and key not in known:
            raise ValueError(f"{where}: its key {key} says that this is a recipe for {use}; pass it there")


def _drop_default_components(defaults: Any, chosen: Any) -> None:
    """Remove the default components when the recipe lists its own, so that they are not merged."""
    if "components" in defaults and "components" in chosen:
        defaults.components = {}
    for name in ("reward", "guard"):
        if name in defaults and chosen.get(name) and "components" in chosen[name]:
            defaults[name].components = {}


def _check_components(known: Any, overrides: Sequence[str], where: str) -> None:
    """Raise ``ValueError`` for an override of an unknown component, unless another one states its
    kind or model.

    A misspelled name would otherwise add a miniature judge at equal weight.
    """
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
        if inside := [
            name
            for name in recipe_values(kind())
            if name.endswith(f".{key}") and name != getattr(error, "full_key", key)
        ]:
            return f"unknown key {getattr(error, 'full_key', key)!r}; did you mean {' or '.join(map(repr, inside))}?"
        near = difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
        return (
            f"unknown key {getattr(error, 'full_key', key)!r}; did you mean {near[0]!r}? Valid keys: {', '.join(valid)}"
        )
    message = f"{getattr(error, 'full_key', key) or 'value'}: {str(error).splitlines()[0]}"
    if "Incompatible value 'None'" in message:
        return f"{message}; '{key}=' without a value means null; an empty text is '{key}=\"\"'"
    return message


def _nested(kind: type) -> list[type]:
    """The dataclasses among the field defaults of ``kind``."""
    found: list[type] = []
    value = kind()
    for item in fields(kind):
        content = getattr(value, item.name)
        for part in content.values() if isinstance(content, dict) else [content]:
            if is_dataclass(part) and type(part) not in found:
                found.append(type(part))
    return found


def refuse_unread(what: str, recipe: Any, read: Collection[str]) -> None:
    """Raise ``ValueError`` for a key that has a value other than its default but is not among those
    ``read``.
    """
    for item in fields(recipe):
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if item.name not in (*read, "kind", "weight") and getattr(recipe, item.name) != default:
            takes = f" (it takes {', '.join(read)})" if read else ""
            raise ValueError(
                f"{what}: {item.name}={getattr(recipe, item.name)!r} would not be read; leave it out{takes}"
            )


def import_name(name: str) -> Any:
    """The object behind "module:Name". Raises ``ValueError`` when there is none."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import {name!r}: {error}; expected 'module:Name'") from error
