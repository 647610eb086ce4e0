"""``chosen/``: the winner of every prompt as a file of its own, named by the prompt.

selections → ``write_chosen`` → ``<file stem of the prompt>.mp4`` and ``prompts.jsonl`` (prompt, video)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from cac_align.core.encoding import write_mp4
from cac_align.core.whole_file import whole_file
from cac_align.generation.candidates import file_stem
from cac_align.generation.selection import Selection
from cac_align.runs.files import atomic_write

CHOSEN = "chosen"
"""The name of the folder, within that of a Best-of-N."""


def write_chosen(selections: Sequence[Selection], out: Path) -> Path:
    """Copy the chosen videos to ``out/chosen`` and return that folder.

    A prompt's earlier winner is replaced; those of other prompts stay. An undecided prompt has no
    file.
    """
    folder = out / CHOSEN
    folder.mkdir(parents=True, exist_ok=True)
    listing = folder / "prompts.jsonl"
    names = _listed(listing)
    for selection in {each.prompt: each for each in selections}.values():
        former, new = names.pop(selection.prompt, None), None
        if selection.chosen is not None and selection.video is not None:
            source = selection.video.path
            new = file_stem(selection.prompt) + (".mp4" if source is None else Path(source).suffix)
            if source is None:
                write_mp4(folder / new, selection.video.frames(range(len(selection.video))).pixels, selection.video.fps)
            else:
                with whole_file(folder / new) as part:
                    shutil.copyfile(source, part)
            names[selection.prompt] = new
        if former is not None and former != new:
            (folder / former).unlink(missing_ok=True)
    rows = [json.dumps({"prompt": prompt, "video": name}) for prompt, name in names.items()]
    atomic_write(listing, "".join(row + "\n" for row in rows))
    return folder


def _listed(listing: Path) -> dict[str, str]:
    """The file names by prompt that an earlier call wrote."""
    if not listing.is_file():
        return {}
    rows = [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {row["prompt"]: Path(row["video"]).name for row in rows}
