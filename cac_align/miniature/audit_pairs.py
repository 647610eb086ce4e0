"""The audit's clips from the miniature's world: twins with exact truth, and groups of candidates.

seeds → clips with a defect → AuditPairs (the renderer moves the defect) · prompts → AuditGroups
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cac_align.core.video import Video
from cac_align.evaluation.audit.pairs import AuditGroup, AuditPair, Defective, mirrored_defect
from cac_align.miniature.world.annotation import annotate
from cac_align.miniature.world.render import render
from cac_align.miniature.world.settings import PLAYGROUND, PROMPT_SEEDS, TEST_SEEDS, World
from cac_align.miniature.world.world import Clip, make_candidate, make_clip, make_prompts

_MOVABLE = ("stretch", "melt", "split", "hole", "mutate", "vanish", "flicker", "jitter", "float", "sink")
"""Defects that can befall the same thing at any other time; the others follow its motion."""
_FIRST = TEST_SEEDS.start + 900_000
"""First seed of the pairs: no training and no published table has seen them."""


def miniature_pairs(n: int, seed: int = 0, world: World = PLAYGROUND) -> list[AuditPair]:
    """``n`` pairs of clips of the world, each with one defect."""
    world = replace(world, second_defect=0.0)
    return [_pair(make_clip(_FIRST + 1000 * seed + index, world, anomalous=True)) for index in range(n)]


def miniature_groups(count: int, size: int = 16, seed: int = 0, world: World = PLAYGROUND) -> list[AuditGroup]:
    """``count`` prompts with ``size`` candidates each, as anomalous as the world's."""
    first = PROMPT_SEEDS.start + 900_000 + 1000 * seed
    found: list[AuditGroup] = []
    prompts = dict.fromkeys(make_prompts(range(first, first + 20 * count + 20), world))
    for prompt in list(prompts)[:count]:
        videos = tuple(make_candidate(prompt, first + index, world).video() for index in range(size))
        found.append(AuditGroup(prompt, videos))
    return found


def _pair(clip: Clip) -> AuditPair:
    defect = Defective(clip.prompt, clip.video(), clip.anomalies[0])
    return AuditPair(
        clean=Video.open(clip.normal_pixels, fps=clip.fps, name=f"world-{clip.seed}-normal"),
        defect=defect,
        severity=clip.defects[0].severity,
        size=clip.areas[0],
        moved_in_time=_moved(clip),
        moved_in_space=mirrored_defect(defect),
    )


def _moved(clip: Clip) -> Defective | None:
    """The clip with its defect as far from its own time as fits; None where nothing of it would be seen."""
    defect, count = clip.defects[0], clip.scene.num_frames
    if defect.subtype not in _MOVABLE:
        return None
    shifts = sorted(range(1 - defect.first, count - defect.last), key=lambda shift: (-abs(shift), shift))
    for shift in shifts:
        if abs(shift) < 2:
            return None
        moved = replace(defect, frames=frozenset(frame + shift for frame in defect.frames))
        scene = replace(clip.scene, defects=(moved,))
        pixels, (anomaly, _) = render(scene), annotate(moved, scene)
        changed = (np.abs(pixels.astype(int) - clip.normal_pixels).max(-1) >= 24).sum((1, 2))[sorted(moved.frames)]
        if anomaly.boxes and changed.min() >= 3 and np.median(changed) >= 16:
            video = Video.open(pixels, fps=clip.fps, name=f"world-{clip.seed}-moved")
            return Defective(clip.prompt, video, anomaly)
    return None
