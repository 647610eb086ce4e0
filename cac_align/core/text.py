"""Text that can be written anywhere: half of a surrogate pair is no character, and UTF-8 has no bytes for it."""

from __future__ import annotations


def well_formed(text: str) -> str:
    """The text with every lone surrogate replaced by U+FFFD; two that make a pair become their character.

    A model that writes JSON escapes such as ``\\ud800`` makes them.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def check_prompt(prompt: str, where: str) -> None:
    """Raise ``ValueError`` for a prompt with a lone surrogate, which no file and no server could take."""
    if well_formed(prompt) != prompt:
        raise ValueError(
            f"{where}: the prompt {prompt[:80]!r} holds half of a surrogate pair, which is no character and cannot be "
            "written; write the prompt in UTF-8"
        )


def quoted_excerpt(text: str, limit: int = 160) -> str:
    """The text in quotes on one line, shortened in the middle."""
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= limit else f"{flat[: limit // 2]} … {flat[-limit // 2 :]}")
