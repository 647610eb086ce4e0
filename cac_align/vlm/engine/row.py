"""One answer while it is decoded: its prompt, the columns of its slot, and what it can share with
an earlier answer.

Prompt → Row (tokens and hidden states so far, the readout's place and tree) → Answer
prompts of similar length → groups that share a prefill
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cac_align.vlm.engine.spelling import SpellingTree
from cac_align.vlm.inputs import IMAGE, VIDEO
from cac_align.vlm.protocol import Readout

# Limit of tokens, padding included, in one prefill of several prompts; it bounds the memory.
PREFILL_TOKENS = 32768


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt that is ready for the model."""

    # As ``inputs.encode_one`` returns them.
    inputs: Mapping[str, torch.Tensor]
    # The objects that its pixels were made from, in order: equal objects mean equal pixels.
    frames: tuple[Any, ...]
    # Text of the message that is continued.
    prefix: str
    # Limit of new tokens.
    limit: int
    # The ``SchemaConstraint`` of its JSON, if any.
    constraint: Any = None
    readout: Readout | None = None
    # Tag of the prompt whose answer led to this one.
    after: Any = None
    # The caller's own mark.
    tag: Any = None

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1]


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt."""

    # Without the end token.
    tokens: tuple[int, ...]
    text: str
    # Whether the model wrote an end token; else the limit was reached.
    ended: bool
    # log P(word) of the readout's words; None without readout or place.
    log_p: Mapping[str, float] | None
    # Why there is no answer.
    error: str | None
    # Number of prompt tokens that were not computed again.
    reused: int = 0


@dataclass(eq=False)
class Row:
    """The answer that a slot is decoding."""

    prompt: Prompt
    # State of the JSON grammar, where there is one.
    matcher: Any
    # Number of columns that hold the prompt and the answer so far.
    length: int = 0
    # M-RoPE position of the answer's first token.
    next_position: int = 0
    # Number of prompt tokens that the slot held already.
    reused: int = 0
    tokens: list[int] = field(default_factory=list)
    # states[n] is the hidden state that predicts token n.
    states: list[torch.Tensor] = field(default_factory=list)
    ended: bool = False
    # Whether a token is being added; a failure meanwhile leaves the row inconsistent.
    updating: bool = False
    error: str | None = None
    # The readout's place: index of the answer token there, and the bytes of this token before the word.
    place: tuple[int, bytes] | None = None
    # Spellings of the readout's words at the place, and the hidden states known at the tree's nodes.
    tree: SpellingTree | None = None
    nodes: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether the answer itself is complete; its readout may still be open."""
        return self.ended or self.error is not None or len(self.tokens) >= self.prompt.limit

    @property
    def readout_tree(self) -> tuple[int, SpellingTree]:
        """Index of the answer token at the readout's place, and the tree there. Call it only when
        there is a tree.
        """
        assert self.place is not None and self.tree is not None
        return self.place[0], self.tree

    def missing_nodes(self) -> list[int]:
        """Tree nodes whose hidden states are not known yet."""
        return [] if self.tree is None else [node for node in range(1, len(self.tree.tokens)) if node not in self.nodes]


def common_tokens(row: Row, prompt: Prompt) -> int:
    """Number of a prompt's first tokens that a finished answer's slot holds; 0 when they belong to
    another video.

    Tokens are compared, not text: a text that the tokenizer splits differently ends the common
    part.
    """
    held = (row.prompt.inputs["input_ids"][0].tolist() + row.tokens)[: row.length]
    new = prompt.inputs["input_ids"][0].tolist()
    common = next((n for n, (a, b) in enumerate(zip(held, new, strict=False)) if a != b), min(len(held), len(new)))
    common = min(common, len(new) - 1)  # the last token must be computed, for its hidden state
    old_frames, old_types = row.prompt.frames, row.prompt.inputs["mm_token_type_ids"]
    same = len(prompt.frames) >= len(old_frames) and all(
        a is b for a, b in zip(old_frames, prompt.frames, strict=False)
    )
    whole = int((prompt.inputs["mm_token_type_ids"][0, :common] > 0).sum()) == int((old_types > 0).sum())
    return common if same and whole else 0


def group_for_prefill(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that share a prefill: of similar length, at most PREFILL_TOKENS together.

    Rows that reuse tokens are kept apart, because they need a mask.
    """
    grouped: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: (row.reused > 0, row.prompt.length - row.reused)):
        alike = grouped and (grouped[-1][0].reused > 0) == (row.reused > 0)
        if alike and (len(grouped[-1]) + 1) * (row.prompt.length - row.reused) <= PREFILL_TOKENS:
            grouped[-1].append(row)
        else:
            grouped.append([row])
    return grouped


def new_pixels(inputs: Mapping[str, torch.Tensor], reused: int, merge: int) -> dict[str, torch.Tensor]:
    """Patches and grids of the videos and images after the first ``reused`` tokens. merge: spatial
    merge size.
    """
    found = {}
    for kind, pixels, grid in (
        (VIDEO, "pixel_values_videos", "video_grid_thw"),
        (IMAGE, "pixel_values", "image_grid_thw"),
    ):
        if grid not in inputs:
            continue
        sizes = inputs[grid].prod(1).tolist()  # patches
        known = int((inputs["mm_token_type_ids"][0, :reused] == kind).sum()) * merge**2
        skip = 0
        while known > 0:
            known, skip = known - sizes[skip], skip + 1
        if skip < len(sizes):
            found[pixels], found[grid] = inputs[pixels][sum(sizes[:skip]) :], inputs[grid][skip:]
    return found
