"""What an audit shows a judge: twins with and without a defect at a known place, and groups of videos.

twins, true anomaly → AuditPair (with the defect moved in time and in space) · prompt, videos → AuditGroup
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from cac_align.core.judgement import BOX_MAX, Anomaly, Box, Window
from cac_align.core.video import Video


@dataclass(frozen=True, eq=False)
class Defective:
    """A clip with a defect, the prompt it belongs to, and the truth: type, window and boxes."""

    prompt: str
    video: Video
    anomaly: Anomaly


@dataclass(frozen=True, eq=False)
class AuditPair:
    """Two clips that differ by one defect.

    ``clean`` went through the same operation as ``defect``, with no effect. ``severity`` in (0, 1],
    as the defect's maker counts it; ``size``: the share of the frame that the boxes cover, in
    (0, 1]. ``moved_in_time`` and ``moved_in_space`` are the defective clip with its defect at
    another time or place; None where it cannot be moved. ``original``: the clip before the
    operation; None where there was none.
    """

    clean: Video
    defect: Defective
    severity: float
    size: float
    moved_in_time: Defective | None = None
    moved_in_space: Defective | None = None
    original: Video | None = None

    @property
    def prompt(self) -> str:
        return self.defect.prompt

    @property
    def duration_s(self) -> float:
        """How long the defect is shown, in seconds."""
        window = self.defect.anomaly.window
        if window is None:
            raise ValueError(f"the defect of {self.defect.video.name} has no window; an audit needs its time")
        return window.end_s - window.start_s + 1 / self.defect.video.fps


@dataclass(frozen=True, eq=False)
class AuditGroup:
    """Several videos of one prompt, as a generator makes them."""

    prompt: str
    videos: tuple[Video, ...]


def pixels_of(video: Video) -> np.ndarray:
    """All frames, uint8 (T, H, W, 3). Raises ``ValueError`` when the video cannot be decoded."""
    return video.frames(range(len(video))).pixels


def same_clock(video: Video, pixels: np.ndarray, name: str) -> Video:
    """Other pixels at a video's rate."""
    return Video.open(np.ascontiguousarray(pixels), fps=video.fps, name=f"{video.name} ({name})", layout="THWC")


def mirrored_video(video: Video) -> Video:
    """Left and right exchanged."""
    return same_clock(video, pixels_of(video)[:, :, ::-1], "mirrored")


def mirrored_prompt(prompt: str) -> str:
    """The prompt of a mirrored clip: the words left and right exchanged."""
    other = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    return re.sub(r"\b(left|right|Left|Right)\b", lambda word: other[word[0]], prompt)


def mirrored_defect(defect: Defective) -> Defective | None:
    """The mirrored clip with its mirrored boxes; None for letters, which mirroring would spoil."""
    if defect.anomaly.type == "Character Anomalies":
        return None
    boxes = {frame: tuple(map(_mirrored_box, found)) for frame, found in defect.anomaly.boxes.items()}
    anomaly = replace(defect.anomaly, boxes=boxes)
    return Defective(mirrored_prompt(defect.prompt), mirrored_video(defect.video), anomaly)


def _mirrored_box(box: Box) -> Box:
    return Box(BOX_MAX - box.xmax, box.ymin, BOX_MAX - box.xmin, box.ymax)


def cut_to_move(defect: Defective, least_frames: int = 9) -> Defective | None:
    """The clip without some of its first frames, so that its defect comes earlier.

    As much is cut as stands before the window, up to a third of the clip. None where the window
    begins at once, or fewer than ``least_frames`` would be left.
    """
    window, video = defect.anomaly.window, defect.video
    if window is None:
        return None
    cut = min(round(window.start_s * video.fps) - 1, len(video) // 3, len(video) - least_frames)
    if cut < 2:
        return None
    moved = Window(max(window.start_s - cut / video.fps, 0.0), window.end_s - cut / video.fps)
    boxes = {frame - cut: found for frame, found in defect.anomaly.boxes.items() if frame >= cut}
    anomaly = replace(defect.anomaly, window=moved, boxes=boxes)
    return Defective(defect.prompt, same_clock(video, pixels_of(video)[cut:], "cut"), anomaly)


def groups_by_prompt(prompts: Iterable[str], videos: Iterable[Video], size: int = 16) -> list[AuditGroup]:
    """The videos of every prompt that has at least two, the first ``size`` of each."""
    found: dict[str, list[Video]] = {}
    for prompt, video in zip(prompts, videos, strict=True):
        found.setdefault(prompt, []).append(video)
    return [AuditGroup(prompt, tuple(one[:size])) for prompt, one in found.items() if len(one) >= 2]
