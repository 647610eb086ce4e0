"""One Protocol for every vision-language model: conversations in, text out, and the probability of words at a point.

Message (frames with time stamps + text) → Conversation → Vlm.answer → Reply (text, log-probabilities, error)

Who reads a verdict needs P("normal") and P("abnormal") *at one place of the answer*, over whole words. A backend is told the
words and a function that finds the place in the text it wrote (``Readout``), and returns log P(word | everything before that place),
summed over all spellings its tokenizer has for the word; it never searches for a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from cac_align.core.video import Frames


@dataclass(frozen=True, eq=False)
class Message:
    """One message of a chat. ``frames`` come before ``text``, as a video with its time stamps (or as images, see ``as_images``)."""

    role: Literal["system", "user", "assistant"]
    text: str
    frames: Frames | None = None
    as_images: bool = False


CONTROL_TOKENS: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen's special tokens, in the order of its table. A model whose tokenizer is at hand is asked for its own."""


class ControlToken(ValueError):
    """A text that would be read as the chat's own structure."""


def refuse_control_tokens(message: Message, tokens: Iterable[str] = CONTROL_TOKENS) -> None:
    """Raise ``ControlToken`` for a message whose text holds one of these."""
    for token in tokens:
        if token in message.text:
            raise ControlToken(
                f"the {message.role}'s text contains the control token {token!r} at character {message.text.index(token)}; "
                "remove it, it would be read as the chat's own structure"
            )


Conversation = tuple[Message, ...]
"""Messages in order. The last one is the user's, or an assistant's message to be continued from where its text ends."""


@dataclass(frozen=True)
class Readout:
    """Ask for log P(word) at one place of the answer.

    words: the whole words whose probabilities are wanted, e.g. ("normal", "abnormal").
    locate: from the whole assistant message (a begun one, then what was written) to the character offset at which the word starts, or None when the answer has no such place.
        Must be picklable: a module-level function.
    """

    words: tuple[str, ...]
    locate: Callable[[str], int | None]


@dataclass(frozen=True)
class Reply:
    """What came back for one conversation. ``error`` says why there is no text; then ``text`` is empty.

    log_p: natural log of P(word) per word asked for (None when not asked, not found, or not given by the backend).
    truncated: the answer hit the token limit. num_prompt_tokens, num_tokens: for cost reports.
    """

    text: str
    log_p: Mapping[str, float] | None = None
    error: str | None = None
    truncated: bool = False
    num_prompt_tokens: int = 0
    num_tokens: int = 0


UNREACHABLE = "unreachable"
"""What a provenance says of a checkpoint that could not be asked for: it identifies nothing."""


def served(provenance: Mapping[str, str]) -> dict[str, str]:
    """The entries of a provenance, a reward's own or a combination's, that say which checkpoint a server runs."""
    return {name: value for name, value in provenance.items() if name.endswith("vlm/served")}


def unidentified(provenance: Mapping[str, str]) -> bool:
    """Whether a provenance speaks of a server that could not be asked which checkpoint it runs."""
    return UNREACHABLE in served(provenance).values()


def unknown_judge(before: Mapping[str, str], after: Mapping[str, str]) -> str | None:
    """Why the provenances read before and after a call do not tell who judged in between; None: they do."""
    if unidentified(before) or unidentified(after):
        return "the server could not be asked which checkpoint it runs, so nobody knows which one judged; score this video again"
    if dict(before) != dict(after):
        return "the server's checkpoint changed while it judged, so nobody knows which one did; score this video again"
    return None


@runtime_checkable
class Vlm(Protocol):
    """A vision-language model behind any backend. Thread-safe; a failed conversation never fails the others."""

    @property
    def provenance(self) -> Mapping[str, str]:
        """What identifies the answers: model id, revision or weight hash, dtype, prompt layout. Strings only."""
        ...

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        schema: Mapping[str, Any] | None = None,
        readout: Readout | None = None,
    ) -> list[Reply]:
        """Answer every conversation greedily, in order. ``schema`` constrains decoding to a JSON schema where it is given.

        Never raises for one conversation's failure: its Reply carries ``error``. Raises ``ValueError`` for a call that is wrong
        as a whole (no user message, empty words).
        """
        ...
