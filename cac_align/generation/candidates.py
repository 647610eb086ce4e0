"""The candidates of a prompt: given video files, or videos from a generator that are kept as files.

video or file → ``open_candidate`` → ``Candidate``
prompt, seeds → ``generate_candidates`` → ``out/videos/<file stem>-<seed>.mp4``, made once
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video

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


def open_candidate(source: Path | Video, fps: float | None = None) -> Candidate:
    """The candidate of a video, a file or a folder of images. An unreadable one gives a candidate
    without a video. fps: its true frame rate, which a folder of images needs.
    """
    try:
        if isinstance(source, Video):
            return Candidate(source.name, Video.open(source, fps=fps), None)
        return Candidate(str(source), Video.open(source, fps=fps), None)
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
