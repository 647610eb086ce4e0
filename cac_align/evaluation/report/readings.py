"""Everything that is known of a video, in one place: scores with their evidence, raters' records, VBench values, how much moves.

Pairing + reward | ledger.jsonl | selection.jsonl, ratings*.jsonl, vbench.jsonl, pixels → Reading per clip, faults by name

Motion is always available: the mean absolute difference of luminance between samples 1/8 s apart, on frames scaled down to at most
64 pixels a side (which averages noise and compression away), as a share of the full range. It is 0 for a still and grows with how
much of the picture changes how fast; camera motion counts too. It compares two versions of the same prompt, not two prompts.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cac_align.core.judgement import Judgement
from cac_align.core.video import Video
from cac_align.data.records import Record
from cac_align.evaluation.human.experts import read_ratings
from cac_align.evaluation.pairing import Clip, Fault, Pair, Pairing, json_rows
from cac_align.evaluation.vbench.run import Row, row_value
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.reward import Reward, Score

MOTION_FPS = 8.0
MOTION_SIDE_PX = 64
PREVIEW_PX = 320  # longest side of the frames that a page embeds
_CHUNK = 32  # frames decoded at one time


@dataclass
class Reading:
    """What is known of one clip. Missing things are None or absent, never 0; ``error`` says why there is no score.

    values: raw component values by name ("cac", "unified", …) and "reward", the combined value. normalised, shares: of a combined
    score, by component. ratings: one record per rater. vbench: by dimension, in [0, 1]. motion: see the module.
    judges: what produced a value, by the value's key ("cac", "reward", "cac_rate" for the verdict, "vbench/<dimension>"): two values are
    comparable only where these are equal. provenance: of the score as a whole.
    """

    clip: Clip
    values: dict[str, float] = field(default_factory=dict)
    normalised: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    judgement: Judgement | None = None
    error: str | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    ratings: list[Record] = field(default_factory=list)
    vbench: dict[str, float] = field(default_factory=dict)
    motion: float | None = None
    judges: dict[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def scored(self) -> bool:
        return bool(self.values)

    @property
    def judged_abnormal(self) -> bool | None:
        """CaC's verdict; None without one."""
        return None if self.judgement is None or self.judgement.status is None else self.judgement.status == "abnormal"


@dataclass(frozen=True)
class PairReading:
    """A pair with what is known of its two clips. ``experts``: the share of raters who judged both and call it abnormal."""

    pair: Pair
    before: Reading
    after: Reading

    @property
    def experts(self) -> tuple[float, float] | None:
        """(before, after): share of the raters who judged *both* and call each abnormal; None when nobody judged both."""
        sides = [
            {record.annotator: float(record.status == "abnormal") for record in reading.ratings if counts(record)}
            for reading in (self.before, self.after)
        ]
        both = sorted(sides[0].keys() & sides[1].keys())
        if not both:
            return None
        first, second = (sum(side[rater] for rater in both) / len(both) for side in sides)
        return first, second


def counts(record: Any) -> bool:
    """Whether a rating counts: it names its rater, and no reviewer sent it back."""
    return bool(record.annotator) and record.review != "returned"


def clips_of(pairing: Pairing) -> list[Clip]:
    """The clips of all pairs, before and after in turn. A clip that stands on both sides comes twice."""
    return [clip for pair in pairing.pairs for clip in (pair.before, pair.after)]


def read_all(
    pairing: Pairing,
    folders: Sequence[Path],
    *,
    reward: Reward | None = None,
    ratings: Sequence[Path] = (),
    vbench: Sequence[Row] | None = None,
    faults: list[Fault],
) -> list[Reading]:
    """A Reading per clip of ``clips_of``, motion aside. What is stored in ``folders`` is used where nothing newer is given.

    reward: scores every clip that has a prompt; None: the ledgers' and selections' scores. ratings: record files, besides the
    folders' own. vbench: rows; None: the folders' ``vbench.jsonl``. Raises ``ValueError`` for a named ratings file without ratings.
    folders: see ``_places``. Of one rater's ratings of a clip the last one read counts; the named files are read last.
    """
    readings = [Reading(clip) for clip in clips_of(pairing)]
    folders = _places(readings, folders)
    if reward is None:
        _from_selections(readings, folders)
        _from_ledgers(readings, folders, faults)
    else:
        _from_reward(readings, reward)
    for reading in readings:
        if not reading.scored and reading.error:
            faults.append(Fault("no score", f"{reading.clip.group}/{reading.clip.name}", reading.error))
    _add_ratings(readings, pairing, folders, ratings, faults)
    _add_vbench(readings, folders, vbench, faults)
    return readings


