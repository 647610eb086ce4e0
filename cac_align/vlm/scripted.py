"""A Vlm that answers from a script: for tests, examples, and rehearsing a pipeline without a model.

script (a function of the conversation, or answers in order) → ScriptedVlm → Reply, with log-probabilities from a stated confidence

It locates the readout's place in its own text exactly as a model backend does, so a script that writes a broken answer gets no
probability, like a model would.
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
    """Answers every conversation from ``script``.

    script: called with each conversation, giving its text or a whole Reply; or a sequence of answers, used up in order over all calls.
        An exception it raises becomes that conversation's error.
    name: goes into the provenance. delay_s: pause per call, in seconds.
    confidence: P of the word that the answer writes at the readout's place, in (0, 1); the other words share the rest equally.
    """

    script: Callable[[Conversation], str | Reply] | Sequence[str | Reply]
    name: str = "scripted"
    delay_s: float = 0.0
    confidence: float = 0.9
    asked: list[Conversation] = field(default_factory=list, repr=False)
    """Every conversation so far, in order: what a test wants to look at."""

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
        """The script's replies, in order (see ``Vlm.answer``). ``schema`` and ``max_new_tokens`` do not bind a script.

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
            said = self._say(conversation)
        except Exception as error:  # a script that fails stands for a model that fails: one reply, not the batch
            return Reply("", error=f"{type(error).__name__}: {error}")
        if isinstance(said, Reply):
            return said
        begun = conversation[-1].text if conversation[-1].role == "assistant" else ""
        log_p = None if readout is None else self._log_p(begun, said, readout)
        return Reply(
            said,
            log_p=log_p,
            num_prompt_tokens=sum(len(m.text) for m in conversation) // 4,
            num_tokens=len(said) // 4 + 1,
        )

    def _say(self, conversation: Conversation) -> str | Reply:
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

    def _log_p(self, begun: str, said: str, readout: Readout) -> Mapping[str, float] | None:
        at = readout.locate(begun + said)
        if at is None or at < len(begun):
            return None
        written = [word for word in readout.words if (begun + said).startswith(word, at)]
        if not written:
            return None
        word = max(written, key=len)
        others = len(readout.words) - 1
        rest = math.log1p(-self.confidence) - math.log(others) if others else 0.0
        return {name: math.log(self.confidence) if name == word else rest for name in readout.words}
