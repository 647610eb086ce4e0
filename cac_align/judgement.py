"""What a judge says about a video, kept whole: status, anomalies, both turns, and the probability behind the number.

answer text → read_answer → Turn (status, anomalies, faults) → two turns → Judgement → R = P(normal) / (P(normal) + P(abnormal))

Time is in seconds on the source clock, frames are *source* indices, boxes are integers in [0, 1000] per axis. The numbers a
model writes ("Frame 3") live only inside its text; ``read_answer`` turns them into source frames and seconds, and nothing
else in the package ever does. Reading is strict because it *is* the format check of Eq. 2: every fault is listed by name.

Source: CaC (arXiv 2605.11723) Sec. 3.3 (Eq. 2), Sec. 3.4 (Eq. 7), Appendix B.1 and Fig. S5 (the answer's JSON).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["normal", "abnormal"]

ANOMALY_TYPES: tuple[str, ...] = (
    "Object Distortion",
    "Human Distortion",
    "Motion Anomalies",
    "Physical Violations",
    "Character Anomalies",
)
"""The five labels of the paper's taxonomy (Appendix B.1.2), in its order."""

SINGLE_FRAME_TYPES = frozenset({"Object Distortion", "Human Distortion", "Character Anomalies"})
"""Labels for defects that one frame can show; the other two need a comparison across frames (Appendix B.1.2)."""

BOX_MAX = 1000


@dataclass(frozen=True, order=True)
class Window:
    """A closed interval of time, in seconds on the source clock: from the first frame's time stamp to the last one's.

    Raises ``ValueError`` when an end is not finite, negative, or the two are inverted.
    """

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start_s) and math.isfinite(self.end_s)):
            raise ValueError(f"Window needs two finite times in seconds, received start_s={self.start_s}, end_s={self.end_s}")
        if self.start_s < 0:
            raise ValueError(f"Window starts before the video: start_s={self.start_s}; the source clock starts at 0")
        if self.end_s < self.start_s:
            raise ValueError(f"Window is inverted: start_s={self.start_s} > end_s={self.end_s}; swap the two")

    def to_json(self) -> dict[str, float]:
        return {"start_s": self.start_s, "end_s": self.end_s}


def hull(windows: Sequence[Window]) -> Window:
    """The smallest window that covers all of ``windows``. Raises ``ValueError`` when there is none."""
    if not windows:
        raise ValueError("hull needs at least one window, received none")
    return Window(min(w.start_s for w in windows), max(w.end_s for w in windows))


@dataclass(frozen=True, order=True)
class Box:
    """A box in Qwen3-VL's normalised coordinates: integers in [0, 1000] per axis, ``xmin < xmax`` and ``ymin < ymax``.

    Raises ``ValueError`` naming the coordinate that is not an integer, out of range or inverted.
    """

    xmin: int
    ymin: int
    xmax: int
    ymax: int

    def __post_init__(self) -> None:
        for name in ("xmin", "ymin", "xmax", "ymax"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"Box.{name} must be an integer in [0, {BOX_MAX}], received {value!r}")
            if not 0 <= value <= BOX_MAX:
                raise ValueError(f"Box.{name} must lie in [0, {BOX_MAX}], received {value}")
        if self.xmin >= self.xmax or self.ymin >= self.ymax:
            raise ValueError(f"Box is empty or inverted: {self.to_json()}; expected xmin < xmax and ymin < ymax")

    def to_pixels(self, width_px: int, height_px: int) -> tuple[float, float, float, float]:
        """The box on a frame of ``width_px`` × ``height_px``: (left, top, right, bottom) in pixels, right and bottom exclusive."""
        return (
            self.xmin * width_px / BOX_MAX,
            self.ymin * height_px / BOX_MAX,
            self.xmax * width_px / BOX_MAX,
            self.ymax * height_px / BOX_MAX,
        )

    @classmethod
    def from_pixels(cls, left: float, top: float, right: float, bottom: float, width_px: int, height_px: int) -> Box:
        """The smallest box on the [0, 1000] grid that covers the pixels [left, right) × [top, bottom), clipped to the frame."""
        xmin = min(max(math.floor(left * BOX_MAX / width_px + 1e-9), 0), BOX_MAX - 1)
        ymin = min(max(math.floor(top * BOX_MAX / height_px + 1e-9), 0), BOX_MAX - 1)
        xmax = min(max(math.ceil(right * BOX_MAX / width_px - 1e-9), xmin + 1), BOX_MAX)
        ymax = min(max(math.ceil(bottom * BOX_MAX / height_px - 1e-9), ymin + 1), BOX_MAX)
        return cls(xmin, ymin, xmax, ymax)

    @property
    def area(self) -> float:
        """Share of the frame that the box covers, in (0, 1]."""
        return (self.xmax - self.xmin) * (self.ymax - self.ymin) / BOX_MAX**2

    def to_json(self) -> list[int]:
        return [self.xmin, self.ymin, self.xmax, self.ymax]


