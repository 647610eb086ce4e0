"""VBench's own Python environment, and the dimensions that it computes.

VBench pins libraries that cannot be installed beside ours, but its code runs unchanged without its
pins.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

DEFAULT_DIMENSIONS = ("subject_consistency", "imaging_quality", "dynamic_degree")


DIMENSIONS = (
    *DEFAULT_DIMENSIONS, "background_consistency", "aesthetic_quality", "motion_smoothness", "temporal_flickering",
    "human_action", "temporal_style", "overall_consistency",
)  # fmt: skip
"""What VBench computes on custom videos; the first seven need no prompt.

human_action takes "A person is ACTION" only, with one of VBench's 400 actions; any other prompt
leaves the video unscored.
"""


NEED_THE_BENCHMARK = ("object_class", "multiple_objects", "color", "spatial_relationship", "scene", "appearance_style")
"""Dimensions that exist only for VBench's own list of prompts; VBench refuses them for custom
videos.
"""


PYTHON_VARIABLE = "CAC_ALIGN_VBENCH_PYTHON"


DEFAULT_ENVIRONMENT = Path("~/.cache/cac-align/vbench-env")


INSTALL: tuple[tuple[str, ...], ...] = (
    ("torch", "torchvision", "transformers>=5", "setuptools<81", "wheel"),
    ("--no-deps", "vbench==0.1.5", "pyiqa==0.1.16", "timm==1.0.31"),
    ("--no-deps", "--no-build-isolation", "openai-clip"),
    (
        "decord",
        "opencv-python-headless",
        "easydict",
        "omegaconf",
        "imageio",
        "scipy",
        "ftfy",
        "regex",
        "einops",
        "requests",
    ),
)
"""What pip installs, in this order.

VBench and pyiqa are installed without their pins (numpy < 2, transformers 4.33). openai-clip
imports pkg_resources and needs setuptools below 81. torch and torchvision are in one call, so that
the resolver chooses a matching pair.
"""


def find_python(python: str | Path | None = None) -> Path:
    """VBench's interpreter: ``python``, else $CAC_ALIGN_VBENCH_PYTHON, else where ``vbench_env``
    creates it.

    Raises ``ValueError`` with the command that creates the environment when there is none.
    """
    wanted = python or os.environ.get(PYTHON_VARIABLE)
    found = Path(wanted) if wanted else DEFAULT_ENVIRONMENT.expanduser() / "bin" / "python"
    if wanted and not found.is_file():
        source = "--python" if python else PYTHON_VARIABLE
        raise ValueError(
            f"{source} names {found}, which is no file; give the python of an environment that has vbench, or leave "
            f"it out"
        )
    if not found.is_file():
        raise ValueError(
            f"no VBench environment at {found}. Create it (about 3 minutes, 6 GB):\n    cac-align vbench-env "
            f"{DEFAULT_ENVIRONMENT}\nor set {PYTHON_VARIABLE} to the python of an environment that has vbench."
        )
    return found


def vbench_env(path: str | Path = DEFAULT_ENVIRONMENT, *, progress: Callable[[str], None] | None = None) -> Path:
    """Create VBench's environment at ``path`` (about 3 minutes, 6 GB) and return its interpreter.

    A finished one is left as it is. progress: called with each command before it runs. Raises
    ``ValueError`` with pip's last lines when a step fails.
    """
    folder = Path(path).expanduser().absolute()
    python, marker = folder / "bin" / "python", folder / "cac-align-vbench.json"
    if (
        marker.is_file()
        and python.is_file()
        and json.loads(marker.read_text())["install"] == [list(step) for step in INSTALL]
    ):
        return python
    steps = [[sys.executable, "-m", "venv", str(folder)]]
    steps += [[str(python), "-m", "pip", "install", "--disable-pip-version-check", "-q", *step] for step in INSTALL]
    check = "import torch, vbench; " + "; ".join(f"import vbench.{name}" for name in DIMENSIONS[:7])
    steps.append([str(python), "-c", check + "; print(torch.__version__)"])
    output = ""
    for step in steps:
        if progress is not None:
            progress(shlex.join(step))
        done = subprocess.run(step, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}, check=False)
        if done.returncode != 0:
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
            raise ValueError(f"creating the VBench environment failed at\n    {shlex.join(step)}\n{tail}")
        output = done.stdout.strip()
    marker.write_text(json.dumps({"install": [list(step) for step in INSTALL], "torch": output}), encoding="utf-8")
    return python
