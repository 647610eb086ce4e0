"""The judge's answer as text: strict reading into a Turn, and the writing of a perfect one.

answer text → read_answer → Turn (status, anomalies, faults);  Turn's content → write_answer → answer text

The numbers a model writes ("Frame 3") live only inside its text; ``read_answer`` turns them into
source frames and seconds, and nothing else in the package ever does. Reading is strict because it
*is* the format check of Eq. 2: every fault is listed by name.

Source: CaC (arXiv 2605.11723) Sec. 3.3 (Eq. 2) and Fig. S5 (the answer's JSON).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from cac_align.core.judgement import ANOMALY_TYPES, Anomaly, Box, Turn, Window, shown_frames

_REGION = re.compile(
    r"^\s*(?:frames?\s*)?(\d{1,6})\s*(?:(?:-|–|—|to|~)\s*(?:frames?\s*)?(\d{1,6})\s*)?$", re.IGNORECASE
)
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
    """The single JSON object in ``text`` (code fences and stray words around it are tolerated), or
    the fault's name.
    """
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


CONTRADICTS = "anomalies: must be empty when status is normal, received "
"""How the fault begins of an answer that says normal and names something, readable or not."""


def read_answer(
    text: str,
    *,
    number: Literal[1, 2],
    frames: Sequence[int],
    times_s: Sequence[float],
    boxed: bool = False,
) -> Turn:
    """Read a model's answer strictly; every violation of the turn's schema becomes a named fault
    (Eq. 2).

    ``frames`` (source indices) and ``times_s`` (seconds) describe what the judge was shown: "Frame
    n" in the answer is ``frames[n]`` at ``times_s[n]``. Turn 1 must give a time region per anomaly,
    turn 2 boxes on frames of its clip. boxed: turn 1 must give boxes as well (the single-turn
    formulation). A turn with any fault keeps what could be read, so that a person can see it;
    whether to use it is the caller's decision. Never raises on any text.
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
    thought = _as_text(thought)
    status = answer.get("status")
    if status not in ("normal", "abnormal"):
        faults.append(
            f"status: expected 'normal' or 'abnormal', received {status!r}" if "status" in answer else "status: missing"
        )
        status = None
    items = answer.get("anomalies")
    if status == "normal" and isinstance(items, dict) and items:
        faults.append(CONTRADICTS + "an object")
        items = []
    elif not isinstance(items, list):
        faults.append("anomalies: expected a list" if "anomalies" in answer else "anomalies: missing")
        items = []
    elif status == "normal" and items:
        faults.append(f"{CONTRADICTS}{len(items)}")
    elif status == "abnormal" and not items:
        faults.append("anomalies: must name at least one anomaly when status is abnormal")
    anomalies = []
    for position, item in enumerate(items):
        anomaly, item_faults = _read_anomaly(item, number, frames, times_s, boxed or number == 2)
        faults.extend(f"anomalies[{position}].{name}" for name in item_faults)
        if anomaly is not None:
            anomalies.append(anomaly)
    return Turn(number, text, tuple(frames), status, tuple(anomalies), thought, tuple(faults))


def _read_anomaly(
    item: object, number: int, frames: Sequence[int], times_s: Sequence[float], boxed: bool
) -> tuple[Anomaly | None, list[str]]:
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
    boxes, box_faults = _read_boxes(item.get("BBOX"), frames, required=boxed)
    faults.extend(f"BBOX: {fault}" for fault in box_faults)
    if label not in ANOMALY_TYPES:
        return None, faults
    if window is None and number == 2 and len(times_s) > 0:
        window = Window(float(times_s[0]), float(times_s[-1]))  # a clip's region is the whole clip by default (Fig. S4)
    reason, region = (_as_text(item.get(key)) for key in ("Reason for Anomaly", "Problem Region"))
    return Anomaly(label, window, reason, region, boxes), faults


def _as_text(value: object) -> str:
    """A string that can be written as UTF-8: half of a surrogate pair, as a JSON escape may leave
    it, becomes "?".

    Anything but a string becomes the empty string.
    """
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else ""


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


def _read_boxes(
    value: object, frames: Sequence[int], *, required: bool
) -> tuple[dict[int, tuple[Box, ...]], list[str]]:
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
    boxed: bool = False,
) -> str:
    """The answer a perfect judge would write: the inverse of ``read_answer``, for supervision and
    for scripted judges.

    Windows are widened to the frames shown that they touch (the nearest frame when they fall
    between two); boxes on source frames that were not shown are dropped. No anomaly means status
    normal. boxed: as in ``read_answer``.
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
        if boxed or number == 2:
            item["BBOX"] = {
                f"Frame {shown_at[frame]}": boxes[0].to_json() if len(boxes) == 1 else [box.to_json() for box in boxes]
                for frame, boxes in sorted(anomaly.boxes.items())
                if frame in shown_at
            }
        items.append(item)
    answer = {"COT": chain_of_thought, "status": "abnormal" if items else "normal", "anomalies": items}
    return json.dumps(answer, ensure_ascii=False)
