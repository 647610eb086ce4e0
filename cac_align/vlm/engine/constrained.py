"""Constrained decoding: llguidance masks the tokens that would leave a JSON schema.

JSON schema → grammar → one matcher per answer → mask over the vocabulary before each token → only
schema-valid text, then the end token

Constrain at inference only: in reinforcement learning a mask would make the sampled policy differ
from the scored one. The readout of Eq. 7 uses the unmasked distribution. Here these are the logits
before the mask. A server reports log-probabilities after it, so it is asked once more without the
schema (``server``; not in the "openai" dialect, where the schema is a hint and answers cannot be
continued). The reader validates every answer all the same. Numbers in the schema should be bounded
integers: an unbounded number may never end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int64
from transformers import LogitsProcessor

# Whitespace between JSON tokens: enough for indented JSON, too little to fill an answer with blanks.
WHITESPACE = r"[ \n]{0,8}"

_TOKENIZERS: WeakKeyDictionary[Any, dict[tuple[int, ...], Any]] = WeakKeyDictionary()


class SchemaConstraint:
    """The grammar of one schema over one tokenizer.

    ``start`` begins an answer, ``mask_`` forbids tokens, ``accept`` advances by a token. eos: ids
    of the end tokens, which are allowed exactly when the JSON is complete. Raises ``ValueError``
    for a schema that cannot be compiled.
    """

    def __init__(self, tokenizer: Any, schema: Mapping[str, Any], *, eos: Sequence[int]) -> None:
        from llguidance import LLMatcher

        self._tokenizer = tokenizer
        self.eos = tuple(eos)
        self._ll = _ll_tokenizer(tokenizer, self.eos)
        settings = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE, **schema.get("x-guidance", {})}
        self._grammar = LLMatcher.grammar_from_json_schema(json.dumps({**schema, "x-guidance": settings}))
        if fault := LLMatcher.validate_grammar(self._grammar, self._ll):
            raise ValueError(f"the JSON schema cannot be compiled into a grammar: {fault}")

    def start(self, prefix: str = "") -> Any:
        """A matcher at the start of an answer, or after ``prefix``.

        Raises ``ValueError`` when no JSON of this schema begins with ``prefix``.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(self._ll, self._grammar)
        tokens = self._tokenizer(prefix, add_special_tokens=False).input_ids if prefix else []
        if tokens and not matcher.consume_tokens(tokens):
            raise ValueError(
                f"the schema allows no answer that begins with {prefix[-80:]!r}; drop the schema or the prefix"
            )
        return matcher

    def mask_(self, logits: Float[torch.Tensor, "B V"], matchers: Sequence[Any | None]) -> None:
        """Set the logits of forbidden tokens to −inf, in place. Rows without matcher stay
        unchanged.
        """
        words = torch.zeros((len(matchers), -(-self._ll.vocab_size // 32)), dtype=torch.int32)
        for row, matcher in enumerate(matchers):
            if matcher is not None:
                matcher.unsafe_compute_mask_ptr(words[row].data_ptr(), words.shape[1] * 4)
        bits = words.to(logits.device)[:, :, None] >> torch.arange(32, dtype=torch.int32, device=logits.device)
        allowed = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        known = min(logits.shape[1], bits.shape[1] * 32)
        allowed[:, :known] = (bits & 1).bool().flatten(1)[:, :known]
        free = torch.tensor([matcher is None for matcher in matchers], device=logits.device)
        logits.masked_fill_(~(allowed | free[:, None]), -torch.inf)

    def accept(self, matcher: Any, token: int) -> None:
        """Advance by the chosen token. Raises ``ValueError`` if the token was forbidden."""
        if not matcher.consume_token(token):
            raise ValueError(f"token {token} is not allowed by the schema here: {matcher.get_error()}")


class SchemaLogitsProcessor(LogitsProcessor):
    """``SchemaConstraint`` for transformers' ``generate``: one instance per call, any batch size,
    greedy or sampled (no beams).
    """

    def __init__(self, constraint: SchemaConstraint, prompt_length: int) -> None:
        self._constraint, self._num_read = constraint, prompt_length
        self._matchers: list[Any] | None = None
        self._done: list[bool] = []

    def __call__(
        self, input_ids: Int64[torch.Tensor, "B L"], scores: Float[torch.Tensor, "B V"]
    ) -> Float[torch.Tensor, "B V"]:
        if self._matchers is None:
            self._matchers = [self._constraint.start() for _ in input_ids]
            self._done = [False] * len(input_ids)
        for column in range(self._num_read, input_ids.shape[1]):
            for row, token in enumerate(input_ids[:, column].tolist()):
                if token in self._constraint.eos:
                    self._done[row] = True  # the rest of the row is padding
                elif not self._done[row]:
                    self._constraint.accept(self._matchers[row], token)
        self._num_read = input_ids.shape[1]
        scores = scores.clone()
        self._constraint.mask_(
            scores, [None if done else matcher for matcher, done in zip(self._matchers, self._done, strict=True)]
        )
        return scores


def _ll_tokenizer(tokenizer: Any, eos: tuple[int, ...]) -> Any:
    """llguidance's form of the tokenizer, built once (one second for 150,000 tokens)."""
    import llguidance.hf

    tokenizers = _TOKENIZERS.setdefault(tokenizer, {})
    if eos not in tokenizers:
        tokenizers[eos] = llguidance.hf.from_tokenizer(tokenizer, eos_token=list(eos))
    return tokenizers[eos]
