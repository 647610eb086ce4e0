"""What a judge says about a video, kept whole: status, anomalies, both turns, and the probability
behind the number.

answer text → answer.read_answer → Turn (status, anomalies, faults) → two turns → Judgement → R =
P(normal) / (P(normal) + P(abnormal))

Time is in seconds on the source clock, frames are *source* indices, boxes are integers in [0, 1000]
per axis. The numbers a model writes ("Frame 3") live only inside its text, which
``cac_align.core.answer`` reads.

Source: CaC (arXiv 2605.11723) Sec. 3.4 (Eq. 7), Appendix B.1.
"""

from __future__ import annotations

import math
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
"""Labels for defects that one frame can show; the other two need a comparison across frames
(Appendix B.1.2).
"""

BOX_MAX = 1000


@dataclass(frozen=True, order=True)
class Window:
    """A closed interval of time, in seconds on the source clock: from the first frame's time stamp
    to the last one's.

    Raises ``ValueError`` when an end is not finite, negative, or the two are inverted.
    """

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start_s) and math.isfinite(self.end_s)):
            raise ValueError(
                f"Window needs two finite times in seconds, received start_s={self.start_s}, end_s={self.end_s}"
            )
        if self.start_s < 0:
            raise ValueError(f"Window starts before the video: start_s={self.start_s}; the source clock starts at 0")
        if self.end_s < self.start_s:
            raise ValueError(f"Window is inverted: start_s={self.start_s} > end_s={self.end_s}; swap the two")

    def widened(self, margin_s: float) -> Window:
        """The window with ``margin_s`` seconds more on either side; it starts at 0 at the earliest."""
        return Window(max(0.0, self.start_s - margin_s), self.end_s + margin_s)

    def lasting(self, min_s: float) -> Window:
        """The window as people read it: at least ``min_s`` seconds long, one frame's, because the
        last frame is shown until the next one begins.
        """
        return Window(self.start_s, max(self.end_s, self.start_s + min_s))

    def to_json(self) -> dict[str, float]:
        return {"start_s": self.start_s, "end_s": self.end_s}


def hull(windows: Sequence[Window]) -> Window:
    """The smallest window that covers all of ``windows``. Raises ``ValueError`` when there is none."""
    if not windows:
        raise ValueError("hull needs at least one window, received none")
    return Window(min(w.start_s for w in windows), max(w.end_s for w in windows))


