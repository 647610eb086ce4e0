"""Which tokens can begin a word, asked of the server's own tokenizer or of a local copy.

words → first_tokens → text by token id → the ids that ``logprob_token_ids`` names

For "normal" these are "n", "no", …, "normal" and the word with a quote after it, as far as the
tokenizer has them as single tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

# vLLM takes so many ids per request.
MAX_TOKEN_IDS = 128
# What may follow a word inside the token that completes it, for tokenizers whose table cannot be searched.
_CLOSINGS = ("", '"', '",', '"}', '"\n', '",\n')


def first_tokens(words: Iterable[str], tokenize: Callable[[str], list[int]]) -> dict[int, str]:
    """Text by id of the single tokens that begin or complete one of the words. ``tokenize``: text → token ids."""
    texts = [word[:end] for word in words for end in range(1, len(word))]
    texts += [word + closing for word in words for closing in _CLOSINGS]
    found: dict[int, str] = {}
    for text in dict.fromkeys(texts):
        ids = tokenize(text)
        if len(ids) == 1:
            found[ids[0]] = text
    return dict(list(found.items())[:MAX_TOKEN_IDS])


def first_tokens_of_table(words: Iterable[str], path: str) -> dict[int, str]:
    """As ``first_tokens``, from the whole table of the tokenizer in a folder or hub repository."""
    from cac_align.vlm.engine.spelling import vocabulary

    table = vocabulary(_load(path))
    found: dict[int, str] = {}
    for word in words:
        target = word.encode()
        pieces = [target[:end] for end in range(1, len(target))]
        for piece in table.starting_with(target):
            tail = piece[len(target) :]
            if not tail or not (tail[:1].isalnum() or tail[0] >= 0x80):
                pieces.append(piece)
        for piece in pieces:
            found |= {index: piece.decode("utf-8", "replace") for index in table.ids.get(piece, ())}
    return dict(sorted(found.items(), key=lambda item: len(item[1]))[:MAX_TOKEN_IDS])


@lru_cache(maxsize=4)
def _load(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def token_ids(response: Any) -> list[int]:
    """The ids in the JSON that ``/tokenize`` answers. Raises ``ValueError`` for anything else."""
    tokens = response.get("tokens") if isinstance(response, Mapping) else None
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise ValueError("no list of token ids")
    return tokens
