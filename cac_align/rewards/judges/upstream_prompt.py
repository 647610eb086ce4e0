"""The prompt of a published judge, read from the user's copy of upstream's file.

file (.txt, or the .py that holds the literal) → texts in it → the one whose sha256 is known

A judge that is asked in other words is another judge, so the text must be upstream's to the letter.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class UpstreamPrompt:
    """Where a prompt stands and how to recognise it."""

    # What it asks, e.g. "UnifiedReward-Think (Qwen3-VL), two videos".
    name: str
    # The repository on GitHub, and the file in it.
    repository: str
    file: str
    # First 12 hexadecimal digits of the sha256 of the text, its slots unfilled.
    sha256: str
    # The slots that are filled, e.g. "{prompt}".
    slots: tuple[str, ...] = ("{prompt}",)


def read_upstream_prompt(
    known: Sequence[UpstreamPrompt], path: str | Path | None, *, allow_other_prompt: bool = False
) -> tuple[str, str]:
    """The text with its slots open, and the provenance's entry about it.

    known: the texts that are accepted, the usual one first. allow_other_prompt: take the file's whole
    text when it is none of them. Raises ``ValueError`` that says where to fetch the file when there is
    no path, it cannot be read, holds another text, or lacks a slot.
    """
    usual = known[0]
    fetch = f"fetch {usual.file} from github.com/{usual.repository} and name it as prompt_file"
    if path is None:
        raise ValueError(f"{usual.name}: prompt_file is not given; {fetch}")
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: the prompt file cannot be read as UTF-8 text ({error}); {fetch}") from error
    # Editors add a final newline, which upstream's literal does not have.
    forms = [text, text.removesuffix("\n"), *(texts_in(text) if Path(path).suffix == ".py" else ())]
    for one in known:
        found = next((form for form in forms if text_digest(form) == one.sha256), None)
        if found is not None:
            return found, f"{one.name}, sha256 {one.sha256}"
    if not allow_other_prompt:
        raise ValueError(
            f"{path}: no text in it has the sha256 {', '.join(one.sha256 for one in known)} of {usual.name}; {fetch}, "
            "or set allow_other_prompt=true, which makes it another judge"
        )
    if missing := [slot for slot in usual.slots if slot not in text]:
        raise ValueError(f"{path}: the text lacks the slot {missing[0]}; write it where that belongs")
    return text, f"other text ({Path(path).name}), sha256 {text_digest(text)}, not that of {usual.name}"


def fill_slots(template: str, values: Mapping[str, str]) -> str:
    """The template with every slot (a key of ``values``) replaced literally, in one pass, because
    captions may hold braces and slots.
    """
    pattern = "|".join(re.escape(slot) for slot in values)
    return re.sub(pattern, lambda match: values[match.group()], template)


def texts_in(source: str) -> Iterator[str]:
    """The texts in a Python file, with an f-string's fields written as slots: ``{prompt}``."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{" + ast.unparse(part.value) + "}"
                for part in node.values
                if isinstance(part, ast.Constant | ast.FormattedValue)
            )


def text_digest(text: str) -> str:
    """The first 12 hexadecimal digits of the text's sha256."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]
