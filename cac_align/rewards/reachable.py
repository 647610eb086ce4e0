"""Whether the servers behind a reward answer, asked before the first video."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cac_align.rewards.build import RewardRecipe, load_reward, unloaded_reward
from cac_align.rewards.reward import Reward
from cac_align.vlm.server.server import ServerVlm


def servers_of(reward: Any) -> dict[str, ServerVlm]:
    """The servers that a reward and its components ask, by component name."""
    return {name: vlm for name, vlm in _vlms(reward) if isinstance(vlm, ServerVlm)}


def check_reachable(reward: Any, timeout_s: float = 2.0) -> None:
    """Ask all servers at once. reward: may be a judge's model itself.

    Raises ``ValueError`` with a line per server that does not answer, and how to start it.
    """
    servers = servers_of(reward)
    if not servers:
        return
    with ThreadPoolExecutor(len(servers)) as pool:
        answers = list(pool.map(lambda vlm: vlm.why_unreachable(timeout_s), servers.values()))
    lines = [f"{name}: {why}" for name, why in zip(servers, answers, strict=True) if why is not None]
    if lines:
        raise ValueError("\n".join(lines))


def load_reachable(
    recipe: str | os.PathLike[str] | RewardRecipe | None = None,
    overrides: Sequence[str] = (),
    *,
    deferred: bool = False,
) -> Reward:
    """``load_reward``, after its servers were seen to answer: before a model takes its time.

    Raises ``ValueError`` as ``load_reward`` and ``check_reachable`` do.
    """
    check_reachable(unloaded_reward(recipe, overrides))
    reward = load_reward(recipe, overrides, deferred=deferred)
    check_reachable(reward)  # also the servers of a reward of one's own, which are known now
    return reward


def _vlms(reward: Any) -> Iterator[tuple[str, Any]]:
    components = getattr(reward, "components", None)
    if isinstance(reward, ServerVlm):
        yield reward.model, reward
    elif isinstance(components, dict):
        for name, component in components.items():
            for inner, vlm in _vlms(component):
                yield (name if inner == getattr(component, "name", name) else f"{name}/{inner}"), vlm
    elif (vlm := getattr(reward, "vlm", None)) is not None:
        yield getattr(reward, "name", type(reward).__name__), vlm
    elif (inner := getattr(reward, "comparator", getattr(reward, "reward", None))) is not None:  # behind a cache
        yield from _vlms(inner)
