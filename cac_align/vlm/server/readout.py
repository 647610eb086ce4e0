"""The probability of whole words at one place of an answer, from the log-probabilities that a server reports.

reported tokens at the place → complete words and short pieces → pieces followed token by token → log P(word)

A word may be spelled in several tokens (Qwen: ``abnormal`` = ``ab`` + ``normal``), so nothing here
searches for a token: a reported token counts for a word when it completes it. A token that only
begins the word ("n", "no", "ab") is followed: its probability is multiplied by that of the rest
after it, which is read at the next token of the answer or by another request.

Where a server reports only its likeliest tokens, two upper bounds remain, and they are said to be
bounds: a word none of whose tokens is reported gets the probability of the least likely reported
one, and a word's longest reported piece counts in full when following it would cost a request. A
shorter piece never counts as its word.

A wrong probability would be worse than none. ``UnreadableLogprobs`` is raised when no word is
reported (two equal bounds would look like 0.5), when a bound exceeds what was found, when a piece
can be neither followed nor neglected, when a reported value that matters is no log-probability
(NaN, null, infinite, -9999, above 0), and when the reported tokens' probabilities add up to more
than 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

# vLLM reports -9999 for a token that was masked out.
_IMPOSSIBLE = -1000.0
# Above 0 by less than this is rounding.
_ROUNDING = 1e-5
# By how much the reported tokens' probabilities may add up to more than 1.
_EXCESS = 1e-3
# A piece that could add less than this share to its word is neglected.
_NEGLIGIBLE = math.log(1e-4)
# Requests for one place of one answer.
MAX_FOLLOWED = 12


class UnreadableLogprobs(Exception):
    """The words' probabilities cannot be read. ``ask_again``: a request whose prompt ends at the place might help."""

    def __init__(self, reason: str, *, ask_again: bool = False) -> None:
        super().__init__(reason)
        self.ask_again = ask_again


@dataclass(frozen=True)
class TokenStep:
    """What a server reported about one token of an answer."""

    # Bytes of the token that was written.
    chosen: bytes
    # log P of the reported tokens at its position, by their bytes; the chosen one included.
    log_p: Mapping[bytes, float]
    # Upper bound of log P of any other token; None where exactly these tokens were asked for, or none is known.
    bound: float | None = None
    # Reported tokens without a usable log-probability.
    unusable: frozenset[bytes] = frozenset()
    # Whether ``log_p`` holds every token that begins one of the words.
    complete: bool = False


@dataclass(frozen=True)
class WordProbabilities:
    """Natural log of P(word) per word, at most 0, and the words for which this is only an upper bound."""

    log_p: Mapping[str, float]
    bounded: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Piece:
    """Text that begins one or more of the words: log P of it, and what is missing of each word."""

    text: bytes
    log_p: float
    rests: Mapping[str, bytes]
    # Whether it is the longest reported piece of its word, of two bytes or more, and no token completes the word.
    is_longest: bool


def read_words(
    first: TokenStep,
    words: Sequence[str],
    *,
    along: Callable[[bytes], TokenStep | None] = lambda piece: None,
    ask: Callable[[bytes, Sequence[str]], TokenStep] | None = None,
) -> WordProbabilities:
    """log P(word) for every word at the place where ``first`` is the token.

    along: the answer's own token after these bytes, if the answer goes on with them. ask: the token
    after these bytes by another request, given the rests of the words; None where a server cannot
    continue an answer. Raises ``UnreadableLogprobs`` when the probabilities cannot be read.
    """
    found: dict[str, list[float]] = {word: [] for word in words}
    bounds: dict[str, list[float]] = {word: [] for word in words}
    in_full: set[str] = set()
    pieces = _visit(first, b"", 0.0, {word: word.encode() for word in words}, found, bounds)
    if not pieces and not any(found.values()):
        likeliest = max(first.log_p.items(), key=lambda item: item[1])[0].decode("utf-8", "replace")
        raise UnreadableLogprobs(f"none of {tuple(words)} is likely there; the likeliest is {likeliest!r}")
    num_requests = 0
    while relevant := [piece for piece in pieces if _matters(piece, found)]:
        piece = max(relevant, key=lambda item: item.log_p)
        pieces.remove(piece)
        step = along(piece.text)
        if step is None:
            shown = piece.text.decode("utf-8", "replace")
            if piece.is_longest and not first.complete:
                (word,) = piece.rests
                found[word].append(piece.log_p)
                in_full.add(word)
                continue
            if ask is None:
                raise UnreadableLogprobs(
                    f"the token {shown!r} (probability {math.exp(piece.log_p):.2g}) "
                    f"may begin {' or '.join(piece.rests)}, "
                    "and this server cannot be asked how it goes on"
                )
            if num_requests == MAX_FOLLOWED:
                raise UnreadableLogprobs(
                    f"{tuple(words)} have more likely spellings than {MAX_FOLLOWED} requests can follow"
                )
            num_requests += 1
            step = ask(piece.text, [rest.decode("utf-8", "replace") for rest in piece.rests.values()])
        pieces += _visit(step, piece.text, piece.log_p, piece.rests, found, bounds)
    return _add_up(words, found, bounds, in_full)


