"""Local advantages need a judge that localises: the audit that says so, or uniform advantages.

recipe + audit.json (``cac-align evaluate reward --out``) → ``gated`` → recipe, what to say about it
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cac_align.align.recipe import AlignRecipe
from cac_align.rewards.reward import stable_provenance


def gated(recipe: AlignRecipe, provenance: Mapping[str, str]) -> tuple[AlignRecipe, str | None]:
    """The recipe with the advantages that its judge's localisation allows, and a line about it.

    With local advantages and a ``local_audit`` in which localisation is not clearly above chance,
    advantages become uniform. Without an audit they stay as they are, and the line says that nothing
    was checked. provenance: of the reward. Raises ``ValueError`` for a file that is no audit, and for
    an audit of another judge.
    """
    if recipe.advantages != "local":
        return recipe, None
    if not recipe.local_audit:
        how = "`cac-align evaluate reward --out DIR` measures it, and local_audit=DIR/audit.json names it"
        return recipe, f"note: whether this judge localises, which local advantages need, was not checked; {how}"
    path = Path(recipe.local_audit)
    localises, reason, audited = _read(path)
    name = recipe.local_component
    ours, theirs = _of_component(provenance, name), _of_component(audited, name)
    if ours != theirs:
        differs = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        raise ValueError(
            f"local_audit {path} is of another judge than {name!r} of this reward: they differ in "
            f"{', '.join(differs[:4])}; audit this one: cac-align evaluate reward --reward RECIPE --out DIR"
        )
    if localises:
        return recipe, f"local advantages: the judge localises ({reason}; {path})"
    return replace(recipe, advantages="uniform"), (
        f"note: advantages are uniform instead of local, because the judge does not localise ({reason}; {path})"
    )


def check_local_audit(recipe: AlignRecipe) -> None:
    """Raise ``ValueError`` for a ``local_audit`` that cannot be read, before a model is loaded."""
    if recipe.local_audit:
        _read(Path(recipe.local_audit))


def _read(path: Path) -> tuple[bool, str, Mapping[str, str]]:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        found = row["localisation"]["localises"], row["localisation"]["reason"], row["provenance"]
    except OSError as error:
        raise ValueError(f"local_audit {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"local_audit {path} is no audit.json of `cac-align evaluate reward --out DIR`") from error
    if not (isinstance(found[0], bool) and isinstance(found[2], dict)):
        raise ValueError(f"local_audit {path} is no audit.json of `cac-align evaluate reward --out DIR`")
    return found


def _of_component(provenance: Mapping[str, str], name: str) -> dict[str, str]:
    """What identifies one component: its entries of a combination, or all of a reward that is none."""
    own = {key.removeprefix(f"{name}/"): value for key, value in provenance.items() if key.startswith(f"{name}/")}
    return stable_provenance(own or provenance)
