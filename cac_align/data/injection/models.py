"""Models that a recipe names, and how a clip gets through those that injectors of the tier "gpu" work
with.

SourceClip → ``ClipLatents.of`` (encoded once) → LatentClip → changed latents → ``LatentClip.twin`` → frames

The package's own generator is above this room, so it comes in from outside, as a ``Redrawer``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float

from cac_align.core.shapes import UInt8
from cac_align.data.injection.injector import SourceClip
from cac_align.data.injection.sources.masks import dilated
from cac_align.data.injection.sources.named_things import Segmenter

Latents = Float[np.ndarray, "C t h w"]
"""Normalised latents: about zero mean and unit variance in every channel."""


class Redrawer(Protocol):
    """A video generator as injectors use it: its VAE, and its denoiser within a mask.

    It can be pickled, so that worker processes load it by themselves.
    """

    @property
    def provenance(self) -> Mapping[str, str]:
        """What identifies the model."""
        ...

    @property
    def strides(self) -> tuple[int, int]:
        """Frames and px per latent cell; the first frame has a latent frame of its own."""
        ...

    @property
    def noise_levels(self) -> Sequence[float]:
        """The noise levels σ at which ``redraw`` can begin, falling, in (0, 1]; the last is at most 0.15."""
        ...

    def form(self, count: int, height: int, width: int) -> tuple[int, int, int]:
        """The smallest number of frames, rows and columns that the model can make and that holds these."""
        ...

    def encode(self, pixels: UInt8[np.ndarray, "T H W 3"]) -> Latents:
        """The latents of frames of such a form; nothing is drawn."""
        ...

    def decode(self, latents: Latents) -> UInt8[np.ndarray, "T H W 3"]:
        """The frames of some latents."""
        ...

    def redraw(
        self, latents: Latents, weights: Float[np.ndarray, "t h w"], noise_level: float, seed: int, prompt: str
    ) -> Latents:
        """The latents with the cells of a weight above 0 noised to ``noise_level`` and denoised anew;
        those of weight 0 stay as they are.
        """
        ...


@dataclass(frozen=True)
class Models:
    """The models of a run; None where the recipe names none."""

    redrawer: Redrawer | None = None
    segmenter: Segmenter | None = None

    @property
    def provenance(self) -> dict[str, str]:
        """What identifies them; empty where there are none."""
        return {
            name: value
            for model in (self.redrawer, self.segmenter)
            if model is not None
            for name, value in model.provenance.items()
        }


def padded(pixels: np.ndarray, form: tuple[int, int, int]) -> np.ndarray:
    """Frames (T, H, W, 3) lengthened and widened to ``form``; the last frame and the border are repeated."""
    added = [(0, size - own) for size, own in zip(form, pixels.shape[:3], strict=True)]
    return np.pad(pixels, (*added, (0, 0)), mode="edge")


@dataclass(frozen=True, eq=False)
class LatentClip:
    """A clip in latent space. ``decoded``: its frames after the VAE's round trip, (T, H, W, 3) uint8."""

    latents: Latents
    decoded: np.ndarray
    redrawer: Redrawer

    def cells(self, tube: np.ndarray) -> Float[np.ndarray, "t h w"]:
        """Weights in [0, 1] of the latent cells for a mask of pixels (T, H, W): 1 where at least half of
        a cell is covered, 0 where nothing of it is.
        """
        temporal, spatial = self.redrawer.strides
        frames, rows, columns = self.latents.shape[1:]
        size = ((frames - 1) * temporal + 1, rows * spatial, columns * spatial)
        covered = np.zeros(size, np.float32)
        covered[tuple(slice(length) for length in tube.shape)] = tube
        blocks = covered.reshape(size[0], rows, spatial, columns, spatial).mean((2, 4))
        later = blocks[1:].reshape(frames - 1, temporal, rows, columns).mean(1)
        return np.minimum(2 * np.concatenate([blocks[:1], later]), 1).astype(np.float32)

    def pixels_of(self, weights: Float[np.ndarray, "t h w"]) -> np.ndarray:
        """The pixels of the cells with a weight above 0, bool (T, H, W)."""
        temporal, spatial = self.redrawer.strides
        cells = weights > 0
        frames = np.concatenate([cells[:1], cells[1:].repeat(temporal, 0)])
        count, height, width = self.decoded.shape[:3]
        return frames.repeat(spatial, 1).repeat(spatial, 2)[:count, :height, :width]

    def matte(self, weights: Float[np.ndarray, "t h w"]) -> Float[np.ndarray, "T H W"]:
        """How much of a changed decoding is shown, in [0, 1]: all of it in the cells of a weight above 0,
        nothing from two cells away on, and less and less for as many frames as a cell has after them,
        because the decoder carries a change on.
        """
        from scipy import ndimage

        temporal, spatial = self.redrawer.strides
        grown = dilated(self.pixels_of(weights), spatial).astype(np.float32)
        alpha = ndimage.uniform_filter(grown, 2 * spatial + 1, mode="nearest", axes=(1, 2))
        shown = alpha.copy()
        for late in range(1, min(temporal + 1, len(alpha))):
            np.maximum(shown[late:], alpha[:-late] * (1 - late / (temporal + 1)), out=shown[late:])
        return np.where(shown > 1 - 1e-5, 1, np.where(shown < 1e-5, 0, shown)).astype(np.float32)

    def twin(self, latents: Latents, weights: Float[np.ndarray, "t h w"]) -> UInt8[np.ndarray, "T H W 3"]:
        """The frames of changed latents within ``matte``; everywhere else the round trip, to the last bit."""
        count, height, width = self.decoded.shape[:3]
        changed = self.redrawer.decode(latents)[:count, :height, :width].astype(np.float32)
        mixed = self.decoded + self.matte(weights)[..., None] * (changed - self.decoded)
        return (mixed + 0.5).astype(np.uint8)


class ClipLatents:
    """Encodes a clip once, however many injectors and severities are tried on it; keeps the last one."""

    def __init__(self, redrawer: Redrawer) -> None:
        self.redrawer = redrawer
        self._source: SourceClip | None = None
        self._latents: LatentClip | None = None

    def of(self, source: SourceClip) -> LatentClip:
        """The clip in latent space."""
        if self._latents is None or self._source is not source:
            latents = self.redrawer.encode(padded(source.pixels, self.redrawer.form(*source.shape)))
            count, height, width = source.shape
            decoded = self.redrawer.decode(latents)[:count, :height, :width]
            self._source, self._latents = source, LatentClip(latents, decoded, self.redrawer)
        return self._latents
