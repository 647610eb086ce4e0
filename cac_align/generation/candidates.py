"""The candidates of a prompt: given video files, or videos from a generator that are kept as files.

folder or JSONL → ``read_candidates`` → paths by prompt → ``open_candidate``
prompt, seeds → ``generate_candidates`` → ``out/videos/<file stem>-<seed>.mp4``, made once
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from cac_align.core.encoding import write_mp4
from cac_align.core.video import VIDEO_SUFFIXES, Video

Generate = Callable[[str, int], Video]
"""(prompt, seed) → Video; equal arguments give the same video. ``ValueError`` means that the video is unusable."""


@runtime_checkable
class BatchGenerate(Protocol):
    """A generator that can make several videos in one call, each (up to rounding) as it would make
    it alone.
    """

    def batch(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Video]: ...


GivenCandidates = Mapping[str, Sequence[Path | Video]]
"""Candidates by prompt that need not be generated."""

_NOT_IN_FILE_STEM = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Candidate:
    """One candidate: its path or name, and its video, or the reason why there is none."""

    name: str
    video: Video | None
    error: str | None


def file_stem(prompt: str) -> str:
    """A file name stem for a prompt: up to 40 of its ASCII letters and digits, then 10 digits of
    its sha256.
    """
    words = _NOT_IN_FILE_STEM.sub("-", prompt[:200].lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(prompt.encode("utf-8", errors="surrogatepass")).hexdigest()[:10]
    return f"{words}-{digest}" if words else digest


def read_candidates(source: Path, prompts: Sequence[str] | None = None) -> dict[str, list[Path]]:
    """Given candidates by prompt, from a JSONL of ``{"prompt", "video"}`` (paths relative to it) or
    a folder.

    The folder holds such a ``candidates.jsonl``, or videos named ``<file stem of the
    prompt>-<number>.<mp4|webm|…>``, for which ``prompts`` must be given. prompts: read only the
    candidates of these; None: of all in the JSONL. Raises ``ValueError`` when the source does not
    exist, a line is not such an object, or no candidate fits a prompt.
    """
    source = Path(source)
    listing = source / "candidates.jsonl" if source.is_dir() else source
    if not source.exists():
        raise ValueError(f"{source}: no such folder or JSONL of candidates")
    found: dict[str, list[Path]] = {prompt: [] for prompt in prompts or ()}
    if listing.is_file():
        for number, line in enumerate(listing.read_text(encoding="utf-8-sig").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                prompt, video = row["prompt"], listing.parent / row["video"]
                if not (isinstance(prompt, str) and prompt.strip()):
                    raise ValueError("no prompt")
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f'{listing}: line {number}: expected {{"prompt": …, "video": …}}, received {line[:80]!r}'
                ) from error
            if prompts is None or prompt in found:
                found.setdefault(prompt, []).append(video)
    elif prompts is None:
        raise ValueError(f'{source}: expected a file candidates.jsonl of {{"prompt": …, "video": …}} in it, found none')
    else:
        stems = {file_stem(prompt): prompt for prompt in prompts}
        named = []
        for path in source.iterdir():
            stem, dash, number = path.stem.rpartition("-")
            if path.suffix.lower() in VIDEO_SUFFIXES and dash and number.isdecimal() and stem in stems:
                named.append((stem, int(number), path))
        for stem, _, path in sorted(named):
            found[stems[stem]].append(path)
    if not any(found.values()):
        or_names = f", or name them {file_stem(prompts[0])}-0.mp4, …" if prompts else ""
        raise ValueError(
            f"{source}: no candidate for any of the prompts; list them in a JSONL as "
            f'{{"prompt": …, "video": …}}{or_names}'
        )
    return found


def open_candidate(source: Path | Video) -> Candidate:
    """The candidate of a video or a file. An unreadable file gives a candidate without a video."""
    if isinstance(source, Video):
        return Candidate(source.name, source, None)
    try:
        return Candidate(str(source), Video.open(source), None)
    except ValueError as error:
        return Candidate(str(source), None, str(error))


def _video_path(prompt: str, seed: int, out: Path | None) -> Path | None:
    return out / "videos" / f"{file_stem(prompt)}-{seed}.mp4" if out else None


def generate_candidates(generate: Generate, prompt: str, seeds: Sequence[int], out: Path | None) -> list[Candidate]:
    """The candidates of one prompt, one per seed. out: where videos are kept, or found if made
    before; None: nowhere.

    Missing videos are made in one call where the generator has ``batch``.
    """
    missing = [seed for seed in seeds if (path := _video_path(prompt, seed, out)) is None or not path.exists()]
    make: Generate = generate
    if isinstance(generate, BatchGenerate) and len(missing) > 1:
        # Where one of them is unusable they are made one by one: the others are kept and that one has an error.
        with suppress(ValueError):
            made = dict(zip(missing, generate.batch([prompt] * len(missing), missing), strict=True))
            make = lambda _, seed: made[seed]  # noqa: E731
    return [_generated(make, prompt, seed, out) for seed in seeds]


def _generated(generate: Generate, prompt: str, seed: int, out: Path | None) -> Candidate:
    """A candidate from the generator, or from the file that an earlier run wrote."""
    name = f"{file_stem(prompt)}-{seed}"
    path = _video_path(prompt, seed, out)
    if path is None or not path.exists():
        try:
            video = generate(prompt, seed)
            if path is None:
                return Candidate(name, video, None)
            write_mp4(path, video.frames(range(len(video))).pixels, video.fps)
        except ValueError as error:
            return Candidate(str(path or name), None, f"the generator gave no usable video: {error}")
    return open_candidate(path)
