"""A judge with larger attention heads that computes what it computed before: for servers that refuse its head size.

vLLM's attention on a CPU takes heads of 32 numbers and more; the small judges were trained with 24.

Each head of the language model gets new dimensions that are zero, half of them in each half of the head, because RoPE
turns dimension i together with dimension i + size / 2. RoPE's base becomes base^(new / old), so that the first
frequencies are the old ones, and the new frequencies belong to time. RMSNorm over the longer head enlarges a query and
a key by sqrt(new / old) each, and attention divides by sqrt(new) in place of sqrt(old), so k_norm is multiplied by
sqrt(old / new). RMSNorm's epsilon then weighs more by new / old, which changes a log-odds in its sixth digit. The
image encoder stays as it is: vLLM serves its heads of 24.

    python -m research.build.wider_heads FOLDER NEW_FOLDER [SIZE]
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def widen_heads(source: Path, folder: Path, size: int = 32) -> Path:
    """Write the Qwen3-VL judge in ``source`` with heads of ``size`` numbers to ``folder``, and return ``folder``.

    All other files are copied. The scaled k_norm is stored in single precision, the other weights as they were.
    Raises ``ValueError`` unless ``size`` is even and greater than the size the judge has.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]
    old, rope = text["head_dim"], text["rope_parameters"]
    if size <= old or size % 2:
        raise ValueError(f"{source}: its heads have {old} numbers; the new size must be even and greater, not {size}")
    time, height, width = rope["mrope_section"]
    rope["mrope_section"] = [time + (size - old) // 2, height, width]
    rope["rope_theta"] = rope["rope_theta"] ** (size / old)
    text["head_dim"] = size
    shutil.copytree(source, folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    weights = load_file(source / "model.safetensors")
    wider = {name: _widened(name, weight, old, size) for name, weight in weights.items()}
    save_file(wider, folder / "model.safetensors", {"format": "pt"})
    return folder


def _widened(name: str, weight: torch.Tensor, old: int, size: int) -> torch.Tensor:
    if "language_model." not in name or ".self_attn." not in name:
        return weight
    kind = name.split(".self_attn.")[1].split(".")[0]
    if kind == "k_norm":
        return _spread(weight.float() * math.sqrt(old / size), 0, old, size)
    return _spread(weight, 1 if kind == "o_proj" else 0, old, size)


def _spread(weight: torch.Tensor, dim: int, old: int, size: int) -> torch.Tensor:
    """The weight with every head's ``old`` rows (or columns) at their places among ``size``, zeros between them."""
    halves = weight.unflatten(dim, (-1, 2, old // 2))
    shape = list(halves.shape)
    shape[dim + 2] = size // 2
    spread = weight.new_zeros(shape)
    spread.narrow(dim + 2, 0, old // 2).copy_(halves)
    return spread.flatten(dim, dim + 2).contiguous()


def main(arguments: Sequence[str]) -> int:
    """``wider_heads FOLDER NEW_FOLDER [SIZE]``; prints the new folder."""
    if len(arguments) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    print(widen_heads(Path(arguments[0]), Path(arguments[1]), *map(int, arguments[2:])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
