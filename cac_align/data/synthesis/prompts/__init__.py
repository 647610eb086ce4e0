"""The texts that a teacher is given while it writes chains of thought, with slots to fill in."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files

TEXT_NAMES = ("hints", "mistaken", "close_up", "frame", "again", "review", "review_mistaken")
_SLOT = re.compile(r"\{(record|task|found|first_s|last_s|prompt|reasons|answer)\}")


@cache
def text(name: str) -> str:
    """The text of that name."""
    return (files(__name__) / f"{name}.md").read_text(encoding="utf-8").strip()


def filled(name: str, **slots: str) -> str:
    """The text ``name`` with its ``{slot}``s filled in one pass, so that braces in the values stay
    as they are.
    """
    return _SLOT.sub(lambda match: slots.get(match.group(1), match.group(0)), text(name))


def texts_hash() -> str:
    """First 12 hex digits of the sha256 over all texts; part of a synthesis' identity."""
    return hashlib.sha256("\0".join(map(text, TEXT_NAMES)).encode()).hexdigest()[:12]
