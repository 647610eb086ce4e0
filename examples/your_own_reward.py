"""A reward of your own beside CaC: anything with a name, a provenance and a call.

python examples/your_own_reward.py
"""

import numpy as np

from cac_align import CaC, Score, Video, combine
from cac_align.miniature.world.settings import PLAYGROUND
from cac_align.miniature.world.world import make_clip


class Motion:
    """Mean absolute difference between neighbouring frames at 8 fps, in grey levels."""

    name = "motion"
    bounds = (0.0, 255.0)
    provenance = {"reward": "motion", "sampling": "8 fps"}  # noqa: RUF012 - a constant

    def __call__(self, prompts: list[str], videos: list[Video]) -> list[Score]:
        return [self.score(video) for video in videos]

    def score(self, video: Video) -> Score:
        if len(video) < 2:
            return Score.missing("motion needs two frames", provenance=self.provenance)
        frames = video.sample(8).pixels.astype(np.int16)
        return Score(float(np.abs(np.diff(frames, axis=0)).mean()), provenance=self.provenance)


reward = combine({"cac": CaC.miniature(), "motion": Motion()}, normalise="range", weights={"cac": 0.8, "motion": 0.2})
clips = [make_clip(2_200_000 + n, PLAYGROUND) for n in range(3)]
for clip, score in zip(clips, reward([clip.prompt for clip in clips], [clip.video() for clip in clips]), strict=True):
    print(
        f"{score.value:.3f}",
        {name: round(part, 3) for name, part in score.parts.items() if name.startswith("normalised/")},
        clip.prompt,
    )