# ---- scores -------------------------------------------------------------------------------------------------------


def take_score(reading: Reading, score: Score, name: str) -> None:
    """Enter a score under its reward's name, and a combination's components under theirs.

    A verdict counts only with the score that it led to: one that was refused (too little probability mass, say) is no verdict.
    """
    # A combination that lacks another component may hold CaC's verdict all the same; its raw parts are the scored components.
    if score.evidence is not None and (score.scored or "cac" in score.parts):
        reading.judgement = score.evidence
        reading.judges["cac_rate"] = _component(score.provenance, "cac") or score.provenance
    if not score.scored:
        reading.error = score.error
    combined = any(part.startswith("normalised/") for part in score.parts)
    for part, value in score.parts.items():
        if math.isnan(value):
            continue
        if part.startswith("normalised/"):
            reading.normalised[part.split("/", 1)[1]] = value
        elif part.startswith("share/"):
            reading.shares[part.split("/", 1)[1]] = value
        elif combined and "/" not in part:
            reading.values[part] = value
            reading.judges[part] = _component(score.provenance, part)
    if score.scored:
        key = "reward" if combined else name
        reading.values[key], reading.judges[key] = score.value, score.provenance
        reading.error = None
    if combined or not reading.provenance or reading.provenance.get("reward") == score.provenance.get("reward"):
        reading.provenance = score.provenance


def _component(provenance: Mapping[str, str], name: str) -> dict[str, str]:
    """The component's own provenance inside a combination's; empty where there is none."""
    return {key.removeprefix(f"{name}/"): value for key, value in provenance.items() if key.startswith(f"{name}/")}


def judged_alike(before: Reading, after: Reading, key: str) -> bool:
    """Whether the value of that key comes from the same judge on both sides: equal provenances, hence equal provenance digests."""
    return dict(before.judges.get(key, {})) == dict(after.judges.get(key, {}))


def misjudged(before: Reading, after: Reading) -> dict[str, list[str]]:
    """By key of a value that both sides have, from different judges: the provenance entries that differ."""
    found = {}
    for key in before.judges.keys() | after.judges.keys():
        if all(_has(reading, key) for reading in (before, after)) and not judged_alike(before, after, key):
            first, second = before.judges.get(key, {}), after.judges.get(key, {})
            found[key] = sorted(entry for entry in {**first, **second} if first.get(entry) != second.get(entry))
    return dict(sorted(found.items()))


def _has(reading: Reading, key: str) -> bool:
    if key == "cac_rate":
        return reading.judged_abnormal is not None
    return key in reading.values or key.removeprefix("vbench/") in reading.vbench


def _from_reward(readings: Sequence[Reading], reward: Reward) -> None:
    """Score what has a prompt, each video once, all in one call: a group-normalising reward then sees before and after together."""
    asked: dict[tuple[Path, str], list[Reading]] = {}
    for reading in readings:
        if reading.clip.prompt is None:
            reading.error = "nothing says which prompt it was made from"
        else:
            asked.setdefault((reading.clip.path, reading.clip.prompt), []).append(reading)
    if not asked:
        return
    scores = reward([prompt for _, prompt in asked], [group[0].clip.video for group in asked.values()])
    if len(scores) != len(asked):
        raise ValueError(
            f"reward {reward.name!r} returned {len(scores)} scores for {len(asked)} videos; expected one each"
        )
    for group, score in zip(asked.values(), scores, strict=True):
        for reading in group:
            take_score(reading, score, reward.name)


def _from_ledgers(readings: Sequence[Reading], folders: Sequence[Path], faults: list[Fault]) -> None:
    """The last word of the ledgers on each video (by content and prompt): components first, the combination last."""
    wanted: dict[tuple[str, str | None], list[Reading]] = {}
    for reading in readings:
        wanted.setdefault((reading.clip.video.content_hash, reading.clip.prompt), []).append(reading)
    for path in _stored(folders, "ledger.jsonl"):
        where = f"{path.parent.name}/{path.name}"
        try:
            ledger = Ledger(path, write=False)
        except ValueError as error:
            faults.append(Fault("unreadable line", where, str(error)))
            continue
        scored = (row for row in ledger.rows() if "score" in row)
        for row in sorted(scored, key=lambda row: row.get("kind") == "combined"):
            for reading in wanted.get((row.get("video_hash"), row.get("prompt")), ()):
                try:
                    take_score(reading, Score.from_json(row), str(row.get("reward")))
                except (ValueError, KeyError, TypeError) as error:
                    faults.append(Fault("unreadable line", where, f"a score of {row.get('video')}: {error}"))
        faults += [Fault("unreadable line", where, fault) for fault in ledger.faults]


