"""The image encoder's schooling before it ever meets a language model: which cell of which frame shows what defect.

couples of frame pairs (same scene with and without its defect) → image encoder → per visual token: looks, box → loss

A full-size judge starts from an encoder that was pretrained on a web of images; this one starts from nothing, and answers alone teach
it too slowly (two verdicts in sixty tokens). So each visual token first learns, through heads that are thrown away afterwards, how the
part of the picture it stands for looks in either frame of its pair, where the broken thing begins and ends, and what is in the scene.

Loss: 3 · binary cross-entropy over looks (summed over looks, mean over cells) + softplus(s(whole) − s(broken)) of every couple, with s a
soft maximum of linear scores of the tokens + L1 of box edges where something is broken + 0.5 · cross-entropy of the main entity's cell + 0.1 · binary cross-entropy over the kinds and colours that
the prompt names (from the mean token). Couples differ in the defect only, so their difference is about nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8

from cac_align.judgement import Box
from cac_align.miniature import teacher
from cac_align.miniature.grammar import COLOURS, KINDS, parse_prompt
from cac_align.miniature.pool import KEPT_EVERY, ClipPool, LessonPlan, PoolClip, degrade

CELLS = 4
"""Visual tokens per side of a 64-px frame."""

_WORDS = (*KINDS, *COLOURS)
_TOGETHER = 16  # pairs that share one degradation: drawing one per pair would cost more than the training


@dataclass(frozen=True, eq=False)
class Pairs:
    """N pairs of frames and what their cells show. pixels: uint8. looks: 1 where a cell of a frame shows a defect of that look.

    edges: left, top, right, bottom in [0, 1] of the broken thing (NaN where a cell shows none). words: kinds and colours in the prompt.
    cells: where the main entity is in either frame, counted row by row; −1 while it is missing.
    """

    pixels: UInt8[np.ndarray, "N 2 H W 3"]
    looks: Float[np.ndarray, "N 2 16 L"]
    edges: Float[np.ndarray, "N 2 16 4"]
    words: Float[np.ndarray, "N 17"]
    cells: Int64[np.ndarray, "N 2"]


def draw_pairs(pool: ClipPool, plan: LessonPlan, count: int, *, seed: tuple[int, int]) -> Pairs:
    """``count`` pairs, every second one broken in at least one of its frames where the pool keeps such a frame; 2 or 4 source frames
    apart, as turn 2 and turn 1 pair them."""
    rng = np.random.default_rng((*seed, 1))
    pixels, looks, edges, words, cells = [], [], [], [], []
    for _ in range(count // 2):
        normal, abnormal = pool.couple(rng, pool.draw(rng, plan)[0])
        gap = KEPT_EVERY * int(rng.integers(1, 3))
        marked = sorted({frame for anomaly in abnormal.anomalies for frame in anomaly.boxes})
        latest = len(abnormal.clock) - 1 - gap
        start = marked[int(rng.integers(len(marked)))] - gap * int(rng.integers(2))
        start = min(max(start, 0), latest) // KEPT_EVERY * KEPT_EVERY
        for clip in (normal, abnormal):
            pair = (start, start + gap)
            pixels.append(clip.frames(pair, plan.look_fps).pixels)
            found = [_cells(clip, frame) for frame in pair]
            looks.append(np.stack([one for one, _ in found]))
            edges.append(np.stack([one for _, one in found]))
            actors = parse_prompt(clip.prompt).actors
            named = {actor.kind for actor in actors} | {actor.colour for actor in actors}
            cells.append([_cell(clip.places[frame]) for frame in pair])
            words.append(np.array([word in named for word in _WORDS], np.float32))
    shown = np.stack(pixels)
    for first in range(0, count, _TOGETHER):
        if rng.random() < plan.degraded:
            part = shown[first : first + _TOGETHER]
            shown[first : first + _TOGETHER] = degrade(part.reshape(-1, *part.shape[2:]), rng).reshape(part.shape)
    return Pairs(shown, np.stack(looks), np.stack(edges), np.stack(words), np.array(cells))


def _cell(place: str) -> int:
    return -1 if place == teacher.AWAY else "abcd".index(place[0]) * CELLS + int(place[1]) - 1


def _cells(clip: PoolClip, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Looks (16, L) and edges (16, 4) of one frame. A cell shows a box that covers a sixth of it, or half of whose area it holds."""
    looks = np.zeros((CELLS * CELLS, len(teacher.LOOKS)), np.float32)
    edges = np.full((CELLS * CELLS, 4), np.nan, np.float32)
    for anomaly in clip.anomalies:
        for box in anomaly.boxes.get(frame, ()):
            share, held = _overlap(box)
            inside = (share > 1 / 6) | (held > 0.5)
            looks[inside, teacher.look_index(anomaly)] = 1
            edges[inside] = np.array(box.to_json(), np.float32) / 1000
    return looks, edges


