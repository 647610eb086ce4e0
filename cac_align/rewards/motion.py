"""How much moves in a video: the guard's measure, and a reward that keeps a defect-hunting reward from paying for standing still.

video → ``motion`` (frame heights per second) → min(1, speed / full_speed) → Score

A reward that sees only defects is satisfied by a scene that hardly moves (DiffusionNFT with UR + CaC alone: anomalies .46 → .15, motion
−14 %, ``docs/table2.md``). As a third component of ``combine`` this one pays for motion up to ``full_speed`` and for nothing beyond it.

Motion is the normal-flow speed, without an optical-flow network. Brightness constancy, I_t = −u·∇I, says that a pattern with gradient
|∇I| that moves by u changes by about |u||∇I| per frame; so Σ|I_t| / Σ|∇I| over a frame is a speed in pixels per frame, whatever the
contrast. The median over frame pairs ignores the few frames in which something vanishes or jumps: losing those is no loss of motion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cac_align.core.video import Video
from cac_align.rewards.reward import Score, check_pairs

STILL = 6 / 255
"""Changes of brightness below this are compression and the decoder's flicker, not motion. At 2/255 a model that moved a fifth less seemed
to move as much as before, because its ground shimmered more (``docs/lab/LOG.md``)."""


def motion(video: Video) -> float:
    """Normal-flow speed in frame heights per second, >= 0; 0 for one frame. Compare it with the same prompt's only.

    Raises ``ValueError`` when the video cannot be decoded.
    """
    if len(video) < 2:
        return 0.0
    grey = video.frames(range(len(video))).pixels.astype(np.float32).mean(-1) / 255  # (T, H, W)
    grey = (grey[:, :-1, :-1] + grey[:, 1:, :-1] + grey[:, :-1, 1:] + grey[:, 1:, 1:]) / 4
    change = np.abs(np.diff(grey, axis=0))
    change[change < STILL] = 0.0
    rise, run = np.diff(grey, axis=1)[:, :, :-1], np.diff(grey, axis=2)[:, :-1]
    gradient = np.sqrt(rise**2 + run**2).sum((1, 2))
    steps = change.sum((1, 2)) / np.maximum((gradient[:-1] + gradient[1:]) / 2, 1e-6)
    return float(np.median(steps) * video.fps / video.height)


@dataclass(frozen=True)
class Motion:
    """min(1, ``motion`` / full_speed), in [0, 1]; a ``Reward``. full_speed: frame heights per second, > 0.

    Take a speed that few clips of the base model exceed (``watch.jsonl`` of an alignment run tells the mean), and a weight well below the others':
    it knows nothing of prompts, and pays a thing that should rest for moving. A video of one frame has no score.
    """

    full_speed: float = 0.15
    name: str = "motion"
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.full_speed) and self.full_speed > 0):
            raise ValueError(
                f"full_speed must be a positive number of frame heights per second, received {self.full_speed}"
            )

    @property
    def provenance(self) -> Mapping[str, str]:
        return {"reward": "motion", "full_speed": repr(self.full_speed), "still": repr(STILL)}

    def __call__(self, prompts: Sequence[str], videos: Sequence[Video]) -> list[Score]:
        check_pairs(prompts, videos)
        return [self._score(video) for video in videos]

    def _score(self, video: Video) -> Score:
        if len(video) < 2:
            return Score.missing("motion: one frame cannot move", provenance=self.provenance)
        try:
            speed = motion(video)
        except ValueError as error:
            return Score.missing(f"motion: {error}", provenance=self.provenance)
        return Score(min(1.0, speed / self.full_speed), {"speed": speed}, None, None, self.provenance)
