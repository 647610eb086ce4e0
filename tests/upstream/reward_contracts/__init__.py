"""Scripts that the hosts' own interpreter runs: the host's real reward code calls our adapter over a real service, and prints JSON.

Arguments: the service's URL and the checkout. Modules of a host that only its GPU environment can import are replaced by empty ones,
named where that is done; nothing of a host is copied.
"""

import json
import sys
from types import ModuleType
from typing import Any

from tests.support.hosting import clip


def empty(name: str, *attributes: str) -> None:
    """Put a module without content in the place of one that cannot be imported here."""
    module = ModuleType(name)
    for attribute in attributes:
        setattr(module, attribute, None)
    sys.modules[name] = module


def videos(*levels: int) -> Any:
    """Clips of these brightnesses as (B, T, C, H, W) floats in [0, 1]."""
    import torch

    return torch.stack([torch.from_numpy(clip(level)).permute(0, 3, 1, 2).float() / 255 for level in levels])


def tell(**facts: Any) -> None:
    """Print the facts for the test."""
    print("FACTS " + json.dumps(facts))