def _overlap(box: Box) -> tuple[np.ndarray, np.ndarray]:
    """For each cell, the share of it that the box covers, and the share of the box that it holds."""
    left, top, right, bottom = np.array(box.to_json()) / 1000 * CELLS
    at = np.arange(CELLS)
    wide = np.clip(np.minimum(right, at + 1) - np.maximum(left, at), 0, 1)
    high = np.clip(np.minimum(bottom, at + 1) - np.maximum(top, at), 0, 1)
    area = (high[:, None] * wide[None]).reshape(-1)
    return area, area / ((right - left) * (bottom - top))


class Seeing(torch.nn.Module):
    """The heads on the encoder's output: per visual token two frames of looks and edges, per pair the words of the scene."""

    def __init__(self, hidden: int, *, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.looks = torch.nn.Linear(hidden, 2 * len(teacher.LOOKS))
            self.edges = torch.nn.Linear(hidden, 2 * 4)
            self.words = torch.nn.Linear(hidden, len(_WORDS))
            self.broken = torch.nn.Linear(hidden, 1)
            self.here = torch.nn.Linear(hidden, 2)
        torch.nn.init.constant_(self.looks.bias, -5.0)  # almost no cell shows almost any look

    def forward(self, tokens: Float[torch.Tensor, "N 16 D"], pairs: Pairs) -> tuple[torch.Tensor, float]:
        """The loss, and the share of couples whose broken pair scores higher than its whole twin (chance: 0.5)."""
        count = len(tokens)
        logits = self.looks(tokens).view(count, CELLS * CELLS, 2, -1).transpose(1, 2)
        looks = torch.from_numpy(pairs.looks)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, looks, reduction="none").sum(-1).mean() * 3
        edges = torch.from_numpy(pairs.edges)
        shown = torch.isfinite(edges).all(-1)
        guessed = self.edges(tokens).view(count, CELLS * CELLS, 2, 4).transpose(1, 2)
        if shown.any():
            loss = loss + (guessed[shown] - edges[shown]).abs().mean()
        named = torch.nn.functional.binary_cross_entropy_with_logits(self.words(tokens.mean(1)), torch.from_numpy(pairs.words))
        score = self.broken(tokens).squeeze(-1)
        score = score.logsumexp(1)
        whole, broken = score[0::2], score[1::2]
        told = looks[1::2].amax((1, 2, 3)) > 0
        here = self.here(tokens).transpose(1, 2).reshape(2 * count, CELLS * CELLS)
        where = torch.from_numpy(pairs.cells).reshape(-1)
        loss = loss + 0.5 * torch.nn.functional.cross_entropy(here, where, ignore_index=-1)
        loss = loss + torch.nn.functional.softplus(whole - broken)[told].mean() + 0.1 * named
        return loss, (broken > whole)[told].float().mean().item()


def look_loss(model: Any, processor: Any, heads: Seeing, pairs: Pairs) -> tuple[torch.Tensor, float]:
    """Loss and share of couples told apart by the model's encoder on these pairs, patched exactly as videos are at inference."""
    videos = [torch.from_numpy(pair).permute(0, 3, 1, 2) for pair in pairs.pixels]
    patched = processor.video_processor(videos=videos, do_sample_frames=False, cap_pixels_per_frame=False, return_tensors="pt")
    seen = model.model.visual(patched["pixel_values_videos"], grid_thw=patched["video_grid_thw"], return_dict=True).pooler_output
    return heads(seen.view(len(videos), CELLS * CELLS, -1), pairs)