def _matters(piece: _Piece, found: Mapping[str, Sequence[float]]) -> bool:
    """Whether the piece could add a share of a word's probability that is not negligible."""
    return any(not found[word] or piece.log_p > _log_sum(found[word]) + _NEGLIGIBLE for word in piece.rests)


def _visit(
    step: TokenStep,
    text: bytes,
    reach: float,
    rests: Mapping[str, bytes],
    found: Mapping[str, list[float]],
    bounds: Mapping[str, list[float]],
) -> list[_Piece]:
    """Add to ``found`` and ``bounds`` what this token says about the words; return the pieces that
    are to be followed.
    """
    for token in step.unusable:
        if any(_begins(token, rest) or _completes(token, rest) for rest in rests.values()):
            raise UnreadableLogprobs(f"the log-probability of {token.decode('utf-8', 'replace')!r} is not usable")
    if math.fsum(math.exp(value) for value in step.log_p.values()) > 1 + _EXCESS:
        raise UnreadableLogprobs("the reported probabilities add up to more than 1")
    begun: dict[bytes, dict[str, bytes]] = {}
    completed: set[str] = set()
    for token, log_p in step.log_p.items():
        for word, rest in rests.items():
            if _completes(token, rest):
                found[word].append(reach + log_p)
                completed.add(word)
            elif _begins(token, rest):
                begun.setdefault(token, {})[word] = rest[len(token) :]
    longest = {word: max((t for t in begun if word in begun[t]), key=len, default=b"") for word in rests}
    for word in rests:
        if word not in completed and not longest[word] and step.bound is not None:
            bounds[word].append(reach + step.bound)
    return [
        _Piece(
            text + token,
            reach + step.log_p[token],
            missing,
            len(missing) == 1
            and len(token) > 1
            and all(longest[word] == token and word not in completed for word in missing),
        )
        for token, missing in begun.items()
    ]


def _add_up(
    words: Sequence[str],
    found: Mapping[str, Sequence[float]],
    bounds: Mapping[str, Sequence[float]],
    in_full: set[str],
) -> WordProbabilities:
    total = {word: _log_sum(found[word]) for word in words if found[word]}
    if not total:
        raise UnreadableLogprobs(f"none of {tuple(words)} is likely there")
    bounded = set(in_full)
    for word in words:
        if not bounds[word]:
            if word not in total:
                raise UnreadableLogprobs(f"no alternative to {next(iter(total))!r} was reported", ask_again=True)
            continue
        bound = _log_sum(bounds[word])
        if word not in total and bound > max(total.values()):
            raise UnreadableLogprobs(f"{tuple(words)} are both too unlikely there to be compared")
        if word not in total or bound > total[word] + _NEGLIGIBLE:
            total[word] = _log_sum([*found[word], bound])
            bounded.add(word)
    return WordProbabilities(
        {word: min(total[word], 0.0) for word in words}, tuple(word for word in words if word in bounded)
    )


def _begins(token: bytes, rest: bytes) -> bool:
    return bool(token) and len(token) < len(rest) and rest.startswith(token)


def _completes(token: bytes, rest: bytes) -> bool:
    """Whether the token is the rest of the word, alone or before something that is no letter or digit ("normally")."""
    if not token.startswith(rest):
        return False
    tail = token[len(rest) :]
    return not tail or not (tail[:1].isalnum() or tail[0] >= 0x80)


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


# ---- the server's field "logprobs" ---------------------------------------------------------------------------------


