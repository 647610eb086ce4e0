"""Where the verdict stands in an answer, and how its probability is read (Eq. 7).

answer text → status_offset → (backend) log P(normal), log P(abnormal) at this place
→ R = P(normal) / (P(normal) + P(abnormal))

In Qwen's byte-pair table `normal` is one token, but `abnormal` inside quotes is `ab` + `normal`.
Code that searches the answer for the token `normal` therefore reads P(normal) ≈ 1 on an abnormal
verdict and inverts the reward. So the place is found in the text, as the first character of the
value of the outermost object's "status" key, and whole words are compared there. The closing quote
is left out: it is usually merged with the comma after it, and asking for it would multiply the
probability by almost 0.
"""

from __future__ import annotations

from cac_align.vlm.protocol import Readout

STATUS_WORDS = ("normal", "abnormal")


def status_offset(text: str) -> int | None:
    """Offset of the status value's first character, just after ``"status": "`` of the outermost
    object.

    The key inside a string (such as the chain of thought) or in a nested object does not count.
    None when there is no status. Truncated answers are allowed.
    """
    position, depth, length = text.find("{"), 0, len(text)
    if position < 0:
        return None
    key: str | None = None  # the last string at depth 1, while it may be a key
    while position < length:
        character = text[position]
        if character == '"':
            end = _string_end(text, position)
            if depth == 1 and key == ":status":
                return position + 1
            key = text[position + 1 : end] if depth == 1 and end is not None else None
            if end is None:
                return None
            position = end
        elif character == ":" and depth == 1:
            key = ":status" if key == "status" else None
        elif character in "{[":
            depth += 1
            key = None
        elif character in "}]":
            depth -= 1
            key = None
            if depth == 0:
                return None
        elif character == ",":
            key = None
        position += 1
    return None


def _string_end(text: str, start: int) -> int | None:
    """Offset of the quote that closes the JSON string opened at ``start``; None when it is never
    closed.
    """
    position = start + 1
    while position < len(text):
        if text[position] == "\\":
            position += 2
            continue
        if text[position] == '"':
            return position
        position += 1
    return None


# The readout that CaC asks of every backend.
STATUS_READOUT = Readout(words=STATUS_WORDS, locate=status_offset)
