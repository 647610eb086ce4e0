"""The teacher: writes the answer that a perfect small judge would give, from the annotations and
the frames shown.

anomalies (windows, boxes, reasons) + frames shown → three-step chain of thought → ``write_answer``
→ text that reads back exactly

The chain of thought is compact but walks through *every* frame ("Frame 2: b3 ball melted."): where
the main entity is and whether it is whole, per frame, is the dense supervision from which a small
model learns to look. Step 2 compares the frames, step 3 concludes. The annotations are never
mentioned as given. For the holistic judge the teacher grades alignment, physics and style from 1 to
5 in coarse steps, seeing large defects only.

Source: CaC (arXiv 2605.11723) Figs. S4 and S5 (structure of the answer), Appendix B.1.3 (boxes of
transitions).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from cac_align.core.answer import write_answer
from cac_align.core.judgement import BOX_MAX, SINGLE_FRAME_TYPES, Anomaly, Box, Window, shown_frames
from cac_align.miniature.world.grammar import COLOURS, KINDS, Spec, parse_prompt

if TYPE_CHECKING:
    from cac_align.miniature.world.scene import Scene

APPEARANCES: tuple[tuple[str, str, str], ...] = (
    ("stretched", "stretched", ""),
    ("melts", "melted", ""),
    ("two halves", "split", ""),
    ("hole", "pierced", ""),
    ("turns into", "changed", ""),
    ("extra arm", "extra arm", ""),
    ("extra leg", "extra leg", ""),
    ("missing", "limb missing", ""),
    ("head comes off", "head off", ""),
    ("comes off", "limb off", ""),
    ("split in two", "torn", ""),
    ("disappears", "gone", "disappears"),
    ("appears", "gone", "appears"),
    ("flickers", "faint", "flickers"),
    ("jumps", "misplaced", "jumps"),
    ("jitters", "shaken", "jitters"),
    ("floats", "floating", "floats"),
    ("sinks", "sunk", "sinks"),
    ("passes into", "inside", "overlaps"),
    ("backwards", "reversing", "reverses"),
    ("garbled", "letters garbled", ""),
    ("mirrored", "letters mirrored", ""),
    ("change", "letters changed", ""),
)
"""A phrase of the reason, the word for an affected frame, and the word for what happens between
frames (or nothing).
"""

_WHO = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(KINDS)})\b")


def who(anomaly: Anomaly) -> tuple[str, str]:
    """Colour and kind of the entity an anomaly is about, from its region or reason; ("", "thing")
    where neither says.
    """
    match = _WHO.search(anomaly.region) or _WHO.search(anomaly.reason)
    return (match.group(1), match.group(2)) if match else ("", "thing")


def matching_entities(anomaly: Anomaly, prompt: str) -> list[tuple[str, str]]:
    """Colour and kind of the prompt's entities of which this can be said: the one that it is said
    of, or else those of its kind, or all.

    Raises ``ValueError`` for a prompt outside the world.
    """
    actors = [(actor.colour, actor.kind) for actor in parse_prompt(prompt).actors]
    named = who(anomaly)
    return [named] if named in actors else [actor for actor in actors if actor[1] == named[1]] or actors


def about_entity(anomaly: Anomaly, colour: str, kind: str) -> Anomaly:
    """The same anomaly said about another entity, for suspicions that turn out to be wrong."""
    name = f"{colour} {kind}"
    return replace(anomaly, reason=_WHO.sub(name, anomaly.reason), region=_WHO.sub(name, anomaly.region))


def appearance_index(anomaly: Anomaly) -> int:
    """Which row of ``APPEARANCES`` an anomaly's reason matches. Raises ``ValueError`` when none
    does.
    """
    for index, (phrase, _, _) in enumerate(APPEARANCES):
        if phrase in anomaly.reason:
            return index
    raise ValueError(
        f"the reason {anomaly.reason!r} has none of the phrases {', '.join(phrase for phrase, _, _ in APPEARANCES)}"
    )


def _appearance(anomaly: Anomaly) -> tuple[str, str]:
    """The words for an affected frame and for what happens between frames."""
    for phrase, look, happening in APPEARANCES:
        if phrase in anomaly.reason:
            return look, happening
    return ("broken", "") if anomaly.type in SINGLE_FRAME_TYPES else ("odd", "moves oddly")


def chain_of_thought(
    anomalies: Sequence[Anomaly], times_s: Sequence[float], places: Sequence[str] | None = None
) -> str:
    """The three steps for frames shown at ``times_s`` seconds. No anomaly gives the chain of a
    normal video.

    places: where the main entity is on each of these frames (``place``); None leaves that out, as
    for records without a scene.
    """
    at = [set(shown_frames(anomaly.window, times_s)) if anomaly.window else set() for anomaly in anomalies]
    lines = []
    for number in range(len(times_s)):
        wrong = [
            f"{who(anomaly)[1]} {_appearance(anomaly)[0]}"
            for anomaly, frames in zip(anomalies, at, strict=True)
            if number in frames
        ]
        where = f"{places[number]} " if places is not None else ""
        lines.append(f"Frame {number}: {where}{', '.join(dict.fromkeys(wrong)) or 'fine'}.")
    happenings = [f"{who(anomaly)[1]} {_appearance(anomaly)[1]}" for anomaly in anomalies if _appearance(anomaly)[1]]
    types = [anomaly.type for anomaly in anomalies]
    compared = ", ".join(dict.fromkeys(happenings)) or "motion fine"
    concluded = ", ".join(dict.fromkeys(types)) or "no anomaly"
    return f"Step 1: {' '.join(lines)} Step 2: {compared}. Step 3: {concluded}."


AWAY = "away"
"""The place of an entity that is missing."""


def place(x: float, y: float) -> str:
    """The cell of a 4 × 4 grid that holds a point of the frame ((0, 0) to (1, 1)): rows a to d from
    the top, columns 1 to 4 from the left.
    """
    row, column = (min(max(int(4 * value), 0), 3) for value in (y, x))
    return f"{'abcd'[row]}{column + 1}"


def places(scene: Scene, anomalies: Sequence[Anomaly]) -> list[str]:
    """Where the scene's main entity is seen on every source frame: where it should be, or where its
    defect has put it (the middle of its box), or ``AWAY`` while it is missing.
    """
    entity, actor = scene.entities[0], scene.spec.actors[0]
    x = (entity.track["x"] - scene.camera[:, 0]) / scene.width
    y = (entity.track["y"] - scene.camera[:, 1]) / scene.height
    found = [place(float(a), float(b)) for a, b in zip(x, y, strict=True)]
    for anomaly in anomalies:
        window = anomaly.window
        if window is None or anomaly.type in SINGLE_FRAME_TYPES or who(anomaly) != (actor.colour, actor.kind):
            continue
        first, last = (round(t * scene.fps) for t in (window.start_s, window.end_s))
        for frame in range(first, last + 1):
            if frame in anomaly.boxes:
                box = anomaly.boxes[frame][0]
                found[frame] = place((box.xmin + box.xmax) / 2 / BOX_MAX, (box.ymin + box.ymax) / 2 / BOX_MAX)
            elif _appearance(anomaly)[0] == "gone":
                found[frame] = AWAY
    return found


def visible(anomalies: Sequence[Anomaly], times_s: Sequence[float]) -> tuple[Anomaly, ...]:
    """The anomalies that at least one of the frames shown falls into, their windows cut to what is
    shown; in order of time.
    """
    seen = []
    for anomaly in anomalies:
        window = anomaly.window
        inside = [] if window is None else [t for t in times_s if window.start_s - 1e-6 <= t <= window.end_s + 1e-6]
        if inside:
            seen.append(replace(anomaly, window=Window(inside[0], inside[-1])))
    return tuple(sorted(seen, key=lambda anomaly: (anomaly.window, anomaly.type, anomaly.reason)))


def with_shown_boxes(anomaly: Anomaly, frames: Sequence[int]) -> Anomaly:
    """The anomaly with boxes on shown frames only.

    An absence has boxes on its transition frames alone (B.1.3); where none of those is shown, the
    nearest transition's box stands on the nearest frame shown, so that the answer still says where
    to look. Raises ``ValueError`` when there is no box at all.
    """
    if not anomaly.boxes:
        raise ValueError(f"the anomaly {anomaly.reason!r} has no boxes; turn 2 must point at something")
    shown: dict[int, tuple[Box, ...]] = {frame: boxes for frame, boxes in anomaly.boxes.items() if frame in set(frames)}
    if not shown:
        source, frame = min(
            ((s, f) for s in anomaly.boxes for f in frames), key=lambda pair: (abs(pair[0] - pair[1]), pair)
        )
        shown = {frame: anomaly.boxes[source]}
    return replace(anomaly, boxes=shown)


def answer(
    anomalies: Sequence[Anomaly],
    *,
    number: Literal[1, 2],
    frames: Sequence[int],
    times_s: Sequence[float],
    places: Sequence[str] | None = None,
    boxed: bool = False,
) -> str:
    """The right answer of turn ``number`` (``boxed``: turn 1 with boxes) to these frames;
    ``places`` as in ``chain_of_thought``. Only what the frames can show is reported: with none of
    an anomaly's frames among them the answer is normal.
    """
    seen = visible(anomalies, times_s)
    if boxed or number == 2:
        seen = tuple(with_shown_boxes(anomaly, frames) for anomaly in seen)
    thought = chain_of_thought(seen, times_s, places)
    return write_answer(
        chain_of_thought=thought, anomalies=seen, number=number, frames=frames, times_s=times_s, boxed=boxed
    )


# ---- the holistic judge -------------------------------------------------------------------------------------------


def grades(asked: Spec, shown: Spec, anomalies: Sequence[Anomaly], wear: float) -> Mapping[str, float]:
    """Alignment, physics and style from 1 to 5 in steps of one half, as a judge that misses small
    defects would give them.

    asked: what the prompt says; shown: what the clip shows. wear: how worn the picture is, 0
    (clean) to about 1.5. A defect costs physics by the share of the frame it covers and how long it
    lasts; a small short one costs nothing.
    """
    alignment = 5.0 - _mismatch(asked, shown)
    physics = style = 5.0
    for anomaly in anomalies:
        size = _size(anomaly)
        physics -= size * (3.0 if anomaly.type not in SINGLE_FRAME_TYPES else 1.0)
        style -= size * (1.5 if anomaly.type in SINGLE_FRAME_TYPES else 0.5)
    style -= 2.0 * wear
    return {name: _half(value) for name, value in (("alignment", alignment), ("physics", physics), ("style", style))}


def caption(shown: Spec, grade: Mapping[str, float], wear: float) -> str:
    """What a small holistic judge writes before it grades: what the clip shows, how intact it is,
    how degraded the picture is.

    It is thinking aloud before the three lines of scores: the words shown beside the words asked
    for make alignment readable, and each of them teaches the eyes more than a grade does. Defects
    too small for ``grades`` are not mentioned.
    """
    lost = 5.0 - grade["physics"] + max(0.0, 5.0 - 2.0 * wear - grade["style"])
    whole = "whole" if lost < 0.5 else "odd" if lost < 1.5 else "broken"
    worn = ("clean", "soft", "worn", "poor")[min(3, round(wear / 0.4))]
    return f"Seen: {shown.prompt}, {whole}, {worn}.\n"


def _size(anomaly: Anomaly) -> float:
    """How large an anomaly appears, in [0, 1]: area and duration against 8 % of the frame for one
    second.
    """
    boxes = [box for boxes in anomaly.boxes.values() for box in boxes]
    area = sum(box.area for box in boxes) / max(1, len(anomaly.boxes))
    duration_s = anomaly.window.end_s - anomaly.window.start_s if anomaly.window else 0.0
    return min(1.0, (area / 0.08) * min(duration_s, 1.5))


def _mismatch(asked: Spec, shown: Spec) -> float:
    """What the clip lacks of the prompt: points off alignment, up to 4."""
    lost = abs(len(asked.actors) - len(shown.actors)) * 1.0 + (0.5 if asked.place != shown.place else 0.0)
    for one, other in zip(asked.actors, shown.actors, strict=False):
        lost += 2.0 * (one.kind != other.kind) + 1.5 * (one.colour != other.colour) + 1.0 * (one.motion != other.motion)
    return min(lost, 4.0)


def _half(value: float) -> float:
    return min(5.0, max(1.0, round(2 * value) / 2))


__all__ = [
    "answer",
    "caption",
    "chain_of_thought",
    "grades",
    "parse_prompt",
    "about_entity",
    "matching_entities",
    "visible",
    "who",
    "with_shown_boxes",
]
