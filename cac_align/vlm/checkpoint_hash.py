"""Where a checkpoint lies, and the identity of its folder: sha256 over what changes a judge's answers.

It needs no torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

# Files beside the weights that change a judge's answers: frame sizes, tokens, chat template. ``cac_align.json`` is not
# among them, because its content is part of the provenance anyway.
_HASHED_FILES = frozenset(
    [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "processor_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
    ]
)


def check_source(source: str) -> None:
    """Raise ``ValueError`` for what is neither a folder nor the form of a hub id."""
    if not Path(source).is_dir() and not re.fullmatch(r"\w[\w.-]*/[\w.-]+", source):
        raise ValueError(
            f"{source}: no such folder; "
            "expected the folder of a Qwen3-VL, or a hub id such as Qwen/Qwen3-VL-8B-Instruct"
        )


def hash_files(folder: Path, *, weights: bool = True) -> str:
    """sha256 over names, sizes and contents of a folder's weights, configuration, tokenizer and
    template. weights: False leaves the weights out.
    """
    suffixes = (".safetensors", ".bin") if weights else ()
    return hash_paths([path for path in folder.iterdir() if path.suffix in suffixes or path.name in _HASHED_FILES])


def hash_paths(paths: Iterable[Path]) -> str:
    """sha256 over names, sizes and contents of these files."""
    return _hash(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)))


@cache
def _hash(files: tuple[tuple[Path, int, int], ...]) -> str:
    """The digest of these files (path, size, time of the last change), which are read once per process."""
    digest = hashlib.sha256()
    for path, size, _ in files:
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()
