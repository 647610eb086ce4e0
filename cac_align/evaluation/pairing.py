"""Read folders of videos and pair them, for the report and for the rating page.

A clip's prompt and seed come from the folder's listings (prompts.jsonl, selection.jsonl,
candidates.jsonl, records.jsonl) or from those one folder up; a seed also from a name ``<file stem of the
prompt>-<seed>.mp4``. Pairs are matched by prompt and seed, then by file name, then by a prompt that
each side has once. Whatever cannot be used (a file that does not open, a damaged line, a video
without partner or prompt) or does not fit (another length, rate or size) is reported as a
``Fault``.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cac_align.core.video import VIDEO_SUFFIXES, Video, is_video_file
from cac_align.generation.candidates import file_stem
from cac_align.generation.chosen import CHOSEN

LISTINGS = ("prompts.jsonl", "selection.jsonl", "candidates.jsonl", "records.jsonl")
"""Files in which a folder may state its videos' prompts and seeds; the first that names a video
counts.
"""


@dataclass(frozen=True)
class Fault:
    """Something that could not be used or does not fit. kind: a few words, for counting. name:
    which file. why: a sentence.
    """

    kind: str
    name: str
    why: str


@dataclass(frozen=True, eq=False)
class FolderClip:
    """One readable video of a folder. name: its path in the folder. group: the folder. prompt,
    seed: None where unknown.
    """

    path: Path
    name: str
    group: str
    video: Video
    prompt: str | None = None
    seed: int | None = None


@dataclass(frozen=True, eq=False)
class Folder:
    """A folder's readable videos in the order of their names, and what is wrong with the rest."""

    path: Path
    group: str
    clips: tuple[FolderClip, ...]
    faults: tuple[Fault, ...]


@dataclass(frozen=True, eq=False)
class Pair:
    """The same prompt (and seed) before and after. id: unique within a pairing. matched_by: how the
    two were matched.
    """

    id: str
    before: FolderClip
    after: FolderClip
    matched_by: str

    @property
    def prompt(self) -> str | None:
        """The prompt of either side."""
        return self.before.prompt if self.before.prompt is not None else self.after.prompt


@dataclass(frozen=True, eq=False)
class Pairing:
    """Pairs in the order of the first folder, the clips left over, and every fault of both folders."""

    before: str
    after: str
    pairs: tuple[Pair, ...]
    unpaired: tuple[FolderClip, ...]
    faults: tuple[Fault, ...]


# ---- one folder ---------------------------------------------------------------------------------------------------


