"""Views: the same video seen in several ways, judged in each, and the log-odds averaged.

video → mirrored | shifted | reversed | later → two turns each → Judgement, its boxes and windows mapped back → mean log-odds

A judge errs partly at random: where a defect falls in its grid of patches, in which order it tells the frames. What it says of a mirrored
or shifted copy errs differently, and the mean over views is surer than any of them (test-time augmentation). It costs a judgement per view.
"mirrored" swaps left and right in the prompt too, and makes letters unreadable: leave it out where signs matter. "shifted" moves the
picture right and down by 1/32 of its width and height, edges repeated. "reversed" runs backwards: a motion that is wrong only in its direction
looks right then, so it belongs beside views that are not reversed. "later" begins 1/8 s late, so that the scan at 4 fps falls on the frames
halfway between those that it shows of the video as it is: a defect of 1/8 s, of which one scan sees every other one, lies before one of the
two. "later_1_16" and "later_3_16" begin 1/16 and 3/16 s late: with these three, the scans of four views show every frame of a video at
16 fps (Wan's), and no defect falls between them. Steps are joined by "+", as in "mirrored+reversed"; "reversed+later" begins 1/8 s before
the video's end.

Not in the paper, which looks once (Sec. 3.4): a reward with a provenance of its own.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from cac_align.core.judgement import BOX_MAX, Anomaly, Box, Judgement, Turn, Window
from cac_align.core.video import Video

SHIFT = 1 / 32
"""Of width and height. On Qwen3-VL's grid of 32 px this is about a patch at 832 px, half a patch at 480, and never a whole one in both."""
LATER_S: Mapping[str, float] = {"later": 1 / 8, "later_1_16": 1 / 16, "later_3_16": 3 / 16}
"""Half a step of the paper's scan at 4 fps (Sec. 3.4), a quarter and three quarters."""
AS_IS = "as_is"
FOUR_PHASES = (AS_IS, "later_1_16", "later", "later_3_16")
"""Views whose scans together show every frame of a video at 16 fps."""
Pixels = UInt8[np.ndarray, "T H W 3"]


def _mirror(pixels: Pixels) -> Pixels:
    return pixels[:, :, ::-1]


def _shift_px(side_px: int) -> int:
    return max(1, round(side_px * SHIFT))


def _shift(pixels: Pixels) -> Pixels:
    down, right = map(_shift_px, pixels.shape[1:3])
    padded = np.pad(pixels, ((0, 0), (down, 0), (right, 0), (0, 0)), mode="edge")
    return padded[:, : pixels.shape[1], : pixels.shape[2]]


_PICTURES: Mapping[str, Callable[[Pixels], Pixels]] = {"mirrored": _mirror, "shifted": _shift}
_STEPS = (*_PICTURES, "reversed", *LATER_S)


def steps_of(view: str) -> tuple[str, ...]:
    """What is done for this view, in order; nothing for ``AS_IS``. Raises ``ValueError`` for an unknown or repeated step."""
    steps = () if view == AS_IS else tuple(view.split("+"))
    if set(steps) - set(_STEPS) or len(set(steps)) < len(steps) or len(set(steps) & set(LATER_S)) > 1:
        raise ValueError(
            f"a view is {AS_IS!r}, or some of {', '.join(_STEPS)} joined by '+', one beginning at most; received {view!r}"
        )
    return steps


@dataclass(frozen=True)
class _Copy:
    """The frames of a view, made when they are read. What ``Video`` needs of a source."""

    video: Video
    steps: tuple[str, ...]

    def read(self, indices: Sequence[int]) -> Pixels:
        shown = _shown(self.video, self.steps)
        pixels = self.video.frames(sorted(shown[index] for index in indices)).pixels
        if "reversed" in self.steps:
            pixels = pixels[::-1]
        for step in self.steps:
            pixels = _PICTURES[step](pixels) if step in _PICTURES else pixels
        return np.ascontiguousarray(pixels)

    def data(self) -> bytes:
        return hashlib.sha256(f"{self.steps}{self.video.content_hash}".encode()).digest()


def viewed(video: Video, view: str) -> Video:
    """The video in this view; frames are decoded only when they are read. Raises ``ValueError`` for an unknown view.

    A video of which a later beginning would leave no frame is shown from its last one.
    """
    steps = steps_of(view)
    if not steps:
        return video
    shown = _shown(video, steps)
    times = tuple(abs(video.times_s[frame] - video.times_s[shown[0]]) for frame in shown)
    return Video(video.fps, times, video.height, video.width, f"{video.name} ({view})", _Copy(video, steps))


