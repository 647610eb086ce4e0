"""doctor: what stands between a host trainer and a correct video reward, found before the first GPU hour, with the lines to add.

host + its config file → checks (versions, fps, layout, range, normalisation, group fragments, step-0 noise, traps) → checklist

A check is ok, wrong (with the exact mending line), or a remark (``ok`` is None: true, but not to be seen from the config). Configs are
only read; flow_grpo's are Python and are run as the host itself would run them. The traps were each found in the host's source.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from cac_align.plugins.doctor.host_configs import read_config
from cac_align.plugins.doctor.inspection import LINES, READERS, Check, remarks

HOSTS: dict[str, str] = {
    "flow-factory": "flow_factory",
    "flow_grpo": "flow_grpo",
    "unirl": "unirl",
    "verl-omni": "verl_omni",
    "videoalign": "",
    "trl": "trl",
}
"""Host names → the package that is the host (none for the VideoAlign shape, which is a class in others' code)."""


def doctor(host: str | None = None, config: Path | None = None) -> list[Check]:
    """Every check that can be made for this host (None: this environment only) and its config file.

    config: Flow-Factory and UniRL: YAML; verl-omni: YAML or a file of ``key=value`` overrides; flow_grpo: ``file.py`` or
    ``file.py:function``. Raises ``ValueError`` for an unknown host, a config that cannot be read, or one without a host.
    """
    if host is None and config is not None:
        raise ValueError(f"{config}: whose config is it? Name the host: {', '.join(HOSTS)}")
    if host is not None and host not in HOSTS:
        raise ValueError(f"unknown host {host!r}; expected one of {', '.join(HOSTS)}")
    checks = list(_environment())
    if host is None:
        return checks
    package = HOSTS[host]
    if package:
        found = importlib.util.find_spec(package) is not None
        text = (
            f"{package} {_version(package) or '(a checkout)'}"
            if found
            else f"{package} cannot be imported by this interpreter"
        )
        checks.append(
            Check("host", True if found else None, text, "" if found else "run doctor with the interpreter that trains")
        )
    if config is not None:
        if host not in READERS:
            raise ValueError(f"{host} has no config file that we read; leave --config out")
        checks += READERS[host](read_config(host, config))
    checks += remarks(host)
    return checks


def checklist(host: str | None, checks: list[Check]) -> str:
    """The checks as text, wrong ones with their fix, and the lines that wire the host."""
    marks = {True: "ok   ", False: "WRONG", None: "note "}
    lines = []
    for check in checks:
        lines.append(f"{marks[check.ok]}  {check.name}: {check.text}")
        if check.fix:
            lines += [f"         → {line}" for line in check.fix.splitlines()]
    if host is not None:
        lines += ["", f"The lines that wire {host}:", "", *(f"    {line}" for line in LINES[host].splitlines())]
    return "\n".join(lines)


# ---- this environment ------------------------------------------------------------------------------------------------


def _environment() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Check(
        "python", sys.version_info >= (3, 11), version, "" if sys.version_info >= (3, 11) else "use Python 3.11 or 3.12"
    )
    torch, vision = _version("torch"), _version("torchvision")
    if torch is None:
        yield Check("torch", None, "not installed: score through a service (reward: http://…)")
        return
    yield torchvision_check(torch, vision, importlib.metadata.requires("torchvision") or [] if vision else [])
    transformers = _version("transformers")
    new = transformers is not None and _numbers(transformers) >= (5, 17)
    fix = (
        ""
        if new
        else "this interpreter cannot hold Qwen3-VL itself: start `cac-align serve` in its own environment, reward: http://…"
    )
    yield Check(
        "transformers",
        True if new else None,
        f"{transformers or 'not installed'} (judging in-process needs 5.17 or newer)",
        fix,
    )


def torchvision_check(torch: str, torchvision: str | None, requires: list[str]) -> Check:
    """Whether this torchvision was built for this torch: release by its metadata, build (cpu, cu…) by the version's local part."""
    if torchvision is None:
        return Check(
            "torchvision", None, f"not installed beside torch {torch}: Qwen3-VL's own video processor needs it"
        )
    wanted = next((match[1] for line in requires if (match := re.match(r"torch\s*\(?==\s*([0-9.]+)", line))), None)
    release, _, build = torch.partition("+")
    other_build = torchvision.partition("+")[2]
    fix = f"pip install 'torch=={wanted or release}' torchvision=={torchvision.partition('+')[0]}   (both from the same index)"
    if wanted is not None and wanted != release:
        text = f"torchvision {torchvision} was built for torch {wanted}, installed is torch {torch}: transformers, diffusers and peft will break"
        return Check("torchvision", False, text, fix)
    if build and other_build and build != other_build:
        return Check(
            "torchvision",
            False,
            f"torchvision {torchvision} and torch {torch} are different builds; its operators will not load",
            fix,
        )
    return Check("torchvision", True, f"{torchvision} fits torch {torch}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def to_json(checks: list[Check]) -> str:
    """One JSON object per line."""
    return "\n".join(
        json.dumps({"check": c.name, "ok": c.ok, "text": c.text, "fix": c.fix}, ensure_ascii=False) for c in checks
    )
