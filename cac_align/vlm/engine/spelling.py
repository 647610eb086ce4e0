"""All the ways in which a tokenizer can spell a word, so that P(word) is the word's probability and
not a token's.

word → bytes → every segmentation into vocabulary tokens → SpellingTree (common prefixes once)
    → log P(word)

P(word | context) = Σ over spellings s of Π_j P(s_j | context, s_1 … s_{j-1}). In Qwen's byte-pair
table ``normal`` is one token, but ``abnormal`` after a quote is ``ab`` + ``normal``. Code that
looks for the token ``normal`` therefore reads P(normal) ≈ 1 on an abnormal verdict and inverts the
reward. So nothing here looks for a token; the model's log-probabilities are needed at the nodes of
the tree.

The last token of a spelling may go on after the word with something that is no letter or digit
(``normal",`` is the same word), but not with a longer word (``normally``).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

# First tokens that are rarer than this, relative to the word's most likely first token, are left out of the sum.
PRUNE_BELOW = 1e-7


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of a byte-level tokenizer as bytes."""

    # Bytes of each token id; None for special tokens and unused ids.
    of_id: tuple[bytes | None, ...]
    # All token ids with exactly these bytes.
    ids: Mapping[bytes, tuple[int, ...]]
    # The distinct byte strings, sorted.
    ordered: tuple[bytes, ...]
    # Ids of the special tokens by their text, which no message may contain.
    special: Mapping[str, int]

    def starting_with(self, prefix: bytes) -> Iterator[bytes]:
        """Token byte strings that begin with ``prefix`` (itself included), in order."""
        at = bisect_left(self.ordered, prefix)
        while at < len(self.ordered) and self.ordered[at].startswith(prefix):
            yield self.ordered[at]
            at += 1


_KNOWN: WeakKeyDictionary[Any, Vocabulary] = WeakKeyDictionary()


def vocabulary(tokenizer: Any) -> Vocabulary:
    """The tokenizer's tokens as bytes, computed once per tokenizer.

    Raises ``ValueError`` when it is not a byte-level tokenizer (all Qwen tokenizers are).
    """
    if tokenizer in _KNOWN:
        return _KNOWN[tokenizer]
    of_char = {char: byte for byte, char in enumerate(_byte_alphabet())}
    added = tokenizer.added_tokens_decoder
    size = max([*tokenizer.get_vocab().values(), *added]) + 1
    of_id: list[bytes | None] = [None] * size
    for token, index in tokenizer.get_vocab().items():
        if index in added:
            continue
        try:
            of_id[index] = bytes(of_char[char] for char in token)
        except KeyError as error:
            raise ValueError(
                f"expected a byte-level tokenizer (Qwen's kind), "
                f"but token {index} {token!r} of {type(tokenizer).__name__} holds "
                f"{error.args[0]!r}, which stands for no byte; use the checkpoint's own tokenizer"
            ) from None
    for index, token in added.items():
        if not token.special:
            of_id[index] = str(token).encode()
    ids: dict[bytes, tuple[int, ...]] = {}
    for index, piece in enumerate(of_id):
        if piece:
            ids[piece] = (*ids.get(piece, ()), index)
    special = {str(token): index for index, token in added.items() if token.special}
    _KNOWN[tokenizer] = found = Vocabulary(tuple(of_id), ids, tuple(sorted(ids)), special)
    return found


def spellings(tokenizer: Any, word: str) -> list[tuple[int, ...]]:
    """Every sequence of tokens whose bytes are exactly those of ``word``, the shortest first.

    Raises ``ValueError`` for an empty word or a tokenizer that is not byte-level.
    """
    table, target = vocabulary(tokenizer), _bytes_of(word)

    def from_(at: int) -> Iterator[tuple[int, ...]]:
        if at == len(target):
            yield ()
        for end in range(at + 1, len(target) + 1):
            for index in table.ids.get(target[at:end], ()):
                for rest in from_(end):
                    yield (index, *rest)

    return sorted(from_(0), key=lambda spelling: (len(spelling), spelling))


