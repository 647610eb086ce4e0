"""The Protocol of every vision-language model: conversations in; text and the probability of words
at a place out.

Message (frames with time stamps + text) → Conversation → Vlm.answer
    → Reply (text, log-probabilities, error)

To read a verdict one needs P("normal") and P("abnormal") at one place of the answer, over whole
words. A backend is given the words and a function that finds the place in the text it wrote
(``Readout``). It returns log P(word | everything before the place), summed over all spellings of
the word, and never searches for a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from cac_align.core.text import well_formed
from cac_align.core.video import Frames


@dataclass(frozen=True, eq=False)
class Message:
    """One message of a chat. ``frames`` come before ``text``: as a video with time stamps, or
    ``as_images``. captions: with ``as_images``, the text right before each frame, one per frame.
    """

    role: Literal["system", "user", "assistant"]
    text: str
    frames: Frames | None = None
    as_images: bool = False
    captions: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.captions is None:
            return
        count = len(self.frames) if self.frames is not None and self.as_images else 0
        if len(self.captions) != count:
            raise ValueError(f"received {len(self.captions)} captions for {count} images; expected one per image")


# Qwen's special tokens in the order of its table; a local model uses those of its own tokenizer.
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


class ControlToken(ValueError):
    """A message contains a control token, which the model would read as structure of the chat."""


def refuse_control_tokens(message: Message, tokens: Iterable[str] = CONTROL_TOKENS) -> None:
    """Raise ``ControlToken`` for a message whose text holds one of these."""
    texts = (message.text, *(message.captions or ()))
    for token in tokens:
        for text in texts:
            if token in text:
                raise ControlToken(
                    f"the {message.role}'s text contains the control token {token!r} at character {text.index(token)}; "
                    "remove it, because the model would read it as structure of the chat"
                )


# Messages in order. The last one is the user's, or an assistant's that is to be continued where its text ends.
Conversation = tuple[Message, ...]


@dataclass(frozen=True)
class Readout:
    """A request for log P(word) at one place of the answer."""

    # The whole words, e.g. ("normal", "abnormal").
    words: tuple[str, ...]
    # From the whole assistant message (a given beginning included) to the character offset at which the word starts;
    # None when there is no such place. Must be picklable: a function of a module.
    locate: Callable[[str], int | None]


@dataclass(frozen=True)
class Reply:
    """The answer to one conversation. ``error`` says why there is none; then ``text`` is empty."""

    text: str
    # Natural log of P(word) per word of the readout; None without readout, place or probabilities from the backend.
    log_p: Mapping[str, float] | None = None
    error: str | None = None
    # Whether the answer was cut off at the token limit.
    truncated: bool = False
    # For cost reports.
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    # The words of the readout for which ``log_p`` is only an upper bound.
    bounded: tuple[str, ...] = ()
    # Why ``log_p`` is None although the answer has the readout's place.
    readout_error: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.text, str):
            object.__setattr__(self, "text", well_formed(self.text))


# In a provenance: the server could not be asked which checkpoint it runs, so the provenance identifies nothing.
UNREACHABLE = "unreachable"


def served(provenance: Mapping[str, str]) -> dict[str, str]:
    """The entries of a provenance that say which checkpoint a server runs; of a combination, one
    per component.
    """
    return {name: value for name, value in provenance.items() if name.endswith("vlm/served")}


def unidentified(provenance: Mapping[str, str]) -> bool:
    """Whether the provenance is of a server that could not be asked which checkpoint it runs."""
    return UNREACHABLE in served(provenance).values()


def checkpoint_uncertainty(before: Mapping[str, str], after: Mapping[str, str]) -> str | None:
    """Why the provenances before and after a call leave open which checkpoint judged in between;
    None if they do not.
    """
    if unidentified(before) or unidentified(after):
        return (
            "the server did not say which checkpoint it runs, so it is unknown which one judged; score this video again"
        )
    if dict(before) != dict(after):
        return (
            "the server's checkpoint changed during the call, so it is unknown which one judged; score this video again"
        )
    return None


@runtime_checkable
class Vlm(Protocol):
    """A vision-language model behind any backend. Thread-safe; a failed conversation does not
    affect the others.
    """

    @property
    def provenance(self) -> Mapping[str, str]:
        """What identifies the answers: model id, revision or weight hash, dtype, prompt layout.
        Strings only.
        """
        ...

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        schema: Mapping[str, Any] | None = None,
        readout: Readout | None = None,
    ) -> list[Reply]:
        """Answer every conversation greedily, in order. schema: a JSON schema to which decoding is
        constrained.

        A conversation that fails has a Reply with ``error``. Raises ``ValueError`` for a call that
        is wrong as a whole, such as empty readout words.
        """
        ...
