"""The weights that ship with the package: where they are, and proof that they are what was shipped.

name → shipped(name) → folder, after its files' sha256 were checked against weights/manifest.json
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

_REBUILD = "reinstall the package, or rebuild them with `make weights`"


def weights_folder() -> Path:
    return Path(str(files("cac_align"))) / "miniature" / "weights"


@cache
def shipped(name: str) -> Path:
    """The folder of a shipped model ("cac", "unified", "wan"), loadable with ``from_pretrained``.

    Weights that are not good yet carry a NOTICE.txt; its text is shown as a warning. Raises
    ``ValueError`` when the name is unknown, or a file is missing, truncated or changed.
    """
    manifest = read_manifest()
    if name not in manifest:
        raise ValueError(
            f"no shipped weights named {name!r}; this package ships {', '.join(sorted(manifest)) or 'none'}"
        )
    folder = weights_folder() / name
    for relative, expected in sorted(manifest[name].items()):
        file = folder / relative
        if not file.is_file():
            raise ValueError(f"shipped weights {name!r}: {relative} is missing; {_REBUILD}")
        if file.stat().st_size != expected["bytes"]:
            raise ValueError(
                f"shipped weights {name!r}: {relative} is truncated: expected {expected['bytes']} bytes, "
                f"found {file.stat().st_size}; {_REBUILD}"
            )
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != expected["sha256"]:
            raise ValueError(
                f"shipped weights {name!r}: {relative} was changed: expected sha256 "
                f"{str(expected['sha256'])[:12]}, found {found[:12]}; {_REBUILD}"
            )
    notice = folder / "NOTICE.txt"
    if notice.is_file():
        warnings.warn(f"shipped weights {name!r}: {notice.read_text(encoding='utf-8').strip()}", stacklevel=2)
    return folder


def read_manifest() -> dict[str, dict[str, dict[str, int | str]]]:
    """{model name: {file: {"bytes", "sha256"}}}; empty when nothing was shipped."""
    path = weights_folder() / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_manifest() -> Path:
    """Record size and sha256 of every file under weights/: the last step of `make weights`."""
    root = weights_folder()
    manifest = {
        folder.name: {
            str(file.relative_to(folder)): {
                "bytes": file.stat().st_size,
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
            for file in sorted(folder.rglob("*"))
            if file.is_file() and not file.name.startswith(".")
        }
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(("_", "."))
    }
    path = root / "manifest.json"
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return path


def ship(name: str, folder: str | Path) -> Path:
    """Copy a judge's folder over the shipped model ``name``, its float32 matrices stored as float16
    (half the size; vectors stay as they are); returns where it lies. The domain that the former one
    stated stays.
    """
    import torch
    from safetensors.torch import load_file, save_file

    into = weights_folder() / name
    settings = into / "cac_align.json"
    former = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    shutil.copytree(folder, into, dirs_exist_ok=True)
    if "domain" in former:
        now = json.loads(settings.read_text(encoding="utf-8"))
        settings.write_text(json.dumps({**now, "domain": former["domain"]}) + "\n", encoding="utf-8")
    tensors = load_file(into / "model.safetensors")
    halved = {
        key: value.half() if value.dtype == torch.float32 and value.dim() > 1 else value
        for key, value in tensors.items()
    }
    save_file(halved, into / "model.safetensors", metadata={"format": "pt"})
    for file in into.iterdir():
        file.chmod(0o644)
    return into


def main(arguments: Sequence[str]) -> int:
    """``python -m cac_align.core.weights [NAME FOLDER]``: ship this folder as NAME, where one is
    given, and record what lies there.
    """
    if len(arguments) not in (0, 2):
        print("usage: python -m cac_align.core.weights [NAME FOLDER]", file=sys.stderr)
        return 2
    if arguments:
        ship(arguments[0], arguments[1])
    print(write_manifest())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
