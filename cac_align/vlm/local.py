"""A vision-language model in this process: transformers' Qwen3-VL through its own processor, batched and greedy.

conversations → encode_one each (a bad one fails alone) → batches of similar length → decode → text → word_log_p → Reply

The same conversation gives the same text; probabilities agree to rounding whatever else shares its batch. A batch that does not fit
into memory is halved. The inner loop (``greedy.decode``) knows batches and tensors only, so another engine can take its place.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cac_align.vlm.greedy import decode, word_log_p
from cac_align.vlm.inputs import check, collate, encode, encode_one, layout, pad_id
from cac_align.vlm.protocol import Conversation, Readout, Reply
from cac_align.vlm.spelling import text_and_ends, token_at, vocabulary

__all__ = ["LocalVlm", "check_torchvision", "encode", "encode_one", "set_threads"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Row:
    """One conversation ready for the model. begun: text of the message to be continued. length: prompt tokens. limit: new tokens."""

    inputs: Mapping[str, torch.Tensor]
    begun: str
    length: int
    limit: int


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
        self._constraints: dict[str, Any] = {}

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
        source = str(Path(path_or_id).resolve()) if Path(path_or_id).is_dir() else str(path_or_id)
        try:
            config = AutoConfig.from_pretrained(source, revision=revision)
            if config.model_type != "qwen3_vl":
                raise ValueError(f"{source}: expected a Qwen3-VL checkpoint (model_type qwen3_vl), found {config.model_type!r}")
            processor = AutoProcessor.from_pretrained(source, revision=revision)
            model, loading = Qwen3VLForConditionalGeneration.from_pretrained(
                source, revision=revision, dtype=kind, attn_implementation="sdpa", output_loading_info=True
            )
        except OSError as error:
            raise ValueError(f"{source}: could not be loaded as a folder or hub id of a Qwen3-VL: {error}") from error
        # transformers fills absent weights with random numbers and only warns; a judge with random weights must not score.
        if absent := sorted([*loading["missing_keys"], *map(str, loading["mismatched_keys"])]):
            raise ValueError(
                f"{source}: {len(absent)} weights are missing or have another shape, e.g. {absent[0]}; the checkpoint is broken"
            )
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
            raise TypeError(
                f"{self._name}: a LocalVlm around a model in memory cannot be pickled; save it and use LocalVlm.load(path)"
            )
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
            order = sorted(range(len(conversations)), key=lambda number: (_cost(conversations[number]), number))
            for at in range(0, len(order), self.batch_size):
                batch = []
                for number in order[at : at + self.batch_size]:
                    try:
                        batch.append((number, self._encode(conversations[number], max_new_tokens, constraint)))
                    except Exception as error:  # one conversation's failure is its own reply, whatever the processor raises
                        replies[number] = Reply("", error=f"could not be encoded: {error}")
                for number, reply in self._in_parts(batch, constraint, readout):
                    replies[number] = reply
            return replies

    def _encode(self, conversation: Conversation, max_new_tokens: int, constraint: Any) -> _Row:
        check(conversation)
        begun = conversation[-1].text if conversation[-1].role == "assistant" else ""
        if constraint:
            constraint.start(begun)
        inputs = encode_one(self.processor, conversation, max_pixels=self._max_pixels)
        length, room = inputs["input_ids"].shape[1], self._core.config.text_config.max_position_embeddings
        if length >= room:
            raise ValueError(f"the prompt has {length} tokens, but the model was made for {room}; show fewer or smaller frames")
        return _Row(inputs, begun, length, min(max_new_tokens, room - length))

    def _in_parts(
        self, batch: Sequence[tuple[int, _Row]], constraint: Any, readout: Readout | None
    ) -> Iterator[tuple[int, Reply]]:
        """Numbered replies for one batch; in halves where the whole fails, down to the one conversation whose failure it is."""
        if not batch:
            return
        numbers, rows = zip(*batch, strict=True)
        found, fault = self._try(rows, constraint, readout)
        if fault is None:
            yield from zip(numbers, found, strict=True)
        elif len(batch) == 1:
            yield numbers[0], Reply("", error=fault, num_prompt_tokens=rows[0].length)
        else:
            half = (len(batch) + 1) // 2
            log.warning("a batch of %d conversations failed, going on with batches of %d: %s", len(batch), half, fault)
            yield from self._in_parts(batch[:half], constraint, readout)
            yield from self._in_parts(batch[half:], constraint, readout)

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

    def _answer_batch(self, rows: Sequence[_Row], constraint: Any, readout: Readout | None) -> list[Reply]:
        tokenizer, core = self.processor.tokenizer, self._core
        batch = collate([row.inputs for row in rows], pad_id=pad_id(self.processor))
        decoded = decode(
            core,
            {key: value.to(core.device) for key, value in batch.items()},
            limits=[row.limit for row in rows],
            eos=self._eos,
            banned=self._banned,
            constraint=constraint,
            matchers=[constraint.start(row.begun) for row in rows] if constraint else (),
        )
        table = vocabulary(tokenizer)
        texts = [text_and_ends(table, tokens)[0] for tokens in decoded.tokens]
        log_p: Sequence[Mapping[str, float] | None] = [None] * len(texts)
        if readout is not None:
            answers = zip(rows, texts, decoded.tokens, decoded.errors, strict=True)
            places = [None if error else _place(table, readout, row.begun, text, tokens) for row, text, tokens, error in answers]
            log_p = word_log_p(core, tokenizer, decoded, places, readout.words)
        return [
            Reply(
                text="" if decoded.errors[number] else texts[number],
                log_p=None if decoded.errors[number] else _finite(log_p[number]),
                error=decoded.errors[number],
                truncated=not decoded.ended[number] and decoded.errors[number] is None,
                num_prompt_tokens=row.length,
                num_tokens=len(decoded.tokens[number]) + decoded.ended[number],
            )
            for number, row in enumerate(rows)
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
        key = json.dumps(schema)
        if key not in self._constraints:
            from cac_align.vlm.constrained import SchemaConstraint

            self._constraints[key] = SchemaConstraint(self.processor.tokenizer, schema, eos=self._eos)
        return self._constraints[key]


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


def _cost(conversation: Conversation) -> int:
    """Roughly how long the prompt will be: conversations of similar length share a batch."""
    return sum(len(message.text) + (math.prod(message.frames.shape) // 1024 if message.frames else 0) for message in conversation)


def _place(table: Any, readout: Readout, begun: str, text: str, tokens: list[int]) -> tuple[int, bytes] | None:
    """Where the word starts among the generated tokens; None when the answer has no such place or it lies in the begun text."""
    offset = readout.locate(begun + text)
    if offset is None or offset < len(begun):
        return None
    return token_at(table, tokens, offset - len(begun))


def _finite(log_p: Mapping[str, float] | None) -> Mapping[str, float] | None:
    return None if log_p is None or not all(math.isfinite(value) for value in log_p.values()) else log_p
