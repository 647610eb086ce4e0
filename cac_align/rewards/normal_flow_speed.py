"""How much moves in a video, and a reward that keeps a generator from standing still.

video → ``normal_flow_speed`` (frame heights per second) → min(1, speed / full_speed) → Score

A reward that only penalises defects is satisfied by a scene that hardly moves: in DiffusionNFT with
UR + CaC alone the anomaly rate fell from 46 % to 15 % and the oracle displacement by 14 % (``docs/table2.md``).
As a third component of ``combine`` this reward pays for speed up to ``full_speed`` and for nothing
beyond it.

The normal-flow speed needs no optical-flow network. Brightness constancy, I_t = −u·∇I, says that a
pattern with gradient |∇I| that moves by u changes by about |u||∇I| per frame. So Σ|I_t| / Σ|∇I|
over a frame is a speed in pixels per frame, whatever the contrast. The median over frame pairs
ignores the few frames in which something vanishes or jumps, because removing those is no loss of
motion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cac_align.core.video import Video, VideoInput, as_pairs
from cac_align.rewards.reward import Score

# Smaller changes of brightness (of 1) are flicker of compression and the VAE decoder, not motion. With 2/255, a model
# that moved a fifth less measured the same as before, because its background flickered more (docs/lab/motion_guard.md).
MIN_CHANGE = 6 / 255


def normal_flow_speed(video: Video) -> float:
    """Median normal-flow speed in frame heights per second, >= 0; 0 for a single frame.

    Compare it between videos of the same prompt only, because it depends on what is shown. Raises
    ``ValueError`` when the video cannot be decoded.
    """
    if len(video) < 2:
        return 0.0
    grey = video.frames(range(len(video))).pixels.astype(np.float32).mean(-1) / 255  # (T, H, W)
    grey = (grey[:, :-1, :-1] + grey[:, 1:, :-1] + grey[:, :-1, 1:] + grey[:, 1:, 1:]) / 4
    change = np.abs(np.diff(grey, axis=0))
    change[change < MIN_CHANGE] = 0.0
    rise, run = np.diff(grey, axis=1)[:, :, :-1], np.diff(grey, axis=2)[:, :-1]
    gradient = np.sqrt(rise**2 + run**2).sum((1, 2))
    steps = change.sum((1, 2)) / np.maximum((gradient[:-1] + gradient[1:]) / 2, 1e-6)
    return float(np.median(steps) * video.fps / video.height)


@dataclass(frozen=True)
class NormalFlowSpeed:
    """min(1, ``normal_flow_speed`` / full_speed), in [0, 1]; a ``Reward``.

    Choose a ``full_speed`` that few clips of the base model exceed (the evaluation log of an
    alignment run has their mean) and a weight well below the other components': this reward does
    not know the prompt and pays for movement of a thing that should rest. A video of one frame has no
    score.
    """

    # Frame heights per second, > 0: the speed from which on the reward is 1.
    full_speed: float = 0.15
    name: str = "normal_flow_speed"
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.full_speed) and self.full_speed > 0):
            raise ValueError(
                f"full_speed must be a positive number of frame heights per second, received {self.full_speed}"
            )

    @property
    def provenance(self) -> Mapping[str, str]:
        return {"reward": "normal-flow speed", "full_speed": repr(self.full_speed), "min_change": repr(MIN_CHANGE)}

    def __call__(self, prompts: str | Sequence[str], videos: VideoInput | Sequence[VideoInput]) -> list[Score]:
        prompts, videos = as_pairs(prompts, videos)
        return [self._score(video) for video in videos]

    def _score(self, video: Video) -> Score:
        if len(video) < 2:
            return Score.missing("normal-flow speed: a video of one frame has no motion", provenance=self.provenance)
        try:
            speed = normal_flow_speed(video)
        except ValueError as error:
            return Score.missing(f"normal-flow speed: {error}", provenance=self.provenance)
        return Score(min(1.0, speed / self.full_speed), {"speed": speed}, None, None, self.provenance)
