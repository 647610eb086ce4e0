"""Judges that are a Qwen2-VL with a head on special tokens: one forward pass, no text.

checkpoint's weights (old or new names, with or without LoRA) → transformers' Qwen2-VL + head
text with special tokens, images or a video → hidden states at these tokens → head → scores

Both published judges of this kind (VideoAlign, HPSv3) were trained with a forward pass that hands their language
model no position ids, which makes positions count 0, 1, 2, … through the images. transformers gives images
positions in three dimensions unless it is told otherwise, and the scores are then other ones. So it is told.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cac_align.core.text import quoted_excerpt
from cac_align.vlm.checkpoint_hash import hash_files, hash_paths

if TYPE_CHECKING:
    import torch

_LORA = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_HEAD_LAYER = re.compile(r"rm_head(?:\.(\d+))?\.(weight|bias)")


@dataclass(frozen=True)
class HeadCheckpoint:
    """Where a judge's files lie, and how they are run."""

    # The state dict: .safetensors, or .pth (read without unpickling objects).
    weights: Path
    # Folder or hub id of the Qwen2-VL it was made from: its configuration, processor and tokenizer are read.
    base: str
    # The tokens at which scores are read, in the order in which they were added to the tokenizer.
    special_tokens: tuple[str, ...]
    # What the product of two LoRA matrices is multiplied by.
    lora_scale: float = 1.0
    # Torch device and dtype. None: a GPU where there is one; bfloat16 on a GPU, float32 on a CPU.
    device: str | None = None
    dtype: str | None = None

    def check(self) -> None:
        """Raise ``ValueError`` when the weights are not there, or the base is neither a folder nor a hub id."""
        if not self.weights.is_file():
            raise ValueError(f"{self.weights}: no such file; name the folder of the downloaded checkpoint as model")
        if not Path(self.base).is_dir() and not re.fullmatch(r"\w[\w.-]*/[\w.-]+", self.base):
            raise ValueError(
                f"{self.base}: no such folder; base_model must be the folder of the Qwen2-VL that the judge was made "
                "from, or a hub id such as Qwen/Qwen2-VL-2B-Instruct"
            )


