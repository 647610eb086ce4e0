"""Check annotation records against the conventions of Appendix B.1; every violation names record,
field and rule.

The raw lines are checked, so that one wrong number does not hide the rest of its record. Whether an
anomaly is a transition is told by its reason ("disappears", "suddenly appears"), because a record
has no other mark for it. Windows are read on the time stamps of the video where it is opened, else
on index / fps, each end to the nearest frame: containers round their time stamps (matroska and webm
to 1 ms, gif to 10 ms), and a window follows one clock or the other.

Source: CaC (arXiv 2605.11723) Appendix B.1.2 (categories, windows), B.1.3 (boxes, transitions,
review).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from cac_align.core.judgement import ANOMALY_TYPES, SINGLE_FRAME_TYPES, Box
from cac_align.core.video import Video
from cac_align.data.record_video import VARIABLE_RATE, frames_off_clock, has_variable_rate
from cac_align.data.records import Record

RULES: Mapping[str, str] = {
    "record": "every line is one JSON object with the record's fields, each of its type",
    "unique": "an id occurs once",
    "video": "the video exists, can be read, has the stated frames, fps and size, and a constant frame rate",
    "status": "abnormal records name anomalies, normal ones none",
    "type": "an anomaly has one of the five types",
    "window": "an anomaly's window is in order and inside the video",
    "multi-frame": "Motion Anomalies and Physical Violations span at least two frames: one frame cannot show them",
    "one category": "a defect that one frame shows is not recorded as a multi-frame category as well",
    "appearance": "something that appears or disappears is a Motion Anomaly, not an Object Distortion or Physical "
    "Violation",
    "box": "boxes are integers in [0, 1000], not empty, on frames of the video, each once per frame",
    "boxed": "an anomaly has at least one box",
    "box window": "boxes lie on frames of their anomaly's window",
    "transition": "of something that appears or disappears, the boxes are on the boundary frames of the window only",
    "reason": "an anomaly says why",
    "saliency": "saliency is salient, non-salient or absent",
    "review": "the review state is draft, returned, accepted or audited, and the annotator is named",
}

# In frames: how far a window's end may be from the frame it means, and how far if it can mean no other.
_OFF, _EXACT = 0.45, 0.2
_TRANSITION = re.compile(
    r"\b(?:disappear|vanish)(?:s|es|ed|ing)?\b|\b(?:disappearance)\b|\bsudden(?:ly)?\s+(?:re)?appear\w*|"
    r"\b(?:re)?appear(?:s|ed|ing)?\s+(?:suddenly|out of|from (?:nowhere|nothing|thin air))|\bpop(?:s|ped"
    r"|ping)?\s+(?:in|out|into|up)\b|"
    r"\bmateriali[sz]\w*",
    re.IGNORECASE,
)
_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "id": str,
    "video": str,
    "prompt": str,
    "fps": (int, float),
    "num_frames": int,
    "width": int,
    "height": int,
    "status": str,
}


@dataclass(frozen=True)
class Violation:
    """One broken rule.

    record: the id, or "line N" without one. field: for example "anomalies[0].boxes[12]". rule: a
    key of ``RULES``.
    """

    record: str
    field: str
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.record}: {self.field}: {self.message} [{self.rule}]"

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Validation:
    """The number of lines checked, and the violations in the order of the file."""

    records: int
    violations: tuple[Violation, ...]

    def to_json(self) -> dict[str, Any]:
        rules = Counter(violation.rule for violation in self.violations)
        return {
            "records": self.records,
            "violations": [violation.to_json() for violation in self.violations],
            "rules": dict(rules.most_common()),
        }


def validate(
    path: str | Path,
    *,
    skip: Collection[str] = (),
    videos: bool = True,
    progress: Callable[[int], Any] | None = None,
) -> Validation:
    """Check every record of a JSON Lines file.

    skip: rules that are not checked, for example "boxed" for data sets without boxes.
    videos: open each video.
    progress: called with 1 per record.

    Raises ``ValueError`` for an unknown rule in ``skip``, and for a file that cannot be read or
    holds no record.
    """
    unknown = sorted(set(skip) - set(RULES))
    if unknown:
        raise ValueError(f"unknown rule {unknown[0]!r}; the rules are {', '.join(RULES)}")
    path = Path(path)
    found: list[Violation] = []
    ids: Counter[str] = Counter()
    count = 0
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                count += 1
                found += _line(line, number, path.parent, ids, videos)
                if progress is not None:
                    progress(1)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as records: {error}") from error
    if not count:
        raise ValueError(f"{path}: holds no records")
    if len(found) == count and all(violation.field == "(line)" for violation in found):
        raise ValueError(f"{path}: no line of it is a record; expected records.jsonl, one JSON object per line")
    return Validation(count, tuple(violation for violation in found if violation.rule not in skip))


def _line(line: str, number: int, root: Path, ids: Counter[str], videos: bool) -> list[Violation]:
    try:
        row = json.loads(line)
    except ValueError as error:
        return [Violation(f"line {number}", "(line)", "record", f"not JSON: {error}")]
    if not isinstance(row, dict):
        return [
            Violation(f"line {number}", "(line)", "record", f"expected a JSON object, received {type(row).__name__}")
        ]
    name = row["id"] if isinstance(row.get("id"), str) else f"line {number}"
    ids[name] += 1
    video = _opened(root / row["video"]) if videos and isinstance(row.get("video"), str) else None
    found = [Violation(name, *rest) for rest in (*_head(row), *_anomalies(row, _times_s(row, video)))]
    if ids[name] == 2:
        found.append(Violation(name, "id", "unique", f"occurs again on line {number}; give every record its own id"))
    if video is not None:
        found += [Violation(name, *rest) for rest in _video(row, video)]
    return found


_Finding = tuple[str, str, str]
"""(field, rule, message)."""


def _head(row: Mapping[str, Any]) -> Iterator[_Finding]:
    for name, kind in _FIELDS.items():
        if name not in row:
            yield name, "record", "missing"
        elif not isinstance(row[name], kind) or isinstance(row[name], bool):
            yield name, "record", f"expected {_type_names(kind)}, received {row[name]!r}"
        elif kind is int and row[name] < 1:
            yield name, "record", f"must be at least 1, received {row[name]}"
        elif name == "fps" and not (math.isfinite(row[name]) and row[name] > 0):
            yield name, "record", f"must be a positive number of frames per second, received {row[name]}"
    for name in sorted(set(row) - set(Record.__dataclass_fields__)):
        yield name, "record", "unknown field; free-form data belongs under 'extra'"
    anomalies, status = row.get("anomalies", []), row.get("status")
    if status not in ("normal", "abnormal"):
        yield "status", "status", f"expected 'normal' or 'abnormal', received {status!r}"
    elif isinstance(anomalies, list) and (status == "abnormal") != bool(anomalies):
        yield "status", "status", f"{status} does not go with {len(anomalies)} anomalies"
    if row.get("review", "accepted") not in ("draft", "returned", "accepted", "audited"):
        yield "review", "review", f"expected draft, returned, accepted or audited, received {row['review']!r}"
    if not row.get("annotator"):
        yield "annotator", "review", "nobody is named"


def _anomalies(row: Mapping[str, Any], times_s: Sequence[float] | None) -> Iterator[_Finding]:
    anomalies = row.get("anomalies", [])
    if not isinstance(anomalies, list):
        yield "anomalies", "record", f"expected a list, received {type(anomalies).__name__}"
        return
    for position, anomaly in enumerate(anomalies):
        if not isinstance(anomaly, dict):
            yield f"anomalies[{position}]", "record", f"expected an object, received {anomaly!r}"
            continue
        for name, rule, message in _anomaly(anomaly, row, times_s):
            yield f"anomalies[{position}].{name}", rule, message
    for position, anomaly in enumerate(anomalies):
        for before, other in enumerate(anomalies[:position]):
            if _same_defect(anomaly, other):
                message = (
                    f"the window and boxes of anomalies[{before}] again; "
                    "a defect that one frame shows has that category only"
                )
                yield f"anomalies[{position}].type", "one category", message


def _same_defect(one: Any, other: Any) -> bool:
    """Whether two anomalies have one place and time, once as a single-frame and once as a
    multi-frame category.
    """
    if not (isinstance(one, dict) and isinstance(other, dict)) or not one.get("boxes"):
        return False
    kinds = {str(one.get("type")) in SINGLE_FRAME_TYPES, str(other.get("type")) in SINGLE_FRAME_TYPES}
    return len(kinds) == 2 and one.get("window") == other.get("window") and one["boxes"] == other.get("boxes")


def _anomaly(anomaly: Mapping[str, Any], row: Mapping[str, Any], times_s: Sequence[float] | None) -> Iterator[_Finding]:
    kind, reason = anomaly.get("type"), anomaly.get("reason")
    known = isinstance(kind, str) and kind in ANOMALY_TYPES
    if not known:
        yield "type", "type", f"expected one of {', '.join(ANOMALY_TYPES)}, received {kind!r}"
    if not isinstance(reason, str) or not reason.strip():
        yield "reason", "reason", "expected what is wrong and with which thing, received none"
    if anomaly.get("saliency") not in (None, "salient", "non-salient"):
        yield "saliency", "saliency", f"expected salient, non-salient or null, received {anomaly['saliency']!r}"
    for name in sorted(set(anomaly) - {"type", "window", "reason", "region", "boxes", "saliency"}):
        yield name, "record", "unknown field of an anomaly"
    transition = isinstance(reason, str) and _TRANSITION.search(reason)
    if transition and kind in ("Object Distortion", "Physical Violations"):
        yield "type", "appearance", f"{kind}, but the reason says {transition.group(0)!r}; that is a Motion Anomaly"
    frames = yield from _window(anomaly, row, times_s, multi=known and kind not in SINGLE_FRAME_TYPES)
    yield from _boxes(anomaly, row, frames, bool(transition and kind == "Motion Anomalies"))


def _window(
    anomaly: Mapping[str, Any], row: Mapping[str, Any], times_s: Sequence[float] | None, *, multi: bool
) -> Iterator[_Finding]:
    """Yield violations; return the window's frames, or None without a usable window.

    They are the first and last frame, and the frames that the ends may also mean (``_EXACT``).
    """
    window = anomaly.get("window")
    ends = [window.get("start_s"), window.get("end_s")] if isinstance(window, dict) else []
    if len(ends) != 2 or not all(_is_number(end) for end in ends):
        yield "window", "window", f"expected {{start_s, end_s}} in seconds, received {window!r}"
        return None
    start_s, end_s = (float(end) for end in ends if _is_number(end))
    if end_s < start_s:
        yield "window", "window", f"inverted: starts at {start_s:g} s and ends at {end_s:g} s"
        return None
    if not (_is_number(row.get("fps")) and row["fps"] > 0 and isinstance(row.get("num_frames"), int)):
        return None
    fps, last = row["fps"], row["num_frames"] - 1
    last_s = last / fps if times_s is None else times_s[-1]
    if start_s < 0 or end_s > last_s + _OFF / fps:
        yield "window", "window", f"{start_s:g}-{end_s:g} s lies outside the video, which is 0-{last_s:g} s"
        return None
    begins, ends = (
        end * fps if times_s is None else float(np.interp(end, times_s, range(last + 1))) for end in (start_s, end_s)
    )
    first, final = math.ceil(begins - _OFF), min(math.floor(ends + _OFF), last)
    if final < first:  # between two frames: the nearest one
        first = final = min(round((begins + ends) / 2), last)
    if multi and final == first:
        yield "window", "multi-frame", f"{anomaly.get('type')} on frame {first} alone; it takes a comparison of frames"
    return first, final, math.ceil(begins - _EXACT), math.floor(ends + _EXACT)


def _boxes(
    anomaly: Mapping[str, Any], row: Mapping[str, Any], window: tuple[int, ...] | None, transition: bool
) -> Iterator[_Finding]:
    boxes = anomaly.get("boxes", {})
    if not isinstance(boxes, dict):
        yield "boxes", "box", f"expected an object by source frame, received {type(boxes).__name__}"
        return
    if not boxes:
        yield "boxes", "boxed", "no box on any frame"
    count = row.get("num_frames")
    for key, entry in boxes.items():
        where = f"boxes[{key}]"
        if not re.fullmatch(r"\d{1,9}", key):
            yield where, "box", f"expected a source frame index as key, received {key!r}"
            continue
        frame = int(key)
        if isinstance(count, int) and frame >= count:
            yield where, "box", f"frame {frame} is outside the video, which has frames 0-{count - 1}"
        elif window is not None and not window[0] <= frame <= window[1]:
            yield where, "box window", f"frame {frame} is outside the window, frames {window[0]}-{window[1]}"
        elif window is not None and transition and frame not in window:
            message = (
                f"frame {frame} is inside the transition; box frame {window[0]} or {window[1]}, where the thing is seen"
            )
            yield where, "transition", message
        yield from _frame(where, entry)


def _frame(where: str, entry: Any) -> Iterator[_Finding]:
    if not isinstance(entry, list) or not entry or not isinstance(entry[0], list):
        yield where, "box", f"expected a list of boxes [[xmin, ymin, xmax, ymax], …], received {entry!r}"
        return
    before: list[Any] = []
    for position, corners in enumerate(entry):
        try:
            if not (isinstance(corners, list) and len(corners) == 4):
                raise ValueError(f"expected [xmin, ymin, xmax, ymax], received {corners!r}")
            Box(*corners)
        except ValueError as error:
            yield f"{where}[{position}]", "box", str(error)
        if corners in before:
            yield f"{where}[{position}]", "box", "the same box again on this frame"
        before.append(corners)


def _opened(path: Path) -> Video | str:
    """The video, or why there is none."""
    if not path.is_file():
        return f"missing: expected {path}"
    try:
        return Video.open(path)
    except (ValueError, OSError) as error:
        return f"cannot be read: {error}"


def _times_s(row: Mapping[str, Any], video: Video | str | None) -> Sequence[float] | None:
    """The video's own time stamps, if it is the video that the record describes."""
    if not isinstance(video, Video) or row.get("num_frames") != len(video) or not _same_rate(row, video):
        return None
    return video.times_s