def _from_selections(readings: Sequence[Reading], folders: Sequence[Path]) -> None:
    """The combined values that ``selection.jsonl`` holds, for folders that came without their ledger."""
    by_name: dict[tuple[str, str | None], list[Reading]] = {}
    for reading in readings:
        by_name.setdefault((reading.clip.path.name, reading.clip.prompt), []).append(reading)
    for path in _stored(folders, "selection.jsonl"):
        for _, row in json_rows(path, []):  # unreadable lines were named when the folder was read
            columns = [row.get(name) or () for name in ("candidates", "scores", "errors")]
            for candidate, score, error in zip(*columns, strict=False):
                for reading in by_name.get((Path(str(candidate)).name, row.get("prompt")), ()):
                    if reading.clip.path.resolve().is_relative_to(path.parent.resolve()):
                        if isinstance(score, (int, float)):
                            reading.values["reward"] = float(score)
                            reading.judges.pop("reward", None)
                        else:
                            reading.error = str(error)


def _places(readings: Sequence[Reading], folders: Sequence[Path]) -> list[Path]:
    """Where something may be stored, each once: the folders, just above each, above all (the rating page's), the clips' own."""
    around = [place for folder in folders for place in (folder.resolve(), folder.resolve().parent)]
    around += [Path(os.path.commonpath(around[::2]))] if around else []
    return list(dict.fromkeys([*around, *(reading.clip.path.parent.resolve() for reading in readings)]))


def _stored(places: Sequence[Path], name: str) -> list[Path]:
    return [place / name for place in places if (place / name).is_file()]


# ---- raters -------------------------------------------------------------------------------------------------------


def _add_ratings(
    readings: Sequence[Reading], pairing: Pairing, folders: Sequence[Path], files: Sequence[Path], faults: list[Fault]
) -> None:
    """Give each clip the records that are about it, relabelled with this pairing's groups and pairs."""
    own = [path for folder in folders for path in sorted(folder.glob("ratings*.jsonl"))]
    by_path: dict[Path, list[Reading]] = {}
    for reading in readings:
        by_path.setdefault(reading.clip.path.resolve(), []).append(reading)
    named = {
        id(reading): pair.id for pair, two in zip(pairing.pairs, _two_by_two(readings), strict=True) for reading in two
    }
    groups = {pairing.before, pairing.after}
    for path in dict.fromkeys(path.resolve() for path in [*own, *map(Path, files)]):
        if path not in {Path(file).resolve() for file in files} and not path.stat().st_size:
            continue  # the rating page's export before the first rating
        records, unreadable = read_ratings(path)
        faults += unreadable
        for record in records:
            found = by_path.get((path.parent / record.video).resolve()) or _by_name(readings, record)
            group = record.extra.get("group")
            about = [each for each in found if group not in groups or each.clip.group == group]
            if not about:
                faults.append(Fault("rating of another video", record.id, f"{record.video} is in none of the pairs"))
            for reading in about:
                extra = {**record.extra, "group": reading.clip.group, "pair": named[id(reading)]}
                given = replace(record, video=str(reading.clip.path.resolve()), extra=extra)
                twice = [
                    old for old in reading.ratings if counts(old) and counts(given) and old.annotator == given.annotator
                ]
                if any(old != given for old in twice):
                    faults.append(
                        Fault("rated twice", record.id, f"{record.annotator} rated it again; the last one read counts")
                    )
                reading.ratings = [*(old for old in reading.ratings if old not in twice), given]


def _by_name(readings: Sequence[Reading], record: Record) -> list[Reading]:
    """Where the path does not fit (the folder was moved): the same group and file name."""
    group, name = record.extra.get("group"), Path(record.video).name
    return [each for each in readings if each.clip.group == group and each.clip.path.name == name]


def _two_by_two(readings: Sequence[Reading]) -> list[tuple[Reading, Reading]]:
    return list(zip(readings[::2], readings[1::2], strict=True))


# ---- VBench -------------------------------------------------------------------------------------------------------


