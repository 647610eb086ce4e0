"""Which device a model runs on: the one that was asked for, or an error; never another in its
place.

None | "cpu" | "cuda" | "cuda:1" → pick_device → torch.device
"""

from __future__ import annotations

import torch


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device of this name. None takes CUDA where torch sees a GPU, and the CPU otherwise.

    Raises ``ValueError`` for a name that torch does not know, and for a GPU that torch does not
    see.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda or cuda:N, received {name!r}") from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found.type == "cuda" and (found.index or 0) >= count:
        raise ValueError(
            f"device={name}: torch {torch.__version__} sees {count} GPUs; "
            "leave device out to use what there is, or repair the driver"
        )
    return found
