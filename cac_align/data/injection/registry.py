"""Every injector by its name, and which of them can run here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.util import find_spec

from cac_align.data.injection.injector import Injector, Tier
from cac_align.data.injection.injectors.crossing import CROSSING_INJECTORS
from cac_align.data.injection.injectors.motion import MOTION_INJECTORS
from cac_align.data.injection.injectors.presence import PRESENCE_INJECTORS
from cac_align.data.injection.injectors.shape import SHAPE_INJECTORS
from cac_align.data.injection.injectors.sign import SIGN_INJECTORS
from cac_align.data.injection.injectors.text import TEXT_INJECTORS

INJECTORS: Mapping[str, Injector] = {
    injector.name: injector
    for injector in (
        *SHAPE_INJECTORS,
        *PRESENCE_INJECTORS,
        *MOTION_INJECTORS,
        *CROSSING_INJECTORS,
        *TEXT_INJECTORS,
        *SIGN_INJECTORS,
    )
}
"""The injectors that need no weights of the user's, by name."""


def usable_injectors(
    tiers: Collection[Tier] = ("core", "inject"), names: Collection[str] = ()
) -> tuple[dict[str, Injector], dict[str, str]]:
    """The injectors of these tiers (of these names, where some are given) whose modules are
    installed, and for the others of them why not.

    Raises ``ValueError`` for a name that no injector has.
    """
    if unknown := sorted(set(names) - set(INJECTORS)):
        raise ValueError(f"unknown injector {unknown[0]!r}; there are {', '.join(sorted(INJECTORS))}")
    usable: dict[str, Injector] = {}
    missing: dict[str, str] = {}
    for name, injector in sorted(INJECTORS.items()):
        if injector.tier not in tiers or (names and name not in names):
            continue
        absent = [module for module in injector.requires if find_spec(module) is None]
        if absent:
            missing[name] = f"needs {' and '.join(absent)}: pip install -c constraints.txt -e '.[inject]'"
        else:
            usable[name] = injector
    return usable, missing
