"""The mean of several judges: trainings of one start by different seeds, averaged weight by weight.

folders → safetensors → mean (in float64) → a folder like the first one

Trainings that begin at the same weights end close enough together for their mean to work, and it
errs less than each of them. Source: Wortsman et al., Model soups (arXiv 2203.05482), uniform soup.

    python -m research.training.averaging OUT FOLDER FOLDER …
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file


def average(folders: Sequence[Path], out: Path) -> Path:
    """Write the mean of these folders' ``model.safetensors``, everything else taken from the first
    one, and return ``out``.

    Raises ``ValueError`` for fewer than two folders, and where names or shapes differ.
    """
    if len(folders) < 2:
        raise ValueError(f"expected at least two folders to average, received {len(folders)}")
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    for folder, found in zip(folders[1:], weights[1:], strict=True):
        differs = sorted(set(found) ^ set(weights[0])) + [
            n for n in weights[0] if n in found and found[n].shape != weights[0][n].shape
        ]
        if differs:
            raise ValueError(f"{folder} and {folders[0]} are not the same model: {differs[0]} differs")
    mean = {
        name: (sum(found[name].double() for found in weights) / len(weights)).to(tensor.dtype)
        for name, tensor in weights[0].items()
    }
    shutil.copytree(folders[0], out, dirs_exist_ok=True)
    save_file(mean, out / "model.safetensors", metadata={"format": "pt"})
    return out


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 3:
        print("usage: python -m research.training.averaging OUT FOLDER FOLDER ...", file=sys.stderr)
        return 2
    print(average([Path(folder) for folder in arguments[1:]], Path(arguments[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
