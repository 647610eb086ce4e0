"""Checks of a recipe's judges: is everything right that can be known without a model, and is each server up.

recipe of a reward, an alignment or Best-of-N → its rewards → components → servers, all asked at once → checks
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cac_align.core.shipped_recipes import find_recipe
from cac_align.plugins.doctor.checks import Check
from cac_align.rewards.build import load_reward, unloaded_reward
from cac_align.rewards.reachable import servers_of

_WITHIN_S = 2.0


def check_judges(recipe: Path) -> Iterator[Check]:
    """The checks of every reward that a recipe names. Raises ``ValueError`` for a file that is no
    recipe of a reward, an alignment or Best-of-N.
    """
    for key, named in _rewards_of(recipe).items():
        try:
            if isinstance(named, str) and named.startswith(("http://", "https://")):
                load_reward(named)
                yield Check(key, True, f"the service at {named} answers and is ready")
                continue
            reward = unloaded_reward(named)
        except ValueError as error:
            text, _, fix = str(error).partition("; ")
            yield Check(key, False, text, fix)
            continue
        names = list(getattr(reward, "components", {reward.name: reward}))
        yield Check(key, True, f"the recipe of {', '.join(names)} can be read")
        yield from _servers(key, reward)


def _servers(key: str, reward: Any) -> Iterator[Check]:
    servers = servers_of(reward)
    if not servers:
        yield Check(f"{key}: judges", True, "all run here; no server is asked")
        return
    with ThreadPoolExecutor(len(servers)) as pool:
        answers = list(pool.map(lambda vlm: vlm.why_unreachable(_WITHIN_S), servers.values()))
    for (name, vlm), why in zip(servers.items(), answers, strict=True):
        what = f"{key}: {name}"
        if why is None:
            yield Check(what, True, f"{vlm.url} is up and serves {vlm.model!r}")
        else:
            text, _, fix = why.partition("; ")
            yield Check(what, False, text, fix)


def _rewards_of(recipe: Path) -> dict[str, str | Path]:
    """The rewards of a recipe by the key that names them: the file itself, or what ``reward`` and
    ``eval.reward`` of an alignment name.
    """
    from omegaconf import DictConfig, OmegaConf

    path = find_recipe(recipe, "reward")
    try:
        read = OmegaConf.load(path)
    except Exception as error:
        raise ValueError(f"{recipe}: not YAML: {str(error).splitlines()[0]}") from error
    if isinstance(read, DictConfig) and ("components" in read or isinstance(read.get("reward"), DictConfig)):
        return {"reward": path}
    if not isinstance(read, DictConfig) or not {"reward", "group_size", "objective", "generator"} & set(read):
        raise ValueError(f"{recipe}: no recipe of a reward, an alignment or Best-of-N, so it names no judge")
    named = {"reward": read.get("reward"), "eval.reward": (read.get("eval") or {}).get("reward")}
    return {key: str(value) for key, value in named.items() if value} or {"reward": "reward/miniature"}
