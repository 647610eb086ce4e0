"""Checks of this machine: its GPU, its disk, the packages, the video decoder and the shipped weights."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
from cac_align.core.weights import read_manifest, shipped
from cac_align.plugins.doctor.checks import Check

_PACKAGES = ("cac-align", "diffusers", "peft", "accelerate", "av", "omegaconf", "httpx")
_LOW_DISK_GB = 20


def check_machine(folder: Path) -> Iterator[Check]:
    """The checks; disk space is that of ``folder``'s file system."""
    yield from _gpu()
    yield _disk(folder)
    yield from _packages()
    yield _video()
    yield from _weights()


def _gpu() -> Iterator[Check]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        text = "none that torch can use: enough for the miniature; larger judges and generators run behind a server"
        yield Check("GPU", None, text)
        return
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        yield Check("GPU", True, f"cuda:{number} {name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")


def _disk(folder: Path) -> Check:
    gigabytes = shutil.disk_usage(folder).free / 1e9
    text = f"{gigabytes:.0f} GB free in {folder.resolve()}"
    if gigabytes >= _LOW_DISK_GB:
        return Check("disk", True, text)
    return Check("disk", None, f"{text}: the weights of a full-size generator and judge need about 45 GB")


def _packages() -> Iterator[Check]:
    versions, missing = [], []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    fix = f"pip install {' '.join(missing)}" if missing else ""
    yield Check(
        "packages", not missing, ", ".join(versions) + (f"; missing: {', '.join(missing)}" if missing else ""), fix
    )


def _video() -> Check:
    """Whether a small video can be written and read. PyAV brings FFmpeg's libraries; the program ffmpeg is not used."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        try:
            write_mp4(path, np.full((8, 32, 32, 3), 128, np.uint8), 16)
            frames = len(Video.open(path))
        except (ValueError, OSError, ImportError) as error:
            fix = "pip install --force-reinstall av"
            return Check("FFmpeg", False, f"a small H.264 video cannot be written and read: {error}", fix)
    program = shutil.which("ffmpeg") or "the program ffmpeg is not installed, and not needed"
    return Check("FFmpeg", frames == 8, f"H.264 is written and read by PyAV's own libraries ({program})")


def _weights() -> Iterator[Check]:
    for name in sorted(read_manifest()):
        try:
            yield Check("weights", True, f"{name}: {shipped(name)}")
        except ValueError as error:
            yield Check("weights", False, f"{name}: {error}", "install the package again")