@dataclass
class RewardHeadModel:
    """The model of a checkpoint, loaded when it is first asked. Thread-safe; pickled by its files."""

    checkpoint: HeadCheckpoint
    _loaded: _Loaded | None = field(default=None, init=False, repr=False)
    _lock: Any = field(default_factory=threading.RLock, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return (RewardHeadModel, (self.checkpoint,))

    @property
    def provenance(self) -> Mapping[str, str]:
        """Weights, base and number format: strings only. Hashes the files, which takes a while the first time."""
        import torch

        base, kept = Path(self.checkpoint.base), self.checkpoint
        device, dtype = self._place()
        return {
            "weights": hash_paths([kept.weights]),
            "base": hash_files(base, weights=False) if base.is_dir() else kept.base,
            "dtype": str(dtype).removeprefix("torch."),
            "lora_scale": f"{kept.lora_scale:g}",
            "positions": "sequential",
            "torch": torch.__version__.split("+")[0],
        } | ({} if device == "cpu" else {"device": device.split(":")[0]})

    def load(self) -> None:
        """Load the model now. Raises ``ValueError`` when the files are no such judge."""
        self._model()

    def outputs(self, text: str, *, images: Sequence[Any] = (), video: torch.Tensor | None = None) -> torch.Tensor:
        """The head's outputs, (B, number of special tokens, outputs) float32.

        text: the user's text with every special token once. images: PIL images of one size, one
        conversation each. video: one video, (T, 3, H, W) with values 0 to 255. Sizes are multiples of 28;
        nothing is resized. Raises ``ValueError`` when the text does not hold every special token once, in order.
        """
        import torch

        loaded = self._model()
        kind = "image" if images else "video"
        messages = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": text}]}]
        written = loaded.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        media: dict[str, Any] = {"images": list(images), "images_kwargs": {"do_resize": False}}
        if not images:
            options = {"do_resize": False, "do_sample_frames": False}
            media = {"videos": [video], "videos_kwargs": options}
        inputs = loaded.processor(text=[written] * max(len(images), 1), return_tensors="pt", **media)
        ids = inputs["input_ids"]
        places = [(ids[0] == token).nonzero().flatten().tolist() for token in loaded.special_ids]
        if not all(len(each) == 1 for each in places) or sorted(places) != places:
            raise ValueError(f"the text must hold {', '.join(self.checkpoint.special_tokens)} once each, in this order")
        with self._lock, torch.no_grad():
            device = loaded.net.device
            names = ("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw")
            hidden = loaded.net(
                input_ids=ids.to(device),
                attention_mask=torch.ones_like(ids).to(device),
                position_ids=torch.arange(ids.shape[1], device=device).expand(3, len(ids), -1),
                use_cache=False,
                **{name: inputs[name].to(device) for name in names if name in inputs},
            ).last_hidden_state
            return _through_head(hidden[:, [place for (place,) in places]].float(), loaded.head).cpu()

    def special_texts(self) -> tuple[str, ...]:
        """What a caption must not hold: the tokenizer's special tokens."""
        return tuple(self._model().processor.tokenizer.all_special_tokens) + self.checkpoint.special_tokens

    def _place(self) -> tuple[str, torch.dtype]:
        from cac_align.runs.device import pick_device
        from cac_align.vlm.loading import usable_dtype

        device = str(pick_device(self.checkpoint.device))
        return device, usable_dtype(self.checkpoint.dtype, device)

    def _model(self) -> _Loaded:
        with self._lock:
            if self._loaded is None:
                self._loaded = _load(self.checkpoint, *self._place())
            return self._loaded


@dataclass(frozen=True, eq=False)
class _Loaded:
    net: Any
    # Weight and bias (or None) per layer, in float32; a ReLU stands between layers.
    head: tuple[tuple[torch.Tensor, torch.Tensor | None], ...]
    processor: Any
    special_ids: tuple[int, ...]


def _through_head(hidden: torch.Tensor, head: Sequence[tuple[torch.Tensor, torch.Tensor | None]]) -> torch.Tensor:
    import torch

    for number, (weight, bias) in enumerate(head):
        hidden = torch.nn.functional.linear(hidden.relu() if number else hidden, weight, bias)
    return hidden


def _load(checkpoint: HeadCheckpoint, device: str, dtype: torch.dtype) -> _Loaded:
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoProcessor, Qwen2VLModel

    from cac_align.vlm.inputs import set_frame_pixel_cap

    checkpoint.check()
    try:
        config = AutoConfig.from_pretrained(checkpoint.base)
        processor = AutoProcessor.from_pretrained(checkpoint.base)
    except Exception as error:  # transformers has exceptions of its own for files that are missing or contradictory
        raise ValueError(f"{checkpoint.base}: could not be read as the base of this judge: {error}") from error
    if config.model_type != "qwen2_vl":
        raise ValueError(f"{checkpoint.base}: expected a Qwen2-VL (model_type qwen2_vl), found {config.model_type!r}")
    set_frame_pixel_cap(processor)  # nothing is resized here; an open choice makes transformers warn
    tokenizer = processor.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": list(checkpoint.special_tokens)})
    special_ids = tuple(tokenizer.convert_tokens_to_ids(list(checkpoint.special_tokens)))
    weights, head = split_head(plain_weights(_read_state(checkpoint.weights), checkpoint.lora_scale))
    rows = len(weights.get("language_model.embed_tokens.weight", ()))
    if max(special_ids) >= rows:
        raise ValueError(
            f"{checkpoint.weights}: its table has {rows} tokens, and {checkpoint.special_tokens[-1]} is number "
            f"{max(special_ids)} in the tokenizer of {checkpoint.base}; name the base that it was made from"
        )
    config.text_config.vocab_size = rows
    with init_empty_weights(include_buffers=False):
        net: Any = Qwen2VLModel(cast(Any, config))
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    try:
        net.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        first = str(error).partition("\n")[2].strip()
        raise ValueError(
            f"{checkpoint.weights}: does not fit the Qwen2-VL of {checkpoint.base}: {quoted_excerpt(first)}"
        ) from error
    layers = tuple((weight.to(device), None if bias is None else bias.to(device)) for weight, bias in head)
    return _Loaded(net.to(device).eval(), layers, processor, special_ids)


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # each format has exceptions of its own for broken files
        raise ValueError(f"{path}: the weights cannot be read ({type(error).__name__}: {error})") from error
    return state.get("model", state)


def plain_weights(state: Mapping[str, torch.Tensor], lora_scale: float) -> dict[str, torch.Tensor]:
    """The weights under transformers' present names for ``Qwen2VLModel`` and ``rm_head``, LoRA added in.

    state: names of a model of transformers 4.45 ("visual.…", "model.layers.…") or of today
    ("model.visual.…", "model.language_model.…"), also inside a PEFT wrapper. Output embeddings are left out.
    """
    plain: dict[str, torch.Tensor] = {}
    low_rank: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if match := _LORA.fullmatch(name):
            low_rank.setdefault(f"{match[1]}.weight", {})[match[2]] = tensor
        else:
            plain[name] = tensor
    for name, pair in low_rank.items():
        if name not in plain or pair.keys() != {"A", "B"}:
            raise ValueError(f"the LoRA matrices of {name} have no weight to be added to, or one of them is missing")
        delta = pair["B"].float() @ pair["A"].float()
        plain[name] = (plain[name].float() + lora_scale * delta).to(plain[name].dtype)
    return {_present_name(name): tensor for name, tensor in plain.items() if not name.startswith("lm_head.")}


def _present_name(name: str) -> str:
    name = name.removeprefix("model.")
    if name.startswith(("visual.", "language_model.", "rm_head.")):
        return name
    return f"language_model.{name}"


def split_head(
    weights: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], tuple[tuple[torch.Tensor, torch.Tensor | None], ...]]:
    """The model's weights, and the head's layers in order: one ("rm_head.weight") or several ("rm_head.0.weight", …)
    with a ReLU between them.

    Raises ``ValueError`` when there is no head, or one of another form.
    """
    layers: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in weights.items():
        if not name.startswith("rm_head"):
            continue
        match = _HEAD_LAYER.fullmatch(name)
        if match is None:
            raise ValueError(f"the head's weight {name} is of no known form (rm_head.weight, rm_head.N.weight)")
        layers.setdefault(int(match[1] or 0), {})[match[2]] = tensor.float()
    if not layers or not all("weight" in layer for layer in layers.values()):
        raise ValueError("no head (rm_head.weight) among the weights; name the reward's own checkpoint as model")
    head = tuple((layers[number]["weight"], layers[number].get("bias")) for number in sorted(layers))
    return {name: tensor for name, tensor in weights.items() if not name.startswith("rm_head")}, head


def resized_size(height: int, width: int, least_pixels: int, most_pixels: int) -> tuple[int, int]:
    """Height and width that Qwen2-VL's reference code resizes to: multiples of 28, with so many pixels.

    Raises ``ValueError`` for an aspect ratio above 200.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    return smart_resize(height, width, factor=28, min_pixels=least_pixels, max_pixels=most_pixels)


def refuse_special_texts(prompt: str, texts: Sequence[str]) -> None:
    """Raise ``ValueError`` for a caption that holds one of these texts."""
    if found := next((text for text in texts if text in prompt), None):
        raise ValueError(f"the caption holds the control token {found!r}; remove it")
