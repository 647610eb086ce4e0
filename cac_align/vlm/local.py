"""A vision-language model in this process: transformers' Qwen3-VL through its own processor, batched and greedy.

conversations → encode_one each (a bad one fails alone) → batches of similar length → decode → text → word_log_p → Reply

The same conversation gives the same text; probabilities agree to rounding whatever else shares its batch. A batch that does not fit
into memory is halved. The inner loop (``greedy.decode``) knows batches and tensors only, so another engine can take its place.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cac_align.vlm.encoding import check, collate, encode, encode_one, layout, pad_id
from cac_align.vlm.greedy import Decoded, decode, word_log_p
from cac_align.vlm.protocol import Conversation, Readout, Reply
from cac_align.vlm.spelling import text_and_ends, token_at, vocabulary

__all__ = ["LocalVlm", "check_torchvision", "encode", "encode_one", "set_threads"]

log = logging.getLogger(__name__)


class LocalVlm:
    """Qwen3-VL (any size) behind the ``Vlm`` protocol. Load one with ``LocalVlm.load``, or wrap a model you already hold.

    model: ``Qwen3VLForConditionalGeneration`` (or a PEFT model around one). processor: its ``Qwen3VLProcessor``.
    name: how passports call it. batch_size: conversations decoded together. max_pixels: limit over all frames of one video,
    instead of the checkpoint's own. weights_hash: identity of the weights; computed from them when None.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str,
        batch_size: int = 16,
        max_pixels: int | None = None,
        weights_hash: str | None = None,
        revision: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, received {batch_size}")
        self.model = model
        self.processor = processor
        self.batch_size = batch_size
        self._name, self._max_pixels, self._weights_hash, self._revision = name, max_pixels, weights_hash, revision
        self._lock = threading.RLock()
        self._reload: tuple[Any, ...] | None = None

    @classmethod
    def load(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int = 16,
        max_pixels: int | None = None,
        revision: str | None = None,
    ) -> LocalVlm:
        """Load a folder or a hub id. device: default "cuda" where there is one, else "cpu". dtype: default bfloat16 on a GPU that
        computes in it, float16 on older ones, float32 on the CPU.

        Raises ``ValueError`` when torchvision does not fit torch, or the checkpoint is not a Qwen3-VL.
        """
        check_torchvision()
        from transformers import AutoConfig, AutoProcessor, Qwen3VLForConditionalGeneration

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = _dtype(dtype, device)
        source = str(path_or_id)
        config = AutoConfig.from_pretrained(source, revision=revision)
        if config.model_type != "qwen3_vl":
            raise ValueError(f"{source}: expected a Qwen3-VL checkpoint (model_type qwen3_vl), found {config.model_type!r}")
        processor = AutoProcessor.from_pretrained(source, revision=revision)
        model = Qwen3VLForConditionalGeneration.from_pretrained(source, revision=revision, dtype=kind, attn_implementation="sdpa")
        model = model.to(device).eval()
        commit = getattr(model.config, "_commit_hash", None) or revision
        digest = _hash_files(Path(source)) if Path(source).is_dir() else (commit or "unknown")
        name = Path(source).resolve().name if Path(source).is_dir() else source
        found = cls(
            model, processor, name=name, batch_size=batch_size, max_pixels=max_pixels, weights_hash=digest, revision=commit
        )
        found._reload = (source, device, str(kind).removeprefix("torch."), batch_size, max_pixels, revision)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reload is None:
            raise TypeError(f"{self._name}: a LocalVlm around a model in memory cannot be pickled; save it and use LocalVlm.load(path)")
        return (_load_again, self._reload)

    @functools.cached_property
    def passport(self) -> Mapping[str, str]:
        """Model, weights, dtype, and how a video stands in the prompt. Numbers from two different layouts must not be mixed."""
        passport = {
            "model": self._name,
            "weights": self._weights_hash or hash_weights(self.model),
            "dtype": str(self._core.dtype).removeprefix("torch."),
            "layout": layout(self.processor),
            "decoding": "greedy",
            "template": hashlib.sha256(str(self.processor.chat_template).encode()).hexdigest()[:16],
        }
        if self._revision:
            passport["revision"] = self._revision
        if self._max_pixels:
            passport["max_pixels"] = str(self._max_pixels)
        return passport

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        schema: Mapping[str, Any] | None = None,
        readout: Readout | None = None,
    ) -> list[Reply]:
        """Answer every conversation greedily, in order (see ``Vlm.answer``).

        A last assistant message is continued: ``Reply.text`` is the new text only, while ``readout.locate`` is given the whole
        message, begun and new. With max_new_tokens=0 nothing is written and only the readout is taken.
        Raises ``ValueError`` for negative max_new_tokens, an empty word, or a schema that cannot be compiled.
        """
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must not be negative, received {max_new_tokens}")
        if readout is not None and (not readout.words or not all(readout.words)):
            raise ValueError(f"readout needs at least one word and no empty ones, received {readout.words!r}")
        with self._lock:
            constraint = self._constraint(schema)
            replies: list[Reply | None] = [None] * len(conversations)
            rows: dict[int, dict[str, torch.Tensor]] = {}
            for number, conversation in enumerate(conversations):
                try:
                    check(conversation)
                    if constraint:
                        constraint.start(_begun(conversation))
                    rows[number] = encode_one(self.processor, conversation, max_pixels=self._max_pixels)
                except Exception as error:  # one conversation's failure is its own reply, whatever the processor raises
                    replies[number] = Reply("", error=f"could not be encoded: {error}")
            order = sorted(rows, key=lambda number: (rows[number]["input_ids"].shape[1], number))
            groups = [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
            while groups:
                group = groups.pop(0)
                found, fault = self._try([conversations[n] for n in group], [rows[n] for n in group], max_new_tokens, constraint, readout)
                if fault is None:
                    for number, reply in zip(group, found, strict=True):
                        replies[number] = reply
                elif len(group) == 1:
                    replies[group[0]] = Reply("", error=fault, num_prompt_tokens=rows[group[0]]["input_ids"].shape[1])
                else:
                    half = (len(group) + 1) // 2
                    log.warning("a batch of %d conversations failed, going on with batches of %d: %s", len(group), half, fault)
                    groups = [group[:half], group[half:], *groups]
            return replies

    def _try(self, *batch: Any) -> tuple[list[Reply], str | None]:
        """Replies, or why the batch as a whole failed. The exception is let go of here, so that its tensors are freed before a retry."""
        try:
            return self._answer_batch(*batch), None
        except (torch.OutOfMemoryError, MemoryError) as error:
            fault = f"out of memory: {error}"
        except RuntimeError as error:
            fault = f"out of memory: {error}" if "allocate memory" in str(error) else f"the model failed: {error}"
            if not fault.startswith("out of memory"):
                log.warning("model failure", exc_info=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return [], fault

    def _answer_batch(self, conversations: Sequence[Conversation], rows: Sequence[Any], max_new_tokens: int, constraint: Any, readout: Any) -> list[Reply]:
        tokenizer, core = self.processor.tokenizer, self._core
        device = core.device
        batch = {key: value.to(device) for key, value in collate(rows, pad_id=pad_id(self.processor)).items()}
        begun = [_begun(conversation) for conversation in conversations]
        matchers = [constraint.start(text) for text in begun] if constraint else ()
        decoded = decode(
            core, batch, max_new_tokens=max_new_tokens, eos=self._eos, banned=self._banned, constraint=constraint, matchers=matchers
        )
        table = vocabulary(tokenizer)
        texts = [text_and_ends(table, tokens)[0] for tokens in decoded.tokens]
        log_p: Sequence[Mapping[str, float] | None] = [None] * len(texts)
        if readout is not None:
            places = [_place(table, readout, *row) for row in zip(begun, texts, decoded.tokens, decoded.errors, strict=True)]
            log_p = word_log_p(core, tokenizer, decoded, places, readout.words)
        return [
            Reply(
                text="" if decoded.errors[row] else texts[row],
                log_p=None if decoded.errors[row] else _finite(log_p[row]),
                error=decoded.errors[row],
                truncated=not decoded.ended[row] and decoded.errors[row] is None,
                num_prompt_tokens=rows[row]["input_ids"].shape[1],
                num_tokens=len(decoded.tokens[row]) + decoded.ended[row],
            )
            for row in range(len(texts))
        ]

    @property
    def _core(self) -> Any:
        """The Qwen3-VL itself, also inside a PEFT wrapper (its adapters live in the layers, so they still act)."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @functools.cached_property
    def _eos(self) -> tuple[int, ...]:
        configured = self._core.generation_config.eos_token_id
        configured = configured if isinstance(configured, list) else [] if configured is None else [configured]
        end = self.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
        return tuple(dict.fromkeys([*([] if end is None else [end]), *configured]))

    @functools.cached_property
    def _banned(self) -> torch.Tensor:
        """Tokens that may never be written: every special token but the end, and ids that stand for no text."""
        size = self._core.lm_head.weight.shape[0]
        banned = torch.ones(size, dtype=torch.bool)
        known = [index for index, piece in enumerate(vocabulary(self.processor.tokenizer).of_id[:size]) if piece is not None]
        banned[[*known, *self._eos]] = False
        return banned.to(self._core.device)

    def _constraint(self, schema: Mapping[str, Any] | None) -> Any:
        if schema is None:
            return None
        from cac_align.vlm.constrained import SchemaConstraint

        return SchemaConstraint(self.processor.tokenizer, schema, eos=self._eos)


def set_threads(count: int) -> None:
    """Use ``count`` CPU threads for torch. On shared cores one is often several times faster than two: measure."""
    torch.set_num_threads(count)


def check_torchvision() -> None:
    """Raise ``ValueError`` when torchvision is missing or was built for another torch: Qwen3-VL's processor needs it."""
    try:
        import torchvision
    except Exception as error:
        raise ValueError(
            f"Qwen3-VL's video processor needs the torchvision that belongs to torch {torch.__version__}, but importing it failed "
            f"({type(error).__name__}: {error}); install both from the same index: pip install --upgrade torch torchvision"
        ) from error
    del torchvision


def hash_weights(model: Any) -> str:
    """sha256 over names, shapes and values of all parameters and buffers that a checkpoint holds."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _hash_files(folder: Path) -> str:
    digest = hashlib.sha256()
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def _load_again(source: str, device: str, dtype: str, batch_size: int, max_pixels: int | None, revision: str | None) -> LocalVlm:
    if device.startswith("cuda") and not torch.cuda.is_available():
        device = "cpu"
    return LocalVlm.load(source, device=device, dtype=dtype, batch_size=batch_size, max_pixels=max_pixels, revision=revision)


def _dtype(dtype: str | torch.dtype | None, device: str) -> torch.dtype:
    if dtype is None:
        if not device.startswith("cuda"):
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype must name a torch dtype such as bfloat16 or float32, received {dtype!r}")
    return found


def _begun(conversation: Conversation) -> str:
    return conversation[-1].text if conversation[-1].role == "assistant" else ""


def _place(table: Any, readout: Readout, begun: str, text: str, tokens: list[int], error: str | None) -> tuple[int, bytes] | None:
    """Where the word starts among the generated tokens; None when the answer has no such place or it lies in the begun text."""
    if error is not None:
        return None
    offset = readout.locate(begun + text)
    if offset is None or offset < len(begun):
        return None
    return token_at(table, tokens, offset - len(begun))


def _finite(log_p: Mapping[str, float] | None) -> Mapping[str, float] | None:
    return None if log_p is None or any(math.isnan(value) for value in log_p.values()) else log_p