@dataclass(frozen=True)
class Anomaly:
    """One defect: its type (one of ``ANOMALY_TYPES``), when, why, where in words, and boxes by *source* frame index.

    ``window`` is None only where a turn gave none. ``saliency`` ("salient" | "non-salient") exists in annotations, not in answers.
    """

    type: str
    window: Window | None
    reason: str = ""
    region: str = ""
    boxes: Mapping[int, tuple[Box, ...]] = field(default_factory=dict)
    saliency: Literal["salient", "non-salient"] | None = None

    def __post_init__(self) -> None:
        if self.type not in ANOMALY_TYPES:
            raise ValueError(f"Anomaly.type must be one of {', '.join(ANOMALY_TYPES)}; received {self.type!r}")
        if self.saliency not in (None, "salient", "non-salient"):
            raise ValueError(f"Anomaly.saliency must be 'salient', 'non-salient' or None; received {self.saliency!r}")

    def to_json(self) -> dict[str, Any]:
        return {
            "type": self.type,
            "window": self.window.to_json() if self.window else None,
            "reason": self.reason,
            "region": self.region,
            "boxes": {str(frame): [box.to_json() for box in boxes] for frame, boxes in sorted(self.boxes.items())},
            "saliency": self.saliency,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Anomaly:
        """Inverse of ``to_json``. Raises ``ValueError`` (or ``KeyError`` for a missing field) on anything else."""
        return cls(
            type=row["type"],
            window=Window(**row["window"]) if row.get("window") else None,
            reason=row.get("reason", ""),
            region=row.get("region", ""),
            boxes={int(frame): tuple(Box(*box) for box in boxes) for frame, boxes in row.get("boxes", {}).items()},
            saliency=row.get("saliency"),
        )


@dataclass(frozen=True)
class Turn:
    """One answer of the judge, read. ``status`` is None when it could not be read; ``faults`` then says why.

    ``frames`` are the source indices the judge was shown, in order. ``log_p_normal`` / ``log_p_abnormal`` are the natural
    logarithms of the probabilities of the two words at the first position of the status value (None where none was read).
    """

    number: Literal[1, 2]
    text: str
    frames: tuple[int, ...]
    status: Status | None = None
    anomalies: tuple[Anomaly, ...] = ()
    chain_of_thought: str = ""
    faults: tuple[str, ...] = ()
    log_p_normal: float | None = None
    log_p_abnormal: float | None = None

    @property
    def valid(self) -> bool:
        """Valid_t of Eq. 2: the answer obeys the turn's schema."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "status": self.status,
            "anomalies": [anomaly.to_json() for anomaly in self.anomalies],
            "chain_of_thought": self.chain_of_thought,
            "faults": list(self.faults),
            "frames": list(self.frames),
            "log_p_normal": self.log_p_normal,
            "log_p_abnormal": self.log_p_abnormal,
            "text": self.text,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Turn:
        return cls(
            number=row["number"],
            text=row["text"],
            frames=tuple(row["frames"]),
            status=row["status"],
            anomalies=tuple(Anomaly.from_json(item) for item in row["anomalies"]),
            chain_of_thought=row["chain_of_thought"],
            faults=tuple(row["faults"]),
            log_p_normal=row["log_p_normal"],
            log_p_abnormal=row["log_p_abnormal"],
        )


@dataclass(frozen=True)
class Judgement:
    """The verdict on one video with everything it rests on.

    ``status`` is the final decision (turn 2 has the last word), ``anomalies`` what it confirmed, ``turns`` every answer that
    was asked for, in order, retries included. ``log_p_normal`` / ``log_p_abnormal`` come from the deciding turn.
    ``error`` says why there is no verdict; then ``status`` is None and ``reward`` is NaN, never a guess.
    """

    status: Status | None
    anomalies: tuple[Anomaly, ...] = ()
    turns: tuple[Turn, ...] = ()
    log_p_normal: float | None = None
    log_p_abnormal: float | None = None
    error: str | None = None

    @property
    def p_normal(self) -> float:
        """P(normal) at the deciding position, in [0, 1]; NaN when it was not read."""
        return math.nan if self.log_p_normal is None else math.exp(self.log_p_normal)

    @property
    def p_abnormal(self) -> float:
        return math.nan if self.log_p_abnormal is None else math.exp(self.log_p_abnormal)

    @property
    def mass(self) -> float:
        """P(normal) + P(abnormal): a health figure. Far below 1, the model wanted to write something else there."""
        return self.p_normal + self.p_abnormal

    @property
    def log_odds(self) -> float:
        """log P(normal) − log P(abnormal): the unsaturated form of the reward. NaN when not read."""
        if self.log_p_normal is None or self.log_p_abnormal is None:
            return math.nan
        return self.log_p_normal - self.log_p_abnormal

    @property
    def reward(self) -> float:
        """R of Eq. 7, P(normal) / (P(normal) + P(abnormal)), in [0, 1]; NaN when there is no verdict."""
        odds = self.log_odds
        if self.error is not None or math.isnan(odds):
            return math.nan
        return 1 / (1 + math.exp(-odds)) if odds >= 0 else math.exp(odds) / (1 + math.exp(odds))

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` turns back into an equal Judgement."""
        return {
            "status": self.status,
            "anomalies": [anomaly.to_json() for anomaly in self.anomalies],
            "log_p_normal": self.log_p_normal,
            "log_p_abnormal": self.log_p_abnormal,
            "error": self.error,
            "turns": [turn.to_json() for turn in self.turns],
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Judgement:
        return cls(
            status=row["status"],
            anomalies=tuple(Anomaly.from_json(item) for item in row["anomalies"]),
            turns=tuple(Turn.from_json(item) for item in row["turns"]),
            log_p_normal=row["log_p_normal"],
            log_p_abnormal=row["log_p_abnormal"],
            error=row["error"],
        )


# ---- reading an answer --------------------------------------------------------------------------------------------

_REGION = re.compile(r"^\s*(?:frames?\s*)?(\d{1,6})\s*(?:(?:-|–|—|to|~)\s*(?:frames?\s*)?(\d{1,6})\s*)?$", re.IGNORECASE)
_FRAME_KEY = re.compile(r"^\s*frame\s*(\d{1,6})\s*$", re.IGNORECASE)
_ANOMALY_KEYS = ("Attributed Time Region", "Attributed Label", "Reason for Anomaly", "Problem Region")


class _Duplicate(ValueError):
    pass


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise _Duplicate(key)
        seen[key] = value
    return seen


def _reject_constant(name: str) -> float:
    raise ValueError(f"the constant {name} is not JSON")


def _one_object(text: str) -> tuple[dict[str, Any] | None, str | None]:
    """The single JSON object in ``text`` (code fences and stray words around it are tolerated), or the fault's name."""
    decoder = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_reject_constant, strict=False)
    found: list[dict[str, Any]] = []
    position, fault = text.find("{"), None
    if position < 0:
        return None, "not json: the answer holds no JSON object"
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
            found.append(value)
            position = text.find("{", end)
        except _Duplicate as error:
            return None, f"duplicate key: {error.args[0]!r} stands twice in one object"
        except (ValueError, RecursionError) as error:
            fault = fault or f"not json: {error}"
            # A broken object hides whatever it contains: nothing inside it may be taken for the answer.
            break
    if not found:
        return None, fault
    if len(found) > 1:
        return None, f"several objects: expected one JSON object, found {len(found)}"
    return found[0], None


def read_answer(
    text: str,
    *,
    number: Literal[1, 2],
    frames: Sequence[int],
    times_s: Sequence[float],
) -> Turn:
    """Read a model's answer strictly; every violation of the turn's schema becomes a named fault (Eq. 2).

    ``frames`` (source indices) and ``times_s`` (seconds) describe what the judge was shown: "Frame n" in the answer is
    ``frames[n]`` at ``times_s[n]``. Turn 1 must give a time region per anomaly, turn 2 boxes on frames of its clip.
    A turn with any fault keeps what could be read, so that a person can see it; whether to use it is the caller's decision.
    Never raises on any text.
    """
    answer, fault = _one_object(text)
    if answer is None:
        return Turn(number=number, text=text, frames=tuple(frames), faults=(fault or "not json",))
    faults: list[str] = []
    for key in sorted(set(answer) - {"COT", "status", "anomalies"}):
        faults.append(f"unknown key: {key!r}; expected COT, status, anomalies")
    thought = answer.get("COT")
    if not isinstance(thought, str):
        faults.append("COT: expected a string" if "COT" in answer else "COT: missing")
        thought = ""
    status = answer.get("status")
    if status not in ("normal", "abnormal"):
        faults.append(
            f"status: expected 'normal' or 'abnormal', received {status!r}" if "status" in answer else "status: missing"
        )
        status = None
    items = answer.get("anomalies")
    if not isinstance(items, list):
        faults.append("anomalies: expected a list" if "anomalies" in answer else "anomalies: missing")
        items = []
    elif status == "normal" and items:
        faults.append(f"anomalies: must be empty when status is normal, received {len(items)}")
    elif status == "abnormal" and not items:
        faults.append("anomalies: must name at least one anomaly when status is abnormal")
    anomalies = []
    for position, item in enumerate(items):
        anomaly, item_faults = _read_anomaly(item, number, frames, times_s)
        faults.extend(f"anomalies[{position}].{name}" for name in item_faults)
        if anomaly is not None:
            anomalies.append(anomaly)
    return Turn(number, text, tuple(frames), status, tuple(anomalies), thought, tuple(faults))


def _read_anomaly(item: object, number: int, frames: Sequence[int], times_s: Sequence[float]) -> tuple[Anomaly | None, list[str]]:
    if not isinstance(item, dict):
        return None, ["(object): expected an object with " + ", ".join(_ANOMALY_KEYS)]
    faults: list[str] = []
    for key in sorted(set(item) - {*_ANOMALY_KEYS, "BBOX"}):
        faults.append(f"unknown key: {key!r}")
    for key in ("Reason for Anomaly", "Problem Region"):
        if not isinstance(item.get(key), str):
            faults.append(f"{key}: {'expected a string' if key in item else 'missing'}")
    label = item.get("Attributed Label")
    if label not in ANOMALY_TYPES:
        faults.append(f"Attributed Label: expected one of the five labels, received {label!r}")
    window, fault = _read_window(item.get("Attributed Time Region"), times_s, required=number == 1)
    if fault:
        faults.append(f"Attributed Time Region: {fault}")
    boxes, box_faults = _read_boxes(item.get("BBOX"), frames, required=number == 2)
    faults.extend(f"BBOX: {fault}" for fault in box_faults)
    if label not in ANOMALY_TYPES:
        return None, faults
    if window is None and number == 2 and len(times_s) > 0:
        window = Window(float(times_s[0]), float(times_s[-1]))  # a clip's region is the whole clip by default (Fig. S4)
    reason, region = (item.get(key) if isinstance(item.get(key), str) else "" for key in ("Reason for Anomaly", "Problem Region"))
    return Anomaly(label, window, reason, region, boxes), faults


def _read_window(value: object, times_s: Sequence[float], *, required: bool) -> tuple[Window | None, str | None]:
    if value is None:
        return None, "missing" if required else None
    match = _REGION.match(value) if isinstance(value, str) else None
    if match is None:
        return None, f"expected 'Frame a-b', received {value!r}"
    first = int(match.group(1))
    last = first if match.group(2) is None else int(match.group(2))
    if last < first:
        return None, f"inverted: {first}-{last}"
    if last >= len(times_s):
        return None, f"outside the video: {first}-{last}, the frames shown are 0-{len(times_s) - 1}"
    return Window(float(times_s[first]), float(times_s[last])), None


def _read_boxes(value: object, frames: Sequence[int], *, required: bool) -> tuple[dict[int, tuple[Box, ...]], list[str]]:
    if value is None or value == {}:
        return {}, ["missing"] if required else []
    if not isinstance(value, dict):
        return {}, [f"expected an object keyed 'Frame n', received {value!r}"]
    boxes: dict[int, tuple[Box, ...]] = {}
    faults: list[str] = []
    for key, entry in value.items():
        match = _FRAME_KEY.match(key)
        if match is None:
            faults.append(f"expected keys 'Frame n', received {key!r}")
            continue
        shown = int(match.group(1))
        if shown >= len(frames):
            faults.append(f"{key!r} is not a frame of the clip (0-{len(frames) - 1})")
            continue
        several = isinstance(entry, list) and bool(entry) and isinstance(entry[0], list)
        read: list[Box] = []
        for corners in entry if several else [entry]:
            if not (isinstance(corners, list) and len(corners) == 4):
                faults.append(f"{key!r}: expected [xmin, ymin, xmax, ymax], received {corners!r}")
                continue
            try:
                read.append(Box(*corners))
            except ValueError as error:
                faults.append(f"{key!r}: {error}")
        if read:
            boxes[frames[shown]] = boxes.get(frames[shown], ()) + tuple(read)
    if required and not boxes and not faults:
        faults.append("missing")
    return boxes, faults


# ---- writing an answer --------------------------------------------------------------------------------------------


def write_answer(
    *,
    chain_of_thought: str,
    anomalies: Sequence[Anomaly],
    number: Literal[1, 2],
    frames: Sequence[int],
    times_s: Sequence[float],
) -> str:
    """The answer a perfect judge would write: the inverse of ``read_answer``, for supervision and for scripted judges.

    Windows are widened to the frames shown that they touch (the nearest frame when they fall between two); boxes on source
    frames that were not shown are dropped. No anomaly means status normal.
    """
    shown_at = {frame: position for position, frame in enumerate(frames)}
    items: list[dict[str, Any]] = []
    for anomaly in anomalies:
        item: dict[str, Any] = {}
        if anomaly.window is not None:
            touched = shown_frames(anomaly.window, times_s)
            item["Attributed Time Region"] = f"Frame {touched[0]}-{touched[-1]}"
        item["Attributed Label"] = anomaly.type
        item["Reason for Anomaly"] = anomaly.reason
        item["Problem Region"] = anomaly.region
        if number == 2:
            item["BBOX"] = {
                f"Frame {shown_at[frame]}": boxes[0].to_json() if len(boxes) == 1 else [box.to_json() for box in boxes]
                for frame, boxes in sorted(anomaly.boxes.items())
                if frame in shown_at
            }
        items.append(item)
    answer = {"COT": chain_of_thought, "status": "abnormal" if items else "normal", "anomalies": items}
    return json.dumps(answer, ensure_ascii=False)


def shown_frames(window: Window, times_s: Sequence[float]) -> range:
    """Positions in ``times_s`` that lie inside ``window`` (closed); the single nearest one when it falls between two.

    This is the one place where seconds become positions in a sampled sequence. Raises ``ValueError`` for an empty sequence.
    """
    if len(times_s) == 0:
        raise ValueError("shown_frames needs at least one time stamp, received none")
    inside = [n for n, t in enumerate(times_s) if window.start_s - 1e-6 <= t <= window.end_s + 1e-6]
    if inside:
        return range(inside[0], inside[-1] + 1)
    middle = (window.start_s + window.end_s) / 2
    nearest = min(range(len(times_s)), key=lambda n: abs(times_s[n] - middle))
    return range(nearest, nearest + 1)
