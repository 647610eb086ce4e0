"""Do a judge's windows and boxes lie where the defect is, and do they move when it moves?

defects at their place, moved in time, moved in space + judgements → ``localise_defects`` → DefectLocalisation

Chance is what the same answers reach against another clip's truth (a shuffled null): a judge that
always names the middle of the clip, or always boxes the same corner, does no better than that. Time
and space are tested apart. For space, boxes count without their frames: the truth and the answer are
each a map of how long every cell of a 32 × 32 grid is boxed, and their IoU is Σ min / Σ max. A judge
that boxes the moving thing instead of its defect passes the test of space where a clip has one thing;
the test of time does not let it pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cac_align.core.iou import interval_iou, spatial_iou
from cac_align.core.judgement import BOX_MAX, Anomaly, Judgement, Window, hull
from cac_align.evaluation.audit.asking import Asker, AuditQuestion
from cac_align.evaluation.audit.pairs import AuditPair, Defective
from cac_align.evaluation.bench.localisation import boxes_by_frame, windows_of
from cac_align.evaluation.statistics import NO_ESTIMATE, Estimate, mean_interval, share

MIN_PAIRS = 8
"""Fewer pairs with an answer do not tell localisation from chance."""
_LEVEL = 0.01
"""Level of the permutation test."""
_SHUFFLES = 1999
_GRID = 32


@dataclass(frozen=True)
class TruthAgreement:
    """How well answers fit the truth in time or in space.

    ``iou``: mean over the pairs that have an answer. ``null``: mean IoU with other clips' truths.
    ``above_null``: mean of (own − null) over the pairs, with its bootstrap interval. ``p_value``: of
    the permutation test. ``pointing``: share of the answers whose middle lies in the truth.
    ``follows``: of the pairs whose defect was moved, the share in which both answers are nearer to
    their own truth than to the other one.
    """

    pairs: int
    iou: Estimate
    null: float | None
    above_null: Estimate
    p_value: float | None
    pointing: Estimate
    follows: Estimate

    @property
    def clear(self) -> bool:
        """Whether the answers are clearly nearer to the truth than chance."""
        low = self.above_null.low
        return self.pairs >= MIN_PAIRS and self.p_value is not None and self.p_value <= _LEVEL and (low or 0.0) > 0


@dataclass(frozen=True)
class DefectLocalisation:
    """``found``: share of the defective clips judged abnormal with a window; None where the reward
    gives no judgement at all. ``spatial_iou``: Eq. 5 on frames that truth and answer both have.
    ``localises``: the gate of local advantages, with its ``reason``.
    """

    found: Estimate | None
    time: TruthAgreement
    space: TruthAgreement
    spatial_iou: Estimate
    localises: bool
    reason: str


@dataclass(frozen=True, eq=False)
class _Answer:
    """One judged clip. Windows in shares of the clip, boxes as a map; None where there is no answer."""

    pair: int
    kind: str
    windows: tuple[Window, ...]
    true_windows: tuple[Window, ...]
    map: np.ndarray | None
    true_map: np.ndarray | None
    spatial_iou: float | None


def localise_defects(pairs: Sequence[AuditPair], asker: Asker) -> DefectLocalisation:
    """Ask about every defective clip, at its place and moved, and compare windows and boxes with the truth."""
    shown: list[tuple[int, str, Defective]] = []
    for number, pair in enumerate(pairs):
        variants = {"own": pair.defect, "time": pair.moved_in_time, "space": pair.moved_in_space}
        shown += [(number, kind, one) for kind, one in variants.items() if one is not None]
    cases = [
        [AuditQuestion(one.prompt, one.video), *([AuditQuestion(one.prompt, pairs[n].clean)] if asker.compares else [])]
        for n, _, one in shown
    ]
    judged = [(place, scores[0].evidence) for place, scores in zip(shown, asker.ask(cases), strict=True)]
    if all(judgement is None for _, judgement in judged):
        reason = "the reward gives no judgement with a window or boxes"
        return DefectLocalisation(None, _agreement([], "time"), _agreement([], "space"), NO_ESTIMATE, False, reason)
    with_verdict = [(place, one) for place, one in judged if one is not None and one.error is None]
    answers = [_answer(*place, one) for place, one in with_verdict]
    time, space = _agreement(answers, "time"), _agreement(answers, "space")
    spatial = [one.spatial_iou for one in answers if one.spatial_iou is not None]
    localises, reason = _gate(time, space)
    return DefectLocalisation(
        found=share(sum(bool(one.windows) for one in answers), len(answers)) if answers else NO_ESTIMATE,
        time=time,
        space=space,
        spatial_iou=mean_interval(spatial) if spatial else NO_ESTIMATE,
        localises=localises,
        reason=reason,
    )


def _gate(time: TruthAgreement, space: TruthAgreement) -> tuple[bool, str]:
    for name, one in (("windows", time), ("boxes", space)):
        if one.pairs < MIN_PAIRS:
            return False, f"{name}: {one.pairs} pairs have an answer, at least {MIN_PAIRS} are needed to tell"
        if not one.clear:
            return False, f"{name}: IoU {one.iou.value:.2f}, by chance {one.null:.2f} (p = {one.p_value:.3g})"
    return True, (
        f"windows: IoU {time.iou.value:.2f}, by chance {time.null:.2f}; "
        f"boxes: IoU {space.iou.value:.2f}, by chance {space.null:.2f}"
    )


def _answer(pair: int, kind: str, shown: Defective, judgement: Judgement) -> _Answer:
    named = judgement.anomalies if judgement.status == "abnormal" else ()
    answered, true = boxes_by_frame(named), boxes_by_frame((shown.anomaly,))
    return _Answer(
        pair,
        kind,
        _shares(named, shown),
        _shares((shown.anomaly,), shown),
        _boxed(named),
        _boxed((shown.anomaly,)),
        spatial_iou(answered, true) if answered and answered.keys() & true.keys() else None,
    )


def _shares(anomalies: Sequence[Anomaly], shown: Defective) -> tuple[Window, ...]:
    """The windows in shares of the clip, until the end of their last frame."""
    frame_s, total_s = 1 / shown.video.fps, len(shown.video) / shown.video.fps
    return tuple(
        Window(min(w.start_s / total_s, 1.0), min((max(w.end_s, w.start_s) + frame_s) / total_s, 1.0))
        for w in windows_of(anomalies)
        if w.start_s < total_s
    )


def _boxed(anomalies: Sequence[Anomaly]) -> np.ndarray | None:
    """The share of the boxed frames in which each cell of the grid lies in a box, (32, 32)."""
    frames = boxes_by_frame(anomalies)
    if not frames:
        return None
    middles = (np.arange(_GRID) + 0.5) * BOX_MAX / _GRID
    found = np.zeros((_GRID, _GRID))
    for boxes in frames.values():
        inside = np.zeros((_GRID, _GRID), bool)
        for box in boxes:
            rows = (middles >= box.ymin) & (middles < box.ymax)
            columns = (middles >= box.xmin) & (middles < box.xmax)
            rows[min((box.ymin + box.ymax) * _GRID // (2 * BOX_MAX), _GRID - 1)] = True  # boxes between two middles
            columns[min((box.xmin + box.xmax) * _GRID // (2 * BOX_MAX), _GRID - 1)] = True
            inside |= rows[:, None] & columns[None]
        found += inside
    return found / len(frames)


def _agreement(answers: Sequence[_Answer], dimension: str) -> TruthAgreement:
    known = [one for one in answers if _has(one, dimension)]
    if not known:
        return TruthAgreement(0, NO_ESTIMATE, None, NO_ESTIMATE, None, NO_ESTIMATE, NO_ESTIMATE)
    ious = np.array([[_iou(answer, truth, dimension) for truth in known] for answer in known])
    owner = np.array([one.pair for one in known])
    own = np.diag(ious)
    elsewhere = owner[:, None] != owner[None]
    others = elsewhere.sum(1)
    by_pair = [np.flatnonzero(owner == pair) for pair in np.unique(owner)]
    null = p_value = None
    above = NO_ESTIMATE
    if (others > 0).all():
        chance = (ious * elsewhere).sum(1) / others
        null = float(np.mean([chance[rows].mean() for rows in by_pair]))
        above = mean_interval([float((own - chance)[rows].mean()) for rows in by_pair])
        p_value = _permutation_p(ious, owner)
    return TruthAgreement(
        pairs=len(by_pair),
        iou=mean_interval([float(own[rows].mean()) for rows in by_pair]),
        null=null,
        above_null=above,
        p_value=p_value,
        pointing=share(sum(_points(one, dimension) for one in known), len(known)),
        follows=_follows(known, ious, dimension),
    )


def _permutation_p(ious: np.ndarray, owner: np.ndarray) -> float:
    """How often the first answers of the pairs, dealt to the pairs at random, fit as well. One answer
    per pair, because those of one pair depend on each other.
    """
    rows = np.array([np.flatnonzero(owner == pair)[0] for pair in np.unique(owner)])
    table = ious[np.ix_(rows, rows)]
    rng, places = np.random.default_rng(0), np.arange(len(rows))
    observed = np.trace(table)
    dealt = sum(table[places, rng.permutation(len(rows))].sum() >= observed - 1e-12 for _ in range(_SHUFFLES))
    return float((1 + dealt) / (_SHUFFLES + 1))


def _has(one: _Answer, dimension: str) -> bool:
    if dimension == "time":
        return bool(one.windows and one.true_windows)
    return one.map is not None and one.true_map is not None


def _iou(answer: _Answer, truth: _Answer, dimension: str) -> float:
    if dimension == "time":
        return interval_iou(answer.windows, truth.true_windows)
    return _map_iou(answer.map, truth.true_map)


def _map_iou(one: np.ndarray | None, other: np.ndarray | None) -> float:
    assert one is not None and other is not None
    return float(np.minimum(one, other).sum() / np.maximum(one, other).sum())


def _points(one: _Answer, dimension: str) -> bool:
    if dimension == "time":
        whole = hull(one.windows)
        middle = (whole.start_s + whole.end_s) / 2
        return any(window.start_s <= middle <= window.end_s for window in one.true_windows)
    assert one.map is not None and one.true_map is not None
    cells = np.argwhere(one.map > 0)
    row, column = np.average(cells, axis=0, weights=one.map[one.map > 0]).round().astype(int)
    return bool(one.true_map[row, column] > 0)


def _follows(known: Sequence[_Answer], ious: np.ndarray, dimension: str) -> Estimate:
    """See ``TruthAgreement``. Moves by less than half of the defect's extent tell nothing and do not count."""
    place = {(one.pair, one.kind): index for index, one in enumerate(known)}
    hits = asked = 0
    for (pair, kind), moved in place.items():
        own = place.get((pair, "own"))
        if kind != dimension or own is None:
            continue
        one, other = known[own], known[moved]
        apart = (
            interval_iou(one.true_windows, other.true_windows)
            if dimension == "time"
            else _map_iou(one.true_map, other.true_map)
        )
        if apart <= 0.5:
            asked += 1
            hits += bool(ious[own, own] > ious[own, moved] and ious[moved, moved] > ious[moved, own])
    return share(hits, asked) if asked else NO_ESTIMATE
