"""Test-time augmentation: judge several altered copies of a video and average their log-odds.

video → copies (mirrored, shifted, reversed, later start) → one judgement each → boxes and windows
mapped back to the video → mean log-odds

An augmentation is a text: "as_is", or steps joined by "+", for example "mirrored+reversed".

- "mirrored" swaps left and right, in the prompt as well. It makes letters unreadable, so leave it
  out where signs matter.
- "shifted" moves the picture right and down by 1/32 of its width and height; the edge is repeated.
- "reversed" plays the video backwards. A motion that is wrong only in its direction then looks
  right, so use it beside augmentations that are not reversed.
- "later" starts 1/8 s late, so that turn 1, which samples at 4 fps, gets the frames halfway between
  those it gets without augmentation. A defect that lasts 1/8 s is then in one of the two samples.
- "later_1_16" and "later_3_16" start 1/16 s and 3/16 s late. The four starts of ``FOUR_PHASES``
  together sample every frame of a 16 fps video. "reversed+later" starts 1/8 s before the end.

A judge's errors are partly random: they depend on where a defect falls in the grid of patches and
on the order of the frames. Averaging over copies cancels a part of them and costs one judgement per
copy. The paper judges the unaltered video only (Sec. 3.4), so a reward with test-time augmentation
has a provenance of its own.
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

# Share of width and height. On Qwen3-VL's grid of 32 px it is about one patch at 832 px and half a patch at 480 px.
SHIFT = 1 / 32
# Start delays in seconds: a half, a quarter and three quarters of the interval between two frames at 4 fps.
START_DELAYS_S: Mapping[str, float] = {"later": 1 / 8, "later_1_16": 1 / 16, "later_3_16": 3 / 16}
AS_IS = "as_is"
# Augmentations whose 4 fps samples together contain every frame of a video at 16 fps.
FOUR_PHASES = (AS_IS, "later_1_16", "later", "later_3_16")
Pixels = UInt8[np.ndarray, "T H W 3"]


def _mirror(pixels: Pixels) -> Pixels:
    return pixels[:, :, ::-1]


def _shift_px(side_px: int) -> int:
    return max(1, round(side_px * SHIFT))


def _shift(pixels: Pixels) -> Pixels:
    down, right = map(_shift_px, pixels.shape[1:3])
    padded = np.pad(pixels, ((0, 0), (down, 0), (right, 0), (0, 0)), mode="edge")
    return padded[:, : pixels.shape[1], : pixels.shape[2]]


_SPATIAL_STEPS: Mapping[str, Callable[[Pixels], Pixels]] = {"mirrored": _mirror, "shifted": _shift}
_STEPS = (*_SPATIAL_STEPS, "reversed", *START_DELAYS_S)


def parse_augmentation(augmentation: str) -> tuple[str, ...]:
    """The steps of an augmentation in order; an empty tuple for ``AS_IS``.

    Raises ``ValueError`` for an unknown step, a repeated one, or more than one later start.
    """
    steps = () if augmentation == AS_IS else tuple(augmentation.split("+"))
    if set(steps) - set(_STEPS) or len(set(steps)) < len(steps) or len(set(steps) & set(START_DELAYS_S)) > 1:
        raise ValueError(
            f"unknown augmentation {augmentation!r}; expected {AS_IS!r}, or different steps out of "
            f"{', '.join(_STEPS)} joined by '+', with at most one later start"
        )
    return steps


@dataclass(frozen=True)
class _AugmentedSource:
    """The source of an augmented video's frames; they are made when they are read."""

    video: Video
    steps: tuple[str, ...]

    @property
    def length_verified(self) -> bool:
        return self.video.length_verified

    def read(self, indices: Sequence[int]) -> Pixels:
        source_frames = _source_frames(self.video, self.steps)
        pixels = self.video.frames(sorted(source_frames[index] for index in indices)).pixels
        if "reversed" in self.steps:
            pixels = pixels[::-1]
        for step in self.steps:
            pixels = _SPATIAL_STEPS[step](pixels) if step in _SPATIAL_STEPS else pixels
        return np.ascontiguousarray(pixels)

    def data(self) -> bytes:
        return hashlib.sha256(f"{self.steps}{self.video.content_hash}".encode()).digest()


def augment(video: Video, augmentation: str) -> Video:
    """The augmented copy of a video; frames are decoded only when they are read.

    A later start never leaves a video without frames: its last frame always stays.
    Raises ``ValueError`` for an unknown augmentation.
    """
    steps = parse_augmentation(augmentation)
    if not steps:
        return video
    source_frames = _source_frames(video, steps)
    times = tuple(abs(video.times_s[frame] - video.times_s[source_frames[0]]) for frame in source_frames)
    name = f"{video.name} ({augmentation})"
    return Video(video.fps, times, video.height, video.width, name, _AugmentedSource(video, steps))


