"""Hosts' config files as plain mappings: YAML, Hydra overrides, and flow_grpo's Python, alone or with the command
that starts it.

path → read_config → nested mapping

Nothing is filled in, and nothing is resolved but a top-level ``${name}``.
"""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

_OVERRIDE = re.compile(r"^\s*+(?:\\\s*+)?(?:\+\+|\+)?([A-Za-z_][\w.@/]*)=(\S+)\s*+(?:\\\s*+)?$")


def read_config(host: str, path: Path) -> Mapping[str, Any]:
    """The config of ``host`` (see ``doctor``). Raises ``ValueError`` when it cannot be read."""
    if host == "flow_grpo":
        return _launched(path) if str(path).endswith(".sh") else _python(str(path))
    if host in ("pref-grpo", "miles-diffusion", "videoalign"):
        return _flags(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such config file")
    if host in ("verl-omni", "teleboost") and path.suffix not in (".yaml", ".yml"):
        return _overrides(path.read_text(encoding="utf-8"))
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(config, Mapping):
        raise ValueError(f"{path}: expected a mapping at the top, received {type(config).__name__}")
    return {name: config.get(_named(value), value) for name, value in config.items()}


def _named(value: Any) -> str | None:
    """The top-level key that a value such as ``${reward_of_ours}`` stands for."""
    found = re.fullmatch(r"\$\{(\w+)\}", value) if isinstance(value, str) else None
    return found[1] if found else None


def _overrides(text: str) -> dict[str, Any]:
    """``a.b.c=value`` lines, as they stand in a launch script, as a nested mapping; other lines are
    ignored.
    """
    config: dict[str, Any] = {}
    for line in text.splitlines():
        match = _OVERRIDE.match(line)
        if match is not None:
            _set(config, match[1], match[2])
    return config


def _set(config: dict[str, Any], key: str, text: str) -> None:
    """Set ``a.b.c`` to what ``text`` is in YAML; a key below something that is no mapping is ignored."""
    import yaml

    *parents, last = key.split(".")
    at = config
    for name in parents:
        at = at.setdefault(name, {})
        if not isinstance(at, dict):
            return
    try:
        at[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        at[last] = text


_LAUNCHER = "cac_align.plugins.flow_grpo"
_PROCESSES = ("--num_processes", "--nproc_per_node", "--nproc-per-node")


def _launched(path: Path) -> Mapping[str, Any]:
    """The config that a launch script names, with the script's ``--config.a.b=value``, and under "launch" what the
    command says beside: processes (or None), our launcher's options (None where it is not used).

    Raises ``ValueError`` where the script names no config.
    """
    words = _words(path)
    scripts = [position for position, word in enumerate(words) if word.endswith(".py")]
    named = [words[position + 1] for position, word in enumerate(words[:-1]) if word == "--config"]
    if not named or not scripts:
        raise ValueError(f"{path}: expected a command with a script and --config FILE")
    config = dict(_python(named[-1]))
    for key, value in pairwise(words):
        if key.startswith("--config."):
            _set(config, key.removeprefix("--config."), value)
    counts = [int(value) for key, value in pairwise(words) if key in _PROCESSES and value.isdigit()]
    options = None
    if _LAUNCHER in words:
        start = words.index(_LAUNCHER) + 1
        ours = words[start : next((end for end in scripts if end >= start), start)]
        pairs = zip(ours[::2], ours[1::2], strict=False)
        options = {key.removeprefix("--").replace("-", "_"): value for key, value in pairs}
    return {**config, "launch": {"processes": counts[-1] if counts else None, "options": options}}


def _words(path: Path) -> list[str]:
    """The words of a launch script, ``--key=value`` as two. Raises ``ValueError`` where it cannot be read."""
    if not path.is_file():
        raise ValueError(f"{path}: no such launch script")
    try:
        words = shlex.split(path.read_text(encoding="utf-8").replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise ValueError(f"{path}: not a shell script: {error}") from error
    return [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]


def _flags(path: Path) -> dict[str, str | None]:
    """The flags of a launch script and what stands after each; None where that is another flag."""
    words = _words(path)
    following = [*words[1:], "-"]
    return {
        word: None if value.startswith("-") else value
        for word, value in zip(words, following, strict=True)
        if word.startswith("-")
    }


def _python(spec: str) -> Mapping[str, Any]:
    """``file.py`` (its ``get_config()``) or ``file.py:name`` (its ``get_config("name")``, as
    ml_collections' flag passes it).
    """
    file, _, name = spec.partition(":")
    if not Path(file).is_file():
        raise ValueError(f"{file}: no such config file")
    try:
        functions = runpy.run_path(file)
        config = functions["get_config"](name) if name else functions["get_config"]()
    except Exception as error:
        raise ValueError(
            f"{spec}: could not be run as a config: {type(error).__name__}: {error}; "
            "run doctor with the host's own Python, in its folder"
        ) from error
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)
