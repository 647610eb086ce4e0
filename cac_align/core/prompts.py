"""Prompt files: one prompt per line, or JSON Lines with a ``prompt`` each. Never half of one and
half of the other.

file → lines → rows with a prompt, blank lines left out
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cac_align.core.text import check_prompt


def read_prompts(file: Path) -> list[dict[str, Any]]:
    """Rows with at least a ``prompt``: JSON Lines where a line is a JSON object, else one prompt
    per line. Blank lines are skipped.

    Raises ``ValueError`` naming the file and what is wrong. A table (CSV or TSV) is refused: its
    header and its commas would be taken for prompts.
    """
    if file.suffix.lower() in (".csv", ".tsv"):
        raise ValueError(
            f"{file}: a table is no prompt file; expected one prompt per line, or JSON Lines such as "
            '{"video": "a.mp4", "prompt": "a red ball bounces on grass"}'
        )
    rows = [row for row in rows_of(read_lines(file), str(file)) if row is not None]
    if not rows:
        raise ValueError(f"{file}: holds no prompts")
    return rows


def read_lines(file: Path) -> list[str]:
    """The file's lines without the white space around them (a byte-order mark is none of the text).
    Raises ``ValueError``.
    """
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as prompts: {error}") from error


def rows_of(lines: Sequence[str], where: str) -> list[dict[str, Any] | None]:
    """One row per line, None for a blank one.

    A file with one JSON object in it is JSON Lines: every other line must be one too, or its text
    would be taken for a prompt. So must those of a file whose every line begins like one. Raises
    ``ValueError`` that names the first line that is none, or has no prompt.
    """
    objects = [_object(line) for line in lines]
    begun = [line.startswith("{") for line in lines if line]
    if not (any(found is not None for found in objects) or (begun and all(begun))):
        for number, line in enumerate(lines, 1):
            check_prompt(line, f"{where}:{number}")
        return [{"prompt": line} if line else None for line in lines]
    rows: list[dict[str, Any] | None] = []
    for number, (line, found) in enumerate(zip(lines, objects, strict=True), 1):
        prompt = None if found is None else found.get("prompt")
        if line and not (isinstance(prompt, str) and prompt.strip()):
            raise ValueError(
                f"{where}:{number}: expected a JSON object with a prompt, as in its other lines; received {line[:80]!r}"
            )
        if prompt is not None:
            check_prompt(prompt, f"{where}:{number}")
        rows.append({**found, "prompt": prompt.strip()} if found is not None and prompt is not None else None)
    return rows


def _object(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line) if line.startswith("{") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
