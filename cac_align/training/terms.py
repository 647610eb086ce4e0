"""What a two-turn rollout earns: format, status, type, temporal and spatial terms, and their sum
R(y) (Eq. 2-6).

Turn 1, Turn 2 (or none) + Record → terms → Terms (each named, with the total)

    R_fmt  = 1/2 Σ_t {0 if Valid_t, −1 otherwise}                                                                (2)
    R_type, R_temp, R_spa: set, frame and box IoU against the truth (``cac_align.core.iou``)                      (3-5)
    R = w1 R_fmt + w2 γ̄ R_stat + m (w3 R̃_type + w4 R̃_temp + w5 R̃_spa),   R̃_k = 1 − γ̄ (1 − R_k)   (6)

m is 1 for an anomalous video and 0 for a normal one; γ̄ is 1 for a normal one, else the mean of γ
over its true anomalies (0.5 for a non-salient one, 1 otherwise). Where the paper is silent: on a
normal video a wrong first turn costs −1 even if turn 2 takes it back (``TermWeights.suspicion``); a
rollout that ended in turn 1 has 0 for what turn 2 would have earned, and where it ended because no
clip could be cut, −1 for turn 2's format. In the single-turn formulation the one answer stands for
both turns.

Eq. 5's F_pred is what was looked into: the frames that turn 2 was shown (single turn: those of the
windows it names). M counts the true boxes on them, boxed or not, so that boxing the easiest frame
alone does not pay; and where an anomaly is boxed on frames in between, as an appearance is on one,
its box stands on the nearest frame shown, where stage 2 teaches it to be (``data.visibility.visible_anomalies``).

Source: CaC (arXiv 2605.11723) Sec. 3.3.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from cac_align.core.iou import positions, spatial_iou, temporal_iou, two_turn_type_iou
from cac_align.core.judgement import Anomaly, Box, Turn, Window
from cac_align.data.records import Record
from cac_align.data.visibility import visible_anomalies

TERM_NAMES = ("format", "status", "type", "temporal", "spatial")

Ending = Literal["normal", "window", "second turn", "single turn"]
"""How a rollout ended: turn 1 said normal; what turn 1 said could not be used (no clip to cut, no
verdict); turn 2 was asked; the verdict was given in a single turn (``cac.single_turn``).
"""


@dataclass(frozen=True)
class TermWeights:
    """The recipe section ``weights``: w1 to w5 and γ of Eq. 6. A weight of 0 trains without that
    term.
    """

    # w1, of the format term.
    format: float = 1.0
    # w2, of the status term.
    status: float = 2.0
    # w3, of the type IoU.
    type: float = 2.0
    # w4, of the temporal IoU.
    temporal: float = 2.0
    # w5, of the spatial IoU.
    spatial: float = 5.0
    # γ of a salient anomaly, in [0, 1].
    salient: float = 1.0
    # γ of a non-salient anomaly, in [0, 1].
    non_salient: float = 0.5
    # Cost of a normal video that turn 1 suspects and turn 2 clears, as a share of a wrong verdict's cost.
    suspicion: float = 1.0

    def __post_init__(self) -> None:
        for name in ("salient", "non_salient", "suspicion"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"weights.{name} is a share in [0, 1], received {getattr(self, name)}")


@dataclass(frozen=True)
class Terms:
    """Eq. 2-5 before weights and discount, and R(y) of Eq. 6. format, status in [−1, 0]; type,
    temporal, spatial in [0, 1].

    The IoU terms of a normal video are None: they are masked out, not zero. discount: γ̄.
    """

    format: float
    status: float
    type: float | None
    temporal: float | None
    spatial: float | None
    discount: float
    total: float

    def to_json(self) -> dict[str, float | None]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def terms(
    first: Turn,
    second: Turn | None,
    ending: Ending,
    record: Record,
    times_s: Sequence[float],
    weights: TermWeights = TermWeights(),
    *,
    look_times_s: Sequence[float] = (),
) -> Terms:
    """Eq. 2-6 for one rollout. ``times_s``, ``look_times_s``: time stamps (seconds, source clock)
    of the frames that turn 1 and turn 2 were shown.

    Raises ``ValueError`` when ``ending`` does not go with ``second``, or ``look_times_s`` not with
    its frames.
    """
    if (ending == "second turn") != (second is not None):
        raise ValueError(f"ending {ending!r} does not go with {'a' if second else 'no'} second turn")
    if len(look_times_s) != (0 if second is None else len(second.frames)):
        raise ValueError(
            f"turn 2 saw {0 if second is None else len(second.frames)} frames, received {len(look_times_s)} time stamps"
        )
    looked = [] if second is None else list(zip(second.frames, look_times_s, strict=True))
    if ending == "single turn":
        second = first
        inside = positions(windows(first.anomalies), times_s)
        looked = [
            (frame, time) for at, (frame, time) in enumerate(zip(first.frames, times_s, strict=True)) if at in inside
        ]
    format_ = (_format(first.valid) + _format(ending != "window" if second is None else second.valid)) / 2
    if record.status == "normal":
        if first.status == "normal" and ending in ("normal", "single turn"):
            status = 0.0
        else:
            taken_back = ending == "second turn" and second is not None and second.status == "normal"
            status = -weights.suspicion if taken_back else -1.0
        return Terms(format_, status, None, None, None, 1.0, weights.format * format_ + weights.status * status)
    both = first.status == "abnormal" and second is not None and second.status == "abnormal"
    status = 0.0 if both else -1.0
    found = Terms(
        format=format_,
        status=status,
        type=two_turn_type_iou(
            types(first.anomalies), None if second is None else types(second.anomalies), types(record.anomalies)
        ),
        temporal=temporal_iou(windows(first.anomalies), windows(record.anomalies), times_s),
        spatial=0.0 if second is None else _spatial(second, record, looked),
        discount=discount(record.anomalies, weights),
        total=0.0,
    )
    return _with_total(found, weights)


def _spatial(turn: Turn, record: Record, looked: Sequence[tuple[int, float]]) -> float:
    """Eq. 5 over the frames that were looked into: (source frame, seconds) each."""
    truth = visible_anomalies(record.anomalies, [frame for frame, _ in looked], [time for _, time in looked])
    return spatial_iou(boxes(turn.anomalies), boxes(truth), everywhere=True)


def _with_total(found: Terms, weights: TermWeights) -> Terms:
    """Eq. 6 for an anomalous video (m = 1)."""
    gamma = found.discount
    total = weights.format * found.format + weights.status * gamma * found.status
    for name in ("type", "temporal", "spatial"):
        total += getattr(weights, name) * (1 - gamma * (1 - getattr(found, name)))
    return Terms(found.format, found.status, found.type, found.temporal, found.spatial, gamma, total)


def discount(anomalies: Collection[Anomaly], weights: TermWeights = TermWeights()) -> float:
    """γ̄: the mean discount over the true anomalies; one without a saliency label counts as
    salient. 1 when there are none.
    """
    if not anomalies:
        return 1.0
    values = [weights.non_salient if anomaly.saliency == "non-salient" else weights.salient for anomaly in anomalies]
    return sum(values) / len(values)


def _format(valid: bool) -> float:
    return 0.0 if valid else -1.0


def types(anomalies: Collection[Anomaly]) -> set[str]:
    return {anomaly.type for anomaly in anomalies}


def windows(anomalies: Collection[Anomaly]) -> tuple[Window, ...]:
    return tuple(anomaly.window for anomaly in anomalies if anomaly.window is not None)


def boxes(anomalies: Collection[Anomaly]) -> dict[int, tuple[Box, ...]]:
    """All boxes of all anomalies, by source frame."""
    merged: dict[int, tuple[Box, ...]] = {}
    for anomaly in anomalies:
        for frame, found in anomaly.boxes.items():
            merged[frame] = merged.get(frame, ()) + tuple(found)
    return merged
