"""Wan: any diffusers Wan text-to-video checkpoint as a callable from a prompt and a seed to a
Video.

folder or hub id → WanPipeline + Setting (size, frames, steps, guidance, fps) → wan(prompt, seed) → Video
prompts, seeds → wan.batch → one call of the pipeline → list[Video]

The first noise of a sample is drawn on the CPU from its own seed. So a video depends on its prompt,
its seed and the provenance, and neither on its neighbours in a batch nor (up to rounding) on the
device. A checkpoint's own settings are in the file ``cac_align.json`` in its folder; without it
those of Wan-2.1-1.3B apply: 480 × 832 pixels, 81 frames at 16 fps, 50 steps, guidance 5.
Source: Wan (arXiv 2503.20314); diffusers' ``WanPipeline``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cac_align.core.video import Video
from cac_align.runs.device import pick_device

if TYPE_CHECKING:
    import torch
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline

DEFAULTS_FILE = "cac_align.json"


@dataclass(frozen=True)
class Setting:
    """How a checkpoint is sampled. The defaults are those of Wan-2.1-1.3B.

    height, width: in pixels. num_frames: 4k + 1. guidance_scale: of classifier-free guidance; 1 or
    less means none. fps: frames per second of the videos that the model was trained on.
    max_sequence_length: the number of tokens that a prompt is padded to.
    """

    height: int = 480
    width: int = 832
    num_frames: int = 81
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    fps: float = 16.0
    max_sequence_length: int = 512
    negative_prompt: str = ""


class Wan:
    """A loaded Wan; ``Wan.load`` makes one.

    ``pipeline`` is diffusers' own and may be used directly.
    """

    def __init__(self, pipeline: WanPipeline, setting: Setting, folder: Path, lora: Path | None = None) -> None:
        check_setting(pipeline, setting)
        self.pipeline = pipeline
        self.setting = setting
        self.folder = folder
        self.lora = lora

    @classmethod
    def load(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        fps: float | None = None,
        negative_prompt: str | None = None,
        lora: str | os.PathLike[str] | None = None,
    ) -> Wan:
        """Load a checkpoint from a folder or the hub.

        Settings that are not given come from its ``cac_align.json``, else from ``Setting``. device:
        CUDA by default where there is a GPU, else the CPU. dtype: of text encoder and DiT; by
        default bfloat16 on CUDA and float32 elsewhere. The VAE always runs in float32, as Wan's
        authors do: in bfloat16 its videos have bands and flicker. lora: a folder with LoRA weights
        in diffusers' format, as ``cac-align align`` writes them.

        Raises ``ValueError`` when there is no such checkpoint, it is not a Wan text-to-video one,
        it cannot make videos of this size, or the LoRA does not fit it and would therefore change
        nothing.
        """
        import torch
        from diffusers.pipelines.wan.pipeline_wan import WanPipeline
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        folder = checkpoint_folder(path_or_id)
        setting = read_setting(folder)
        given = {
            "height": height,
            "width": width,
            "num_frames": num_frames,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "fps": fps,
            "negative_prompt": negative_prompt,
        }
        setting = replace(setting, **{name: value for name, value in given.items() if value is not None})
        device = pick_device(device)
        if isinstance(dtype, str):
            named = getattr(torch, dtype, None)
            if not isinstance(named, torch.dtype):
                raise ValueError(f"dtype must be float32, bfloat16 or float16; received {dtype!r}")
            dtype = named
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        # The folder is here by now, and the bars of its parts say nothing to a user.
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        try:
            pipeline = WanPipeline.from_pretrained(folder, dtype={"default": dtype, "vae": torch.float32})
        except OSError as error:
            raise ValueError(
                f"{path_or_id}: the Wan checkpoint is incomplete or unreadable; fetch it again ({error})"
            ) from error
        check_complete(pipeline, path_or_id)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.vae.enable_slicing()  # decodes one video at a time: five of 480 × 832 × 81 at once would take 38 GiB
        if lora is not None:
            _add_lora(pipeline, Path(lora), path_or_id)
        return cls(pipeline.to(device), setting, folder, None if lora is None else Path(lora))

    def with_setting(self, **changes: Any) -> Wan:
        """The same weights with other settings; see ``Setting`` for their names."""
        return Wan(self.pipeline, replace(self.setting, **changes), self.folder, self.lora)

    def __call__(self, prompt: str, seed: int) -> Video:
        """Generate one video. The same prompt and seed give the same pixels on one machine."""
        return self.batch([prompt], [seed])[0]

    def batch(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Video]:
        """Generate one video per prompt and seed in a single call of the pipeline.

        The DiT's memory grows with the number of prompts. The VAE's does not, because it decodes
        one video at a time.

        Raises ``ValueError`` when the lengths differ, a prompt is empty, or the model's output is
        not finite.
        """
        import torch

        if len(prompts) != len(seeds):
            raise ValueError(f"expected one seed per prompt, received {len(prompts)} prompts and {len(seeds)} seeds")
        for prompt in prompts:
            if not isinstance(prompt, str) or not prompt.strip():
                raise ValueError(f"expected a prompt with words in it, received {prompt!r}")
        if not prompts:
            return []
        setting = self.setting
        call: Any = self.pipeline  # its stubs allow neither negative_prompt=None nor .frames
        frames = call(
            prompt=list(prompts),
            negative_prompt=[setting.negative_prompt] * len(prompts) if setting.guidance_scale > 1 else None,
            height=setting.height,
            width=setting.width,
            num_frames=setting.num_frames,
            num_inference_steps=setting.num_inference_steps,
            guidance_scale=setting.guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds],
            output_type="np",
            max_sequence_length=setting.max_sequence_length,
        ).frames
        return [
            Video.open(pixels, fps=setting.fps, layout="THWC", name=f"{prompt} (seed {seed})")
            for pixels, prompt, seed in zip(frames, prompts, seeds, strict=True)
        ]

    @cached_property
    def weights_hash(self) -> str:
        """sha256 over the names and contents of the checkpoint's weight files; read once, on first
        use.
        """
        return hash_checkpoint(self.folder)

    @property
    def provenance(self) -> Mapping[str, str]:
        """Everything that identifies a generated video, besides its prompt and seed."""
        scheduler = self.pipeline.scheduler
        return {
            "generator": str(self.folder.name),
            "weights_sha256": self.weights_hash,
            **({} if self.lora is None else {"lora_sha256": hash_checkpoint(self.lora)}),
            "scheduler": f"{type(scheduler).__name__}, flow_shift {getattr(scheduler.config, 'flow_shift', None)}",
            "dtype": str(self.pipeline.transformer.dtype).removeprefix("torch."),
            **{name: str(value) for name, value in asdict(self.setting).items()},
        }


def check_setting(pipeline: WanPipeline, setting: Setting) -> None:
    """Raise ``ValueError``, with the nearest allowed values, unless this pipeline can generate this
    size and length.
    """
    temporal = int(pipeline.vae_scale_factor_temporal)
    if setting.num_frames < 1 or (setting.num_frames - 1) % temporal:
        below = max(0, setting.num_frames - 1) // temporal * temporal + 1
        raise ValueError(
            f"num_frames must be {temporal}k + 1 (Wan's VAE keeps the first frame and folds every "
            f"{temporal} after it), "
            f"received {setting.num_frames}; the nearest are {below} and {below + temporal}"
        )
    _, patch_height, patch_width = pipeline.transformer.config.patch_size
    for name, value, patch in (("height", setting.height, patch_height), ("width", setting.width, patch_width)):
        step = math.lcm(16, int(pipeline.vae_scale_factor_spatial) * patch)  # 16 is WanPipeline's own condition
        if value < step or value % step:
            below = max(step, value // step * step)
            raise ValueError(
                f"{name} must be a positive multiple of {step} pixels, received {value}; the nearest are "
                f"{below} and {below + step}"
            )
    if setting.num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, received {setting.num_inference_steps}")
    if not (math.isfinite(setting.fps) and setting.fps > 0):
        raise ValueError(f"fps must be a positive number of frames per second, received {setting.fps!r}")


def check_complete(pipeline: Any, model: str | os.PathLike[str]) -> None:
    """Raise ``ValueError`` for a checkpoint whose files lack weights; diffusers leaves those without a value."""
    for part in ("vae", "text_encoder", "transformer"):
        for name, weight in getattr(pipeline, part).named_parameters():
            if weight.is_meta:
                raise ValueError(
                    f"{model}: weights are missing, the first is {part}.{name}; fetch the whole checkpoint "
                    "(a VAE needs its encoder as well)"
                )


def _add_lora(pipeline: Any, folder: Path, model: str | os.PathLike[str]) -> None:
    """Add the folder's LoRA to the DiT.

    Raises ``ValueError`` unless every tensor of it is used; diffusers only warns about names that
    it does not know.
    """
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"{folder}: no LoRA that fits {model}: no safetensors file in it; expected a folder that "
            "`cac-align align` wrote"
        )
    try:
        pipeline.load_lora_weights(str(folder))
        file = next((file for file in files if file.name == "pytorch_lora_weights.safetensors"), files[0])
        with safe_open(file, "pt") as weights:
            names = sorted(weights.keys())
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: no LoRA that fits {model}: {str(error).splitlines()[0]}") from error
    placed = sum(".lora_" in name for name, _ in pipeline.transformer.named_parameters())
    # diffusers converts names of other formats when it loads them; such a file has no name in diffusers' format.
    named = [name for name in names if name.startswith(("transformer.", "transformer_2."))]
    asked = sum(name.startswith("transformer.") and ".lora_" in name for name in named)
    if placed == 0 or (named and (len(named) < len(names) or placed != asked)):
        wrong = next((name for name in names if name not in named), names[0])
        raise ValueError(
            f"{folder}: no LoRA that fits {model}: not all of its tensors belong to that model ({wrong}); "
            "expected diffusers' names, transformer.….lora_A.weight, as `cac-align align` writes them; "
            "PEFT's own adapters need converting"
        )


def hash_checkpoint(folder: Path) -> str:
    """sha256 over (relative name, sha256 of the contents) of every safetensors file below
    ``folder``, in order of name.

    The hub's cache names large files by their sha256, so a checkpoint from the hub is identified
    without reading gigabytes.
    """
    digest = hashlib.sha256()
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: no safetensors files below it; expected the weights of a Wan checkpoint")
    for file in files:
        stored_as = file.resolve().name
        if re.fullmatch(r"[0-9a-f]{64}", stored_as):
            content = stored_as
        else:
            with file.open("rb") as opened:
                content = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def checkpoint_folder(path_or_id: str | os.PathLike[str], kind: str = "WanPipeline") -> Path:
    """The local folder of a checkpoint, downloaded if it is a hub id.

    kind: the diffusers pipeline that it must be; ``WanPipeline`` is text-to-video. Raises
    ``ValueError`` for anything else.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    folder = Path(path_or_id)
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path_or_id)):
            raise ValueError(
                f"{path_or_id}: no such folder; expected a diffusers Wan folder, or a hub id such as "
                "Wan-AI/NAME-Diffusers"
            )
        try:
            folder = Path(DiffusionPipeline.download(str(path_or_id)))
        except Exception as error:  # offline, gated, misspelt: the hub client has a different class for each
            raise ValueError(
                f"{path_or_id}: neither a folder here nor a checkpoint that could be fetched ({error})"
            ) from error
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(
            f"{folder}: no model_index.json; expected a diffusers pipeline folder, as "
            "WanPipeline.save_pretrained writes"
        )
    received = json.loads(index.read_text()).get("_class_name")
    if received != kind:
        what = "a Wan text-to-video checkpoint" if kind == "WanPipeline" else "a Wan checkpoint"
        raise ValueError(f"{folder}: expected {what} ({kind}), received {received}")
    return folder


def read_setting(folder: Path) -> Setting:
    """The checkpoint's own defaults.

    Raises ``ValueError`` for an unknown name in its ``cac_align.json``.
    """
    file = folder / DEFAULTS_FILE
    if not file.is_file():
        return Setting()
    stored = json.loads(file.read_text())
    known = [field.name for field in fields(Setting)]
    unknown = sorted(set(stored) - set(known))
    if unknown:
        raise ValueError(f"{file}: unknown {', '.join(unknown)}; expected some of {', '.join(known)}")
    return Setting(**stored)
