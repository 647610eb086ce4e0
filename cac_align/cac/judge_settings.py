"""What a judge's folder says of itself in ``cac_align.json``: how it has learnt to be asked, and what has been fitted for it.

    {"two_turn": {"wording": "brief", "margin_s": 0.25}, "max_pixels": 1605632,
     "temperature": 13.45, "of_views": {"as_is, reversed": 10.531}, "thresholds": {"as_is, reversed": 8.5}}

Everything in it is optional; what is missing is the paper's, and the checkpoint's own. A hub repository has it beside its weights; a server
has none that anybody could read.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from cac_align.cac.augmentations import AS_IS
from cac_align.cac.two_turn import TwoTurn
from cac_align.runs.files import write_whole

NAME = "cac_align.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def read(folder: str | Path, revision: str | None = None) -> dict[str, Any]:
    """What the folder, or the hub repository at this revision, says; empty where there is no file. Raises ``ValueError`` when the file is not a
    JSON object."""
    path = Path(folder) / NAME
    if not path.is_file():
        named = str(folder)
        found = _from_hub(named, revision) if _HUB_ID.fullmatch(named) and not Path(folder).exists() else None
        if found is None:
            return {}
        path = found
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); mend it, or remove it for the paper's settings") from error
    if not isinstance(said, dict):
        raise ValueError(
            f"{path} holds a {type(said).__name__}, expected an object; mend it, or remove it for the paper's settings"
        )
    return said


@cache
def _from_hub(model: str, revision: str | None) -> Path | None:
    """The repository's file, downloaded or from the local cache; None where it has none, or where there is no such repository."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(hf_hub_download(model, NAME, revision=revision))
    except LocalEntryNotFoundError as error:
        why = error
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return None  # a repository that there is not is named when its weights are loaded
    except OSError as error:
        why = error
    print(
        f"{model}: no {NAME} could be fetched, so it is asked as in the paper ({str(why).splitlines()[0]})",
        file=sys.stderr,
    )
    return None


def settings_of(folder: str | Path, revision: str | None = None) -> TwoTurn:
    """How this judge has learnt to be asked. Raises ``ValueError`` for a setting that there is not."""
    said = read(folder, revision).get("two_turn", {})
    try:
        return TwoTurn(**said)
    except TypeError as error:
        known = ", ".join(field.name for field in fields(TwoTurn))
        raise ValueError(f"{Path(folder) / NAME}: two_turn is {said!r}; expected some of {known}") from error


def temperature_of(folder: str | Path, views: Sequence[str], revision: str | None = None) -> float:
    """The temperature fitted for these views, or else for the video as it is, or else 1."""
    said = read(folder, revision)
    return float(_for(said.get("of_views", {}), views, said.get("temperature", 1.0)))


def threshold_of(folder: str | Path, views: Sequence[str], revision: str | None = None) -> float:
    """The mean log-odds, fitted for these views, at or below which their verdict is "abnormal"; or else 0."""
    return float(_for(read(folder, revision).get("thresholds", {}), views, 0.0))


def _for(fitted: Mapping[str, float], views: Sequence[str], otherwise: float) -> float:
    """What was fitted for these views, in whatever order they and their steps stand: the mean has none."""
    return {_key(name.split(", ")): value for name, value in fitted.items()}.get(_key(views), otherwise)


def _key(views: Sequence[str]) -> frozenset[frozenset[str]]:
    return frozenset(frozenset(view.split("+")) for view in views)


def max_pixels_of(folder: str | Path, revision: str | None = None) -> int | None:
    """The limit over all frames of one video with which this judge has learnt; None: the checkpoint's own."""
    said = read(folder, revision).get("max_pixels")
    return None if said is None else int(said)


def write_settings(folder: str | Path, settings: TwoTurn, max_pixels: int | None = None) -> None:
    """Say how this judge has learnt to be asked: what differs from the paper. What was fitted before is gone: it was another's."""
    plain = TwoTurn()
    own = {
        f.name: getattr(settings, f.name)
        for f in fields(TwoTurn)
        if getattr(settings, f.name) != getattr(plain, f.name)
    }
    _write(folder, {"two_turn": own} | ({} if max_pixels is None else {"max_pixels": max_pixels}))


def write_temperature(folder: str | Path, temperature: float, views: Sequence[str] = (AS_IS,)) -> None:
    """Keep a temperature, beside those of other views."""
    said = dict(read(folder))
    if tuple(views) == (AS_IS,):
        said["temperature"] = temperature
    else:
        said["of_views"] = _beside(said.get("of_views", {}), views, temperature)
    _write(folder, said)


def write_threshold(folder: str | Path, threshold: float, views: Sequence[str]) -> None:
    """Keep the threshold of these views beside those of others."""
    said = dict(read(folder))
    _write(folder, said | {"thresholds": _beside(said.get("thresholds", {}), views, threshold)})


def _beside(fitted: Mapping[str, float], views: Sequence[str], value: float) -> dict[str, float]:
    """With this value for these views, in place of a former one that named them in another order."""
    others = {name: found for name, found in fitted.items() if _key(name.split(", ")) != _key(views)}
    return {**others, ", ".join(views): value}


def _write(folder: str | Path, said: Mapping[str, Any]) -> None:
    write_whole(Path(folder) / NAME, json.dumps(said) + "\n")
