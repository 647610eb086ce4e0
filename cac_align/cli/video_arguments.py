"""Video files from a command line: files, folders and patterns, and the prompts that folders state.

VIDEO… → ``expand_videos`` → files → ``listed_prompts`` → the prompt of each
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path


def expand_videos(arguments: Iterable[str | os.PathLike[str]]) -> list[str]:
    """The files behind the arguments, in order: those of a folder, those that a pattern such as
    ``'clips/*.mp4'`` matches, and any other argument as it is.

    Raises ``ValueError`` for a folder without videos or a pattern that matches nothing.
    """
    from cac_align.evaluation.pairing import video_files

    files: list[str] = []
    for argument in (os.fspath(one) for one in arguments):
        if Path(argument).is_dir():
            files += map(str, video_files(Path(argument)))
        elif glob.has_magic(argument) and not Path(argument).exists():
            matches = sorted(glob.glob(argument, recursive=True))
            if not matches:
                raise ValueError(f"{argument}: no file matches this pattern")
            files += expand_videos(matches)
        else:
            files.append(argument)
    return files


def listed_prompts(videos: Sequence[str]) -> list[str] | None:
    """The prompt of every video as the listings beside it state it (``prompts.jsonl``,
    ``selection.jsonl``, …); None where one of the videos has none.
    """
    from cac_align.evaluation.pairing import prompts_and_seeds

    by_folder: dict[Path, list[Path]] = {}
    for video in videos:
        by_folder.setdefault(Path(video).parent, []).append(Path(video))
    found: dict[Path, str | None] = {}
    for folder, files in by_folder.items():
        found |= {file: prompt for file, (prompt, _) in prompts_and_seeds(folder, files, []).items()}
    prompts = [prompt for video in videos if (prompt := found.get(Path(video)))]
    return prompts if len(prompts) == len(videos) else None
