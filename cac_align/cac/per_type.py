"""The per-type scan: turn 1 once for each type of anomaly, and one window per suspicion for turn 2.

prompt, frames → per_type_conversations → five answers
    → joined_suspicions → per window the answer that turn 2 is told about

One question about everything finds less than one question per type. On Spotlight (arXiv 2511.18102) this took a small
model from 14.8 % to 25.4 % of the errors. It costs five times as many scans, and each of them may raise an alarm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cac_align.cac.prompts import fill, turn_one_conversation, wording_text
from cac_align.core.judgement import ANOMALY_TYPES, Turn, Window, hull
from cac_align.core.video import Frames
from cac_align.vlm.protocol import Conversation

SAME_WINDOW_IOU = 0.5
"""From this temporal IoU on, two windows are one suspicion (our choice)."""


def per_type_conversations(prompt: str, frames: Frames, *, wording: str) -> list[Conversation]:
    """Turn 1's question once for each of the five types, in their order: a line that names the type, then the
    question as always.
    """
    (whole,) = turn_one_conversation(prompt, frames, wording=wording)
    only = wording_text(wording, "per_type")
    return [(replace(whole, text=f"{fill(only, {'type': kind})}\n{whole.text}"),) for kind in ANOMALY_TYPES]


def union_by_iou(windows: Sequence[Window], limit: float = SAME_WINDOW_IOU) -> list[Window]:
    """Windows in order of time, where the two that overlap most are made one until no two reach the limit."""
    left = sorted(set(windows))
    while len(left) > 1:
        pairs = [(window_iou(a, b), i, j) for i, a in enumerate(left) for j, b in enumerate(left) if i < j]
        best, i, j = max(pairs, key=lambda pair: (pair[0], -pair[1], -pair[2]))
        if best < limit:
            break
        left = sorted({*(w for k, w in enumerate(left) if k not in (i, j)), hull([left[i], left[j]])})
    return left


def window_iou(a: Window, b: Window) -> float:
    """IoU of two windows as lengths of time; of two instants 1 where they are equal, else 0."""
    union = max(a.end_s, b.end_s) - min(a.start_s, b.start_s)
    return max(0.0, min(a.end_s, b.end_s) - max(a.start_s, b.start_s)) / union if union > 0 else 1.0


def joined_suspicions(turns: Sequence[Turn]) -> list[tuple[Window, Turn]]:
    """Per window of the union the suspicion that turn 2 is told about.

    turns: the answers that called the video abnormal. A suspicion has the anomalies whose windows lie in its
    window, and the reasoning of the answers that named them.
    """
    named = [
        (turn, anomaly, anomaly.window) for turn in turns for anomaly in turn.anomalies if anomaly.window is not None
    ]
    found = []
    for window in union_by_iou([each for _, _, each in named]):
        inside = [
            (turn, anomaly)
            for turn, anomaly, each in named
            if window.start_s <= each.start_s and each.end_s <= window.end_s
        ]
        thoughts = dict.fromkeys(turn.chain_of_thought for turn, _ in inside)
        about = replace(
            inside[0][0], anomalies=tuple(anomaly for _, anomaly in inside), chain_of_thought="\n".join(thoughts)
        )
        found.append((window, about))
    return found
