"""Weights of latent positions, from where a judge saw a defect: for trainers that multiply a video's
advantage by a map.

judgements (windows, boxes by source frame) → ``anomaly_mask`` → ``weight_maps`` → (B, t, h, w), each of mean 1

ViPO (arXiv 2511.18719) does so with saliency maps. The mean of 1 keeps the size of the step: a map
whose mean differs between videos would weigh videos as well. On a tiny Wan with an exact oracle,
multiplying one advantage by a mask did not do better than uniform advantages;
``cac_align.align.advantages.local`` is the form that did.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from cac_align.core.judgement import Judgement
from cac_align.core.video import Video
from cac_align.generation.latent_masks import LatentGrid, anomaly_mask


def weight_maps(
    judgements: Sequence[Judgement | None], videos: Sequence[Video], grid: LatentGrid, *, contrast: float = 8.0
) -> Float[np.ndarray, "B t h w"]:
    """One float32 map per video, every one of mean 1.

    Where a judgement names a defect, its positions weigh ``contrast`` times as much as the others.
    A map is 1 everywhere for a normal video, one whose judgement names no place, and one without a
    judgement (None). contrast: 1 or more; 1 gives uniform maps. Raises ``ValueError`` for another
    contrast, and when the lengths differ.
    """
    if not contrast >= 1:
        raise ValueError(f"contrast must be 1 or more, received {contrast}")
    maps = np.empty((len(judgements), *grid.shape), np.float32)
    for index, (judgement, video) in enumerate(zip(judgements, videos, strict=True)):
        weights = np.where(anomaly_mask(judgement, video, grid), contrast, 1.0)
        maps[index] = weights / weights.mean()
    return maps
