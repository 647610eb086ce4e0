"""The checks that every host shares: our own options in its config, and the reward that they name."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from cac_align.plugins.common.host import HostOptions


@dataclass(frozen=True)
class Check:
    """One finding about an environment or a config."""

    name: str
    # True: right. False: wrong. None: a remark, which is true but cannot be seen to be right or wrong.
    ok: bool | None
    text: str
    # What to write where, when something is to be done.
    fix: str = ""


def check_options(
    name: str, given: Mapping[str, Any], *, whole_groups: bool, compares: bool = False
) -> Iterator[Check]:
    """Checks of our own options, wherever the host keeps them.

    name: of the reward in the host's config. whole_groups: whether the host's calls hold whole
    groups of videos. compares: whether the adapter is the one for rewards that compare the videos of
    a prompt.
    """
    try:
        options = HostOptions.read(given)
        policy = options.policy
    except (ValueError, TypeError) as error:
        yield Check(f"{name} options", False, str(error), "see cac_align.plugins.common.host.HostOptions")
        return
    fps = float(options.fps)
    fix = "" if fps == 16 else f"fps: 16 on {name}, unless the videos really have {fps:g} frames per second"
    yield Check(
        f"{name} fps", True if fps == 16 else None, f"{fps:g} frames per second (Wan: 16; the hosts tag files 8)", fix
    )
    if options.on_missing == "neutral" and not whole_groups:
        text = f"{policy}: neutral needs a prompt's whole group in one call of all ranks, or a gap stops the run"
        yield Check(f"{name} policy", None, text, f"let one call of {name} hold whole groups, or set on_missing: raise")
    else:
        yield Check(f"{name} policy", True, str(policy))
    yield from _reward_source(name, options, compares)
    if options.ledger is None:
        yield Check(
            f"{name} evidence",
            None,
            "every host drops explanations; no ledger is set",
            f"ledger: ledger.jsonl on {name}",
        )


def has_module(package: str) -> bool:
    """Whether this interpreter can import a package, started in this folder: hosts are often run from a checkout."""
    if package in sys.modules:
        return True
    return importlib.util.find_spec(package) is not None or PathFinder.find_spec(package, [str(Path.cwd())]) is not None


def check_modules(package: str, needed: Mapping[str, str]) -> Iterator[Check]:
    """Checks of what a host's config needs beside the host itself.

    package: the host's own; where it cannot be imported this is not its interpreter, and nothing is
    wrong with that. needed: modules, and what needs each.
    """
    for module, why in needed.items():
        if has_module(module):
            yield Check(module, True, f"installed, for {why}")
        else:
            ok = False if has_module(package) else None
            yield Check(module, ok, f"{why} needs {module}, which is not installed here", f"pip install {module}")


def check_paths(paths: Mapping[str, Any]) -> Iterator[Check]:
    """Checks of paths in a host's config, which the host takes from the folder in which it is started."""
    missing = {key: str(path) for key, path in paths.items() if path and not Path(str(path)).exists()}
    for key, path in missing.items():
        text = f"{path} is not in {Path.cwd()}: the host looks for it where it is started"
        yield Check(key, None, text, "run doctor and the host in the host's folder, or write whole paths")


def check_launcher(flags: Mapping[str, Any], module: str, script: str) -> Check:
    """A check that a launch script starts the host's ``script`` through our launcher ``module``.

    flags: of the launch script, and what stands after each.
    """
    launched = flags.get("-m") == module
    text = "our launcher runs the script" if launched else "the script is started without our launcher"
    return Check("command", launched, text, "" if launched else f"torchrun … -m {module} {script} …")


def check_unsupported(name: str, options: dict[str, Any], keys: Sequence[str], why: str) -> Iterator[Check]:
    """Checks that fail for options that this host's adapter does not take; removes them from
    ``options``.
    """
    for key in keys:
        if options.pop(key, None) is not None:
            yield Check(f"{name} {key}", False, why, f"remove {key} from {name}")