def _same_rate(row: Mapping[str, Any], video: Video) -> bool:
    return _is_number(row.get("fps")) and abs(row["fps"] - video.fps) <= 0.01 * video.fps


def _video(row: Mapping[str, Any], video: Video | str) -> Iterator[_Finding]:
    if isinstance(video, str):
        yield "video", "video", video
        return
    named = Path(row["video"]).name
    for name, has in (("num_frames", len(video)), ("width", video.width), ("height", video.height)):
        if isinstance(row.get(name), int) and row[name] != has:
            yield name, "video", f"states {row[name]}, {named} has {has}"
    if not _is_number(row.get("fps")) or row["fps"] <= 0:
        return
    if has_variable_rate(video, row["fps"]):
        yield "video", "video", f"{named}: {VARIABLE_RATE}"
    elif not _same_rate(row, video):
        yield "fps", "video", f"states {row['fps']:g}, {named} has {video.fps:g}"
    elif row.get("num_frames") == len(video) and (off := frames_off_clock(video, row["fps"])) > 0.5:
        has = (len(video) - 1) / video.times_s[-1]
        yield "fps", "video", f"states {row['fps']:g}, {named} has {has:.5g}, which makes {off:.1f} frames by its end"


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _type_names(kind: type | tuple[type, ...]) -> str:
    return " or ".join(one.__name__ for one in kind) if isinstance(kind, tuple) else kind.__name__
