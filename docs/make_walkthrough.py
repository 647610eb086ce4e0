"""Writes the page of the notebook examples/walkthrough.ipynb from its stored cells (a hook of mkdocs)."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

NOTEBOOK = Path(__file__).parents[1] / "examples" / "walkthrough.ipynb"
PAGE = "walkthrough.md"
DOCS_LINK = re.compile(r"`docs/([\w./]+\.md)`")
"""How the notebook, which is read outside the site as well, names a page of the site."""


def code_block(cell: dict[str, Any]) -> str:
    """A code cell with what it printed."""
    text = f"```python\n{''.join(cell['source'])}\n```\n"
    printed = "".join("".join(output.get("text", "")) for output in cell["outputs"])
    return text + (f"\n```text\n{printed.rstrip()}\n```\n" if printed.strip() else "")


def pictures(cells: list[dict[str, Any]]) -> Iterator[tuple[int, bytes]]:
    """The pictures that the cells show, with the number of their cell."""
    for number, cell in enumerate(cells):
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                yield number, base64.b64decode("".join(output["data"]["image/png"]))


def page(cells: list[dict[str, Any]], names: dict[int, list[str]]) -> str:
    """The notebook as Markdown. names: the files of the pictures by the number of their cell."""
    parts = []
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "markdown":
            parts.append(DOCS_LINK.sub(r"[\1](\1)", "".join(cell["source"])) + "\n")
        else:
            parts.append(code_block(cell) + "".join(f"\n![What the cell shows]({name})\n" for name in names[number]))
    return "\n".join(parts)


def on_files(files: Files, config: Any) -> Files:
    """Add the page and its pictures."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict[int, list[str]] = {number: [] for number in range(len(cells))}
    for count, (number, picture) in enumerate(pictures(cells)):
        name = f"walkthrough-{count}.png"
        names[number].append(name)
        files.append(File.generated(config, name, content=picture))
    files.append(File.generated(config, PAGE, content=page(cells, names)))
    return files