_SIDES = re.compile(r"\b(left|right)(wards?|most)?\b", re.IGNORECASE)


def told(prompt: str, view: str) -> str:
    """The prompt as it is true of this view: left and right change places in a mirror."""
    if "mirrored" not in steps_of(view):
        return prompt

    def other(found: re.Match[str]) -> str:
        word = found.group(1)
        swapped = "right" if word.lower() == "left" else "left"
        return (swapped.capitalize() if word[0].isupper() else swapped) + (found.group(2) or "")

    return _SIDES.sub(other, prompt)


# ---- back to the video as it is ---------------------------------------------------------------------------------------


def unviewed(judgement: Judgement, video: Video, view: str) -> Judgement:
    """This view's judgement in the video's own frames, seconds and boxes. The words inside its answers stay as they were written."""
    steps = steps_of(view)
    if not steps:
        return judgement
    anomalies = tuple(_anomaly(anomaly, video, steps) for anomaly in judgement.anomalies)
    return replace(judgement, anomalies=anomalies, turns=tuple(_turn(turn, video, steps) for turn in judgement.turns))


def _turn(turn: Turn, video: Video, steps: tuple[str, ...]) -> Turn:
    shown = _shown(video, steps)
    frames = tuple(sorted(shown[frame] for frame in turn.frames))
    return replace(turn, frames=frames, anomalies=tuple(_anomaly(anomaly, video, steps) for anomaly in turn.anomalies))


def _anomaly(anomaly: Anomaly, video: Video, steps: tuple[str, ...]) -> Anomaly:
    window, shown = anomaly.window, _shown(video, steps)
    if window is not None:
        begin_s = video.times_s[shown[0]]
        edges = (begin_s + shown.step * edge_s for edge_s in (window.start_s, window.end_s))
        window = Window(*sorted(max(0.0, edge_s) for edge_s in edges))
    boxes: dict[int, tuple[Box, ...]] = {}
    for frame, found in anomaly.boxes.items():
        back = tuple(box for box in (_box(box, video, steps) for box in found) if box is not None)
        if back:
            boxes[shown[frame]] = back
    return replace(anomaly, window=window, boxes=boxes)


def _shown(video: Video, steps: tuple[str, ...]) -> range:
    """The source frames that this view shows, in its order; a later beginning leaves out those of its first ``LATER_S``, though never all."""
    count, times, late_s = len(video), video.times_s, sum(LATER_S.get(step, 0.0) for step in steps)
    if "reversed" in steps:
        return range(max(1, bisect_right(times, times[-1] - late_s + 1e-6)) - 1, -1, -1)
    return range(min(bisect_left(times, late_s - 1e-6), count - 1), count)


def _box(box: Box, video: Video, steps: tuple[str, ...]) -> Box | None:
    """None for a box that lies in the repeated edge of a shifted view altogether."""
    xmin, ymin, xmax, ymax = box.to_json()
    for step in reversed(steps):
        if step == "mirrored":
            xmin, xmax = BOX_MAX - xmax, BOX_MAX - xmin
        elif step == "shifted":
            right, down = (round(BOX_MAX * _shift_px(side) / side) for side in (video.width, video.height))
            xmin, xmax, ymin, ymax = max(0, xmin - right), xmax - right, max(0, ymin - down), ymax - down
    return Box(xmin, ymin, xmax, ymax) if xmin < xmax and ymin < ymax else None


def mean_log_odds(judgements: Sequence[Judgement]) -> float:
    """The mean of log P(normal) − log P(abnormal) over the views. Every one must have a verdict."""
    return float(np.mean([judgement.log_odds for judgement in judgements]))


def consensus_judgement(judgements: Sequence[Judgement], threshold: float = 0.0) -> Judgement:
    """The judgement that stands for all: the first one whose own verdict is the mean's, which is "abnormal" at or below ``threshold``.

    Where no view says what the mean does (it lies between 0 and the threshold, and so do they all), the first view speaks: a verdict
    that nobody gave would have neither window nor boxes. So one view is never overruled.
    """
    sound = mean_log_odds(judgements) > threshold
    return next((judgement for judgement in judgements if (judgement.log_odds > 0) == sound), judgements[0])
