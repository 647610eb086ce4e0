"""How a repair proceeds: its recipe section, as values."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class RepairSettings:
    """How often and how strongly a video is repaired, what a repair may cost, and when it is kept.

    Raises ``ValueError`` for a number outside its range.
    """

    # Attempts per video at most.
    attempts: int = 3
    # The seed of the first attempt; every further one adds 1.
    seed: int = 0
    # The noise level σ in (0, 1] from which the first attempt denoises: 1 is pure noise. Below .88 little is mended.
    strength: float = 0.92
    # What every failed attempt at the same defects adds to the strength.
    strength_growth: float = 0.03
    # Latent cells by which the judge's boxes are grown, in space and time.
    grow: int = 1
    # Latent cells over which the mask then falls to 0; 0: a hard border.
    border: int = 1
    # "all": every window at once, which costs no more than one. "worst": the window with most marked cells alone.
    windows: str = "all"
    # The largest share of the clip that counts as a part of it; above, a new seed is the better repair.
    max_share: float = 0.6
    # By how much the judge's score must rise for a repair to be kept.
    min_gain: float = 0.05
    # How much a guard's score may fall then, as a share of its scale.
    guard_tolerance: float = 0.02
    # Frames × denoising steps that the attempts of one video may take; null: no limit.
    max_frame_steps: int | None = None
    # Answers of judges that one video may take, the first judgement included; null: no limit. No judging begins that
    # could pass it, if it takes as many as the dearest one before.
    max_judge_calls: int | None = None
    # Whether one repair is judged while the next one is made. False where both do not fit into memory.
    overlap: bool = True

    def __post_init__(self) -> None:
        for name, least in (
            ("attempts", 1),
            ("grow", 0),
            ("border", 0),
            ("max_frame_steps", 0),
            ("max_judge_calls", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, received {value}")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength is a noise level in (0, 1], received {self.strength}")
        if not (math.isfinite(self.strength_growth) and self.strength_growth >= 0):
            raise ValueError(f"strength_growth must be 0 or more, received {self.strength_growth}")
        if not 0 < self.max_share <= 1:
            raise ValueError(f"max_share is a share of the clip in (0, 1], received {self.max_share}")
        if self.windows not in ("all", "worst"):
            raise ValueError(f"windows must be 'all' or 'worst', received {self.windows!r}")

    def strength_after(self, failures: int) -> float:
        """The strength of an attempt after this many failed ones at the same defects."""
        return min(1.0, self.strength + failures * self.strength_growth)
