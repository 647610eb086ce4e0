"""A Vlm that answers from a script, for tests, examples, and trying a pipeline without a model.

script (a function of the conversation, or answers in order) → ScriptedVlm
    → Reply with log-probabilities

It finds the readout's place in its own text exactly as a model backend does, so a script that
writes an unusable answer gets no probability, as a model would.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cac_align.vlm.protocol import Conversation, Readout, Reply


@dataclass
class ScriptedVlm:
    """Answers every conversation from ``script``."""

    # A function from a conversation to its text or Reply, or a sequence of answers that are used in order over all
    # calls. An exception that it raises becomes the conversation's error.
    script: Callable[[Conversation], str | Reply] | Sequence[str | Reply]
    # The model's name in the provenance.
    name: str = "scripted"
    # Pause per call in seconds.
    delay_s: float = 0.0
    # P of the word that the answer has at the readout's place, in (0, 1); the other words share the rest equally.
    confidence: float = 0.9
    # All conversations so far, in order, for tests.
    asked: list[Conversation] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie strictly between 0 and 1, received {self.confidence}")
        if isinstance(self.script, str):
            raise ValueError(
                "script must be a function or a sequence of answers, received one string; put it into a list"
            )
        self._lock = threading.Lock()
        self._next = 0

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def provenance(self) -> Mapping[str, str]:
        return {"model": self.name, "decoding": "scripted", "confidence": str(self.confidence)}

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        schema: Mapping[str, Any] | None = None,
        readout: Readout | None = None,
    ) -> list[Reply]:
        """The script's replies, in order (see ``Vlm.answer``); ``schema`` and ``max_new_tokens``
        are ignored.

        Raises ``ValueError`` when the readout asks for no word or an empty one.
        """
        if readout is not None and (not readout.words or not all(readout.words)):
            raise ValueError(f"readout needs at least one word and no empty ones, received {readout.words!r}")
        if self.delay_s:
            time.sleep(self.delay_s)
        return [self._reply(conversation, readout) for conversation in conversations]

    def _reply(self, conversation: Conversation, readout: Readout | None) -> Reply:
        if not any(message.role == "user" for message in conversation):
            return Reply("", error="could not be encoded: expected at least one user message")
        try:
            answer = self._next_answer(conversation)
        except Exception as error:  # like a failing model: one reply, not the batch
            return Reply("", error=f"{type(error).__name__}: {error}")
        if isinstance(answer, Reply):
            return answer
        prefix = conversation[-1].text if conversation[-1].role == "assistant" else ""
        log_p = None if readout is None else self._log_p(prefix, answer, readout)
        return Reply(
            answer,
            log_p=log_p,
            num_prompt_tokens=sum(len(m.text) for m in conversation) // 4,
            num_tokens=len(answer) // 4 + 1,
        )

    def _next_answer(self, conversation: Conversation) -> str | Reply:
        with self._lock:
            self.asked.append(conversation)
            number, self._next = self._next, self._next + 1
        if callable(self.script):
            return self.script(conversation)
        if number >= len(self.script):
            raise ValueError(
                f"the script has {len(self.script)} answers, but was asked {number + 1} times; add answers"
            )
        return self.script[number]

    def _log_p(self, prefix: str, answer: str, readout: Readout) -> Mapping[str, float] | None:
        place = readout.locate(prefix + answer)
        if place is None or place < len(prefix):
            return None
        written = [word for word in readout.words if (prefix + answer).startswith(word, place)]
        if not written:
            return None
        word = max(written, key=len)
        others = len(readout.words) - 1
        rest = math.log1p(-self.confidence) - math.log(others) if others else 0.0
        return {name: math.log(self.confidence) if name == word else rest for name in readout.words}