def likeliest_steps(logprobs: Any) -> list[TokenStep]:
    """A step per token of an answer, from the likeliest tokens at each. Raises ``UnreadableLogprobs`` without any."""
    steps = []
    for item in _content(logprobs):
        chosen = _bytes(item)
        others: dict[bytes, float] = {}
        unusable: set[bytes] = set()
        entries = item.get("top_logprobs")
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict):
                value, spelled = entry.get("logprob"), _bytes(entry)
                if not _usable(value):
                    unusable.add(spelled)
                else:  # two ids may share a text (an ordinary and an added token): their probabilities add up
                    others[spelled] = _log_sum([*([others[spelled]] if spelled in others else []), float(value)])
        # The chosen token need not be among the likeliest (constrained decoding), so it gives no bound.
        ranked = [value for spelled, value in others.items() if spelled != chosen]
        if _usable(item.get("logprob")):
            others.setdefault(chosen, float(item["logprob"]))
        elif item.get("logprob") is not None or others or unusable:
            unusable.add(chosen)
        steps.append(TokenStep(chosen, others, min(ranked, default=None), frozenset(unusable)))
    return steps


def requested_step(logprobs: Any, tokens: Mapping[int, str]) -> TokenStep:
    """The first token's step, from the log-probabilities of exactly these tokens (text by id), as "token_id:N" entries.

    Raises ``UnreadableLogprobs`` when one of them is missing or unusable.
    """
    item = _content(logprobs)[0]
    entries = item.get("top_logprobs")
    reported = {
        entry.get("token"): entry.get("logprob")
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and isinstance(entry.get("token"), str)
    }
    log_p: dict[bytes, float] = {}
    for index, text in tokens.items():
        if f"token_id:{index}" not in reported:
            raise UnreadableLogprobs(
                f"the server did not report the log-probability of token {index} ({text!r}); "
                "logprob_token_ids needs vLLM "
                "0.32 or newer"
            )
        value = reported[f"token_id:{index}"]
        if not _usable(value):
            raise UnreadableLogprobs(f"the log-probability of {text!r} is {value!r}, which is not usable")
        spelled = text.encode()
        log_p[spelled] = _log_sum([*([log_p[spelled]] if spelled in log_p else []), float(value)])
    return TokenStep(b"", log_p, complete=True)


def step_at(steps: Sequence[TokenStep], text: str, place: int) -> int:
    """Position of the token that begins at the place. Reasoning may have been cut off before the answer."""
    stream = b"".join(step.chosen for step in steps)
    answer = text.encode("utf-8", "replace")
    start = 0 if stream.startswith(answer) else stream.rfind(answer)
    if start < 0:
        raise UnreadableLogprobs("the tokens do not spell the answer", ask_again=True)
    wanted = start + len(text[:place].encode("utf-8", "replace"))
    offset = 0
    for position, step in enumerate(steps):
        if offset == wanted and step.chosen and (step.log_p or step.unusable):
            return position
        if offset > wanted:
            break
        offset += len(step.chosen)
    raise UnreadableLogprobs("no token begins at the place", ask_again=True)


def step_after(steps: Sequence[TokenStep], position: int, piece: bytes) -> TokenStep | None:
    """The answer's token after these bytes, where the answer goes on with them from ``position``; else None."""
    written = b""
    while position < len(steps) and len(written) < len(piece):
        written += steps[position].chosen
        position += 1
    return steps[position] if written == piece and position < len(steps) and steps[position].log_p else None


def _content(logprobs: Any) -> list[Mapping[str, Any]]:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content:
        raise UnreadableLogprobs("the server sent no log-probabilities", ask_again=True)
    if not all(isinstance(item, dict) for item in content):
        raise UnreadableLogprobs("the server's log-probabilities have an unknown form", ask_again=True)
    return content


def _usable(log_p: object) -> TypeGuard[float]:
    """Whether this is a log-probability: a finite number, at most 0 but for rounding, and not the
    -9999 of a masked token.
    """
    if isinstance(log_p, bool) or not isinstance(log_p, (int, float)):
        return False
    return _IMPOSSIBLE < log_p <= _ROUNDING  # NaN and infinities compare false


def _bytes(entry: Mapping[str, Any]) -> bytes:
    raw, token = entry.get("bytes"), entry.get("token")
    if isinstance(raw, list) and all(isinstance(value, int) and 0 <= value < 256 for value in raw):
        return bytes(raw)
    return token.encode("utf-8", "replace") if isinstance(token, str) else b""
