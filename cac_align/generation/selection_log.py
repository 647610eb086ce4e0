"""``selection.jsonl``: what Best-of-N decided, written so that a kill never leaves half of a state."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cac_align.generation.selection import Selection
from cac_align.runs.files import append_lines, atomic_write


class SelectionLog:
    """``selection.jsonl``: one line as each prompt is decided; at the end the whole file in order.

    The lines of other prompts from earlier calls stay, after those of this one.
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
                    continue  # cut off by a kill; the ledger has the scores, and this run decides again
                self._known[prompt] = line
                kept.append(line)
            atomic_write(path, "".join(line + "\n" for line in kept))

    def add(self, selection: Selection) -> None:
        """Append the line of a prompt unless the file has it already."""
        line = json.dumps(selection.to_json(), ensure_ascii=True)
        if self._known.get(selection.prompt) != line:
            append_lines(self.path, line + "\n")
            self._known[selection.prompt] = line

    def finish(self, selections: Sequence[Selection]) -> None:
        """Write the whole file: these selections in order, then the lines of other prompts."""
        lines = {selection.prompt: json.dumps(selection.to_json(), ensure_ascii=True) for selection in selections}
        self._known = lines | {prompt: line for prompt, line in self._known.items() if prompt not in lines}
        atomic_write(self.path, "".join(line + "\n" for line in self._known.values()))
