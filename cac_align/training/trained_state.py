"""Checkpoints of accelerate that hold what is trained: trainable weights and the optimizer, not the
frozen base.

save_trained → model.safetensors (the trainable parameters), optimizer, generators → load_trained

With LoRA the base is 17.5 GB of an 8B model that every start reads from its own folder anyway.
Without frozen parameters these are accelerate's own checkpoints; under FSDP the weights lie in its
own format, in the folder pytorch_model_fsdp_0.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import nn


def trainable_names(module: nn.Module) -> set[str]:
    """The names of the parameters that are trained."""
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def save_trained(accelerator: Any, module: nn.Module, folder: Path) -> None:
    """Write accelerate's checkpoint without frozen parameters. Every process must call this."""
    options = {"exclude_frozen_parameters": True} if _under_deepspeed(accelerator, module) else {}
    hook = accelerator.register_save_state_pre_hook(_drop_frozen)
    try:
        with _sharded_state_without_frozen(accelerator, module):
            accelerator.save_state(str(folder), **options)
    finally:
        hook.remove()


def load_trained(accelerator: Any, module: nn.Module, folder: Path) -> None:
    """Read what ``save_trained`` wrote; frozen parameters stay as they are.

    Raises ``ValueError`` when the checkpoint's parameters are not those that are trained.
    """
    options = {"load_module_strict": False} if _under_deepspeed(accelerator, module) else {}
    hook = accelerator.register_load_state_pre_hook(_load_hook)
    try:
        with _sharded_state_without_frozen(accelerator, module):
            accelerator.load_state(str(folder), **options)
    finally:
        hook.remove()


def _under_deepspeed(accelerator: Any, module: nn.Module) -> bool:
    """Whether DeepSpeed writes the weights, and some are frozen."""
    frozen = any(not parameter.requires_grad for parameter in module.parameters())
    return frozen and accelerator.distributed_type == DistributedType.DEEPSPEED


@contextmanager
def _sharded_state_without_frozen(accelerator: Any, module: nn.Module) -> Iterator[None]:
    """While this is open, the state of a module that FSDP has sharded is what is trained alone.

    accelerate reads and writes such a module itself and has no option for that.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        yield
        return
    trained = trainable_names(module)

    def drop(_: nn.Module, state: MutableMapping[str, Any], prefix: str, __: Any) -> None:
        for name in [name for name in state if name.removeprefix(prefix) not in trained]:
            del state[name]

    def pass_over(_: nn.Module, keys: Any) -> None:
        keys.missing_keys[:] = [name for name in keys.missing_keys if name in trained]

    hooks = (module.register_state_dict_post_hook(drop), module.register_load_state_dict_post_hook(pass_over))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _drop_frozen(models: list[nn.Module], weights: list[dict[str, Any]], folder: str) -> None:
    """accelerate's hook: ``weights`` (none under FSDP and DeepSpeed) are what it is about to write."""
    for number, (model, state) in enumerate(zip(models, weights, strict=False)):
        if any(not parameter.requires_grad for parameter in model.parameters()):
            trained = trainable_names(model)
            weights[number] = {name: tensor for name, tensor in state.items() if name in trained}


def _load_hook(models: list[nn.Module], folder: str) -> None:
    """accelerate's hook: takes the models with frozen parameters out of ``models`` (none under FSDP
    and DeepSpeed), which it is about to load, and loads them.
    """
    for number, model in reversed(list(enumerate(models))):
        trained = trainable_names(model)
        if len(trained) == sum(1 for _ in model.parameters()):
            continue
        path = Path(folder) / ("model.safetensors" if number == 0 else f"model_{number}.safetensors")
        state = load_file(path)
        if set(state) != trained:
            odd = sorted(set(state) ^ trained)[0]
            raise ValueError(f"{path}: does not fit this model: {odd} is only in one of them; choose another out=")
        model.load_state_dict(state, strict=False)
        del models[number]
