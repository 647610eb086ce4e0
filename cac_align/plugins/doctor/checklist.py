"""The doctor: finds, before the first GPU hour, what keeps a host trainer from getting a correct
video reward.

host, its config file → checks (versions, fps, layout, range, normalisation, groups, noise, known traps) → checklist

A check is right, wrong (with the line that fixes it), or a remark. Configs are only read;
flow_grpo's are Python files and are run as the host itself would run them. Each trap was found in
the host's source.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cac_align.plugins.doctor.checks import Check, has_module
from cac_align.plugins.doctor.config_lines import CONFIG_LINES, VIDEO_LAYOUTS
from cac_align.plugins.doctor.host_configs import read_config
from cac_align.plugins.doctor.hosts.fastvideo import check_fastvideo
from cac_align.plugins.doctor.hosts.flow_factory import check_flow_factory
from cac_align.plugins.doctor.hosts.flow_grpo import check_flow_grpo
from cac_align.plugins.doctor.hosts.genrl import check_genrl
from cac_align.plugins.doctor.hosts.miles_diffusion import check_miles_diffusion
from cac_align.plugins.doctor.hosts.pref_grpo import check_pref_grpo
from cac_align.plugins.doctor.hosts.teleboost import check_teleboost
from cac_align.plugins.doctor.hosts.unirl import check_unirl
from cac_align.plugins.doctor.hosts.vbvr_rl import check_vbvr_rl
from cac_align.plugins.doctor.hosts.verl_omni import check_verl_omni
from cac_align.plugins.doctor.hosts.videoalign import check_videoalign
from cac_align.plugins.doctor.machine import check_machine

HOSTS: dict[str, str] = {
    "flow-factory": "flow_factory",
    "flow_grpo": "flow_grpo",
    "unirl": "unirl",
    "verl-omni": "verl_omni",
    "videoalign": "",
    "trl": "trl",
    "genrl": "genrl",
    "pref-grpo": "fastvideo",
    "teleboost": "teleboost",
    "vbvr-rl": "src",
    "fastvideo": "fastvideo",
    "miles-diffusion": "miles",
}
"""Host names and the package that each is; empty for VideoAlign's class, which other projects copy."""

CONFIG_CHECKS: dict[str, Callable[[Mapping[str, Any]], Iterator[Check]]] = {
    "flow-factory": check_flow_factory,
    "flow_grpo": check_flow_grpo,
    "unirl": check_unirl,
    "verl-omni": check_verl_omni,
    "videoalign": check_videoalign,
    "genrl": check_genrl,
    "pref-grpo": check_pref_grpo,
    "teleboost": check_teleboost,
    "vbvr-rl": check_vbvr_rl,
    "fastvideo": check_fastvideo,
    "miles-diffusion": check_miles_diffusion,
}
"""The hosts whose config file we read, and the function that checks it."""


def doctor(host: str | None = None, config: Path | None = None) -> list[Check]:
    """Every check that can be made for this host (None: this environment and machine) and its config
    file.

    config: YAML for Flow-Factory, UniRL, GenRL, vbvr-rl and FastVideo; YAML or a file of
    ``key=value`` overrides for verl-omni and TeleBoost; the launch script for Pref-GRPO,
    miles_diffusion and DanceGRPO (videoalign); ``file.py`` or ``file.py:function`` for flow_grpo,
    or the launch script (.sh) that names it. Raises ``ValueError`` for an unknown host, a config
    that cannot be read, or a config without a host.
    """
    if host is None and config is not None:
        raise ValueError(f"{config}: whose config is it? Name the host: {', '.join(HOSTS)}")
    host = None if host is None else host_name(host)
    checks = list(_environment())
    if host is None:
        return [*checks, *check_machine(Path())]
    package = HOSTS[host]
    if package:
        found = has_module(package)
        text = (
            f"{package} {_version(package) or '(a checkout)'}"
            if found
            else f"{package} cannot be imported by this interpreter"
        )
        checks.append(
            Check("host", True if found else None, text, "" if found else "run doctor with the interpreter that trains")
        )
    if config is not None:
        if host not in CONFIG_CHECKS:
            raise ValueError(f"{host} has no config file that we read; leave --config out")
        read = read_config(host, config)
        try:
            checks += CONFIG_CHECKS[host](read)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{config}: a value in it, or in a CAC_ALIGN_… variable, is of another kind than expected ({error}); "
                "write a number in place of a shell variable"
            ) from error
    checks += _remarks(host)
    return checks


