"""Annotates a defect as an annotator would: window, boxes, reason, region and saliency.

Defect + Scene → window_frames, pixel_boxes → Anomaly (seconds, boxes in [0, 1000], words)

The conventions are those of the paper's Appendix B.1. A window runs from the first to the last
anomalous frame. For an absence (vanish, appear) the visible frame on either side belongs to the
window as well, and only these frames have boxes (B.1.3). Every other defect has a box on each frame
on which some of the affected part lies inside the frame.
"""

from __future__ import annotations

import numpy as np

from cac_align.core.judgement import Anomaly, Box, Window
from cac_align.miniature.world.defects import ABSENCES, apply_defect
from cac_align.miniature.world.draw import PixelBox, extent, join_boxes
from cac_align.miniature.world.render import in_frame_coordinates
from cac_align.miniature.world.scene import Defect, Scene


def window_frames(defect: Defect, num_frames: int) -> range:
    """The frames of the annotated window: the defect's own and, for an absence, the visible frame
    on either side.
    """
    pad = 1 if defect.subtype in ABSENCES else 0
    return range(max(defect.first - pad, 0), min(defect.last + pad, num_frames - 1) + 1)


def _affected_parts(defect: Defect) -> list[str | None]:
    """The parts of the entity that are boxed one by one; None stands for the whole entity."""
    if defect.subtype in ("extra arm", "extra leg", "hole"):
        return [defect.subtype]
    if defect.subtype in ("missing limb", "detached limb", "detached head"):
        return [defect.words["part"]]
    if "glyphs" in defect.numbers:
        return [f"glyph {position}" for position in defect.numbers["glyphs"]]
    return [None]


def pixel_boxes(defect: Defect, scene: Scene) -> dict[int, list[PixelBox]]:
    """The tight boxes on each frame of the window that has any."""
    clean = in_frame_coordinates(scene.entities[defect.entity], scene)
    wrong = in_frame_coordinates(apply_defect(defect, scene, scene.entities)[defect.entity], scene)
    size = (scene.height, scene.width)
    frames = np.asarray(window_frames(defect, scene.num_frames))
    if defect.subtype in ABSENCES:
        frames = np.asarray([frame for frame in (defect.first - 1, defect.last + 1) if 0 <= frame < scene.num_frames])
    entity = clean if defect.subtype in (*ABSENCES, "flicker", "missing limb") else wrong
    boxes: dict[int, list[PixelBox]] = {}
    for part in _affected_parts(defect):
        found = extent(entity, frames, *size, part)
        if defect.subtype.startswith("detached"):  # the box shows the gap: the part where it is and where it belongs
            for index, home in enumerate(extent(clean, frames, *size, part)):
                here = found[index]
                if home is not None and here is not None:
                    found[index] = join_boxes(here, home)
        for frame, box in zip(frames, found, strict=True):
            if box is not None:
                boxes.setdefault(int(frame), []).append(box)
    return boxes


def salience(severity: float, area_share: float, duration_s: float) -> float:
    """How conspicuous a defect is, in [0, 1]: the geometric mean of severity, √area share and
    √min(duration / 1 s, 1).
    """
    return float((severity * min(area_share, 1.0) ** 0.5 * min(duration_s, 1.0) ** 0.5) ** (1 / 3))


MIN_SALIENCE = 0.46
"""Anomalies of at least this ``salience`` are "salient", the others "non-salient"."""


def annotate(defect: Defect, scene: Scene) -> tuple[Anomaly, float]:
    """The annotation of a defect, and the mean share of the frame's area that its boxes cover."""
    window = window_frames(defect, scene.num_frames)
    boxes = {
        frame: tuple(Box.from_pixels(*box, scene.width, scene.height) for box in found)
        for frame, found in pixel_boxes(defect, scene).items()
    }
    share = float(np.mean([sum(box.area for box in found) for found in boxes.values()])) if boxes else 0.0
    strength = salience(defect.severity, share, len(window) / scene.fps)
    who, part = defect.words["who"], defect.words.get("part", "")
    reason, region = _WORDS[defect.subtype]
    anomaly = Anomaly(
        type=defect.type,
        window=Window(window[0] / scene.fps, window[-1] / scene.fps),
        reason=reason.format(who=who, part=part, kind=defect.words.get("kind", "")),
        region=region.format(who=who, part=part),
        boxes=boxes,
        saliency="salient" if strength >= MIN_SALIENCE else "non-salient",
    )
    return anomaly, share


_WORDS: dict[str, tuple[str, str]] = {
    "stretch": ("the {who} is stretched out of shape", "{who}"),
    "melt": ("the {who} melts and its outline wobbles", "{who}"),
    "split": ("the {who} splits into two halves", "{who}"),
    "hole": ("a hole opens in the {who}", "hole in the {who}"),
    "mutate": ("the {who} turns into a {kind}", "{who}"),
    "extra arm": ("the {who} grows an extra arm", "extra arm of the {who}"),
    "extra leg": ("the {who} grows an extra leg", "extra leg of the {who}"),
    "missing limb": ("the {part} of the {who} is missing", "{part} of the {who}"),
    "detached limb": ("the {part} comes off the {who}", "{part} of the {who}"),
    "detached head": ("the head comes off the {who}", "head of the {who}"),
    "split body": ("the body of the {who} is split in two", "body of the {who}"),
    "vanish": ("the {who} suddenly disappears", "{who}"),
    "appear": ("the {who} suddenly appears", "{who}"),
    "flicker": ("the {who} flickers on and off", "{who}"),
    "teleport": ("the {who} jumps to another place", "{who}"),
    "jitter": ("the {who} jitters from frame to frame", "{who}"),
    "float": ("the {who} floats up without support", "{who}"),
    "sink": ("the {who} sinks into the ground", "{who}"),
    "interpenetrate": ("the {who} passes into another solid", "{who}"),
    "reverse": ("the {who} runs backwards against its motion", "{who}"),
    "garbled": ("letters on the {who} are garbled", "letters of the {who}"),
    "changing": ("letters on the {who} change", "letters of the {who}"),
    "mirrored": ("letters on the {who} are mirrored", "letters of the {who}"),
}
"""The reason and the region of each subtype in words."""