def read_folder(folder: str | Path, group: str | None = None) -> Folder:
    """Open all videos below ``folder``, except in hidden folders. group: the folder's name on pages
    (default: its own).

    Raises ``ValueError`` when it is not a folder or holds no video file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: expected a folder of videos, found {'a file' if folder.exists() else 'nothing'} there"
        )
    group = group or folder.resolve().name
    files = video_files(folder)
    faults: list[Fault] = []
    listed = prompts_and_seeds(folder, files, faults)
    clips = []
    for path in files:
        name = path.relative_to(folder).as_posix()
        try:
            video = Video.open(path, name=name)
            video.frames([0, len(video) - 1] if len(video) > 1 else [0])  # a damaged stream shows only when decoded
        except ValueError as error:
            faults.append(Fault("unreadable video", f"{group}/{name}", str(error)))
            continue
        prompt, seed = listed.get(path, (None, None))
        if seed is None:
            seed = _seed_in_name(path, prompt)
        clips.append(FolderClip(path, name, group, video, prompt, seed))
    return Folder(folder, group, tuple(clips), tuple(faults))


def video_files(folder: Path) -> list[Path]:
    """All videos below ``folder``, sorted, except in hidden folders, and except the copies of the
    winners (``chosen/``) in a Best-of-N's folder. Raises ``ValueError`` when there is none.
    """
    copies = CHOSEN if (folder / "selection.jsonl").is_file() else None
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        visible = path.is_file() and parts[0] != copies and not any(part.startswith(".") for part in parts)
        if visible and is_video_file(path):
            found.append(path)
    if not found:
        raise ValueError(
            f"{folder}: no videos in it; expected files ending in {', '.join(VIDEO_SUFFIXES)}, or animated WebP"
        )
    return found


def _seed_in_name(path: Path, prompt: str | None) -> int | None:
    stem, dash, number = path.stem.rpartition("-")
    known = prompt is not None and stem == file_stem(prompt)
    return int(number) if dash and known and number.isascii() and number.isdecimal() else None


def prompts_and_seeds(
    folder: Path, files: Sequence[Path], faults: list[Fault]
) -> dict[Path, tuple[str | None, int | None]]:
    """(prompt, seed) by file, from the folder's listings, else from those one folder up
    (Best-of-N's are there).
    """
    above = _read_listings(folder.absolute().parent, files, faults, own=False)
    return {**above, **_read_listings(folder, files, faults)}


def _read_listings(
    folder: Path, files: Sequence[Path], faults: list[Fault], *, own: bool = True
) -> dict[Path, tuple[str | None, int | None]]:
    """(prompt, seed) by file, from the listings in ``folder``. Damaged lines, and lines that name
    no file here, are faults.

    own: the listings belong to these files. Then a line whose path leads elsewhere means the one
    file of that name, as in a folder that was moved. Otherwise only paths count, and lines about
    other files are no faults.
    """
    by_path = {path.resolve(): path for path in files}
    names = Counter(path.name for path in files)
    alone = {path.name: path for path in files if own and names[path.name] == 1}
    found: dict[Path, tuple[str | None, int | None]] = {}
    for listing in (folder / name for name in LISTINGS):
        if not listing.is_file():
            continue
        torn: list[Fault] = []
        named = own
        for number, video, prompt, seed in _listing_rows(listing, torn):
            path = (
                by_path.get((folder / video).resolve())
                or by_path.get(Path(video).resolve())
                or alone.get(Path(video).name)
            )
            if path is not None:
                named = True
                found.setdefault(path, (prompt, seed))
            elif own:
                torn.append(
                    Fault(
                        "listed, not there",
                        video,
                        f"{listing.name}:{number} names it, and the folder holds no such file",
                    )
                )
        faults += torn if named else []
    return found


def _listing_rows(listing: Path, faults: list[Fault]) -> Iterator[tuple[int, str, str | None, int | None]]:
    """(line, video, prompt, seed) of every video that a listing names."""
    for number, row in json_rows(listing, faults):
        prompt = row.get("prompt") if isinstance(row.get("prompt"), str) and row["prompt"].strip() else None
        if isinstance(row.get("candidates"), list):  # a line of selection.jsonl
            seeds = row.get("seeds") or [None] * len(row["candidates"])
            for video, seed in zip(row["candidates"], seeds, strict=False):
                yield number, str(video), prompt, seed
        elif isinstance(row.get("video"), str):
            extra = row.get("extra")
            seed = row.get("seed", extra.get("seed") if isinstance(extra, dict) else None)
            yield number, row["video"], prompt, seed if isinstance(seed, int) and not isinstance(seed, bool) else None
        else:
            faults.append(Fault("unreadable line", f"{listing.name}:{number}", "names neither a video nor candidates"))


def json_rows(path: Path, faults: list[Fault]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSON Lines file. A line that is no JSON object is added to
    ``faults``.
    """
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                faults.append(Fault("unreadable line", f"{path.name}:{number}", f"is not JSON: {error}"))
                continue
            if isinstance(row, dict):
                yield number, row
            else:
                faults.append(Fault("unreadable line", f"{path.name}:{number}", "is not a JSON object"))


# ---- two folders --------------------------------------------------------------------------------------------------


def pair_up(before: Folder, after: Folder) -> Pairing:
    """Match the clips of two folders, each at most once. Raises ``ValueError`` when no pair is
    found.
    """
    left, right = list(before.clips), list(after.clips)
    pairs: list[Pair] = []
    faults = [*before.faults, *after.faults]
    for matched_by, key in _KEYS:
        firsts, seconds = _unique(left, key), _unique(right, key)
        for value in firsts.keys() & seconds.keys():
            first, second = firsts[value], seconds[value]
            if None not in (first.prompt, second.prompt) and first.prompt != second.prompt:
                continue  # the same name for two different prompts is no pair; both end up as unpaired
            pairs.append(Pair(first.name, first, second, matched_by))
        taken = {clip for pair in pairs for clip in (pair.before, pair.after)}
        left, right = [clip for clip in left if clip not in taken], [clip for clip in right if clip not in taken]
    if not pairs:
        raise ValueError(
            f"{before.path} and {after.path} have no pair of videos: expected the same prompt and seed (prompts.jsonl, "
            f"selection.jsonl) or the same file names; found e.g. {_example(before)} and {_example(after)}"
        )
    order = {clip: index for index, clip in enumerate(before.clips)}
    pairs.sort(key=lambda pair: order[pair.before])
    for clip in (*left, *right):
        what = f"prompt {clip.prompt!r}, seed {clip.seed}" if clip.prompt is not None else "no prompt known"
        faults.append(
            Fault("unpaired video", f"{clip.group}/{clip.name}", f"the other folder has no partner for it ({what})")
        )
    faults += [fault for pair in pairs for fault in mismatches(pair)]
    return Pairing(before.group, after.group, tuple(pairs), (*left, *right), tuple(faults))


_KEYS: tuple[tuple[str, Callable[[FolderClip], Hashable | None]], ...] = (
    ("prompt and seed", lambda clip: None if clip.prompt is None or clip.seed is None else (clip.prompt, clip.seed)),
    ("file name", lambda clip: clip.name),
    ("file name without its ending", lambda clip: Path(clip.name).stem),
    ("prompt", lambda clip: clip.prompt),
)


def _unique(clips: Sequence[FolderClip], key: Callable[[FolderClip], Hashable | None]) -> dict[Hashable, FolderClip]:
    """Clips by key, without those whose key is missing or shared."""
    grouped: dict[Hashable, list[FolderClip]] = defaultdict(list)
    for clip in clips:
        if key(clip) is not None:
            grouped[key(clip)].append(clip)
    return {value: members[0] for value, members in grouped.items() if len(members) == 1}


def _example(folder: Folder) -> str:
    return repr(folder.clips[0].name) if folder.clips else "nothing readable"


def mismatches(pair: Pair) -> Iterator[Fault]:
    """The ways in which the two clips of a pair are not fully comparable."""
    first, second = pair.before.video, pair.after.video
    if pair.prompt is None:
        yield Fault("no prompt", pair.id, "neither folder says which prompt it was made from: it cannot be scored anew")
    if abs(first.fps - second.fps) > 0.01 * first.fps:
        yield Fault("another frame rate", pair.id, f"{first.fps:g} fps before, {second.fps:g} fps after")
    if abs(first.duration_s - second.duration_s) > max(1 / first.fps, 1 / second.fps) + 1e-6:
        yield Fault("another length", pair.id, f"{first.duration_s:.2f} s before, {second.duration_s:.2f} s after")
    if (first.width, first.height) != (second.width, second.height):
        yield Fault(
            "another size", pair.id, f"{first.width}×{first.height} before, {second.width}×{second.height} after"
        )


# ---- one Best-of-N folder -----------------------------------------------------------------------------------------


def pair_selection(folder: str | Path, *, seed: int = 0) -> Pairing:
    """Best-of-N against chance: for each decided prompt a random candidate (before) and the chosen
    one (after).

    The random candidate is drawn among all readable ones, the chosen one included: what a single
    seed would have given. Raises ``ValueError`` when the folder has no ``selection.jsonl`` or no
    decided prompt in it.
    """
    folder = Path(folder)
    listing = folder / "selection.jsonl"
    if not listing.is_file():
        raise ValueError(
            f"{folder}: neither selection.jsonl (Best-of-N) nor ledger.jsonl (a run) in it; a folder of videos "
            f"needs a second one beside it"
        )
    read = read_folder(folder, "candidates")
    faults = list(read.faults)
    by_path = {clip.path.resolve(): clip for clip in read.clips}
    by_name = {Path(clip.name).name: clip for clip in read.clips}

    def clip_of(candidate: object) -> FolderClip | None:
        path = Path(str(candidate))
        return by_path.get(path.resolve()) or by_path.get((folder / path).resolve()) or by_name.get(path.name)

    pairs = []
    for number, row in json_rows(listing, []):  # read_folder has named its unreadable lines already
        prompt, candidates, chosen = row.get("prompt"), row.get("candidates"), row.get("chosen")
        if not isinstance(prompt, str) or not isinstance(candidates, list):
            continue
        if not isinstance(chosen, int) or not 0 <= chosen < len(candidates):
            faults.append(Fault("undecided prompt", prompt, "none of its candidates has a score"))
            continue
        readable = [clip for clip in map(clip_of, candidates) if clip is not None]
        best = clip_of(candidates[chosen])
        if best is None:
            faults.append(Fault("chosen video missing", prompt, f"{candidates[chosen]} cannot be read"))
            continue
        drawn = random.Random(f"{seed}:{prompt}").choice(readable)
        before = replace(drawn, group="random candidate", prompt=prompt)
        pairs.append(Pair(f"prompt-{number}", before, replace(best, group="chosen", prompt=prompt), "selection"))
    if not pairs:
        raise ValueError(f"{listing}: no decided prompt in it; nothing to compare")
    return Pairing("random candidate", "chosen", tuple(pairs), (), tuple(faults))