@dataclass(frozen=True, order=True)
class Box:
    """A box in Qwen3-VL's normalised coordinates: integers in [0, 1000] per axis, ``xmin < xmax``
    and ``ymin < ymax``.

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
        """The box on a frame of ``width_px`` × ``height_px``: (left, top, right, bottom) in pixels,
        right and bottom exclusive.
        """
        return (
            self.xmin * width_px / BOX_MAX,
            self.ymin * height_px / BOX_MAX,
            self.xmax * width_px / BOX_MAX,
            self.ymax * height_px / BOX_MAX,
        )

    @classmethod
    def from_pixels(cls, left: float, top: float, right: float, bottom: float, width_px: int, height_px: int) -> Box:
        """The smallest box on the [0, 1000] grid that covers the pixels [left, right) × [top,
        bottom), clipped to the frame.
        """
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
    """One defect: its type (one of ``ANOMALY_TYPES``), when, why, where in words, and boxes by
    *source* frame index.

    ``window`` is None only where a turn gave none. ``saliency`` ("salient" | "non-salient") exists
    in annotations, not in answers.
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
        """Inverse of ``to_json``. Raises ``ValueError`` (or ``KeyError`` for a missing field) on
        anything else.
        """
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
    """One answer of the judge, read. ``status`` is None when it could not be read; ``faults`` then
    says why.

    ``frames`` are the source indices the judge was shown, in order. ``log_p_normal`` /
    ``log_p_abnormal`` are the natural logarithms of the probabilities of the two words at the first
    position of the status value (None where none was read).
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
    # The words of which only an upper bound of the probability is known.
    bounded: tuple[str, ...] = ()

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
        } | ({"bounded": list(self.bounded)} if self.bounded else {})

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
            bounded=tuple(row.get("bounded", ())),
        )


LENGTH_UNVERIFIED = "length unverified: the container does not say how long the video should be"


@dataclass(frozen=True)
class Judgement:
    """The verdict on one video with everything it rests on.

    ``status`` is the final decision (turn 2 has the last word), ``anomalies`` what it confirmed,
    ``turns`` every answer that was asked for, in order, retries included. ``log_p_normal`` /
    ``log_p_abnormal`` come from the deciding turn. ``error`` says why there is no verdict; then
    ``status`` is None and ``reward`` is NaN, never a guess. ``warnings`` say what a reader should
    know about the video itself, such as ``LENGTH_UNVERIFIED``; in JSON they stand only where there
    are some.
    """

    status: Status | None
    anomalies: tuple[Anomaly, ...] = ()
    turns: tuple[Turn, ...] = ()
    log_p_normal: float | None = None
    log_p_abnormal: float | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def p_normal(self) -> float:
        """P(normal) at the deciding position, in [0, 1]; NaN when it was not read."""
        return math.nan if self.log_p_normal is None else math.exp(self.log_p_normal)

    @property
    def p_abnormal(self) -> float:
        return math.nan if self.log_p_abnormal is None else math.exp(self.log_p_abnormal)

    @property
    def mass(self) -> float:
        """P(normal) + P(abnormal): a health figure. Far below 1, the model wanted to write
        something else there.
        """
        return self.p_normal + self.p_abnormal

    @property
    def bounded(self) -> tuple[str, ...]:
        """The words of which the deciding turn knows only an upper bound of the probability."""
        log_p = (self.log_p_normal, self.log_p_abnormal)
        return next((t.bounded for t in self.turns[::-1] if (t.log_p_normal, t.log_p_abnormal) == log_p), ())

    @property
    def log_odds(self) -> float:
        """log P(normal) − log P(abnormal): the unsaturated form of the reward. NaN when not read."""
        if self.log_p_normal is None or self.log_p_abnormal is None:
            return math.nan
        return self.log_p_normal - self.log_p_abnormal

    @property
    def reward(self) -> float:
        """R of Eq. 7, P(normal) / (P(normal) + P(abnormal)), in [0, 1]; NaN when there is no
        verdict.
        """
        return self.reward_at(1.0)

    def reward_at(self, temperature: float) -> float:
        """R_T = σ(log-odds / T), in [0, 1]; T = 1 is Eq. 7. NaN when there is no verdict."""
        return math.nan if self.error is not None else tempered(self.log_odds, temperature)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` turns back into an equal Judgement."""
        return {
            "status": self.status,
            "anomalies": [anomaly.to_json() for anomaly in self.anomalies],
            "log_p_normal": self.log_p_normal,
            "log_p_abnormal": self.log_p_abnormal,
            "error": self.error,
            "turns": [turn.to_json() for turn in self.turns],
            **({"warnings": list(self.warnings)} if self.warnings else {}),
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
            warnings=tuple(row.get("warnings", ())),
        )


def tempered(log_odds: float, temperature: float = 1.0) -> float:
    """σ(log-odds / T), in [0, 1]; NaN where the log-odds are NaN."""
    odds = log_odds / temperature
    if math.isnan(odds):
        return math.nan
    return 1 / (1 + math.exp(-odds)) if odds >= 0 else math.exp(odds) / (1 + math.exp(odds))


def shown_frames(window: Window, times_s: Sequence[float]) -> range:
    """Positions in ``times_s`` that lie inside ``window`` (closed); the single nearest one when it
    falls between two.

    This is the one place where seconds become positions in a sampled sequence. Raises
    ``ValueError`` for an empty sequence.
    """
    if len(times_s) == 0:
        raise ValueError("shown_frames needs at least one time stamp, received none")
    inside = [n for n, t in enumerate(times_s) if window.start_s - 1e-6 <= t <= window.end_s + 1e-6]
    if inside:
        return range(inside[0], inside[-1] + 1)
    middle = (window.start_s + window.end_s) / 2
    nearest = min(range(len(times_s)), key=lambda n: abs(times_s[n] - middle))
    return range(nearest, nearest + 1)
