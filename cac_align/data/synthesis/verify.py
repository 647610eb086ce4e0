"""Does a teacher's answer agree with what people annotated, and does it keep to itself that it knew?

answer → read_answer → reasons against it: format, status, labels, time, boxes, talk of the hint; none: verified

- status and the set of labels are equal, exactly (Appendix B.2);
- scan: IoU of the frames claimed and annotated (Eq. 4) above 0.5; strict: both ends within two frames and 85 % of the annotated
  frames covered;
- look, frame: mean IoU above 0.5 over the annotated boxes on the frames shown (Eq. 5), a box that was not found counting 0 and every
  frame that is boxed outside the annotated time counting as one more box that is wrong; strict: 85 % of each annotated box covered as well;
- the text names nothing that gives away that the truth was known ("annotation", "ground truth", "the given label", …), nor a scan
  that it is a false alarm ("wrongly suspected", …). A false alarm is compared with what it is to suspect (``questions``).

Source: CaC (arXiv 2605.11723) Appendix B.2 and Fig. S6.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from cac_align.core.answer import read_answer
from cac_align.core.iou import positions, set_iou, spatial_iou
from cac_align.core.judgement import Anomaly, Box
from cac_align.core.video import Frames

LEAST_IOU = 0.5
STRICT_FRAMES = 2
STRICT_COVER = 0.85

_MENTIONS = re.compile(
    r"\bground[- ]?truth\b|\bannotat\w*|\bhint(?:s|ed)?\b(?!\s+of\b)|\bas (?:hinted|instructed|told|given|indicated|marked)\b"
    r"|\b(?:given|provided|supplied|expected|known|reference|marked|human|expert)\s+"
    r"(?:labels?|answers?|findings?|boxes|box|bbox\w*|windows?|time (?:regions?|ranges?)|frame ranges?|defects?|anomal\w+)\b"
    r"|\b(?:i|we) (?:was|were|am|are|have been|had been) (?:told|given|informed)\b|\bpeople (?:found|marked|noted|have (?:found|marked))\b"
    r"|\b(?:human|expert) (?:raters?|reviewers?|labell?ers?|experts?)\b|\bsystem (?:message|prompt)\b|\baccording to (?:the )?(?:labels?|experts?)\b",
    re.IGNORECASE,
)
_ADMITS = re.compile(
    r"\bfalse alarms?\b|\bmistaken (?:inspector|answer|suspicion|finding)s?\b|\b(?:wrongly|mistakenly) suspect\w*"
    r"|\banother video\b",
    re.IGNORECASE,
)


def mentions_hint(text: str) -> str | None:
    """The words that give away that the truth was known, or None."""
    found = _MENTIONS.search(text)
    return found.group(0) if found else None


def admits_mistake(text: str) -> str | None:
    """The words that give away that an alarm is false, or None. A close look may well say them, of what it was told."""
    found = _ADMITS.search(text)
    return found.group(0) if found else None


def faults(
    text: str,
    truth: Sequence[Anomaly],
    frames: Frames,
    *,
    number: Literal[1, 2],
    boxed: bool = False,
    strict: bool = False,
) -> tuple[str, ...]:
    """Every reason against an answer, each beginning with the rule's name; empty when it is verified. Never raises on any text.

    truth: what the answer to ``frames`` is to name (``questions.truth``). number: 1 for a scan, 2 for a look or a single frame.
    boxed: a scan must box as well (the single-turn formulation).
    """
    turn = read_answer(text, number=number, frames=frames.indices, times_s=frames.times_s, boxed=boxed)
    reasons = [f"format: {fault}" for fault in turn.faults[:3]]
    if told := mentions_hint(text) or (admits_mistake(text) if number == 1 else None):
        reasons.append(f"hint: the text says {told!r}")
    status = "abnormal" if truth else "normal"
    if turn.status is not None and turn.status != status:
        reasons.append(f"status: {turn.status}, expected {status}")
    if turn.status != status or not truth:
        return tuple(reasons)
    said, meant = ({anomaly.type for anomaly in anomalies} for anomalies in (turn.anomalies, truth))
    if said != meant:
        reasons.append(f"labels: {', '.join(sorted(said)) or 'none'}, expected {', '.join(sorted(meant))}")
    reasons += _time_faults(turn.anomalies, truth, frames, strict) if number == 1 else []
    reasons += _box_faults(turn.anomalies, truth, frames, strict) if boxed or number == 2 else []
    return tuple(reasons)


def _time_faults(said: Sequence[Anomaly], truth: Sequence[Anomaly], frames: Frames, strict: bool) -> list[str]:
    claimed = positions([anomaly.window for anomaly in said if anomaly.window], frames.times_s)
    meant = positions([anomaly.window for anomaly in truth if anomaly.window], frames.times_s)
    iou = set_iou(claimed, meant)
    reasons = [] if iou > LEAST_IOU else [f"time: IoU {iou:.2f} of the frame ranges, expected more than {LEAST_IOU:g}"]
    if strict and claimed:
        off = max(abs(min(claimed) - min(meant)), abs(max(claimed) - max(meant)))
        covered = len(claimed & meant) / len(meant)
        if off > STRICT_FRAMES:
            reasons.append(f"time: one end is {off} frames off, at most {STRICT_FRAMES} are allowed")
        if covered < STRICT_COVER:
            reasons.append(f"time: covers {covered:.0%} of the frames, at least {STRICT_COVER:.0%} are asked for")
    return reasons


def _boxes(anomalies: Sequence[Anomaly]) -> dict[int, tuple[Box, ...]]:
    merged: dict[int, tuple[Box, ...]] = {}
    for anomaly in anomalies:
        for frame, boxes in anomaly.boxes.items():
            merged[frame] = merged.get(frame, ()) + tuple(boxes)
    return merged


def _box_faults(answered: Sequence[Anomaly], annotated: Sequence[Anomaly], frames: Frames, strict: bool) -> list[str]:
    said, truth = _boxes(answered), _boxes(annotated)
    if not truth:  # nobody drew boxes here: there is nothing to compare with
        return []
    common = [frame for frame in truth if said.get(frame)]
    hit = spatial_iou(said, truth) * sum(len(truth[frame]) for frame in common)
    within = {
        frames.indices[n]
        for n in positions([anomaly.window for anomaly in annotated if anomaly.window], frames.times_s)
    }
    wrong = sum(frame not in truth and frame not in within for frame in said)
    iou = hit / (sum(map(len, truth.values())) + wrong)
    reasons = [] if iou > LEAST_IOU else [f"boxes: mean IoU {iou:.2f}, expected more than {LEAST_IOU:g}"]
    if strict:
        least = min(
            max((_covered(box, guess) for guess in said.get(f, ())), default=0.0) for f, b in truth.items() for box in b
        )
        if least < STRICT_COVER:
            reasons.append(f"boxes: one covers {least:.0%} of the defect, at least {STRICT_COVER:.0%} is asked for")
    return reasons


def _covered(truth: Box, guess: Box) -> float:
    """The share of ``truth`` that ``guess`` covers."""
    width = min(truth.xmax, guess.xmax) - max(truth.xmin, guess.xmin)
    height = min(truth.ymax, guess.ymax) - max(truth.ymin, guess.ymin)
    return max(width, 0) * max(height, 0) / ((truth.xmax - truth.xmin) * (truth.ymax - truth.ymin))
