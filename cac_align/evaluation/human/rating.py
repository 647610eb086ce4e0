"""Fold a rater's actions on one task into ratings. Undo is an action like any other.

An action that does not fit what came before it is refused with a sentence for the rater.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cac_align.core.judgement import ANOMALY_TYPES, Box, Status

ACTION_KINDS = (
    "start",
    "end",
    "type",
    "reason",
    "region",
    "saliency",
    "box",
    "unbox",
    "remove",
    "normal",
    "done",
    "undo",
)
MAX_TEXT = 2000  # characters of a reason; a page that was left open on a keyboard must not fill the disk


@dataclass(frozen=True)
class Action:
    """One action of a rater. kind: one of ``ACTION_KINDS``. detail: its values, for example
    {"anomaly": 0, "frame": 12}.
    """

    id: int
    kind: str
    clip: str
    detail: Mapping[str, Any]


@dataclass
class AnomalyDraft:
    """An anomaly while it is being annotated: the window's ends are frames, and anything may be
    missing.
    """

    start: int | None = None
    end: int | None = None
    type: str | None = None
    reason: str = ""
    region: str = ""
    saliency: Literal["salient", "non-salient"] | None = None
    boxes: dict[int, list[Box]] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """What it still needs to be an annotation, in sentences for the rater."""
        gaps = []
        if self.type is None:
            gaps.append("has no type (1–5)")
        if self.start is None or self.end is None:
            gaps.append(f"has no {'beginning (i)' if self.start is None else 'end (o)'}")
        elif self.end < self.start:
            gaps.append(f"ends (frame {self.end}) before it begins (frame {self.start})")
        else:
            outside = sorted(frame for frame in self.boxes if not self.start <= frame <= self.end)
            if outside:
                gaps.append(f"has a box on frame {outside[0]}, outside its window")
        return gaps

    def to_json(self) -> dict[str, Any]:
        boxes = {str(frame): [box.to_json() for box in boxes] for frame, boxes in sorted(self.boxes.items())}
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {
            "boxes": boxes,
            "missing": self.missing(),
        }


@dataclass
class Rating:
    """A rater's view of one clip. status: None while undecided."""

    status: Status | None = None
    anomalies: list[AnomalyDraft] = field(default_factory=list)

    def missing(self) -> list[str]:
        """What it still needs to be complete, in sentences for the rater."""
        if self.status is None:
            return ["not judged yet (x normal, i an anomaly)"]
        return [
            f"anomaly {number} {what}" for number, draft in enumerate(self.anomalies, 1) for what in draft.missing()
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "anomalies": [draft.to_json() for draft in self.anomalies],
            "missing": self.missing(),
        }


@dataclass
class TaskState:
    """A rater's work on one task: a rating per clip, whether it is confirmed, and the last action's
    id (0: none).
    """

    ratings: dict[str, Rating]
    done: bool = False
    last: int = 0
    undoable: int | None = None

    @property
    def touched(self) -> bool:
        """Whether anything was rated that was not undone."""
        return self.last > 0 and (self.done or any(rating.status is not None for rating in self.ratings.values()))

    def missing(self) -> list[str]:
        """What the task still needs to be complete, in sentences for the rater."""
        many = len(self.ratings) > 1
        named = zip("AB", self.ratings.values(), strict=False)
        return [(f"video {side}: " if many else "") + what for side, rating in named for what in rating.missing()]


# ---- folding ------------------------------------------------------------------------------------------------------


def fold(actions: Sequence[Action], lengths: Mapping[str, int]) -> TaskState:
    """The state that a rater's actions on one task lead to. lengths: number of frames by clip.

    Raises ``ValueError`` when an action does not fit what came before it.
    """
    in_force: list[Action] = []
    for action in actions:
        if action.kind == "undo":
            if not in_force or in_force[-1].id != action.detail.get("action"):
                raise ValueError(
                    "there is nothing to undo here" if not in_force else "undo takes back the last action only"
                )
            in_force.pop()
        else:
            in_force.append(action)
    state = TaskState({clip: Rating() for clip in lengths})
    for action in in_force:
        if action.kind == "done":
            if missing := state.missing():
                raise ValueError("; ".join(missing))
            state.done = True
        elif action.clip not in lengths:
            raise ValueError(f"clip {action.clip!r} does not belong to this task")
        elif action.kind not in _APPLY:
            raise ValueError(f"action must be one of {', '.join(ACTION_KINDS)}; received {action.kind!r}")
        else:
            # Whoever changes a confirmed rating has to confirm it again.
            state.done = False
            _APPLY[action.kind](state.ratings[action.clip], action.detail, lengths[action.clip])
    state.last = actions[-1].id if actions else 0
    state.undoable = in_force[-1].id if in_force else None
    return state


def _draft_of(rating: Rating, detail: Mapping[str, Any]) -> AnomalyDraft:
    """The anomaly that an action is about; the number after the last one begins another."""
    number = _whole(detail, "anomaly", len(rating.anomalies))
    if number == len(rating.anomalies):
        rating.anomalies.append(AnomalyDraft())
    rating.status = "abnormal"
    return rating.anomalies[number]


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
    _draft_of(rating, detail).start = frame


def _end(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    frame = _whole(detail, "frame", length - 1)
    _draft_of(rating, detail).end = frame


def _type(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    if detail.get("type") not in ANOMALY_TYPES:
        raise ValueError(f"type must be one of {', '.join(ANOMALY_TYPES)}; received {detail.get('type')!r}")
    _draft_of(rating, detail).type = detail["type"]


def _reason(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    text = _text(detail)
    _draft_of(rating, detail).reason = text


def _region(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    text = _text(detail)
    _draft_of(rating, detail).region = text


def _saliency(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    if detail.get("saliency") not in ("salient", "non-salient"):
        raise ValueError(f"saliency must be 'salient' or 'non-salient', received {detail.get('saliency')!r}")
    _draft_of(rating, detail).saliency = detail["saliency"]


def _box(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    frame = _whole(detail, "frame", length - 1)
    corners = detail.get("box")
    if not isinstance(corners, list) or len(corners) != 4:
        raise ValueError(f"box must be [xmin, ymin, xmax, ymax], received {corners!r}")
    box = Box(*corners)
    _draft_of(rating, detail).boxes.setdefault(frame, []).append(box)


def _unbox(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    draft = rating.anomalies[_whole(detail, "anomaly", len(rating.anomalies) - 1)]
    frame = _whole(detail, "frame", length - 1)
    if not draft.boxes.get(frame):
        raise ValueError(f"there is no box on frame {frame} to remove")
    draft.boxes[frame].pop()
    if not draft.boxes[frame]:
        del draft.boxes[frame]


def _remove(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    del rating.anomalies[_whole(detail, "anomaly", len(rating.anomalies) - 1)]
    if not rating.anomalies:
        rating.status = None


def _normal(rating: Rating, detail: Mapping[str, Any], length: int) -> None:
    rating.status, rating.anomalies = "normal", []


_APPLY: Mapping[str, Callable[[Rating, Mapping[str, Any], int], None]] = {
    "start": _start, "end": _end, "type": _type, "reason": _reason, "region": _region, "saliency": _saliency,
    "box": _box, "unbox": _unbox, "remove": _remove, "normal": _normal,
}  # fmt: skip
