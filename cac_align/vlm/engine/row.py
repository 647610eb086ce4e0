"""One answer in the making: the prompt it answers, the slot's columns it fills, and how its beginning may be shared.

Prompt → Row (tokens and states so far, the readout's place and tree) → Answer;  prompts of similar length share a prefill
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cac_align.vlm.engine.spelling import SpellingTree
from cac_align.vlm.inputs import IMAGE, VIDEO
from cac_align.vlm.protocol import Readout

PREFILL_TOKENS = 32768
"""At most so many tokens (padding included) in one prefill of several prompts: bounds its memory."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt ready for the model.

    inputs: as ``inputs.encode_one`` gives them. seen: what its pixels were made from, in order, to tell the same video from another.
    begun: text of the message that is continued. limit: new tokens at most. constraint: of its JSON, if any. after: the prompt whose
    answer led to this one. tag: the caller's own.
    """

    inputs: Mapping[str, torch.Tensor]
    seen: tuple[Any, ...]
    begun: str
    limit: int
    constraint: Any = None
    readout: Readout | None = None
    after: Any = None
    tag: Any = None

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1]


@dataclass(frozen=True)
class Answer:
    """What came of one prompt. tokens: the end token excluded. reused: prompt tokens that were not computed again."""

    tokens: tuple[int, ...]
    text: str
    ended: bool
    log_p: Mapping[str, float] | None
    error: str | None
    reused: int = 0


@dataclass(eq=False)
class Row:
    """One slot at work. length: columns that hold the prompt and the answer so far. next_position: M-RoPE of the answer's token 0.

    torn: its next token is being put down; a failure meanwhile leaves it of no use.
    """

    prompt: Prompt
    matcher: Any
    length: int = 0
    next_position: int = 0
    reused: int = 0
    tokens: list[int] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)  # states[n] predicts token n
    ended: bool = False
    torn: bool = False
    error: str | None = None
    place: tuple[int, bytes] | None = None
    tree: SpellingTree | None = None
    nodes: dict[int, torch.Tensor] = field(default_factory=dict)  # tree node → hidden state there

    @property
    def written(self) -> bool:
        """The answer itself is complete (its readout may still be open)."""
        return self.ended or self.error is not None or len(self.tokens) >= self.prompt.limit

    def missing(self) -> list[int]:
        """Tree nodes whose states are not known yet."""
        return [] if self.tree is None else [node for node in range(1, len(self.tree.tokens)) if node not in self.nodes]


def common_tokens(row: Row, prompt: Prompt) -> int:
    """How many of a prompt's first tokens are those that a finished answer's slot holds; 0 where they show another video.

    Only what was really written counts: text that the tokenizer would cut otherwise ends the common part.
    """
    held = (row.prompt.inputs["input_ids"][0].tolist() + row.tokens)[: row.length]
    new = prompt.inputs["input_ids"][0].tolist()
    common = next((n for n, (a, b) in enumerate(zip(held, new, strict=False)) if a != b), min(len(held), len(new)))
    common = min(common, len(new) - 1)  # the last token's state is needed
    old_seen, old_types = row.prompt.seen, row.prompt.inputs["mm_token_type_ids"]
    same = len(prompt.seen) >= len(old_seen) and all(a is b for a, b in zip(old_seen, prompt.seen, strict=False))
    whole = int((prompt.inputs["mm_token_type_ids"][0, :common] > 0).sum()) == int((old_types > 0).sum())
    return common if same and whole else 0


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that share a prefill: of similar length, continued ones apart (they need a mask), at most PREFILL_TOKENS together."""
    found: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: (row.reused > 0, row.prompt.length - row.reused)):
        alike = found and (found[-1][0].reused > 0) == (row.reused > 0)
        if alike and (len(found[-1]) + 1) * (row.prompt.length - row.reused) <= PREFILL_TOKENS:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def new_pixels(inputs: Mapping[str, torch.Tensor], reused: int, merge: int) -> dict[str, torch.Tensor]:
    """Patches and grids of the videos and images that stand behind the first ``reused`` tokens."""
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
