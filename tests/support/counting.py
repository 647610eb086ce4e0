"""A reward that scores by a video's first pixel and counts what it is asked; and its videos."""

import math
from dataclasses import dataclass, field

import numpy as np

from cac_align.core.judgement import Anomaly, Box, Judgement, Turn, Window
from cac_align.core.video import Video
from cac_align.rewards.reward import Score

JUDGEMENT = Judgement(
    "abnormal",
    (
        Anomaly(
            "Motion Anomalies", Window(0.0, 0.5), "slides </script> sideways\n\u2028", "left", {3: (Box(0, 0, 9, 9),)}
        ),
    ),
    (Turn(1, "said \udc80 this", (0, 4), "abnormal"),),
    -3.0,
    -0.05,
)


@dataclass
class Counting:
    """Scores a video by its first pixel / 100, refuses 255, and counts what it was asked."""

    name: str = "counting"
    version: str = "1"
    bounds: tuple[float, float] | None = (0.0, 10.0)
    asked: list = field(default_factory=list)

    @property
    def provenance(self):
        return {"reward": self.name, "version": self.version}

    def __call__(self, prompts, videos):
        scores = []
        for prompt, video in zip(prompts, videos, strict=True):
            first = int(video.frames([0]).pixels[0, 0, 0, 0])
            self.asked.append((prompt, first))
            parts = {"first": float(first), "share": math.nan}
            scores.append(
                Score.missing("white") if first == 255 else Score(first / 100, parts, JUDGEMENT, None, self.provenance)
            )
        return scores


def video(first, name="v"):
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    pixels[0, 0, 0, 0] = first
    return Video.open(pixels, fps=16, name=name)
