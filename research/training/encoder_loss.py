"""The image encoder's schooling before it ever meets a language model: which cell of which frame
shows what defect.

couples of frame pairs (same scene with and without its defect) → image encoder → visual tokens →
``token_labels.ProbeHeads`` → loss
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from research.training.pool import KEPT_EVERY, ClipPool, MixtureConfig, degrade
from research.training.token_labels import ProbeHeads, TokenLabels, token_labels_of

_PER_COUPLE = 4  # pairs of frames from one couple of clips: fetching a clip costs more than looking at it
_TOGETHER = 16  # frame pairs that share one degradation


@dataclass(frozen=True, eq=False)
class Pairs:
    """N pairs of frames and the truth about them. pixels: uint8. Pair 2k + 1 is pair 2k with the
    scene's defect.
    """

    pixels: UInt8[np.ndarray, "N 2 H W 3"]
    labels: TokenLabels


def draw_pairs(
    pool: ClipPool, mixture: MixtureConfig, count: int, *, side: int, seed: tuple[int, int], part: int = 0
) -> Pairs:
    """``count`` pairs, every second one anomalous in at least one of its frames where the pool
    keeps such a frame; 2 or 4 source frames apart, as turn 2 and turn 1 pair them. side: visual
    tokens per side of a frame. part: which part of a larger batch this is.
    """
    rng = np.random.default_rng((*seed, 1, part) if part else (*seed, 1))
    pixels, shown = [], []
    while len(shown) < count:
        normal, abnormal = pool.couple(rng, pool.draw(rng, mixture)[0])
        marked = sorted({frame for anomaly in abnormal.anomalies for frame in anomaly.boxes})
        for _ in range(min(_PER_COUPLE, (count - len(shown)) // 2)):
            gap = KEPT_EVERY * int(rng.integers(1, 3))
            latest = len(abnormal.clock) - 1 - gap
            start = marked[int(rng.integers(len(marked)))] - gap * int(rng.integers(2))
            start = min(max(start, 0), latest) // KEPT_EVERY * KEPT_EVERY
            for clip in (normal, abnormal):
                pixels.append(clip.pixels[[start // KEPT_EVERY, (start + gap) // KEPT_EVERY]])
                shown.append((clip, (start, start + gap)))
    stacked = np.stack(pixels)
    for first in range(0, count, _TOGETHER):
        if rng.random() < mixture.degraded:
            some = stacked[first : first + _TOGETHER]
            stacked[first : first + _TOGETHER] = degrade(
                some.reshape(-1, *some.shape[2:]), rng, mixture.degrade_strength
            ).reshape(some.shape)
    return Pairs(stacked, token_labels_of(shown, side))


def patch(pixels: UInt8[np.ndarray, "N 2 H W 3"], size: int, merge: int = 2) -> Float[torch.Tensor, "rows values"]:
    """Frame pairs as Qwen3-VL's video processor patches them when nothing is resized: rows go merge
    block by merge block.
    """
    count, pair, height, width, _ = pixels.shape
    x = torch.from_numpy(pixels).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    x = x.view(count, 3, pair, height // size // merge, merge, size, width // size // merge, merge, size)
    return x.permute(0, 3, 6, 4, 7, 1, 2, 5, 8).reshape(-1, 3 * pair * size * size)


def encoder_loss(model: Any, heads: ProbeHeads, pairs: Pairs) -> tuple[torch.Tensor, float]:
    """Loss and share of right verdicts of the model's encoder on these pairs."""
    config = model.config.vision_config
    count, _, height, width, _ = pairs.pixels.shape
    grid = torch.tensor([[1, height // config.patch_size, width // config.patch_size]]).repeat(count, 1)
    rows = patch(pairs.pixels, config.patch_size, config.spatial_merge_size)
    seen = model.model.visual(rows, grid_thw=grid, return_dict=True).pooler_output
    return heads(seen.view(count, -1, seen.shape[-1]), pairs.labels)
