"""``selection.jsonl``: what a run of Best-of-N decided, written so that a kill leaves the old state or the new one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from cac_align.runs.files import write_whole


class Row(Protocol):
    """What is logged: a prompt, and everything about it as JSON."""

    prompt: str

    def to_json(self) -> dict[str, Any]: ...


class SelectionLog:
    """``selection.jsonl``: a line as each prompt is decided, the whole file in order at the end, both without a half-written state.

    What former calls decided of other prompts stays, after the prompts of this one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, str] = {}
        kept = []
        if path.exists():
            for line in path.read_text(encoding="ascii", errors="replace").split("\n"):
                try:
                    prompt = json.loads(line)["prompt"]
                except (ValueError, KeyError, TypeError):
                    continue  # torn by a kill; the ledger holds what it said, and this run decides it again
                self._known[prompt] = line
                kept.append(line)
            write_whole(path, "".join(line + "\n" for line in kept))

    def add(self, selection: Row) -> None:
        line = json.dumps(selection.to_json(), ensure_ascii=True)
        if self._known.get(selection.prompt) != line:
            with open(self.path, "ab", buffering=0) as file:
                file.write(line.encode() + b"\n")
            self._known[selection.prompt] = line

    def finish(self, selections: Sequence[Row]) -> None:
        """The whole file: these in order, then the known lines of other prompts."""
        lines = {selection.prompt: json.dumps(selection.to_json(), ensure_ascii=True) for selection in selections}
        self._known = lines | {prompt: line for prompt, line in self._known.items() if prompt not in lines}
        write_whole(self.path, "".join(line + "\n" for line in self._known.values()))
