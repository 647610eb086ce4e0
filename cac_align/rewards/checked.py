"""What a reward returned, checked: whatever breaks the contract becomes that video's missing score.

reward's return value → checked_scores → one Score per video, of the declared types
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

from cac_align.core.judgement import Judgement
from cac_align.rewards.reward import Score
from cac_align.vlm.replies import checked_provenance


def checked_scores(name: str, returned: object, count: int) -> list[Score]:
    """One Score per video, in order, whose fields have their declared types.

    A value that is no Score, has a field of another type, or cannot be written as JSON becomes a
    missing score. name: of the reward, for messages. Raises ``ValueError`` when there is not one
    value per video, because then nobody knows whose they are.
    """
    if not isinstance(returned, (list, tuple)):
        kind = type(returned).__name__
        raise ValueError(f"reward {name!r} returned a {kind} where a list of {count} scores was expected")
    scores = list(returned)
    if len(scores) != count:
        raise ValueError(f"reward {name!r} returned {len(scores)} scores for {count} videos; expected one each")
    return [_checked(name, score) for score in scores]


def reward_provenance(reward: Any) -> dict[str, str]:
    """The provenance of a reward whose name is a text. Raises ``ValueError`` for another one, because
    its scores could not be filed.
    """
    if not isinstance(reward.name, str):
        raise ValueError(f"the name of a reward must be a text, received {type(reward.name).__name__}")
    return checked_provenance(reward.provenance, f"the reward {reward.name!r}")


def _checked(name: str, score: Any) -> Score:
    try:
        return _read(name, score)
    except Exception as error:  # an object of the reward's own that raises when it is looked at
        return Score.missing(f"reward {name!r} returned what cannot be read: {type(error).__name__}")


def _read(name: str, score: Any) -> Score:
    if not isinstance(score, Score):
        return Score.missing(f"reward {name!r} returned a {type(score).__name__} where a Score was expected")
    problem = _problem(score)
    if problem is not None:
        return Score.missing(f"reward {name!r} returned a Score whose {problem}")
    if type(score.value) is not float or any(type(part) is not float for part in score.parts.values()):
        parts = {key: float(part) for key, part in score.parts.items()}
        score = replace(score, value=float(score.value), parts=parts)  # numpy's numbers are no JSON
    try:
        json.dumps(score.to_json(), allow_nan=False)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        return Score.missing(f"reward {name!r} returned a Score that cannot be written as JSON: {error}")
    return score


def _problem(score: Score) -> str | None:
    if not _is_number(score.value) or math.isinf(score.value):
        return f"value is no finite number, and NaN is what says that there is none: a {type(score.value).__name__}"
    if not isinstance(score.error, str | None):
        return f"error is of type {type(score.error).__name__}"
    if math.isnan(score.value) != bool(score.error):
        return "value and error disagree: exactly one of them is given"
    if not isinstance(score.evidence, Judgement | None):
        return f"evidence is of type {type(score.evidence).__name__}, not a Judgement"
    if not isinstance(score.parts, Mapping) or not all(
        isinstance(key, str) and _is_number(part) for key, part in score.parts.items()
    ):
        return "parts are no mapping from names to numbers"
    if not isinstance(score.provenance, Mapping) or not all(
        isinstance(key, str) and isinstance(entry, str) for key, entry in score.provenance.items()
    ):
        return "provenance is no mapping from names to texts"
    return None


def _is_number(value: object) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        float(value)
    except (OverflowError, ValueError):
        return False
    return True
