"""Candidates that exist already: which videos of a folder or table belong to which prompt.

table (JSONL, CSV, TSV), or folder with one, with sub-folders, or with videos named by prompt
→ ``read_candidates`` → paths by prompt
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cac_align.core.images import is_image_folder
from cac_align.core.video import is_video_file
from cac_align.generation.candidates import file_stem

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
PROMPT_FILE = "prompt.txt"
"""The file in a sub-folder of candidates that may hold their prompt."""


def read_candidates(source: Path, prompts: Sequence[str] | None = None) -> dict[str, list[Path]]:
    """Given candidates by prompt, from a table with the columns prompt and video (JSON Lines, CSV or
    TSV; paths relative to it) or a folder.

    The folder holds ``candidates.jsonl`` or one other such table; or one sub-folder per prompt,
    which is named by the prompt (also with other signs between its words), or holds ``prompt.txt``,
    or is numbered, in the order of ``prompts`` and as many as these; or videos named ``<file stem of
    the prompt>-<number>.<mp4|webm|…>``. A folder of images is a video. prompts: read only the
    candidates of these; None: of all, which a table, ``prompt.txt`` or the sub-folders' names must
    then state. Raises ``ValueError`` when the source does not exist, a row is wrong, or no candidate fits a prompt.
    """
    source = Path(source)
    if not source.exists():
        raise ValueError(f"{source}: no such folder or table of candidates")
    found: dict[str, list[Path]] = {prompt: [] for prompt in prompts or ()}
    table = source if source.is_file() else _table_in(source)
    if table is not None:
        pairs = _table_pairs(table)
    else:
        pairs = [*_sub_folder_pairs(source, prompts), *_named_pairs(source, prompts or ())]
    for prompt, video in pairs:
        if prompts is None or prompt in found:
            found.setdefault(prompt, []).append(video)
    if not any(found.values()):
        name = file_stem(prompts[0]) if prompts else "PROMPT"
        raise ValueError(
            f"{source}: no candidate for {'any of the prompts' if prompts else 'a prompt'}; expected a table with "
            f"the columns prompt and video (candidates.jsonl or .csv), one sub-folder per prompt ({name}/, or with "
            f"{PROMPT_FILE} in it), or videos named {name}-0.mp4, …"
        )
    return found


def _table_in(folder: Path) -> Path | None:
    """The table of a folder: ``candidates.*``, or the only other one whose first row has a prompt
    and a video. Raises ``ValueError`` where several have.
    """
    named = [folder / f"candidates{suffix}" for suffix in (".jsonl", *_DELIMITERS)]
    for table in named:
        if table.is_file():
            return table
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jsonl", *_DELIMITERS))
    tables = [path for path in files if path.name != "ledger.jsonl" and path.is_file() and _is_table(path)]
    if len(tables) > 1:
        raise ValueError(
            f"{folder}: several tables name prompts and videos ({', '.join(path.name for path in tables)}); pass one"
        )
    return tables[0] if tables else None


def _is_table(path: Path) -> bool:
    try:
        _, row = next(_table_rows(path))
        return isinstance(row, dict) and {"prompt", "video"} <= row.keys()
    except (StopIteration, ValueError, OSError):
        return False


def _table_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, row) of a table; a row that cannot be read is its text. Raises ``ValueError`` for a
    file that is no text.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        delimiter = _DELIMITERS.get(path.suffix.lower())
        if delimiter is not None:
            reader = csv.DictReader(file, delimiter=delimiter)
            for row in reader:
                yield reader.line_num, row
            return
        for number, line in enumerate(file.read().split("\n"), start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError:
                    yield number, line


def _table_pairs(path: Path) -> list[tuple[str, Path]]:
    pairs = []
    for number, row in _table_rows(path):
        prompt, video = (row.get("prompt"), row.get("video")) if isinstance(row, dict) else (None, None)
        if not (isinstance(prompt, str) and prompt.strip() and isinstance(video, str) and video):
            raise ValueError(
                f'{path}: line {number}: expected {{"prompt": …, "video": …}} or columns of these names, '
                f"received {str(row)[:80]!r}"
            )
        pairs.append((prompt, path.parent / video))
    return pairs


def _sub_folder_pairs(source: Path, prompts: Sequence[str] | None) -> list[tuple[str, Path]]:
    """(prompt, video) of every sub-folder with videos whose prompt is known."""
    folders = [(path, _videos_in(path)) for path in sorted(source.iterdir(), key=_natural) if path.is_dir()]
    folders = [(path, videos) for path, videos in folders if videos and not path.name.startswith(".")]
    numbered = prompts is not None and len(folders) == len(prompts)
    numbered = numbered and all(path.name.isdecimal() for path, _ in folders)
    pairs = []
    for position, (path, videos) in enumerate(folders):
        if (path / PROMPT_FILE).is_file():
            prompt = (path / PROMPT_FILE).read_text(encoding="utf-8-sig").strip()
        elif prompts is None:
            prompt = path.name if " " in path.name else None
        else:
            prompt = prompts[position] if numbered else _prompt_named(path.name, prompts)
        pairs += [(prompt, video) for video in videos if prompt]
    return pairs


def _prompt_named(name: str, prompts: Sequence[str]) -> str | None:
    """The prompt that a sub-folder is named by: its text, its file stem, or, where only one fits, its words."""
    exact = [prompt for prompt in prompts if name in (prompt, file_stem(prompt))]
    alike = exact or list(dict.fromkeys(prompt for prompt in prompts if _words(prompt) == _words(name)))
    return alike[0] if exact or len(alike) == 1 else None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.replace("_", " ").lower())


def _named_pairs(source: Path, prompts: Sequence[str]) -> list[tuple[str, Path]]:
    """(prompt, video) of the videos in ``source`` that are named by a prompt's file stem and a number."""
    stems = {file_stem(prompt): prompt for prompt in prompts}
    named = []
    for path in _videos_in(source):
        stem, dash, number = path.stem.rpartition("-")
        if dash and number.isdecimal() and stem in stems:
            named.append((stem, int(number), path))
    return [(stems[stem], path) for stem, _, path in sorted(named)]


def _videos_in(folder: Path) -> list[Path]:
    """The video files in a folder, and its sub-folders that hold the images of one."""
    paths = (path for path in folder.iterdir() if is_video_file(path) or is_image_folder(path))
    return sorted(paths, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """A sorting key by which clip2 comes before clip10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
