"""One rater's view of one task: actions in order, folded into ratings; undo is an action like any other.

actions (start, end, type, box, …, done, undo) → fold → TaskState (a Rating per clip, done?, what is still missing)

An action that does not fit what came before it is refused here, with a sentence that the page shows to the rater.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cac_align.core.judgement import ANOMALY_TYPES, Box, Status

KINDS = ("start", "end", "type", "reason", "region", "saliency", "box", "unbox", "remove", "normal", "done", "undo")
MAX_TEXT = 2000  # characters of a reason; a page that was left open on a keyboard must not fill the disk


@dataclass(frozen=True)
class Action:
    """One thing a rater did. detail: what it needs, e.g. {"anomaly": 0, "frame": 12}; the kinds are ``KINDS``."""

    id: int
    kind: str
    clip: str
    detail: Mapping[str, Any]


@dataclass
class Mark:
    """An anomaly as it is being marked: window ends as frames, anything may still be missing."""

    start: int | None = None
    end: int | None = None
    type: str | None = None
    reason: str = ""
    region: str = ""
    saliency: str | None = None
    boxes: dict[int, list[Box]] = field(default_factory=dict)

    def lacks(self) -> list[str]:
        """What still keeps it from being an annotation, in the rater's words."""
        missing = []
        if self.type is None:
            missing.append("has no type (1–5)")
        if self.start is None or self.end is None:
            missing.append(f"has no {'beginning (i)' if self.start is None else 'end (o)'}")
        elif self.end < self.start:
            missing.append(f"ends (frame {self.end}) before it begins (frame {self.start})")
        else:
            outside = sorted(frame for frame in self.boxes if not self.start <= frame <= self.end)
            if outside:
                missing.append(f"has a box on frame {outside[0]}, outside its window")
        return missing

    def to_json(self) -> dict[str, Any]:
        boxes = {str(frame): [box.to_json() for box in boxes] for frame, boxes in sorted(self.boxes.items())}
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {
            "boxes": boxes,
            "lacks": self.lacks(),
        }


@dataclass
class Rating:
    """One rater's view of one clip. status: None while undecided."""

    status: Status | None = None
    marks: list[Mark] = field(default_factory=list)

    def lacks(self) -> list[str]:
        if self.status is None:
            return ["not judged yet (x normal, i an anomaly)"]
        return [f"anomaly {number} {what}" for number, mark in enumerate(self.marks, 1) for what in mark.lacks()]

    def to_json(self) -> dict[str, Any]:
        return {"status": self.status, "marks": [mark.to_json() for mark in self.marks], "lacks": self.lacks()}


@dataclass
class TaskState:
    """One rater's work on one task: a rating per clip, whether it was confirmed, and the last action's id (0: none)."""

    ratings: dict[str, Rating]
    done: bool = False
    last: int = 0
    undoable: int | None = None

    @property
    def touched(self) -> bool:
        return self.last > 0 and (self.done or any(rating.status is not None for rating in self.ratings.values()))

    def lacks(self) -> list[str]:
        many = len(self.ratings) > 1
        named = zip("AB", self.ratings.values(), strict=False)
        return [(f"video {side}: " if many else "") + what for side, rating in named for what in rating.lacks()]


# ---- folding ------------------------------------------------------------------------------------------------------


def fold(actions: Sequence[Action], lengths: Mapping[str, int]) -> TaskState:
    """What the actions of one rater on one task amount to. lengths: number of frames by clip of the task.

    Raises ``ValueError`` when an action does not fit what came before it.
    """
    standing: list[Action] = []
    for action in actions:
        if action.kind == "undo":
            if not standing or standing[-1].id != action.detail.get("action"):
                raise ValueError(
                    "there is nothing to undo here" if not standing else "undo takes back the last action only"
                )
            standing.pop()
        else:
            standing.append(action)
    state = TaskState({clip: Rating() for clip in lengths})
    for action in standing:
        if action.kind == "done":
            if missing := state.lacks():
                raise ValueError("; ".join(missing))
            state.done = True
        elif action.clip not in lengths:
            raise ValueError(f"clip {action.clip!r} does not belong to this task")
        elif action.kind not in _APPLY:
            raise ValueError(f"action must be one of {', '.join(KINDS)}; received {action.kind!r}")
        else:
            # Whoever changes a confirmed rating has to confirm it again.
            state.done = False
            _APPLY[action.kind](state.ratings[action.clip], action.detail, lengths[action.clip])
    state.last = actions[-1].id if actions else 0
    state.undoable = standing[-1].id if standing else None
    return state


def _mark(rating: Rating, detail: Mapping[str, Any]) -> Mark:
    """The anomaly an action is about; the number after the last one begins another."""
    number = _whole(detail, "anomaly", len(rating.marks))
    if number == len(rating.marks):
        rating.marks.append(Mark())
    rating.status = "abnormal"
    return rating.marks[number]


def _whole(detail: Mapping[str, Any], name: str, largest: int) -> int:
    value = detail.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
        raise ValueError(f"{name} must be a whole number in [0, {largest}], received {value!r}")
    return value


def _text(detail: Mapping[str, Any]) -> str:
    value = detail.get("text")
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"text must be at most {MAX_TEXT} characters, received {str(value)[:40]!r}")
    return value.strip()


def _start(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    frame = _whole(detail, "frame", length - 1)
    _mark(rating, detail).start = frame


def _end(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    frame = _whole(detail, "frame", length - 1)
    _mark(rating, detail).end = frame


def _type(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    if detail.get("type") not in ANOMALY_TYPES:
        raise ValueError(f"type must be one of {', '.join(ANOMALY_TYPES)}; received {detail.get('type')!r}")
    _mark(rating, detail).type = detail["type"]


def _reason(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    text = _text(detail)
    _mark(rating, detail).reason = text


def _region(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    text = _text(detail)
    _mark(rating, detail).region = text


def _saliency(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    if detail.get("saliency") not in ("salient", "non-salient"):
        raise ValueError(f"saliency must be 'salient' or 'non-salient', received {detail.get('saliency')!r}")
    _mark(rating, detail).saliency = detail["saliency"]


def _box(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    frame = _whole(detail, "frame", length - 1)
    corners = detail.get("box")
    if not isinstance(corners, list) or len(corners) != 4:
        raise ValueError(f"box must be [xmin, ymin, xmax, ymax], received {corners!r}")
    box = Box(*corners)
    _mark(rating, detail).boxes.setdefault(frame, []).append(box)


def _unbox(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    mark = rating.marks[_whole(detail, "anomaly", len(rating.marks) - 1)]
    frame = _whole(detail, "frame", length - 1)
    if not mark.boxes.get(frame):
        raise ValueError(f"there is no box on frame {frame} to remove")
    mark.boxes[frame].pop()
    if not mark.boxes[frame]:
        del mark.boxes[frame]


def _remove(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    del rating.marks[_whole(detail, "anomaly", len(rating.marks) - 1)]
    if not rating.marks:
        rating.status = None


def _normal(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    rating.status, rating.marks = "normal", []


_APPLY: Mapping[str, Callable[[Rating, Mapping[str, Any], int], None]] = {
    "start": _start, "end": _end, "type": _type, "reason": _reason, "region": _region, "saliency": _saliency,
    "box": _box, "unbox": _unbox, "remove": _remove, "normal": _normal,
}  # fmt: skip
