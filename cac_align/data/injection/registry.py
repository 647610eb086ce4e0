"""Every injector by its name, and which of them can run here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.util import find_spec

from cac_align.data.injection.injector import Injector
from cac_align.data.injection.injectors.body import BODY_INJECTORS
from cac_align.data.injection.injectors.crossing import CROSSING_INJECTORS
from cac_align.data.injection.injectors.latent import LATENT_INJECTORS, latent_injectors
from cac_align.data.injection.injectors.motion import MOTION_INJECTORS
from cac_align.data.injection.injectors.presence import PRESENCE_INJECTORS
from cac_align.data.injection.injectors.shape import SHAPE_INJECTORS
from cac_align.data.injection.injectors.sign import SIGN_INJECTORS
from cac_align.data.injection.injectors.text import TEXT_INJECTORS
from cac_align.data.injection.models import Models
from cac_align.data.injection.sources.body_models import why_no_models

INJECTORS: Mapping[str, Injector] = {
    injector.name: injector
    for injector in (
        *SHAPE_INJECTORS,
        *PRESENCE_INJECTORS,
        *MOTION_INJECTORS,
        *CROSSING_INJECTORS,
        *TEXT_INJECTORS,
        *SIGN_INJECTORS,
        *BODY_INJECTORS,
    )
}
"""The injectors that need no weights of the user's, by name."""


def usable_injectors(
    tiers: Collection[str] = ("core", "inject"),
    names: Collection[str] = (),
    models: Models | None = None,
    *,
    body_models: str = "",
) -> tuple[dict[str, Injector], dict[str, str]]:
    """The injectors of these tiers (of these names, where some are given) whose modules are
    installed, and for the others of them why not. Those of the tier "gpu" come with the models' redrawer.
    body_models: as in the recipe.

    Raises ``ValueError`` for a name that no injector has, and where ``body_models`` names something
    that has not the models.
    """
    known = {*INJECTORS, *LATENT_INJECTORS}
    if unknown := sorted(set(names) - known):
        raise ValueError(f"unknown injector {unknown[0]!r}; there are {', '.join(sorted(known))}")
    no_models = why_no_models(body_models)
    if body_models and no_models:
        raise ValueError(f"injection.body_models: {no_models}")
    usable: dict[str, Injector] = {}
    missing: dict[str, str] = {}
    for name, injector in sorted(INJECTORS.items()):
        if injector.tier not in tiers or (names and name not in names):
            continue
        absent = [module for module in injector.requires if find_spec(module) is None]
        if absent:
            missing[name] = f"needs {' and '.join(absent)}: pip install -c constraints.txt -e '.[inject]'"
        elif injector.body_models and no_models:
            missing[name] = no_models
        else:
            usable[name] = injector
    if models is not None and models.redrawer is not None:
        made = {injector.name: injector for injector in latent_injectors(models.redrawer)}
        usable |= {
            name: injector for name, injector in made.items() if name in names or (not names and name != "redraw")
        }
        if not names:
            missing["redraw"] = "what it draws may well be normal; name it in injection.injectors to have it"
    else:
        wanted = LATENT_INJECTORS if "gpu" in tiers and not names else set(LATENT_INJECTORS) & set(names)
        missing |= dict.fromkeys(sorted(wanted), "needs a Wan checkpoint: injection.wan")
    return usable, missing
