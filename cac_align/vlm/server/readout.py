"""The probability of whole words at one place of an answer, from the log-probabilities that a server sends along.

top-20 per token → token at the place (by bytes) → log P(word) = log Σ over first pieces, followed along the answer itself

A word may be spelled in several pieces (Qwen: ``abnormal`` = ``ab`` + ``normal``), so nothing here searches for a token: the place is
a byte offset, and an entry counts for a word when its text begins the word. Where the answer goes on with that piece, the rest of
the word is read at the next token, so the product is exact. Where the answer went another way, nothing is known about the rest
and the first piece counts in full: an upper bound, tight for words as distinctive as these.
A word with no piece among the likeliest k is not impossible, only rarer than the k-th: it gets that probability, an upper bound too.
No reading at all is better than a turned one: where no word is among them (two equal bounds would pose as 0.5), where the bound
lies above what was found, or where one piece begins several of the words, ``Uncovered`` is raised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_IMPOSSIBLE = -1000.0
"""vLLM writes -9999 for a token that was masked out: not a probability."""

_NEGLIGIBLE = math.log(1e-4)


class Uncovered(Exception):
    """These log-probabilities do not give the words' probabilities. ``ask_again``: a request that ends at the place might."""

    def __init__(self, why: str, *, ask_again: bool) -> None:
        super().__init__(why)
        self.ask_again = ask_again


@dataclass(frozen=True)
class _Step:
    """One token of the answer: its bytes, and log P of the alternatives at its place by their bytes (the token itself included)."""

    chosen: bytes
    log_p: Mapping[bytes, float]
    floor: float | None


def read_words(
    logprobs: Any, text: str, place: int, words: Sequence[str], pieces: Mapping[int, str] | None = None
) -> dict[str, float]:
    """log P(word) for every word at character ``place`` of ``text``, in nats, at most 0.

    logprobs: the choice's field of that name, None where the server sent none. pieces: text by token id, when just these tokens
    were asked for instead of the likeliest; a missing word then has no bound.
    Raises ``Uncovered`` when they cannot be read from it.
    """
    steps = _steps(logprobs, pieces)
    position = _step_at(steps, text, place)
    _check_told_apart(steps, position, words)
    found: dict[str, float] = {}
    for word in words:
        log_p = _log_p(steps, position, word.encode())
        if log_p is not None:
            found[word] = log_p
    if not found:
        likeliest = max(steps[position].log_p.items(), key=lambda item: item[1])[0].decode("utf-8", "replace")
        raise Uncovered(f"none of {tuple(words)} is likely there; the likeliest is {likeliest!r}", ask_again=False)
    floor, bounded = steps[position].floor, {}
    for word in words:
        if word not in found:
            if floor is None:
                raise Uncovered(f"no alternative to {next(iter(found))!r} was reported", ask_again=True)
            if floor > max(found.values()):
                raise Uncovered(f"{tuple(words)} are both too unlikely there to be told apart", ask_again=False)
            bounded[word] = floor
    return {word: min((found | bounded)[word], 0.0) for word in words}


def _steps(logprobs: Any, pieces: Mapping[int, str] | None) -> list[_Step]:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content:
        raise Uncovered("the server sent no log-probabilities", ask_again=True)
    steps = []
    for item in content:
        if not isinstance(item, dict):
            raise Uncovered("the server's log-probabilities have an unknown form", ask_again=True)
        chosen = _bytes(item, pieces)
        others: dict[bytes, float] = {}
        for entry in item.get("top_logprobs") or ():
            if isinstance(entry, dict) and _usable(entry.get("logprob")):
                spelled = _bytes(entry, pieces)
                # Two ids may share a text (an ordinary and an added token): their probabilities add up.
                others[spelled] = (
                    _log_add(others[spelled], entry["logprob"]) if spelled in others else float(entry["logprob"])
                )
        # The token that was written may stand outside the likeliest (constrained decoding): no bound may rest on it.
        ranked = [value for spelled, value in others.items() if spelled != chosen]
        floor = min(ranked) if ranked and pieces is None else None
        if _usable(item.get("logprob")):
            others.setdefault(chosen, float(item["logprob"]))
        steps.append(_Step(chosen, others, floor))
    return steps


def _usable(log_p: object) -> bool:
    return (
        isinstance(log_p, (int, float)) and not isinstance(log_p, bool) and math.isfinite(log_p) and log_p > _IMPOSSIBLE
    )


def _bytes(entry: Mapping[str, Any], pieces: Mapping[int, str] | None) -> bytes:
    raw, token = entry.get("bytes"), entry.get("token")
    if isinstance(token, str) and token.startswith("token_id:"):  # vLLM with return_tokens_as_token_ids
        number = token.removeprefix("token_id:")
        if number.isdecimal() and int(number) in (pieces or {}):
            return pieces[int(number)].encode()
    if isinstance(raw, list) and all(isinstance(value, int) and 0 <= value < 256 for value in raw):
        return bytes(raw)
    return token.encode("utf-8", "replace") if isinstance(token, str) else b""


def _step_at(steps: Sequence[_Step], text: str, place: int) -> int:
    """Which token begins at the place. The answer may be part of what was generated only (reasoning is cut off in front)."""
    stream = b"".join(step.chosen for step in steps)
    answer = text.encode("utf-8", "replace")
    start = 0 if stream.startswith(answer) else stream.rfind(answer)
    if start < 0:
        raise Uncovered("the tokens do not spell the answer", ask_again=True)
    wanted = start + len(text[:place].encode("utf-8", "replace"))
    offset = 0
    for position, step in enumerate(steps):
        if offset == wanted and step.chosen and step.log_p:
            return position
        if offset > wanted:
            break
        offset += len(step.chosen)
    raise Uncovered("no token begins at the place", ask_again=True)


def _check_told_apart(steps: Sequence[_Step], position: int, words: Sequence[str]) -> None:
    """Refuse a place where a likely piece begins several words and the answer does not show how it goes on."""
    step = steps[position]
    for piece, log_p in step.log_p.items():
        begun = [word for word in words if piece and word.encode().startswith(piece)]
        followed = piece == step.chosen and position + 1 < len(steps)
        if len(begun) > 1 and log_p > _NEGLIGIBLE and not followed:
            raise Uncovered(
                f"the piece {piece.decode('utf-8', 'replace')!r} begins {' and '.join(begun)}", ask_again=False
            )


def _log_p(steps: Sequence[_Step], position: int, rest: bytes) -> float | None:
    """log P(the answer goes on with ``rest`` from this token on); None when no alternative there begins it."""
    step = steps[position]
    total: float | None = None
    for piece, log_p in step.log_p.items():
        if not piece:
            continue
        if piece.startswith(rest):
            if piece[len(rest) : len(rest) + 1].isalnum():
                continue  # "normally" is another word
        elif rest.startswith(piece):
            if piece == step.chosen and position + 1 < len(steps) and steps[position + 1].log_p:
                following = _log_p(steps, position + 1, rest[len(piece) :])
                if following is None:
                    following = steps[position + 1].floor
                log_p += following if following is not None else 0.0
        else:
            continue
        total = log_p if total is None else _log_add(total, log_p)
    return total


def _log_add(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high + math.log1p(math.exp(low - high))
