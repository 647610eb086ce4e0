"""The two protocols under which the paper runs other judges.

recipe, protocol → protocol_rows → one row per judge and protocol, and why a row is missing

- "official": the judge is asked as its authors ask it: the recipe as it stands.
- "cac": the same model gets CaC's prompt and CaC's frames, and gives CaC's verdict: kind cac with this model.

The paper reports the stronger of the two for each judge (Appendix C.2). That choice is made on the tested videos, so
this bench shows both.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cac_align.config import read_recipe
from cac_align.core.weights import shipped
from cac_align.rewards.build import JUDGE_KINDS, LOCAL_KEYS, SERVED_KEYS, JudgeRecipe, RewardRecipe, is_factory
from cac_align.rewards.judges.build import SERVED_MODELS

Protocol = Literal["official", "cac", "both"]
PROTOCOLS: tuple[Protocol, ...] = ("official", "cac", "both")

_PAIRS = ("unified_think", "unified_flex", "vr_thinker")
_WITHOUT_TEXT = ("videoalign", "hpsv3")


@dataclass(frozen=True)
class ProtocolRow:
    """One judge under one protocol. ``overrides`` are those that ``load_reward`` still has to apply."""

    name: str
    protocol: Literal["official", "cac"]
    recipe: str | os.PathLike[str] | RewardRecipe | None
    overrides: tuple[str, ...] = ()


def protocol_rows(
    name: str, recipe: str | os.PathLike[str] | None, overrides: Sequence[str], protocol: Protocol
) -> tuple[list[ProtocolRow], list[str]]:
    """(The rows of one judge, sentences about rows that it cannot have.)

    A judge of kind cac or api is asked in CaC's way already and has one row. Raises ``ValueError`` where "cac" is asked
    of a judge that cannot be asked so, and for a recipe that cannot be read.
    """
    official = ProtocolRow(name, "official", recipe, tuple(overrides))
    if protocol == "official":
        return [official], []
    found = _single_judge(recipe, overrides)
    if isinstance(found, str):
        if protocol == "cac":
            raise ValueError(f"judge {name!r}: {found}; ask it with --protocol official")
        return [official], [f"{name}: official protocol only, because {found}"]
    whole, judge = found
    if judge.kind in ("cac", "api"):
        return [replace(official, protocol="cac")], []
    asked = ProtocolRow(f"{name} (CaC's prompt)", "cac", with_cac_prompt(whole, judge))
    if protocol == "cac":
        return [asked], []
    if judge.kind in _PAIRS:
        return [asked], [f"{name}: CaC's prompt only, because its own protocol compares videos with each other"]
    return [replace(official, name=f"{name} (official)"), asked], []


def with_cac_prompt(recipe: RewardRecipe, judge: JudgeRecipe) -> RewardRecipe:
    """The recipe of the same model, asked as CaC: its weights and connection stay, its own prompt and limits go."""
    kept = {name: getattr(judge, name) for name in ("model", *LOCAL_KEYS, *SERVED_KEYS)}
    if judge.kind == "unified" and judge.model == "miniature":
        kept["model"] = str(shipped("unified"))  # "miniature" of kind cac would be another model
    if judge.model.startswith(("http://", "https://")) and kept["served_model"] is None:
        kept["served_model"] = SERVED_MODELS.get(judge.kind)
    component = JudgeRecipe(kind="cac", **kept)
    return replace(recipe, components={"cac": component}, normalise="range", statistics=None)


def _single_judge(
    recipe: str | os.PathLike[str] | None, overrides: Sequence[str]
) -> tuple[RewardRecipe, JudgeRecipe] | str:
    """A recipe and its only judge, or why its model cannot be asked with CaC's prompt."""
    if isinstance(recipe, str) and (recipe.startswith(("http://", "https://")) or is_factory(recipe, overrides)):
        return "it is no recipe, so its model is not known here"
    read = read_recipe(RewardRecipe, recipe, overrides, section="reward")
    if len(read.components) != 1:
        return f"its recipe combines {len(read.components)} judges; CaC's prompt is asked of one model"
    (judge,) = read.components.values()
    if judge.kind in _WITHOUT_TEXT:
        return f"kind {judge.kind} gives a number without writing text"
    if judge.kind not in ("cac", "unified", *JUDGE_KINDS):
        return f"kind {judge.kind} is no vision-language model"
    return read, judge
