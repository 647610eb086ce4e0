"""Videos from a command line: files, folders and patterns, and the prompts that folders state.

VIDEO… → ``expand_videos`` → files → ``listed_prompts`` → the prompt of each
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from cac_align.core.images import is_image_folder


def expand_videos(arguments: Iterable[str | os.PathLike[str]]) -> list[str]:
    """The videos behind the arguments, in order: the files of a folder, those that a pattern such as
    ``'clips/*.mp4'`` matches, and any other argument as it is. A folder without video files stands for
    the folders of images in it, or, where images lie directly in it, for one video.

    Raises ``ValueError`` for a folder without either or a pattern that matches nothing.
    """
    files: list[str] = []
    for argument in (os.fspath(one) for one in arguments):
        if Path(argument).is_dir():
            files += map(str, _videos_below(Path(argument)))
        elif glob.has_magic(argument) and not Path(argument).exists():
            matches = sorted(glob.glob(argument, recursive=True))
            if not matches:
                raise ValueError(f"{argument}: no file matches this pattern")
            files += expand_videos(matches)
        else:
            files.append(argument)
    return files


def _videos_below(folder: Path) -> list[Path]:
    from cac_align.evaluation.pairing import video_files

    try:
        return video_files(folder)
    except ValueError:
        below = (path for path in sorted(folder.rglob("*")) if not path.name.startswith("."))
        folders = [path for path in (folder, *below) if is_image_folder(path)]
        if not folders:
            raise
        return folders[:1] if folders[0] == folder else folders


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