def check_frame_rate(name: str, options: Mapping[str, Any], rate: Any) -> Iterator[Check]:
    """A check that fails where the host's config states another frame rate than the reward's
    options.

    rate: frames per second of the videos that the host's model makes; None where its config does
    not say.
    """
    fps = float(options.get("fps", 16))
    if rate is not None and float(rate) != fps:
        yield Check(
            f"{name} frame rate",
            False,
            f"train.frame_rate is {rate}, and the reward takes the videos for {fps:g} fps",
            f"fps: {rate} on {name}",
        )


def _reward_source(name: str, options: HostOptions, compares: bool) -> Iterator[Check]:
    """A check of the service or recipe that the reward comes from."""
    source = options.reward
    if source is None:
        yield Check(
            f"{name} reward",
            False,
            "no reward is named, and the adapters refuse to run without one",
            "reward: your recipe, or http://… of `cac-align serve`",
        )
    elif source.startswith(("http://", "https://")):
        if compares:
            text = f"{source} is a service, which scores each video by itself"
            yield Check(f"{name} reward", False, text, "reward: the recipe of a judge that compares")
        else:
            yield _check_service(name, source, options.component)
    elif source.endswith((".yaml", ".yml")):
        yield _check_recipe(name, Path(source), options.component, compares)


def _check_service(name: str, url: str, component: str | None) -> Check:
    """Whether the service answers and offers this component."""
    from cac_align.serving.client import RemoteReward

    try:
        health = RemoteReward(url, timeout_s=5, retries=0).health()
    except ValueError as error:
        return Check(f"{name} service", False, str(error), "cac-align serve --reward RECIPE, and the address it prints")
    if health.rewards and component is not None and component not in health.rewards:
        return Check(
            f"{name} service",
            False,
            f"{url} offers {', '.join(health.rewards)}, not {component!r}",
            "serve a recipe that has it",
        )
    return Check(
        f"{name} service",
        health.status == "ok",
        f"{url}: {health.status}, offers {', '.join(health.rewards) or 'nothing without a token'}",
    )


def _check_recipe(name: str, path: Path, component: str | None, compares: bool) -> Check:
    """Whether the recipe can be read, has this component, and scores videos in the adapter's way: each
    by itself, or with ``compares`` against those of its prompt.
    """
    from cac_align.config import read_recipe
    from cac_align.rewards.build import JUDGE_KINDS, RewardRecipe

    try:
        recipe = read_recipe(RewardRecipe, path, section="reward")
    except ValueError as error:
        return Check(
            f"{name} recipe",
            False,
            str(error),
            "cac-align score VIDEO --prompt TEXT --reward RECIPE tries a recipe alone",
        )
    if component is not None and component not in (*recipe.components, "+".join(recipe.components)):
        text = f"{path} has {', '.join(recipe.components)}, not {component!r}"
        return Check(f"{name} recipe", False, text, "a recipe that has it, or another class")
    pairs = [each.kind for each in recipe.components.values() if "schedule" in JUDGE_KINDS.get(each.kind, ())]
    own = [each.kind for each in recipe.components.values() if ":" in each.kind]
    if compares:
        found = bool(pairs) or recipe.normalise in ("group", "rank")
        if found or own:
            text = f"{path} compares the videos of a prompt" if found else f"{path}: {own[0]} is a reward of your own"
            return Check(f"{name} recipe", True if found else None, text)
        text = f"{path} has no component that compares; {', '.join(recipe.components)} score each video by itself"
        return Check(f"{name} recipe", False, text, "reward_model: cac_align.plugins.flow_factory.CaCUnifiedReward")
    if pairs:
        text = f"{path}: kind {pairs[0]} compares videos, and this adapter scores each by itself"
        return Check(f"{name} recipe", False, text, "Flow-Factory's GroupReward, or a judge of single videos")
    if recipe.normalise in ("group", "rank"):
        text = (
            f"{path} normalises by {recipe.normalise!r} within a prompt's videos; "
            "the host's calls hold fragments of groups"
        )
        return Check(f"{name} normalisation", False, text, "normalise: range   (or reference)")
    return Check(
        f"{name} normalisation", True, f"{recipe.normalise}: works for one video, the same under every aggregation"
    )
