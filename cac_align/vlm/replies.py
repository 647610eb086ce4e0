"""What a Vlm returned, checked: whatever breaks the protocol becomes that conversation's error.

answer's return value → checked_replies → one Reply per conversation, of the declared types
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

from cac_align.vlm.protocol import Readout, Reply


def checked_replies(returned: object, count: int, readout: Readout | None) -> list[Reply]:
    """One Reply per conversation, in order, whose fields have their declared types.

    A value that is no Reply, or has a field of another type, becomes a Reply with an error. Raises
    ``ValueError`` when there is not one value per conversation, because then nobody knows whose
    they are.
    """
    replies = list(returned) if isinstance(returned, (list, tuple)) else None
    if replies is None or len(replies) != count:
        what = type(returned).__name__ if replies is None else f"{len(replies)}"
        raise ValueError(f"the Vlm's answer must be a list of {count} replies, one per conversation; received {what}")
    return [_checked(reply, readout) for reply in replies]


def checked_provenance(provenance: object, whose: str) -> dict[str, str]:
    """The provenance as a dictionary of texts. whose: the model or reward, for the message. Raises
    ``ValueError`` for anything else, because then nobody knows what scores come from.
    """
    if isinstance(provenance, Mapping):
        found = dict(provenance)
        if all(isinstance(name, str) and isinstance(entry, str) for name, entry in found.items()):
            return found
    raise ValueError(
        f"the provenance of {whose} must map names to texts, for example {{'model': 'mine 1.0'}}; received "
        f"{type(provenance).__name__}"
    )


def _checked(reply: Any, readout: Readout | None) -> Reply:
    try:
        return _read(reply, readout)
    except Exception as error:  # an object of the Vlm's own that raises when it is looked at
        return Reply("", error=f"the Vlm's reply cannot be read: {type(error).__name__}")


def _read(reply: Any, readout: Readout | None) -> Reply:
    if not isinstance(reply, Reply):
        return Reply("", error=f"the Vlm returned {type(reply).__name__} where a Reply was expected")
    for name in ("error", "readout_error"):
        if not isinstance(getattr(reply, name), str | None):
            return Reply("", error=f"the Vlm's reply has {name} of type {type(getattr(reply, name)).__name__}")
    if reply.error is not None:
        return reply
    if type(reply.text) is not str:
        return Reply("", error=f"the Vlm's reply has a text of type {type(reply.text).__name__}")
    if not (isinstance(reply.bounded, tuple) and all(isinstance(word, str) for word in reply.bounded)):
        return Reply("", error="the Vlm's reply has bounded that is no tuple of words")
    if not isinstance(reply.truncated, bool):
        return Reply("", error=f"the Vlm's reply has truncated of type {type(reply.truncated).__name__}")
    if reply.log_p is None:
        return reply
    if readout is None:
        return replace(reply, log_p=None)
    problem = _log_p_problem(reply.log_p, readout.words)
    if problem is not None:
        return replace(reply, log_p=None, bounded=(), readout_error=problem)
    return replace(reply, log_p={word: float(reply.log_p[word]) for word in readout.words})


def _log_p_problem(log_p: object, words: tuple[str, ...]) -> str | None:
    """Why these are no log-probabilities of the words: finite numbers, at most 0, above -9999.

    None where they are; -9999 is what some servers write for "unknown".
    """
    if not isinstance(log_p, Mapping):
        return f"log_p must be a mapping from word to log-probability, received {type(log_p).__name__}"
    for word in words:
        value = log_p.get(word)
        if not _is_log_probability(value):
            return f"the log-probability of {word!r} is not usable, received a {type(value).__name__}"
    return None


def _is_log_probability(value: object) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return False
    return math.isfinite(number) and -9999.0 < number <= 1e-3
