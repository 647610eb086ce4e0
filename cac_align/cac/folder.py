"""What a judge's folder says of itself in ``cac_align.json``: how it has learnt to be asked, and the temperatures fitted for it.

    {"two_turn": {"wording": "brief", "margin_s": 0.25}, "max_pixels": 1605632, "temperature": 13.45, "of_views": {"as_is, reversed": 10.531}}

Everything in it is optional; what is missing is the paper's, and the checkpoint's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from cac_align.cac.two_turn import TwoTurn
from cac_align.cac.views import AS_IS
from cac_align.files import write_whole

NAME = "cac_align.json"


def read(folder: str | Path) -> dict[str, Any]:
    """What the folder says; empty where there is no file (a server, a hub id, a folder that says nothing). Raises ``ValueError`` when the
    file is not a JSON object."""
    path = Path(folder) / NAME
    if not path.is_file():
        return {}
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); mend it, or remove it for the paper's settings") from error
    if not isinstance(said, dict):
        raise ValueError(
            f"{path} holds a {type(said).__name__}, expected an object; mend it, or remove it for the paper's settings"
        )
    return said


def settings_of(folder: str | Path) -> TwoTurn:
    """How this judge has learnt to be asked. Raises ``ValueError`` for a setting that there is not."""
    said = read(folder).get("two_turn", {})
    try:
        return TwoTurn(**said)
    except TypeError as error:
        known = ", ".join(field.name for field in fields(TwoTurn))
        raise ValueError(f"{Path(folder) / NAME}: two_turn is {said!r}; expected some of {known}") from error


def temperature_of(folder: str | Path, views: Sequence[str]) -> float:
    """The temperature fitted for these views, or else for the video as it is, or else 1."""
    said = read(folder)
    return float(said.get("of_views", {}).get(", ".join(views), said.get("temperature", 1.0)))


def max_pixels_of(folder: str | Path) -> int | None:
    """The limit over all frames of one video with which this judge has learnt; None: the checkpoint's own."""
    said = read(folder).get("max_pixels")
    return None if said is None else int(said)


def write_settings(folder: str | Path, settings: TwoTurn, max_pixels: int | None = None) -> None:
    """Say how this judge has learnt to be asked: what differs from the paper. Temperatures fitted before are gone: they were another's."""
    plain = TwoTurn()
    own = {f.name: getattr(settings, f.name) for f in fields(TwoTurn) if getattr(settings, f.name) != getattr(plain, f.name)}
    _write(folder, {"two_turn": own} | ({} if max_pixels is None else {"max_pixels": max_pixels}))


def write_temperature(folder: str | Path, temperature: float, views: Sequence[str] = (AS_IS,)) -> None:
    """Keep a temperature. That of the video as it is comes first and replaces all former ones, those of views stand beside it."""
    said = dict(read(folder))
    if tuple(views) == (AS_IS,):
        said = {**{name: value for name, value in said.items() if name != "of_views"}, "temperature": temperature}
    else:
        said["of_views"] = {**said.get("of_views", {}), ", ".join(views): temperature}
    _write(folder, said)


def _write(folder: str | Path, said: Mapping[str, Any]) -> None:
    write_whole(Path(folder) / NAME, json.dumps(said) + "\n")
