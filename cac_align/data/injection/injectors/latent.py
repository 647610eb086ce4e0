"""Defects made in a generator's latent space, within a tube on a moving object: the tier "gpu".

``redraw`` noises the tube and lets the generator denoise it anew; ``latent_swap``, ``latent_shuffle``
and ``latent_noise`` change the latents themselves. Both twins are decoded by the same VAE, and off the
tube they are the VAE's round trip of the source, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from cac_align.data.injection.injector import Edit, Injector, MovingObject, NotApplicable, SourceClip
from cac_align.data.injection.injectors.compositing import choose_object, choose_span
from cac_align.data.injection.models import ClipLatents, LatentClip, Redrawer
from cac_align.data.injection.tubes import bezier_tube

SHAM_NOISE = 0.15
"""The highest noise level σ at which a sham is redrawn; below it a generator gives back what it sees."""
DEFECT_NOISE = (0.4, 0.8)
"""The noise levels σ of the smallest and the largest severity."""

_MOST_FRAMES = 24


def redraw(latents: ClipLatents, source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """The generator draws the inside of the tube anew, from a noise level of 0.4 to 0.8.

    The sham is redrawn with the same noise in the same cells, from at most 0.15.
    """
    thing, clip, weights = _place(latents, source, rng)
    seed = int(rng.integers(2**31))
    levels = clip.redrawer.noise_levels
    low, high = DEFECT_NOISE
    inside = [level for level in levels if low <= level <= high] or list(levels)
    strong = min(inside, key=lambda level: abs(level - (low + severity * (high - low))))
    faint = max(level for level in levels if level <= SHAM_NOISE)
    anomalous, sham = (
        clip.twin(clip.redrawer.redraw(clip.latents, weights, level, seed, source.prompt), weights)
        for level in (strong, faint)
    )
    return Edit(
        anomalous,
        sham,
        "Object Distortion",
        "redraw",
        f"the {thing.noun} loses its shape and turns into something else",
        thing.noun,
        thing.masks & clip.pixels_of(weights),
        numbers={"noise_level": round(strong, 4), "sham_noise_level": round(faint, 4), "noise_seed": seed},
    )


def latent_swap(latents: ClipLatents, source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """Cells of the tube and cells beside it, a share of the object's size away, swap places."""
    thing, clip, weights = _place(latents, source, rng)
    shift = _shift_within(weights, (0.4 + 0.6 * severity) * thing.size / clip.redrawer.strides[1], rng)
    other = np.roll(clip.latents, shift, (2, 3))
    back = np.roll(weights, [-step for step in shift], (1, 2))
    changed = clip.latents + weights * (other - clip.latents)
    # Where the two places overlap, the tube's own cells come first.
    rest = back * (weights == 0)
    changed += rest * (np.roll(clip.latents, [-step for step in shift], (2, 3)) - clip.latents)
    return _edited(
        thing, clip, changed, np.maximum(weights, rest), "Object Distortion", "latent_swap",
        f"parts of the {thing.noun} and of what is beside it have changed places",
        {"cells_down": shift[0], "cells_right": shift[1]},
    )  # fmt: skip


def _shift_within(weights: np.ndarray, reach: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """Rows and columns to the place that the tube's cells swap with: ``reach`` (columns, rows) away, inside
    the picture. Raises ``NotApplicable`` where there is none.
    """
    used = [np.flatnonzero(weights.any((0, other))) for other in (2, 1)]
    for angle in rng.uniform(0, 2 * np.pi, 12):
        shift = round(float(reach[1] * np.sin(angle))), round(float(reach[0] * np.cos(angle)))
        ends = [(cells[0] - step, cells[-1] - step) for cells, step in zip(used, shift, strict=True)]
        if any(shift) and all(
            low >= 0 and high < size for (low, high), size in zip(ends, weights.shape[1:], strict=True)
        ):
            return shift
    raise NotApplicable("there is no place beside the object to swap with")


def latent_shuffle(latents: ClipLatents, source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """The tube's latent frames are shown in another order; more severity mixes frames that lie further
    apart.
    """
    thing, clip, weights = _place(latents, source, rng, least=9)
    frames = np.flatnonzero(weights.any((1, 2)))
    if len(frames) < 2:
        raise NotApplicable("the tube covers a single latent frame")
    weights[frames] = weights[frames].max(0)  # one place for all frames: what is shuffled is time alone
    # Every frame takes the place of one a few ahead, so that none stays where it was.
    order = np.roll(frames, -max(round(severity * len(frames) / 2), 1))
    changed = clip.latents.copy()
    changed[:, frames] += weights[frames] * (clip.latents[:, order] - clip.latents[:, frames])
    return _edited(
        thing, clip, changed, weights, "Motion Anomalies", "latent_shuffle",
        f"the {thing.noun} jumps back and forth in time", {"order": [int(frame) for frame in order]},
    )  # fmt: skip


def latent_noise(latents: ClipLatents, source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """Noise of 0.5 to 2 standard deviations on the tube's latents."""
    thing, clip, weights = _place(latents, source, rng)
    strength = 0.5 + 1.5 * severity
    changed = clip.latents + strength * weights * rng.standard_normal(clip.latents.shape, np.float32)
    return _edited(
        thing, clip, changed, weights, "Object Distortion", "latent_noise",
        f"the {thing.noun} breaks up into blotches", {"standard_deviations": round(strength, 4)},
    )  # fmt: skip


def _place(
    latents: ClipLatents, source: SourceClip, rng: np.random.Generator, least: int = 5
) -> tuple[MovingObject, LatentClip, np.ndarray]:
    """An object, the clip's latents, and the weights of the cells of a tube on the object."""
    thing = choose_object(source, rng)
    first, last = choose_span(rng, thing.frames, least, max(_MOST_FRAMES, least))
    tube = bezier_tube(thing, rng, first, last, float(rng.uniform(0.8, 1.2)))
    clip = latents.of(source)
    weights = clip.cells(tube)
    if not weights.any():
        raise NotApplicable("the tube is not in the picture")
    return thing, clip, weights


def _edited(
    thing: MovingObject,
    clip: LatentClip,
    changed: np.ndarray,
    weights: np.ndarray,
    type: str,
    subtype: str,
    reason: str,
    numbers: Mapping[str, object],
) -> Edit:
    """The twins of an edit of latents: both are decoded, and the sham's latents are the source's own."""
    return Edit(
        clip.twin(changed.astype(np.float32), weights),
        clip.decoded,
        type,
        subtype,
        reason,
        thing.noun,
        thing.masks & clip.pixels_of(weights),
        numbers=numbers,
    )


_MAKERS: Mapping[str, Callable[[ClipLatents, SourceClip, np.random.Generator, float], Edit]] = {
    "redraw": redraw,
    "latent_swap": latent_swap,
    "latent_shuffle": latent_shuffle,
    "latent_noise": latent_noise,
}
LATENT_INJECTORS = tuple(sorted(_MAKERS))
"""Names of the injectors that need a generator."""


def latent_injectors(redrawer: Redrawer) -> tuple[Injector, ...]:
    """The injectors that work with this generator. They share one encoding of the clip at hand."""
    latents = ClipLatents(redrawer)
    return tuple(Injector(name, "gpu", partial(make, latents)) for name, make in sorted(_MAKERS.items()))
