"""Prompt files: one prompt per line, or JSON Lines with a ``prompt`` field."""

from __future__ import annotations

import json
from pathlib import Path


def read_prompts(file: Path) -> list[dict[str, str]]:
    """Rows with at least a ``prompt``: JSON Lines when every line is a JSON object, else one prompt per line. Blank lines are skipped.

    Raises ``ValueError`` naming the file and what is wrong.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as prompts: {error}") from error
    if not lines:
        raise ValueError(f"{file}: holds no prompts")
    if not all(line.startswith("{") for line in lines):
        return [{"prompt": line} for line in lines]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({**row, "prompt": str(row["prompt"])})
        except (ValueError, KeyError) as error:
            raise ValueError(f"{file}:{number}: expected a JSON object with a prompt: {error}") from error
    return rows
