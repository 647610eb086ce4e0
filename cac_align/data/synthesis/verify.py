"""Verify a teacher's answer: does it agree with the annotation, without revealing that it knew it?

- Status and set of labels are equal (Appendix B.2).
- scan: the IoU of claimed and annotated frames (Eq. 4) is above 0.5. Strict: both ends within two
  frames, and 85 % of the annotated frames covered.
- look, frame: the mean IoU over the annotated boxes on the frames shown (Eq. 5) is above 0.5. A
  missed box counts 0, and every boxed frame outside the annotated time counts as one more wrong
  box. Strict: 85 % of each annotated box covered as well.
- The text says nothing that reveals a known truth ("annotation", "ground truth", "the given label",
  …), nor a false alarm that it is one ("wrongly suspected", …). A false alarm is compared with what
  it is to suspect.

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
    r"\bground[- ]?truth\b|\bannotat\w*|\bhint(?:s|ed)?\b(?!\s+of\b)|\bas (?:hinted|instructed|told|given|indicated"
    r"|marked)\b"
    r"|\b(?:given|provided|supplied|expected|known|reference|marked|human|expert)\s+"
    r"(?:labels?|answers?|findings?|boxes|box|bbox\w*|windows?|time (?:regions?|ranges?)|frame ranges?|defects?"
    r"|anomal\w+)\b"
    r"|\b(?:i|we) (?:was|were|am|are|have been|had been) (?:told|given|informed)\b|\bpeople (?:found|marked|noted"
    r"|have (?:found|marked))\b"
    r"|\b(?:human|expert) (?:raters?|reviewers?|labell?ers?|experts?)\b|\bsystem (?:message|prompt)\b|\baccording "
    r"to (?:the )?(?:labels?|experts?)\b",
    re.IGNORECASE,
)
_ADMITS = re.compile(
    r"\bfalse alarms?\b|\bmistaken (?:inspector|answer|suspicion|finding)s?\b|\b(?:wrongly|mistakenly) suspect\w*"
    r"|\banother video\b",
    re.IGNORECASE,
)


def mentions_hint(text: str) -> str | None:
    """The words that reveal that the truth was known, or None."""
    found = _MENTIONS.search(text)
    return found.group(0) if found else None


def admits_mistake(text: str) -> str | None:
    """The words that reveal that an alarm is false, or None. A look may say them about turn 1's
    answer.
    """
    found = _ADMITS.search(text)
    return found.group(0) if found else None


def answer_faults(
    text: str,
    truth: Sequence[Anomaly],
    frames: Frames,
    *,
    number: Literal[1, 2],
    boxed: bool = False,
    strict: bool = False,
) -> tuple[str, ...]:
    """Every reason against an answer, beginning with the rule's name; empty for a verified answer.
    Never raises.

    truth: what the answer is to name (``questions.expected_anomalies``).
    number: 1 for a scan, 2 for a look or a single frame.
    boxed: a scan must contain boxes as well (the single-turn formulation).
    """
    turn = read_answer(text, number=number, frames=frames.indices, times_s=frames.times_s, boxed=boxed)
    reasons = [f"format: {fault}" for fault in turn.faults[:3]]
    if revealing := mentions_hint(text) or (admits_mistake(text) if number == 1 else None):
        reasons.append(f"hint: the text says {revealing!r}")
    status = "abnormal" if truth else "normal"
    if turn.status is not None and turn.status != status:
        reasons.append(f"status: {turn.status}, expected {status}")
    if turn.status != status or not truth:
        return tuple(reasons)
    named, expected = ({anomaly.type for anomaly in anomalies} for anomalies in (turn.anomalies, truth))
    if named != expected:
        reasons.append(f"labels: {', '.join(sorted(named)) or 'none'}, expected {', '.join(sorted(expected))}")
    reasons += _time_faults(turn.anomalies, truth, frames, strict) if number == 1 else []
    reasons += _box_faults(turn.anomalies, truth, frames, strict) if boxed or number == 2 else []
    return tuple(reasons)


def _time_faults(answered: Sequence[Anomaly], truth: Sequence[Anomaly], frames: Frames, strict: bool) -> list[str]:
    claimed = positions([anomaly.window for anomaly in answered if anomaly.window], frames.times_s)
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
    predicted, truth = _boxes(answered), _boxes(annotated)
    if not truth:  # nobody drew boxes here: there is nothing to compare with
        return []
    common = [frame for frame in truth if predicted.get(frame)]
    hit = spatial_iou(predicted, truth) * sum(len(truth[frame]) for frame in common)
    within = {
        frames.indices[n]
        for n in positions([anomaly.window for anomaly in annotated if anomaly.window], frames.times_s)
    }
    wrong = sum(frame not in truth and frame not in within for frame in predicted)
    iou = hit / (sum(map(len, truth.values())) + wrong)
    reasons = [] if iou > LEAST_IOU else [f"boxes: mean IoU {iou:.2f}, expected more than {LEAST_IOU:g}"]
    if strict:
        least = min(
            max((_covered(box, guess) for guess in predicted.get(f, ())), default=0.0)
            for f, b in truth.items()
            for box in b
        )
        if least < STRICT_COVER:
            reasons.append(f"boxes: one covers {least:.0%} of the defect, at least {STRICT_COVER:.0%} is asked for")
    return reasons


def _covered(truth: Box, guess: Box) -> float:
    """The share of ``truth``'s area that ``guess`` covers."""
    width = min(truth.xmax, guess.xmax) - max(truth.xmin, guess.xmin)
    height = min(truth.ymax, guess.ymax) - max(truth.ymin, guess.ymin)
    return max(width, 0) * max(height, 0) / ((truth.xmax - truth.xmin) * (truth.ymax - truth.ymin))