def _add_vbench(
    readings: Sequence[Reading], folders: Sequence[Path], rows: Sequence[Row] | None, faults: list[Fault]
) -> None:
    if rows is not None:
        by_path: dict[Path, list[Reading]] = {}
        for reading in readings:
            by_path.setdefault(reading.clip.path.resolve(), []).append(reading)
        for row in rows:
            _enter(by_path.get(Path(row.video).resolve(), ()), row.dimension, row.value, row.error, faults)
        return
    stored = _stored(folders, "vbench.jsonl")
    if not stored:
        return
    by_hash: dict[str, list[Reading]] = {}
    for reading in readings:
        by_hash.setdefault(hashlib.sha256(reading.clip.path.read_bytes()).hexdigest(), []).append(reading)
    for path in stored:
        for number, row in json_rows(path, faults):
            try:
                value, error = row_value(row)
                judge = {name: str(row[name]) for name in ("version", "imaging_mode") if name in row}
                found = by_hash.get(row["sha256"], ())
                about = [
                    each
                    for each in found
                    if None in (each.clip.prompt, row.get("prompt")) or each.clip.prompt == row["prompt"]
                ]
                _enter(about, row["dimension"], value, error, faults, judge)
            except (KeyError, TypeError) as fault:
                faults.append(
                    Fault("unreadable line", f"{path.parent.name}/{path.name}:{number}", f"not a VBench row: {fault}")
                )


def _enter(
    readings: Sequence[Reading],
    dimension: str,
    value: float | None,
    error: str | None,
    faults: list[Fault],
    judge: Mapping[str, str] | None = None,
) -> None:
    for reading in readings:
        if value is not None:
            reading.vbench[dimension] = value
            reading.judges[f"vbench/{dimension}"] = judge or {}
        else:
            faults.append(
                Fault("no VBench value", f"{reading.clip.group}/{reading.clip.name}", f"{dimension}: {error}")
            )


# ---- pixels -------------------------------------------------------------------------------------------------------


def smaller(video: Video, side_px: int, indices: Sequence[int] | None = None) -> UInt8[np.ndarray, "T H W 3"]:
    """Frames (all of them without ``indices``) scaled down, by area, to at most ``side_px`` a side; never up. Even sizes.

    Memory stays small: frames are decoded a few at a time. Raises ``ValueError`` when the video cannot be decoded.
    """
    import PIL.Image

    indices = range(len(video)) if indices is None else indices
    scale = min(side_px / max(video.width, video.height), 1.0)
    size = (max(round(video.width * scale / 2) * 2, 2), max(round(video.height * scale / 2) * 2, 2))
    small = np.empty((len(indices), size[1], size[0], 3), dtype=np.uint8)
    for start in range(0, len(indices), _CHUNK):
        pixels = video.frames(indices[start : start + _CHUNK]).pixels
        for offset, frame in enumerate(pixels):
            same = frame.shape[:2] == small.shape[1:3]
            small[start + offset] = frame if same else PIL.Image.fromarray(frame).resize(size, PIL.Image.Resampling.BOX)
    return small


def motion(video: Video, pixels: UInt8[np.ndarray, "T H W 3"] | None = None) -> float | None:
    """How much the picture changes, in [0, 1] (see the module); None for a video of one frame.

    pixels: all frames as ``smaller(video, PREVIEW_PX)`` gives them, where they are decoded already. Raises ``ValueError`` when the video cannot be decoded.
    """
    if len(video) < 2:
        return None
    indices = list(video.indices_at(MOTION_FPS))
    # Always by way of the preview's size, so that it makes no difference who decoded the frames.
    frames = _shrunk(smaller(video, PREVIEW_PX, indices) if pixels is None else pixels[indices])
    luminance = frames.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return float(np.abs(np.diff(luminance, axis=0)).mean() / 255)


def _shrunk(pixels: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "T H W 3"]:
    height, width = pixels.shape[1:3]
    return smaller(Video.open(pixels, fps=1.0), MOTION_SIDE_PX) if max(height, width) > MOTION_SIDE_PX else pixels


Progress = Callable[[int, int, str], None]
"""(done, total, what) after each step."""


def provenances(readings: Sequence[Reading]) -> list[dict[str, str]]:
    """The different provenances behind the scores, in order of appearance."""
    return [
        dict(json.loads(text))
        for text in dict.fromkeys(json.dumps(dict(r.provenance), sort_keys=True) for r in readings if r.provenance)
    ]
