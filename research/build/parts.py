"""The curriculum's recipes: read, shrunk to a scale, and checked before anything is made.

research/recipes/NAME.yaml → ``read_part`` → common + phases → ``phase`` (a dataclass) → ``shrink`` (counts × scale)

A file holds ``common`` values and named ``phases`` that override them; ``minutes`` of a phase is its expected cost on
two cores. Counts are steps, clips and batches; models keep their size at every scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

T = TypeVar("T")
RECIPES = Path(__file__).parents[1] / "recipes"

LEAST = {
    "batch": 4,
    "encoder_batch": 4,
    "clips": 4,
    "text_clips": 4,
    "measure": 2,
    "rendered": 40,
    "drawn": 4,
    "num_inference_steps": 2,
    "group_size": 2,
    "prompts": 2,
    "eval_videos": 2,
    "rollout_videos": 2,
}
"""Counts below which a step cannot run at all; every other count is at least 1."""

COUNTS = frozenset(
    [*LEAST, "steps", "encoder_steps", "auxiliary_steps", "micro_batch", "prompts_per_step", "eval_batches"]
)


def read_part(name: str, folder: Path = RECIPES) -> dict[str, Any]:
    """The content of ``NAME.yaml``. Raises ``ValueError`` where there is none."""
    from omegaconf import OmegaConf

    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"{path}: no such recipe; the curriculum needs it")
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path)))


def phase(kind: type[T], part: Mapping[str, Any], name: str, phases: str = "phases", **own: Any) -> T:
    """A phase of a part as a dataclass: the common values, its own, and ``own`` on top.

    Raises ``ValueError`` for an unknown key or a value of another type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values = {key: value for key, value in part[phases][name].items() if key != "minutes"}
    try:
        layers = [OmegaConf.create(dict(one)) for one in (part.get("common", {}), values, own)]
        return cast(T, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), *layers)))
    except OmegaConfBaseException as error:
        raise ValueError(f"phase {name}: {str(error).splitlines()[0]}") from error


def minutes(part: Mapping[str, Any], name: str, phases: str = "phases") -> float:
    """The expected cost of a phase on two cores."""
    return float(part[phases][name]["minutes"])


def shrink(recipe: T, scale: float) -> T:
    """The recipe with its counts, also those of its sections, times ``scale``; at 1 it is what it was."""
    if scale == 1:
        return recipe
    changed: dict[str, Any] = {}
    for item in fields(cast(Any, recipe)):
        value = getattr(recipe, item.name)
        if is_dataclass(value):
            changed[item.name] = shrink(value, scale)
        elif item.name in COUNTS and isinstance(value, int) and value > 0:
            changed[item.name] = shrunk(value, scale, LEAST.get(item.name, 1))
        elif item.name in ("warmup", "warmup_steps", "eval_every", "evaluate_every", "eval_clips", "evaluate_clips"):
            changed[item.name] = 0 if item.name != "eval_every" else value
        elif item.name in ("save_every", "log_every"):
            changed[item.name] = 1
    return cast(T, replace(cast(Any, recipe), **changed))


def shrunk(count: int, scale: float, least: int = 1) -> int:
    """``count`` × ``scale``, even where the least is, and at least that; never more than ``count``."""
    found = max(least, round(count * scale))
    return min(count, found + found % 2 if least % 2 == 0 else found)