@dataclass(frozen=True)
class SpellingTree:
    """The spellings of several words as one tree. Node 0 is the place; node n is ``tokens[n]``
    after node ``parents[n]``.

    The words' probabilities follow from the model's next-token log-probabilities at every node.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    # Number of tokens from the place to each node, 0 for the root.
    depths: tuple[int, ...]
    # Per word the (node, token) pairs that complete it.
    closings: Mapping[str, tuple[tuple[int, int], ...]]

    def log_p(self, next_log_p: Callable[[int, Sequence[int]], Sequence[float]]) -> dict[str, float]:
        """Natural log of P(word) for every word.

        next_log_p(node, tokens)
            → log P(token | everything up to node) for these tokens. −inf where a word has
            probability 0.
        """
        asked: dict[int, dict[int, float]] = {node: {} for node in range(len(self.tokens))}
        for node, parent in enumerate(self.parents[1:], start=1):
            asked[parent][self.tokens[node]] = 0.0
        for pairs in self.closings.values():
            for node, token in pairs:
                asked[node][token] = 0.0
        for node, row in asked.items():
            tokens = list(row)
            asked[node] = dict(zip(tokens, next_log_p(node, tokens), strict=True)) if tokens else {}
        reach = [0.0]
        for node, parent in enumerate(self.parents[1:], start=1):
            reach.append(reach[parent] + asked[parent][self.tokens[node]])
        return {
            word: log_sum_exp([reach[node] + asked[node][token] for node, token in pairs])
            for word, pairs in self.closings.items()
        }


# Key in ``closings`` of the forced prefix inside a token (see ``spelling_tree``): P(the text goes on with these bytes).
COVER = ""


def spelling_tree(
    tokenizer: Any,
    words: Sequence[str],
    *,
    forced: bytes = b"",
    first_log_p: Callable[[Sequence[int]], Sequence[float]] | None = None,
) -> SpellingTree:
    """The tree of all spellings of ``words``.

    forced: bytes between the place and the words, when the place lies inside a token (token
        healing). Every spelling then spells ``forced + word``, and ``closings[COVER]`` has all
        tokens that begin with ``forced``, so that log P(word) = log_p[word] − log_p[COVER].
    first_log_p: log P(token) at the place, to drop first tokens below PRUNE_BELOW × the word's
        best. At most (number of first tokens) × PRUNE_BELOW of the word's own probability is lost
        by this.
    Raises ``ValueError`` for an empty word or a tokenizer that is not byte-level.
    """
    table = vocabulary(tokenizer)
    nodes: dict[tuple[int, ...], int] = {(): 0}
    tokens, parents, depths = [-1], [-1], [0]
    closings: dict[str, tuple[tuple[int, int], ...]] = {}

    def node_of(path: tuple[int, ...]) -> int:
        if path not in nodes:
            parent = node_of(path[:-1])
            nodes[path] = len(tokens)
            tokens.append(path[-1])
            parents.append(parent)
            depths.append(len(path))
        return nodes[path]

    targets = [(word, forced + _bytes_of(word), _closes_word) for word in words]
    if forced:
        targets.append((COVER, forced, _closes_anything))
    for word, target, closes in targets:
        ends = list(_endings(table, target, 0, (), closes))
        if first_log_p is not None:
            firsts = sorted({(*path, last)[0] for path, last in ends})
            log_p = dict(zip(firsts, first_log_p(firsts), strict=True))
            limit = max(log_p.values(), default=0.0) + math.log(PRUNE_BELOW)
            ends = [(path, last) for path, last in ends if log_p[(*path, last)[0]] >= limit]
        closings[word] = tuple((node_of(path), last) for path, last in ends)
    return SpellingTree(tuple(tokens), tuple(parents), tuple(depths), closings)


def _endings(
    table: Vocabulary, target: bytes, at: int, path: tuple[int, ...], closes: Callable[[bytes], bool]
) -> Iterator[tuple[tuple[int, ...], int]]:
    """All (tokens before the last, last token) that spell ``target[at:]``; the last may go on as
    ``closes`` allows.
    """
    rest = target[at:]
    for piece in table.starting_with(rest):
        if closes(piece[len(rest) :]):
            for index in table.ids[piece]:
                yield path, index
    for size in range(1, len(rest)):
        for index in table.ids.get(rest[:size], ()):
            yield from _endings(table, target, at + size, (*path, index), closes)


def _closes_word(tail: bytes) -> bool:
    """Whether a token may go on after the word with these bytes: not with a letter, a digit or a
    non-ASCII character.
    """
    return not tail or not (tail[:1].isalnum() or tail[0] >= 0x80)


def _closes_anything(tail: bytes) -> bool:
    return True


def log_sum_exp(values: Sequence[float]) -> float:
    """log Σ exp(v); −inf for none."""
    top = max(values, default=-math.inf)
    if math.isinf(top):
        return top
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


def text_and_ends(table: Vocabulary, tokens: Sequence[int]) -> tuple[str, list[int]]:
    """The text of generated tokens (invalid UTF-8 as U+FFFD, special tokens as nothing) and each
    token's end in bytes.
    """
    data, ends = bytearray(), []
    for token in tokens:
        data += (table.of_id[token] if token < len(table.of_id) else None) or b""
        ends.append(len(data))
    return bytes(data).decode("utf-8", errors="replace"), ends


def token_at(table: Vocabulary, tokens: Sequence[int], offset: int) -> tuple[int, bytes]:
    """Index of the token that contains a character of the text, and the token's bytes before this
    character.

    offset: character offset in ``text_and_ends(…)[0]``; the text's length gives (len(tokens), b"").
    Raises ``ValueError`` when the offset lies outside the text.
    """
    text, ends = text_and_ends(table, tokens)
    if not 0 <= offset <= len(text):
        raise ValueError(f"locate gave offset {offset}, but the text has {len(text)} characters")
    byte = _byte_offset(b"".join(table.of_id[token] or b"" for token in tokens if token < len(table.of_id)), offset)
    for index, end in enumerate(ends):
        if byte < end:
            return index, (table.of_id[tokens[index]] or b"")[: byte - (ends[index - 1] if index else 0)]
    return len(tokens), b""


def _byte_offset(data: bytes, offset: int) -> int:
    """Where character ``offset`` of ``data.decode(errors="replace")`` begins in ``data``."""
    at = 0
    while True:
        try:
            return at + len(data[at:].decode()[:offset].encode())
        except UnicodeDecodeError as error:
            valid = data[at : at + error.start].decode()
            if offset <= len(valid):
                return at + len(valid[:offset].encode())
            offset -= len(valid) + 1  # invalid bytes are one U+FFFD
            at += error.end


def _bytes_of(word: str) -> bytes:
    if not word:
        raise ValueError("expected a word to spell, received an empty string")
    return word.encode()


def _byte_alphabet() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte 0 … 255 (GPT-2's
    convention).
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
