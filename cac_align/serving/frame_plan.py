"""Which frames of a video a reward reads, so that a client sends those and no others.

reward → frame_plan_of → FramePlan → indices(video) → source indices to send

A plan only saves bytes; scores never depend on it. When a reward asks for a frame that was not
sent, the service names it and the client sends the whole video. Of 81 frames at 16 fps, 49 are
sent: the 41 at 8 fps (they contain the 21 at 4 fps), and those 8 of ``int(i 81 / 16)`` that are
odd.
"""

from __future__ import annotations

from dataclasses import dataclass

from cac_align.core.judgement import Window
from cac_align.core.video import Video
from cac_align.rewards.reward import Reward


@dataclass(frozen=True)
class FramePlan:
    """The frames that a reward may ask for."""

    # Rates, in frames per second, at which the whole video is sampled (CaC's first turn: 4).
    scan_fps: tuple[float, ...] = (4.0,)
    # Rates at which a window is sampled that may start at any of those frames (CaC's second turn: 8).
    look_fps: tuple[float, ...] = (8.0,)
    # Numbers n of frames that are taken at ``int(i N / n)`` of a video of N frames (UnifiedReward: 16).
    counts: tuple[int, ...] = (16,)

    def indices(self, video: Video) -> tuple[int, ...]:
        """All source indices of this video that the plan covers, increasing. No pixels are decoded."""
        planned: set[int] = set()
        for fps in self.scan_fps:
            planned.update(video.indices_at(fps))
        starts_s = sorted({video.times_s[index] for index in planned})
        for fps in self.look_fps:
            # Where fps does not divide the source's rate, each start has a grid of its own. A window that ends early
            # samples a subset of the one that runs to the end.
            for start_s in starts_s:
                planned.update(video.indices_at(fps, Window(start_s, video.times_s[-1])))
                planned.update(video.indices_at(fps, Window(start_s, start_s)))
        for count in self.counts:
            planned.update(int(i * len(video) / count) for i in range(count))
        return tuple(sorted(planned))


def frame_plan_of(reward: Reward) -> FramePlan | None:
    """The plan of CaC, UnifiedReward, or a combination of these; None for any other reward, which gets
    every frame.
    """
    # Only a service makes plans; a client has no judge and needs none of these modules.
    from cac_align.cac.two_turn import TwoTurn
    from cac_align.rewards.cac import CaC
    from cac_align.rewards.combine import Combined
    from cac_align.rewards.unified import NUM_FRAMES, UnifiedReward

    components = list(reward.components.values()) if isinstance(reward, Combined) else [reward]
    scan_fps: set[float] = set()
    look_fps: set[float] = set()
    counts: set[int] = set()
    for component in components:
        if isinstance(component, CaC):
            scan_fps.add(component.settings.scan_fps)
            if isinstance(component.settings, TwoTurn):  # the other modes have no second turn
                look_fps.add(component.settings.look_fps)
        elif isinstance(component, UnifiedReward):
            counts.add(NUM_FRAMES)
        else:
            return None
    return FramePlan(scan_fps=tuple(sorted(scan_fps)), look_fps=tuple(sorted(look_fps)), counts=tuple(sorted(counts)))
