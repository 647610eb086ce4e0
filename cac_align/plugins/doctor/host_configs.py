"""Hosts' config files as plain mappings: YAML, Hydra overrides, and flow_grpo's Python.

path → read_config → nested mapping

Nothing is filled in, and nothing is resolved but a top-level ``${name}``.
"""

from __future__ import annotations

import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_OVERRIDE = re.compile(r"^\s*+(?:\\\s*+)?(?:\+\+|\+)?([A-Za-z_][\w.@/]*)=(\S+)\s*+(?:\\\s*+)?$")


def read_config(host: str, path: Path) -> Mapping[str, Any]:
    """The config of ``host`` (see ``doctor``). Raises ``ValueError`` when it cannot be read."""
    if host == "flow_grpo":
        return _python(str(path))
    if not path.is_file():
        raise ValueError(f"{path}: no such config file")
    if host == "verl-omni" and path.suffix not in (".yaml", ".yml"):
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
    import yaml

    config: dict[str, Any] = {}
    for line in text.splitlines():
        match = _OVERRIDE.match(line)
        if match is None:
            continue
        *parents, last = match[1].split(".")
        at = config
        for name in parents:
            at = at.setdefault(name, {})
            if not isinstance(at, dict):
                break
        else:
            try:
                at[last] = yaml.safe_load(match[2])
            except yaml.YAMLError:
                at[last] = match[2]
    return config


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