def host_name(text: str) -> str:
    """The host that a text names, with hyphens or underscores in any place. Raises ``ValueError``."""
    plain = text.lower().replace("-", "").replace("_", "")
    for name in HOSTS:
        if plain == name.replace("-", "").replace("_", ""):
            return name
    raise ValueError(f"unknown host {text!r}; expected one of {', '.join(HOSTS)}")


def _remarks(host: str) -> Iterator[Check]:
    """What is true for this host whatever its config says."""
    yield Check("layout and range", None, VIDEO_LAYOUTS[host])
    if host in ("flow-factory", "flow_grpo"):
        yield Check("ties", None, "CaC is near-binary: many groups have no spread; watch the share of zero-std groups")


def checklist(host: str | None, checks: list[Check]) -> str:
    """The checks as text, wrong ones with their fix, and the lines to add to the host's config."""
    labels = {True: "ok   ", False: "WRONG", None: "note "}
    lines = []
    for check in checks:
        lines.append(f"{labels[check.ok]}  {check.name}: {check.text}")
        if check.fix:
            lines += [f"         → {line}" for line in check.fix.splitlines()]
    if host is not None:
        host = host_name(host)
        lines += [
            "",
            f"The lines that make {host} use our reward:",
            "",
            *(f"    {line}" for line in CONFIG_LINES[host].splitlines()),
        ]
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
    check = torchvision_check(torch, vision, importlib.metadata.requires("torchvision") or [] if vision else [])
    yield _imported("torchvision", check) if check.ok else check
    transformers = _version("transformers")
    new = transformers is not None and _numbers(transformers) >= (5, 17)
    fix = (
        ""
        if new
        else "this interpreter cannot hold Qwen3-VL itself: start `cac-align serve` in its own environment, "
        "and set reward: http://…"
    )
    yield Check(
        "transformers",
        True if new else None,
        f"{transformers or 'not installed'} (judging in-process needs 5.17 or newer)",
        fix,
    )


def torchvision_check(torch: str, torchvision: str | None, requires: list[str]) -> Check:
    """Whether this torchvision was built for this torch.

    Its metadata (``requires``) name the release of torch, the local part of its version the build
    (cpu, cu…).
    """
    if torchvision is None:
        return Check(
            "torchvision", None, f"not installed beside torch {torch}: Qwen3-VL's own video processor needs it"
        )
    wanted = next((match[1] for line in requires if (match := re.match(r"torch\s*\(?==\s*([0-9.]+)", line))), None)
    release, _, build = torch.partition("+")
    other_build = torchvision.partition("+")[2]
    vision_release = torchvision.partition("+")[0]
    fix = f"pip install 'torch=={wanted or release}' torchvision=={vision_release}   (both from the same index)"
    if wanted is not None and wanted != release:
        text = (
            f"torchvision {torchvision} was built for torch {wanted}, installed is torch {torch}: "
            "transformers, diffusers and peft will break"
        )
        return Check("torchvision", False, text, fix)
    if build and other_build and build != other_build:
        return Check(
            "torchvision",
            False,
            f"torchvision {torchvision} and torch {torch} are different builds; its operators will not load",
            fix,
        )
    return Check("torchvision", True, f"{torchvision} fits torch {torch}")


def _imported(package: str, check: Check) -> Check:
    """The check, or what went wrong when the package was imported: its metadata may fit while its libraries do not."""
    try:
        importlib.import_module(package)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        fix = "install torch and torchvision together, from the same index"
        return Check(package, False, f"{check.text}, but cannot be imported: {reason}", fix)
    return check


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
