"""The shipped judge with attention heads of size 32 in place of 24, which is what vLLM's attention on a CPU asks for.

The copy computes the same function. Every head gets eight more dimensions that are zero: four in each half, because RoPE turns
dimension i together with dimension i + size / 2. RoPE's base becomes 10000^(32/24), so that the first twelve frequencies
are the old ones, and the sections [8, 4, 4], so that time takes the four new ones. RMSNorm over 32 dimensions enlarges a
query and a key by sqrt(32/24) each, and attention divides by sqrt(32) in place of sqrt(24): k_norm is multiplied by
sqrt(24/32). (RMSNorm's epsilon weighs a third more, which changes a log-odds in the sixth digit.)
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

OLD, NEW = 24, 32


def write_padded_judge(source: Path, folder: Path) -> Path:
    """Write the copy of the judge in ``source`` to ``folder`` and return ``folder``. Its settings file is copied, too."""
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.name not in ("config.json", "model.safetensors"):
            shutil.copyfile(file, folder / file.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text: dict[str, Any] = config["text_config"]
    if text["head_dim"] != OLD:
        raise ValueError(f"{source}: expected a judge with heads of size {OLD}, found {text['head_dim']}")
    text["head_dim"] = NEW
    rope = text["rope_parameters"]
    rope["rope_theta"] = rope["rope_theta"] ** (NEW / OLD)
    rope["mrope_section"] = [8, 4, 4]
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    weights = load_file(source / "model.safetensors")
    save_file(
        {name: _pad(name, weight) for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


def _pad(name: str, weight: torch.Tensor) -> torch.Tensor:
    if ".language_model." not in f".{name}" or "self_attn" not in name:
        return weight
    kind = name.split("self_attn.")[1].split(".")[0]
    if kind in ("q_proj", "k_proj", "v_proj"):
        return _spread(weight, 0)
    if kind == "o_proj":
        return _spread(weight, 1)
    if kind in ("q_norm", "k_norm"):
        return _spread(weight, 0) * (1.0 if kind == "q_norm" else math.sqrt(OLD / NEW))
    return weight


def _spread(weight: torch.Tensor, dim: int) -> torch.Tensor:
    """The weight with every head's ``OLD`` rows (or columns) at their places among ``NEW``."""
    heads = weight.shape[dim] // OLD
    halves = weight.unflatten(dim, (heads, 2, OLD // 2))
    shape = list(halves.shape)
    shape[dim + 2] = NEW // 2
    spread = weight.new_zeros(shape)
    spread.narrow(dim + 2, 0, OLD // 2).copy_(halves)
    return spread.flatten(dim, dim + 2).contiguous()


if __name__ == "__main__":
    print(write_padded_judge(Path(sys.argv[1]), Path(sys.argv[2])))
