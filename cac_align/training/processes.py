"""Many processes, one run: accelerate as the stages want it, and what the processes exchange."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch


def start_accelerator(mixed_precision: str, accumulation: int = 1, *, cpu: bool = False, threads: int = 0) -> Any:
    """An ``Accelerator``. accumulation: micro-batches per process and step. threads: of torch on a
    CPU (0: as they are).
    """
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    # Qwen3-VL may tie its word table to its head. The table is stored once on purpose, which accelerate warns about at
    # every checkpoint.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    if threads:
        torch.set_num_threads(threads)
    sharding = fsdp_plugin(mixed_precision)
    # Under FSDP a micro-batch whose gradients are not reduced at once leaves all of them, unsharded, on every process.
    plugin = GradientAccumulationPlugin(
        num_steps=accumulation, sync_with_dataloader=False, sync_each_batch=sharding is not None
    )
    patient = InitProcessGroupKwargs(timeout=timedelta(days=1))  # one process may have far longer answers to wait for
    return Accelerator(
        mixed_precision=mixed_precision,
        gradient_accumulation_plugin=plugin,
        fsdp_plugin=sharding,
        cpu=cpu,
        kwargs_handlers=[patient],
    )


def fsdp_plugin(mixed_precision: str) -> Any:
    """FSDP 2 as the environment asks for it (None: it does not), with gradients reduced and outputs
    returned in float32.

    accelerate's own policy for bf16 rounds both: a log-probability near 700 would move in steps of
    4.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin, str_to_bool

    if not str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false")):
        return None
    if mixed_precision != "bf16" or os.environ.get("FSDP_VERSION", "1") != "2":
        return FullyShardedDataParallelPlugin()
    policy = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32, "output_dtype": torch.float32}
    return FullyShardedDataParallelPlugin(mixed_precision_policy=policy)


def micro_batches(items: Sequence[Any], size: int, rank: int, processes: int) -> list[list[Any]]:
    """This process's micro-batches of ``size`` items. Raises ``ValueError`` when the batch does not
    divide evenly.
    """
    if len(items) % (size * processes):
        raise ValueError(
            f"a batch of {len(items)} cannot be cut into micro-batches of {size} on {processes} processes; make it a "
            f"multiple of {size * processes}, or lower micro_batch"
        )
    parts = [list(items[at : at + size]) for at in range(0, len(items), size)]
    return parts[rank::processes]


def gather_reasons(accelerator: Any, found: Mapping[str, str]) -> dict[str, str]:
    """What any process has found, by name, on every process."""
    return {name: why for each in gather_all(accelerator, [dict(found)]) for name, why in each.items()}


def gather_all(accelerator: Any, items: list[Any]) -> list[Any]:
    """The items of all processes, on every process."""
    if accelerator.num_processes == 1:
        return items
    from accelerate.utils import gather_object

    return gather_object(items)
