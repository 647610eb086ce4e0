"""A vision-language model in this process: transformers' Qwen3-VL, many answers at once, decoded
greedily.

dialogues → questions → encode_each (a bad one fails alone) → Engine (slots, refilled at once)
    → Reply → next question

A conversation gives the same text, and probabilities that agree to rounding, whatever is decoded
beside it. When memory runs out, fewer answers are decoded at a time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cac_align.runs.device import pick_device
from cac_align.vlm.checkpoint_hash import hash_files
from cac_align.vlm.dialogue import Dialogue, DialogueQueue, Question, run_dialogues
from cac_align.vlm.engine.engine import Engine
from cac_align.vlm.engine.row import Answer, Prompt
from cac_align.vlm.engine.spelling import vocabulary
from cac_align.vlm.inputs import encode, encode_each, encode_one, video_layout
from cac_align.vlm.loading import check_torchvision, hash_weights, load_model, usable_dtype
from cac_align.vlm.protocol import Conversation, Readout, Reply

__all__ = ["LocalVlm", "check_torchvision", "encode", "encode_one", "set_threads"]


class LocalVlm:
    """Qwen3-VL of any size behind the ``Vlm`` protocol. Use ``LocalVlm.load``, or wrap a model that
    is in memory.

    model: ``Qwen3VLForConditionalGeneration``, or a PEFT model around one. processor: its
    ``Qwen3VLProcessor``. name: the model's name in provenances. batch_size: number of answers
    decoded together. max_pixels: limit over all frames of one video instead of the checkpoint's
    own. weights_hash: identity of the weights; None computes it from them.
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
        attention: str = "sdpa",
    ) -> LocalVlm:
        """Load a folder or a hub id.

        device: None for "cuda" where there is one, else "cpu". dtype: None for bfloat16 on a GPU
        that has it, float16 on older ones, float32 on the CPU. attention: of the vision encoder,
        e.g. "flash_attention_2". A dtype or attention that the device lacks is replaced with a
        warning; the provenance names what is used. Raises ``ValueError`` when there is no such
        device, torchvision does not fit torch, or the checkpoint is not a Qwen3-VL.
        """
        device = str(pick_device(device))
        kind = usable_dtype(dtype, device)
        source = str(Path(path_or_id).resolve()) if Path(path_or_id).is_dir() else str(path_or_id)
        model, processor = load_model(source, device=device, dtype=kind, revision=revision, attention=attention)
        commit = getattr(model.config, "_commit_hash", None) or revision
        digest = hash_files(Path(source)) if Path(source).is_dir() else (commit or "unknown")
        name = Path(source).resolve().name if Path(source).is_dir() else source
        vlm = cls(
            model,
            processor,
            name=name,
            batch_size=batch_size,
            max_pixels=max_pixels,
            weights_hash=digest,
            revision=commit,
        )
        vlm._reload = (source, device, str(kind).removeprefix("torch."), batch_size, max_pixels, revision, attention)
        return vlm

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reload is None:
            raise TypeError(
                f"{self._name}: a LocalVlm around a model in memory cannot be pickled; "
                "save it and use LocalVlm.load(path)"
            )
        return (_load_again, self._reload)

    @property
    def provenance(self) -> Mapping[str, str]:
        """Model, weights, dtype, and how a video is written into the prompt. Scores of two layouts
        must not be mixed.
        """
        return self._provenance

    @functools.cached_property
    def _provenance(self) -> Mapping[str, str]:
        provenance = {
            "model": self._name,
            "weights": self._weights_hash or hash_weights(self.model),
            "dtype": str(self._core.dtype).removeprefix("torch."),
            "layout": video_layout(self.processor),
            "decoding": "greedy",
            "template": hashlib.sha256(str(self.processor.chat_template).encode()).hexdigest()[:16],
        }
        if self._revision:
            provenance["revision"] = self._revision
        if (kind := self._core.config.vision_config._attn_implementation) not in (None, "sdpa"):
            provenance["vision_attention"] = kind
        if self._core.device.type != "cpu":
            provenance["preprocessing"] = self._core.device.type  # resizing rounds differently on a GPU
        if self._max_pixels:
            provenance["max_pixels"] = str(self._max_pixels)
        return provenance

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        schema: Mapping[str, Any] | None = None,
        readout: Readout | None = None,
    ) -> list[Reply]:
        """Answer every conversation greedily, in order (see ``Vlm.answer``).

        A last assistant message is continued: ``Reply.text`` is the new text only, while
        ``readout.locate`` gets the whole message. With max_new_tokens=0 only the readout is taken.
        Raises ``ValueError`` for negative max_new_tokens, an empty word, or a schema that cannot be
        compiled.
        """
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must not be negative, received {max_new_tokens}")
        if readout is not None and (not readout.words or not all(readout.words)):
            raise ValueError(f"readout needs at least one word and no empty ones, received {readout.words!r}")
        self._constraint(schema)  # raises for a schema that cannot be compiled
        questions = [Question(conversation, max_new_tokens, schema, readout) for conversation in conversations]
        return run_dialogues(self, [_one_question(question) for question in questions])

    def run_dialogues(self, dialogues: Sequence[Dialogue[Any]], done: Callable[[int, Any], None]) -> None:
        """Run many dialogues at once, ``batch_size`` answers at a time; ``done(number, result)`` as
        each ends.

        A dialogue's next question starts as soon as a slot is free and reuses the keys and values
        that its prompt shares with the question before. Raises whatever a dialogue raises.
        """
        with self._lock:
            queue = DialogueQueue(dialogues, done)
            engine = Engine(
                self._core, self.processor.tokenizer, slots=self.batch_size, eos=self._eos, banned=self._banned
            )

            def take(count: int) -> list[Prompt]:
                prompts: list[Prompt] = []
                while len(prompts) < count and (items := queue.take(count - len(prompts))):
                    for item, prompt in zip(items, self._encode([item.question for item in items]), strict=True):
                        if isinstance(prompt, Exception):
                            queue.deliver(item, Reply("", error=f"could not be encoded: {prompt}"))
                        else:
                            prompts.append(replace(prompt, tag=item, after=item.after))
                return prompts

            def finish(prompt: Prompt, answer: Answer) -> None:
                queue.deliver(prompt.tag, _reply(prompt, answer))

            engine.run(take, finish)

    def _encode(self, questions: Sequence[Question]) -> list[Prompt | Exception]:
        """Each question's prompt, or the exception that it failed with."""
        device = self._core.device if self._core.device.type == "cuda" else None
        conversations = [question.conversation for question in questions]
        rows = encode_each(self.processor, conversations, max_pixels=self._max_pixels, device=device)
        prompts: list[Prompt | Exception] = []
        for question, row in zip(questions, rows, strict=True):
            try:
                prompts.append(row if isinstance(row, Exception) else self._prompt(question, row))
            except ValueError as error:
                prompts.append(error)
        return prompts

    def _prompt(self, question: Question, inputs: Mapping[str, torch.Tensor]) -> Prompt:
        conversation = question.conversation
        prefix = conversation[-1].text if conversation[-1].role == "assistant" else ""
        constraint = self._constraint(question.schema)
        if constraint:
            constraint.start(prefix)
        length, room = inputs["input_ids"].shape[1], self._core.config.text_config.max_position_embeddings
        if length >= room:
            raise ValueError(
                f"the prompt has {length} tokens, but the model takes at most {room}; show fewer or smaller frames"
            )
        frames = tuple(message.frames for message in conversation if message.frames is not None)
        return Prompt(inputs, frames, prefix, min(question.max_new_tokens, room - length), constraint, question.readout)

    @property
    def _core(self) -> Any:
        """The Qwen3-VL itself, also inside a PEFT wrapper, whose adapters sit in the layers and
        still apply.
        """
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @functools.cached_property
    def _eos(self) -> tuple[int, ...]:
        configured = self._core.generation_config.eos_token_id
        configured = configured if isinstance(configured, list) else [] if configured is None else [configured]
        end = self.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
        return tuple(dict.fromkeys([*([] if end is None else [end]), *configured]))

    @functools.cached_property
    def _banned(self) -> torch.Tensor:
        """Mask of the tokens that are never written: special tokens except the end tokens, and ids
        without text.
        """
        size = self._core.lm_head.weight.shape[0]
        banned = torch.ones(size, dtype=torch.bool)
        known = [
            index for index, piece in enumerate(vocabulary(self.processor.tokenizer).of_id[:size]) if piece is not None
        ]
        banned[[*known, *self._eos]] = False
        return banned.to(self._core.device)

    def _constraint(self, schema: Mapping[str, Any] | None) -> Any:
        if schema is None:
            return None
        key = json.dumps(schema)
        if key not in self._constraints:
            from cac_align.vlm.engine.constrained import SchemaConstraint

            self._constraints[key] = SchemaConstraint(self.processor.tokenizer, schema, eos=self._eos)
        return self._constraints[key]


def _one_question(question: Question) -> Dialogue[Reply]:
    (reply,) = yield [question]
    return reply


def _reply(prompt: Prompt, answer: Answer) -> Reply:
    failed = answer.error is not None
    return Reply(
        text="" if failed else answer.text,
        log_p=None if failed else _finite(answer.log_p),
        error=answer.error,
        truncated=not answer.ended and not failed,
        num_prompt_tokens=prompt.length,
        num_tokens=len(answer.tokens) + answer.ended,
    )


def set_threads(count: int) -> None:
    """Use ``count`` CPU threads for torch. On shared cores one is often several times faster than
    two.
    """
    torch.set_num_threads(count)


def _load_again(source: str, device: str, *others: Any) -> LocalVlm:
    if device.startswith("cuda") and not torch.cuda.is_available():
        device = "cpu"
    dtype, batch_size, max_pixels, revision, attention = others
    return LocalVlm.load(
        source,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        max_pixels=max_pixels,
        revision=revision,
        attention=attention,
    )


def _finite(log_p: Mapping[str, float] | None) -> Mapping[str, float] | None:
    return None if log_p is None or not all(math.isfinite(value) for value in log_p.values()) else log_p
