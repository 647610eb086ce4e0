"""Loading a Qwen3-VL: what does not fit is an error, and what has a working substitute is replaced
with a warning.

folder or hub id → checks (torchvision, architecture, missing weights)
    → dtype and attention that the device has → model
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch

from cac_align.vlm.checkpoint_hash import check_source

log = logging.getLogger(__name__)

# Attention of the vision encoder. The language model always uses sdpa, because its slots need a mask.
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")


def load_model(
    source: str, *, device: str, dtype: torch.dtype, revision: str | None, attention: str = "sdpa"
) -> tuple[Any, Any]:
    """The model in evaluation mode on ``device``, and its processor.

    Raises ``ValueError`` when torchvision does not fit torch, or when the checkpoint is not a
    Qwen3-VL, lacks weights or cannot be read.
    """
    check_source(source)
    check_torchvision()
    from transformers import AutoConfig, AutoProcessor, Qwen3VLForConditionalGeneration
    from transformers.utils import logging as transformers_logging

    if Path(source).is_dir():  # a download shows its progress
        transformers_logging.disable_progress_bar()
    model_class: Any = Qwen3VLForConditionalGeneration  # its stubs know neither revision=None nor output_loading_info

    kinds = {"text_config": "sdpa", "vision_config": usable_attention(attention, device)}
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
        if config.model_type != "qwen3_vl":
            raise ValueError(
                f"{source}: expected a Qwen3-VL checkpoint (model_type qwen3_vl), found {config.model_type!r}"
            )
        processor = AutoProcessor.from_pretrained(source, revision=revision)
        model, loading = model_class.from_pretrained(
            source, revision=revision, dtype=dtype, attn_implementation=kinds, output_loading_info=True
        )
    except OSError as error:
        raise ValueError(f"{source}: could not be loaded as a folder or hub id of a Qwen3-VL: {error}") from error
    # transformers fills missing weights with random numbers and only warns.
    if absent := sorted([*loading["missing_keys"], *map(str, loading["mismatched_keys"])]):
        raise ValueError(
            f"{source}: {len(absent)} weights are missing or have another shape, e.g. {absent[0]}; "
            "the checkpoint is incomplete"
        )
    return model.to(device).eval(), processor


def usable_attention(attention: str, device: str) -> str:
    """``attention`` when it can run here, else "sdpa" with a warning. Raises ``ValueError`` for an
    unknown name.
    """
    if attention not in ATTENTION:
        raise ValueError(f"attention must be one of {', '.join(ATTENTION)}; received {attention!r}")
    if not attention.startswith("flash"):
        return attention
    from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

    installed = is_flash_attn_2_available() if attention.endswith("2") else is_flash_attn_3_available()
    if device.startswith("cuda") and installed:
        return attention
    reason = (
        "its package is not installed"
        if device.startswith("cuda")
        else f"it needs a CUDA device, this one is {device!r}"
    )
    log.warning("%s cannot be used: %s; using sdpa (the same result, slower on long videos)", attention, reason)
    return "sdpa"


def usable_dtype(dtype: str | torch.dtype | None, device: str) -> torch.dtype:
    """The dtype when the device computes in it, else the nearest one that it has, with a warning.

    None: bfloat16 on a GPU that has it, float16 on older ones, float32 on the CPU. Raises
    ``ValueError`` for a text that names no dtype.
    """
    cuda = device.startswith("cuda")
    if dtype is None:
        if not cuda:
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype must name a torch dtype such as bfloat16 or float32, received {dtype!r}")
    if found == torch.bfloat16 and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        log.warning(
            "this GPU (%s) has no bfloat16 arithmetic; computing in float16", torch.cuda.get_device_name(device)
        )
        return torch.float16
    if found in (torch.bfloat16, torch.float16) and device == "cpu" and not _cpu_computes_in(found):
        log.warning(
            "this CPU has no %s arithmetic (it would be emulated, many times slower); computing in float32", found
        )
        return torch.float32
    return found


def _cpu_computes_in(dtype: torch.dtype) -> bool:
    name = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    supported = getattr(torch.ops.mkldnn, name, None)
    return supported is None or bool(supported())


def check_torchvision() -> None:
    """Raise ``ValueError`` when torchvision is missing or was built for another torch: Qwen3-VL's
    processor needs it.
    """
    try:
        import torchvision
    except Exception as error:
        raise ValueError(
            f"Qwen3-VL's video processor needs the torchvision that belongs to torch {torch.__version__}, "
            "but importing it failed "
            f"({type(error).__name__}: {error}); install both from the same index: "
            "pip install --upgrade torch torchvision"
        ) from error
    del torchvision


def hash_weights(model: Any) -> str:
    """sha256 over names, shapes, dtypes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
