"""The settings file of a judge, ``cac_align.json``: how it was trained to be asked, and what was
fitted for it.

    {"two_turn": {"wording": "brief", "margin_s": 0.25}, "max_pixels": 1605632, "temperature":
     13.45, "tta_temperatures": {"as_is, reversed": 10.531}, "tta_thresholds": {"as_is, reversed":
     8.5}}

Every key is optional. A missing one means the paper's setting, or the checkpoint's own. The key
"domain" says for which videos and prompts the judge was made (``rewards.domain``). The file lies
beside the weights, in a folder or in a hub repository; the settings of a server cannot be read.
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
from cac_align.runs.files import atomic_write

FILE_NAME = "cac_align.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def read_settings_file(folder: str | Path, revision: str | None = None) -> dict[str, Any]:
    """The content of the settings file in a folder, or in a hub repository at ``revision``.

    Empty when there is no such file. Raises ``ValueError`` when it is not a JSON object.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        model = str(folder)
        downloaded = _download(model, revision) if _HUB_ID.fullmatch(model) and not Path(folder).exists() else None
        if downloaded is None:
            return {}
        path = downloaded
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); mend it, or remove it for the paper's settings") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, expected an object; "
            "mend it, or remove it for the paper's settings"
        )
    return content


@cache
def _download(model: str, revision: str | None) -> Path | None:
    """The file of a hub repository, downloaded or from the local cache; None when it has none or
    does not exist.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(hf_hub_download(model, FILE_NAME, revision=revision))
    except LocalEntryNotFoundError as error:
        reason = error
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return None  # a missing repository is reported when its weights are loaded
    except OSError as error:
        reason = error
    print(
        f"{model}: no {FILE_NAME} could be fetched, so it is asked as in the paper ({str(reason).splitlines()[0]})",
        file=sys.stderr,
    )
    return None


def read_two_turn(folder: str | Path, revision: str | None = None) -> TwoTurn:
    """How this judge was trained to be asked. Raises ``ValueError`` for an unknown setting."""
    given = read_settings_file(folder, revision).get("two_turn", {})
    try:
        return TwoTurn(**given)
    except TypeError as error:
        known = ", ".join(field.name for field in fields(TwoTurn))
        raise ValueError(f"{Path(folder) / FILE_NAME}: two_turn is {given!r}; expected some of {known}") from error


def read_temperature(folder: str | Path, tta: Sequence[str], revision: str | None = None) -> float:
    """The temperature fitted for these augmentations, else the one for the unaltered video, else 1."""
    content = read_settings_file(folder, revision)
    return float(_fitted_for(content.get("tta_temperatures", {}), tta, content.get("temperature", 1.0)))


def read_threshold(folder: str | Path, tta: Sequence[str], revision: str | None = None) -> float:
    """The fitted mean log-odds at or below which these augmentations' verdict is "abnormal"; else
    0.
    """
    return float(_fitted_for(read_settings_file(folder, revision).get("tta_thresholds", {}), tta, 0.0))


def _fitted_for(fitted: Mapping[str, float], tta: Sequence[str], default: float) -> float:
    """The value fitted for these augmentations; neither their order nor that of their steps
    matters.
    """
    return {_key(name.split(", ")): value for name, value in fitted.items()}.get(_key(tta), default)


def _key(tta: Sequence[str]) -> frozenset[frozenset[str]]:
    return frozenset(frozenset(augmentation.split("+")) for augmentation in tta)


def read_max_pixels(folder: str | Path, revision: str | None = None) -> int | None:
    """The pixel limit over all frames of one video in this judge's training; None for the
    checkpoint's own.
    """
    max_pixels = read_settings_file(folder, revision).get("max_pixels")
    return None if max_pixels is None else int(max_pixels)


def write_settings(folder: str | Path, settings: TwoTurn, max_pixels: int | None = None) -> None:
    """Record how a newly trained judge is to be asked, as far as it differs from the paper.

    A temperature or threshold in a former file is dropped: it was fitted for other weights.
    """
    defaults = TwoTurn()
    changed = {
        field.name: getattr(settings, field.name)
        for field in fields(TwoTurn)
        if getattr(settings, field.name) != getattr(defaults, field.name)
    }
    _write(folder, {"two_turn": changed} | ({} if max_pixels is None else {"max_pixels": max_pixels}))


def write_temperature(folder: str | Path, temperature: float, tta: Sequence[str] = (AS_IS,)) -> None:
    """Record a fitted temperature beside those of other augmentations."""
    content = read_settings_file(folder)
    if tuple(tta) == (AS_IS,):
        content["temperature"] = temperature
    else:
        content["tta_temperatures"] = _updated(content.get("tta_temperatures", {}), tta, temperature)
    _write(folder, content)


def write_threshold(folder: str | Path, threshold: float, tta: Sequence[str]) -> None:
    """Record a fitted threshold beside those of other augmentations."""
    content = read_settings_file(folder)
    _write(folder, content | {"tta_thresholds": _updated(content.get("tta_thresholds", {}), tta, threshold)})


def _updated(fitted: Mapping[str, float], tta: Sequence[str], value: float) -> dict[str, float]:
    """``fitted`` with a new value; it replaces a former one for the same augmentations in another
    order.
    """
    others = {name: former for name, former in fitted.items() if _key(name.split(", ")) != _key(tta)}
    return {**others, ", ".join(tta): value}


def _write(folder: str | Path, content: Mapping[str, Any]) -> None:
    atomic_write(Path(folder) / FILE_NAME, json.dumps(content) + "\n")
