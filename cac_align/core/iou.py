"""How far a judgement and the ground truth agree: type, temporal and spatial IoU.

types → type_iou (Eq. 3) · windows + time grid → temporal_iou (Eq. 4) · boxes by frame → spatial_iou (Eq. 5)

    R_type = 1/2 Σ_{t=1,2} |T_pred^t ∩ T_gt| / |T_pred^t ∪ T_gt|                    (3)
    R_temp = |F_pred ∩ F_gt| / |F_pred ∪ F_gt|                                      (4)
    R_spa  = 1/M Σ_m IoU(b_m^pred, b_m^gt),  M ground-truth boxes on frames of F_pred ∩ F_gt;  0 when M = 0      (5)

All values lie in [0, 1]. Empty sets (the paper is silent): two empty sets are equal, so their IoU
is 1; an empty set against a non-empty one gives 0. In training the first case never counts: on a
normal video the IoU terms are masked out (Sec. 3.3). Eq. 5 is the exception, because the paper
states it: without a ground-truth box on a matched frame there is nothing to be right about, and it
is 0.

Source: CaC (arXiv 2605.11723) Sec. 3.3.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import permutations

import numpy as np

from cac_align.core.judgement import Box, Window, shown_frames


def set_iou(pred: Collection[object], gt: Collection[object]) -> float:
    """|pred ∩ gt| / |pred ∪ gt|, in [0, 1]; 1 when both are empty."""
    pred, gt = set(pred), set(gt)
    union = pred | gt
    return len(pred & gt) / len(union) if union else 1.0


def type_iou(pred: Collection[str], gt: Collection[str]) -> float:
    """One turn's term of Eq. 3 (repetitions do not count). In [0, 1]; both empty: 1, one empty: 0."""
    return set_iou(pred, gt)


def two_turn_type_iou(first: Collection[str], second: Collection[str] | None, gt: Collection[str]) -> float:
    """Eq. 3: the mean of both turns' type IoU. ``second`` is None when there was no second turn:
    its term is then 0.
    """
    return (type_iou(first, gt) + (0.0 if second is None else type_iou(second, gt))) / 2


def positions(windows: Sequence[Window], times_s: Sequence[float]) -> set[int]:
    """The set F of Eq. 4: positions of the time grid that some window covers (the nearest one where
    a window falls between two).

    Raises ``ValueError`` when there are windows and the grid is empty.
    """
    return {position for window in windows for position in shown_frames(window, times_s)}


def temporal_iou(pred: Sequence[Window], gt: Sequence[Window], times_s: Sequence[float]) -> float:
    """Eq. 4 over the frames at ``times_s`` (seconds on the source clock; turn 1's grid is the one
    the judge saw, at 4 fps).

    Several windows count as the union of their frames. In [0, 1]; both empty: 1, one empty: 0.
    Raises ``ValueError`` when the grid is empty while a window is not.
    """
    return set_iou(positions(pred, times_s), positions(gt, times_s))


def interval_iou(pred: Sequence[Window], gt: Sequence[Window]) -> float:
    """Length of the intersection over length of the union of two sets of intervals, in seconds: Eq.
    4 without a grid, for reports.

    In [0, 1]; both empty: 1, one empty: 0. A union of length zero (only instants): 1 if the
    instants are the same, else 0.
    """
    a, b = _merged(pred), _merged(gt)
    if not a or not b:
        return 1.0 if not a and not b else 0.0
    common = sum(max(0.0, min(a_end, b_end) - max(a_start, b_start)) for a_start, a_end in a for b_start, b_end in b)
    total = sum(end - start for start, end in a) + sum(end - start for start, end in b) - common
    if total <= 0:
        return 1.0 if a == b else 0.0
    return common / total


def _merged(windows: Sequence[Window]) -> list[tuple[float, float]]:
    """Disjoint intervals, ascending, that cover the same instants."""
    merged: list[tuple[float, float]] = []
    for window in sorted(windows):
        if merged and window.start_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], window.end_s))
        else:
            merged.append((window.start_s, window.end_s))
    return merged


def box_iou(a: Box, b: Box) -> float:
    """Area of the intersection over area of the union of two boxes, in [0, 1]."""
    width = min(a.xmax, b.xmax) - max(a.xmin, b.xmin)
    height = min(a.ymax, b.ymax) - max(a.ymin, b.ymin)
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    total = (a.xmax - a.xmin) * (a.ymax - a.ymin) + (b.xmax - b.xmin) * (b.ymax - b.ymin) - common
    return common / total


def spatial_iou(
    pred: Mapping[int, Sequence[Box]], gt: Mapping[int, Sequence[Box]], *, everywhere: bool = False
) -> float:
    """Eq. 5: boxes by source frame; the mean IoU over the M ground-truth boxes on frames that both
    have. In [0, 1]; 0 when M = 0.

    everywhere: over all frames of ``gt``, a box on a frame without a guess counting 0 (pass the
    boxes of F_pred ∩ F_gt). Which predicted box answers which true one the paper leaves open: on
    each frame they are matched one to one so that the total IoU is highest. A ground-truth box
    without a partner counts 0; a predicted box left over costs nothing, as in Eq. 5. A frame with
    an empty list counts as absent. For one anomaly at a time, pass that anomaly's boxes.
    """
    matched = 0.0
    count = 0
    for frame, truths in gt.items():
        guesses = pred.get(frame, ())
        if not truths or not (guesses or everywhere):
            continue
        count += len(truths)
        if guesses:
            matched += _best_total(np.array([[box_iou(guess, truth) for guess in guesses] for truth in truths]))
    return matched / count if count else 0.0


def _best_total(iou: np.ndarray) -> float:
    """The highest total of a one-to-one matching between rows and columns of ``iou``, shape
    (truths, guesses).
    """
    if iou.shape[0] > iou.shape[1]:
        iou = iou.T
    rows, columns = iou.shape
    if rows == 1:
        return float(iou.max())
    if columns <= 5:  # 120 orders at most: sooner done than scipy is imported
        return float(
            max(
                sum(iou[row, column] for row, column in enumerate(order))
                for order in permutations(range(columns), rows)
            )
        )
    from scipy.optimize import linear_sum_assignment

    return float(iou[linear_sum_assignment(iou, maximize=True)].sum())
