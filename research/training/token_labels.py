"""What the visual tokens of a clip should know: the truth about every pair of frames, and the heads
that ask for it.

clip + frames shown → token_labels_of → TokenLabels (per pair: looks, boxes' edges, where the main
entity is) → ProbeHeads(tokens, labels) → loss

A full-size judge starts from weights that were pretrained on a web of images and video; this one
starts from nothing, and answers alone teach it too slowly (two verdicts in sixty tokens). So its
visual tokens are asked directly, first those that leave the image encoder (``seeing``) and then the
same tokens inside the language model, where they know the frames before them (``watching``). The
heads are thrown away afterwards.

Loss = 3 · cross-entropy of looks per cell (summed over looks, mean over cells) + cross-entropy of
looks per frame + L1 of box edges where something is anomalous + 0.5 · cross-entropy of the main
entity's cell + 0.1 · cross-entropy of the kinds and colours in the prompt + cross-entropy of "this
clip is anomalous" + softplus(s(whole) − s(anomalous)) of every couple, which differs in the defect
only + shape_error · L1 of the logarithm of how far the entity is off its shape, where that was
measured: a defect is a matter of degree, and "melts, just about" says far more to a learner than
one bit per clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from cac_align.core.judgement import Box, shown_frames
from cac_align.miniature.teacher import teacher
from cac_align.miniature.world.grammar import COLOURS, KINDS, parse_prompt
from research.training.pool import KEPT_EVERY, PoolClip

PLACES = 4
"""Rows and columns of ``teacher.place``."""

_WORDS = (*KINDS, *COLOURS)


@dataclass(frozen=True, eq=False)
class TokenLabels:
    """The truth about N pairs of frames of some clips, pair after pair, clip after clip.

    cells: 1 where a cell of a frame shows a box of a defect of that look; frames: 1 where a frame
    as a whole is anomalous in that look (an absence has boxes on its boundary frames only). known:
    where ``cells`` is asked for: not on a anomalous frame without a box. edges: left, top, right,
    bottom in [0, 1] of the anomalous thing (NaN where a cell shows none). words: kinds and colours
    in the prompt. places: the main entity's cell in either frame, counted row by row; −1 while it
    is missing. clips: which clip a pair belongs to. shape_error: log of how far the entity is off
    its shape (0: the oracle's limit), in [−1.5, 1.5]; NaN where nobody measured it.
    """

    cells: Float[np.ndarray, "N 2 cells L"]
    frames: Float[np.ndarray, "N 2 L"]
    known: Bool[np.ndarray, "N 2 L"]
    edges: Float[np.ndarray, "N 2 cells 4"]
    words: Float[np.ndarray, "N 17"]
    places: Int64[np.ndarray, "N 2"]
    clips: Int64[np.ndarray, " N"]
    shape_error: Float[np.ndarray, "N 2"]


def token_labels_of(shown: Sequence[tuple[PoolClip, Sequence[int]]], side: int) -> TokenLabels:
    """The labels of these clips, each with the source frames shown of it; of an odd number the last
    one stands twice, as in the processor.

    side: visual tokens per side of a frame.
    """
    cells, frames, known, edges, words, places, clips, shape_error = [], [], [], [], [], [], [], []
    for number, (clip, indices) in enumerate(shown):
        indices = [*indices, *indices[-1:] * (len(indices) % 2)]
        times = [clip.clock.times_s[index] for index in indices]
        anomalous = np.zeros((len(indices), len(teacher.APPEARANCES)), np.float32)
        for anomaly in teacher.visible(clip.anomalies, times):
            anomalous[list(shown_frames(anomaly.window, times)), teacher.appearance_index(anomaly)] = 1
        found = [_cells(clip, index, side) for index in indices]
        boxed = np.stack([cell for cell, _ in found])
        actors = parse_prompt(clip.prompt).actors
        named = {actor.kind for actor in actors} | {actor.colour for actor in actors}
        pairs = len(indices) // 2
        cells.append(boxed.reshape(pairs, 2, *boxed.shape[1:]))
        frames.append(anomalous.reshape(pairs, 2, -1))
        known.append(((anomalous == 0) | boxed.any(1)).reshape(pairs, 2, -1))
        edges.append(np.stack([edge for _, edge in found]).reshape(pairs, 2, side * side, 4))
        words.append(np.tile(np.array([word in named for word in _WORDS], np.float32), (pairs, 1)))
        places.append(np.array([_place(clip.places[index]) for index in indices]).reshape(pairs, 2))
        clips.append(np.full(pairs, number))
        shape_error.append(np.array([_shape_error(clip, index) for index in indices], np.float32).reshape(pairs, 2))
    return TokenLabels(
        *(np.concatenate(parts) for parts in (cells, frames, known, edges, words, places, clips, shape_error))
    )


def _shape_error(clip: PoolClip, index: int) -> float:
    if not clip.shape_error or clip.places[index] == teacher.AWAY:
        return float("nan")
    return float(np.clip(np.log(max(clip.shape_error[index // KEPT_EVERY], 1e-6)), -1.5, 1.5))


def _place(place: str) -> int:
    return -1 if place == teacher.AWAY else "abcd".index(place[0]) * PLACES + int(place[1]) - 1


def _cells(clip: PoolClip, frame: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Looks (cells, L) and edges (cells, 4) of one frame. A cell shows a box that covers a sixth of
    it, or half of whose area it holds.
    """
    looks = np.zeros((side * side, len(teacher.APPEARANCES)), np.float32)
    edges = np.full((side * side, 4), np.nan, np.float32)
    for anomaly in clip.anomalies:
        for box in anomaly.boxes.get(frame, ()):
            share, held = overlap(box, side)
            inside = (share > 1 / 6) | (held > 0.5)
            looks[inside, teacher.appearance_index(anomaly)] = 1
            edges[inside] = np.array(box.to_json(), np.float32) / 1000
    return looks, edges


def overlap(box: Box, side: int) -> tuple[Float[np.ndarray, " cells"], Float[np.ndarray, " cells"]]:
    """For each cell, the share of it that the box covers, and the share of the box that it holds."""
    left, top, right, bottom = np.array(box.to_json()) / 1000 * side
    at = np.arange(side)
    wide = np.clip(np.minimum(right, at + 1) - np.maximum(left, at), 0, 1)
    high = np.clip(np.minimum(bottom, at + 1) - np.maximum(top, at), 0, 1)
    area = (high[:, None] * wide[None]).reshape(-1)
    return area, area / ((right - left) * (bottom - top))


class ProbeHeads(torch.nn.Module):
    """Linear questions to visual tokens of ``hidden`` numbers: per token two frames of looks, edges
    and presence, per clip one verdict.

    shape_error: how much the measured shape counts (0: it is not asked for).
    """

    def __init__(self, hidden: int, *, seed: int = 0, shape_error: float = 0.0) -> None:
        super().__init__()
        self.shape_error_weight = shape_error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.looks = torch.nn.Linear(hidden, 2 * len(teacher.APPEARANCES))
            self.edges = torch.nn.Linear(hidden, 2 * 4)
            self.words = torch.nn.Linear(hidden, len(_WORDS))
            self.anomalous = torch.nn.Linear(hidden, 1)
            self.here = torch.nn.Linear(hidden, 2)
            self.shape_error = torch.nn.Linear(hidden, 2) if shape_error else None
        torch.nn.init.constant_(self.looks.bias, -5.0)  # almost no cell shows almost any look
        torch.nn.init.constant_(self.anomalous.bias, -4.0)

    def forward(self, tokens: Float[torch.Tensor, "N cells D"], labels: TokenLabels) -> tuple[torch.Tensor, float]:
        """The loss, and the share of clips whose verdict (anomalous or not) is right (chance: 0.5)."""
        count, cells, _ = tokens.shape
        binary = torch.nn.functional.binary_cross_entropy_with_logits
        logits = self.looks(tokens).view(count, cells, 2, -1).transpose(1, 2)
        known = torch.from_numpy(labels.known).float().unsqueeze(2)
        each = binary(logits, torch.from_numpy(labels.cells), reduction="none") * known
        loss = 3 * each.sum(-1).mean()
        frames = torch.from_numpy(labels.frames)
        loss = loss + binary(logits.logsumexp(2), frames, reduction="none").sum(-1).mean()
        edges = torch.from_numpy(labels.edges)
        boxed = torch.isfinite(edges).all(-1)
        if boxed.any():
            guessed = self.edges(tokens).view(count, cells, 2, 4).transpose(1, 2)
            loss = loss + (guessed[boxed] - edges[boxed]).abs().mean()
        here = self.here(tokens).transpose(1, 2).reshape(2 * count, cells)
        places = torch.from_numpy(labels.places).reshape(-1)
        loss = loss + 0.5 * torch.nn.functional.cross_entropy(_by_place(here), places, ignore_index=-1)
        if self.shape_error is not None:
            loss = loss + self.shape_error_weight * self._shape_error_loss(
                tokens, here.detach(), torch.from_numpy(labels.shape_error).reshape(-1)
            )
        loss = loss + 0.1 * binary(self.words(tokens.mean(1)), torch.from_numpy(labels.words))
        score = self._score(tokens, labels)
        anomalous = _per_clip(frames.amax((1, 2)), labels)
        loss = loss + binary(score, anomalous)
        first, second = score[0::2], score[1::2]
        sign = anomalous[1::2] - anomalous[0::2]
        if sign.any():
            loss = loss + torch.nn.functional.softplus(sign * (first - second))[sign != 0].mean()
        return loss, ((score > 0) == (anomalous > 0)).float().mean().item()

    def _shape_error_loss(self, tokens: torch.Tensor, here: torch.Tensor, shape_error: torch.Tensor) -> torch.Tensor:
        """L1 over the frames measured; the tokens answer in proportion to how surely they hold the
        entity (``here``: its logits).
        """
        measured = torch.isfinite(shape_error)
        if not measured.any():
            return tokens.sum() * 0
        each = self.shape_error(tokens).transpose(1, 2).reshape(here.shape)
        guessed = (each * here.softmax(-1)).sum(-1)
        return (guessed[measured] - shape_error[measured]).abs().mean()

    def _score(self, tokens: torch.Tensor, labels: TokenLabels) -> Float[torch.Tensor, " clips"]:
        """Log-odds that a clip is anomalous: a soft maximum of its tokens' scores."""
        each = self.anomalous(tokens).squeeze(-1).logsumexp(1)
        lengths = np.bincount(labels.clips).tolist()
        return torch.stack([part.logsumexp(0) for part in each.split(lengths)])


def _by_place(logits: Float[torch.Tensor, "N cells"]) -> Float[torch.Tensor, "N 16"]:
    """Log-odds of each place: all visual tokens that lie in it together."""
    fine = math.isqrt(logits.shape[1]) // PLACES
    return logits.view(-1, PLACES, fine, PLACES, fine).logsumexp((2, 4)).flatten(1)


def _per_clip(values: torch.Tensor, labels: TokenLabels) -> torch.Tensor:
    return torch.stack([part.amax(0) for part in values.split(np.bincount(labels.clips).tolist())])
