"""All the ways a tokenizer can spell a word, so that P(word) is a probability of the word and not of one token.

word → bytes → every segmentation into vocabulary tokens → SpellingTree (shared prefixes once) → log P(word)

P(word | context) = Σ over spellings s of Π_j P(s_j | context, s_1 … s_{j-1}). In Qwen's byte-pair table ``normal`` is one token but
``abnormal`` after a quote is ``ab`` + ``normal``: whoever looks for the token ``normal`` reads P(normal) ≈ 1 on an abnormal verdict
and inverts the reward (DESIGN §4.2). So nothing here looks for a token; a model's log-probabilities are asked at the tree's nodes.

A spelling may close with a token that holds the word's rest and then something that is no letter or digit (``normal",``): it is the
same word. It may not close with a longer word (``normally``).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

PRUNE_BELOW = 1e-7
"""First pieces rarer than this, relative to the word's most likely first piece, are left out of the sum."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The ordinary tokens of a byte-level tokenizer as bytes. ``of_id[i]`` is None for special tokens (and holes).

    ids: all token ids with exactly these bytes. ordered: the distinct byte strings, sorted.
    special: text of the special tokens, which no message may contain.
    """

    of_id: tuple[bytes | None, ...]
    ids: Mapping[bytes, tuple[int, ...]]
    ordered: tuple[bytes, ...]
    special: Mapping[str, int]

    def starting_with(self, prefix: bytes) -> Iterator[bytes]:
        """Token byte strings that begin with ``prefix`` (itself included), in order."""
        at = bisect_left(self.ordered, prefix)
        while at < len(self.ordered) and self.ordered[at].startswith(prefix):
            yield self.ordered[at]
            at += 1


_KNOWN: WeakKeyDictionary[Any, Vocabulary] = WeakKeyDictionary()


def vocabulary(tokenizer: Any) -> Vocabulary:
    """The tokenizer's tokens as bytes (computed once per tokenizer).

    Raises ``ValueError`` when it is not a byte-level tokenizer (all Qwen tokenizers are): then bytes cannot be told.
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
                f"expected a byte-level tokenizer (Qwen's kind), but token {index} {token!r} of {type(tokenizer).__name__} holds "
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
    """The spellings of several words as one tree. Node 0 is the place itself; node n is ``tokens[n]`` after node ``parents[n]``.

    depths[n]: tokens from the place to node n (0 for the root). closings[w]: (node, token) pairs, each of which completes word w.
    The words' probabilities need the model's next-token log-probabilities at every node, nothing more.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    closings: Mapping[str, tuple[tuple[int, int], ...]]

    def log_p(self, next_log_p: Callable[[int, Sequence[int]], Sequence[float]]) -> dict[str, float]:
        """Natural log of P(word) for every word.

        next_log_p(node, tokens) → log P(token | everything up to node) for these tokens. −inf where a word has probability 0.
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


COVER = ""
"""Key in ``closings`` of the forced in-token prefix (see ``spelling_tree``): P(the text goes on with these bytes)."""


def spelling_tree(
    tokenizer: Any,
    words: Sequence[str],
    *,
    forced: bytes = b"",
    first_log_p: Callable[[Sequence[int]], Sequence[float]] | None = None,
) -> SpellingTree:
    """The tree of all spellings of ``words``, pruned by the model's first-token probabilities where they are given.

    forced: bytes that stand between the place and the words because the place lies inside a token (token healing): every spelling
        then spells ``forced + word``, and ``closings[COVER]`` collects all tokens that cover ``forced``, so that
        log P(word) = log_p[word] − log_p[COVER].
    first_log_p: log P(token) at the place; first pieces below PRUNE_BELOW × the word's best are dropped. At most
        (number of pieces) × PRUNE_BELOW of the word's own probability can get lost that way.
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
    """All (tokens before the last, last token) that spell ``target[at:]``, where the last token may run on as ``closes`` permits."""
    rest = target[at:]
    for piece in table.starting_with(rest):
        if closes(piece[len(rest) :]):
            for index in table.ids[piece]:
                yield path, index
    for size in range(1, len(rest)):
        for index in table.ids.get(rest[:size], ()):
            yield from _endings(table, target, at + size, (*path, index), closes)


def _closes_word(tail: bytes) -> bool:
    """A token may run on past the word only with something that is no letter, digit or part of a longer character."""
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
    """The text of generated tokens (invalid UTF-8 shown as U+FFFD, special tokens as nothing) and each token's end in bytes."""
    data, ends = bytearray(), []
    for token in tokens:
        data += (table.of_id[token] if token < len(table.of_id) else None) or b""
        ends.append(len(data))
    return bytes(data).decode("utf-8", errors="replace"), ends


def token_at(table: Vocabulary, tokens: Sequence[int], offset: int) -> tuple[int, bytes]:
    """Which token starts at (or contains) a character of the text: (its index, the bytes of it that stand before the character).

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
            offset -= len(valid) + 1  # the broken bytes are shown as one U+FFFD
            at += error.end


def _bytes_of(word: str) -> bytes:
    if not word:
        raise ValueError("expected a word to spell, received an empty string")
    return word.encode()


def _byte_alphabet() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte 0 … 255 (GPT-2's convention)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
