"""Runs a module as its command line would, with the CPU declared an accelerator: accelerate shards (FSDP, DeepSpeed) over accelerators only.

python sharded_cpu.py MODULE ARGUMENT …     Only where accelerate looks for a device is changed; the sharding and gloo are real.
"""

import atexit
import runpy
import sys

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

FSDP2 = {
    "ACCELERATE_USE_CPU": "false",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""What `accelerate launch` makes of recipes/*/accelerate/fsdp*.yaml; FSDP_TRANSFORMER_CLS_TO_WRAP is the caller's."""

ZERO2 = {
    "ACCELERATE_USE_CPU": "false",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
    "ACCELERATE_GRADIENT_CLIPPING": "1.0",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "DS_ACCELERATOR": "cpu",
}
"""What it makes of recipes/train/accelerate/zero2.yaml."""


def tell() -> None:
    """What accelerate made of it; said at the exit, for a command ends its program itself."""
    from accelerate.state import AcceleratorState

    state = AcceleratorState()
    print(f"distributed type {state.distributed_type.value}, {state.num_processes} processes")


if __name__ == "__main__":
    PartialState._prepare_backend = lambda self, *_: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    module, sys.argv = sys.argv[1], sys.argv[1:]
    atexit.register(tell)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