_SIDES = re.compile(r"\b(left|right)(wards?|most)?\b", re.IGNORECASE)


def transform_prompt(prompt: str, augmentation: str) -> str:
    """The prompt of the augmented video: "left" and "right" are swapped when it is mirrored."""
    if "mirrored" not in parse_augmentation(augmentation):
        return prompt

    def swap(match: re.Match[str]) -> str:
        word = match.group(1)
        swapped = "right" if word.lower() == "left" else "left"
        return (swapped.capitalize() if word[0].isupper() else swapped) + (match.group(2) or "")

    return _SIDES.sub(swap, prompt)


def undo_augmentation(judgement: Judgement, video: Video, augmentation: str) -> Judgement:
    """The judgement of an augmented copy in the frames, seconds and boxes of ``video`` itself.

    The texts of the answers stay as the judge wrote them.
    """
    steps = parse_augmentation(augmentation)
    if not steps:
        return judgement
    anomalies = tuple(_restore_anomaly(anomaly, video, steps) for anomaly in judgement.anomalies)
    turns = tuple(_restore_turn(turn, video, steps) for turn in judgement.turns)
    return replace(judgement, anomalies=anomalies, turns=turns)


def _restore_turn(turn: Turn, video: Video, steps: tuple[str, ...]) -> Turn:
    source_frames = _source_frames(video, steps)
    frames = tuple(sorted(source_frames[frame] for frame in turn.frames))
    anomalies = tuple(_restore_anomaly(anomaly, video, steps) for anomaly in turn.anomalies)
    return replace(turn, frames=frames, anomalies=anomalies)


def _restore_anomaly(anomaly: Anomaly, video: Video, steps: tuple[str, ...]) -> Anomaly:
    window, source_frames = anomaly.window, _source_frames(video, steps)
    if window is not None:
        start_s = video.times_s[source_frames[0]]
        edges = (start_s + source_frames.step * edge_s for edge_s in (window.start_s, window.end_s))
        window = Window(*sorted(max(0.0, edge_s) for edge_s in edges))
    boxes: dict[int, tuple[Box, ...]] = {}
    for frame, augmented in anomaly.boxes.items():
        restored = tuple(box for box in (_restore_box(box, video, steps) for box in augmented) if box is not None)
        if restored:
            boxes[source_frames[frame]] = restored
    return replace(anomaly, window=window, boxes=boxes)


def _source_frames(video: Video, steps: tuple[str, ...]) -> range:
    """Source index of each frame of the augmented video, in its order; never empty."""
    count, times = len(video), video.times_s
    delay_s = sum(START_DELAYS_S.get(step, 0.0) for step in steps)
    if "reversed" in steps:
        return range(max(1, bisect_right(times, times[-1] - delay_s + 1e-6)) - 1, -1, -1)
    return range(min(bisect_left(times, delay_s - 1e-6), count - 1), count)


def _restore_box(box: Box, video: Video, steps: tuple[str, ...]) -> Box | None:
    """The box in the unaltered picture; None when it lies in the repeated edge of a shifted one."""
    xmin, ymin, xmax, ymax = box.to_json()
    for step in reversed(steps):
        if step == "mirrored":
            xmin, xmax = BOX_MAX - xmax, BOX_MAX - xmin
        elif step == "shifted":
            right, down = (round(BOX_MAX * _shift_px(side) / side) for side in (video.width, video.height))
            xmin, xmax, ymin, ymax = max(0, xmin - right), xmax - right, max(0, ymin - down), ymax - down
    return Box(xmin, ymin, xmax, ymax) if xmin < xmax and ymin < ymax else None


def mean_log_odds(judgements: Sequence[Judgement]) -> float:
    """Mean of log P(normal) − log P(abnormal); every judgement must have a verdict."""
    return float(np.mean([judgement.log_odds for judgement in judgements]))


def consensus_judgement(judgements: Sequence[Judgement], threshold: float = 0.0) -> Judgement:
    """The first judgement whose verdict agrees with the mean, which is "abnormal" at or below
    ``threshold``.

    When none agrees (the mean and all log-odds lie between 0 and the threshold), it is the first
    judgement: a verdict that no copy gave would have neither window nor boxes. So a single
    judgement is never overruled.
    """
    normal = mean_log_odds(judgements) > threshold
    return next((judgement for judgement in judgements if (judgement.log_odds > 0) == normal), judgements[0])
