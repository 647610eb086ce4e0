"""Fits the entity that the prompt asks for to every frame of a clip: position, size, pose, blur,
and what remains.

Spec + pixels + backdrop → fit_entity → Fit: analysis by synthesis, the entity is drawn where it was
found and subtracted
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from cac_align.miniature.oracle.imaging import (
    blur,
    centroid,
    draw_entity,
    local_residual,
    matte,
    measure_shade,
    measure_solidity,
)
from cac_align.miniature.world.draw import Entity, glyph_rows
from cac_align.miniature.world.grammar import COLOURS, Spec
from cac_align.miniature.world.settings import STUDIO

RESIDUAL_LIMITS = {"ball": 42.0, "box": 42.0, "figure": 44.0, "sign": 45.0}
"""Largest residual in grey levels at which an entity still counts as normal.

Rendered normal balls and boxes leave 15 at most, blurred or not; the mildest melting ones leave 38
to 50. The limit stands at the far end of that gap, so that an outline that is merely soft, as a
small generator draws it, is not called a defect.
"""
_BLURS = (0.0, 0.7, 1.1, 1.6, 2.2)
"""Standard deviations in px of the Gaussian blur that is tried."""


@dataclass(frozen=True, eq=False)
class Fit:
    """The entity that explains a clip best, and what it leaves unexplained."""

    # The entity with its tracks in frame coordinates.
    entity: Entity
    # Standard deviation of the blur in px.
    sigma: float
    # What remains of each frame (``imaging.local_residual``), in grey levels.
    residual: Float[np.ndarray, " T"]
    # Area of the entity's colour in px², observed and as drawn.
    mass: Float[np.ndarray, " T"]
    expected_mass: Float[np.ndarray, " T"]
    # How solid the entity's most solid part is, about 0 to 1.
    solidity: Float[np.ndarray, " T"]
    # The entity's centre in px.
    x: Float[np.ndarray, " T"]
    y: Float[np.ndarray, " T"]
    # Factor on the limit (``oracle.TOLERANCE``).
    tolerance: float = 1.0

    @property
    def limit(self) -> float:
        """The residual above which a frame counts as misshapen.

        It is the kind's limit, raised by what the best frames leave (25 at most). A soft or
        slightly misdrawn clip is thus compared with itself; one that is wrong throughout still
        fails.
        """
        return self.tolerance * (
            RESIDUAL_LIMITS[self.entity.kind] + float(np.clip(np.quantile(self.residual, 0.2) - 18, 0, 25))
        )


_SWINGS = np.linspace(-1, 1, 15)


def _sizes(kind: str, unit: float, mass: np.ndarray) -> list[float]:
    if kind == "sign":
        return [4.0 * unit]
    if kind == "figure":
        return [size * unit for size in (15.5, 16.3, 17.1, 17.9)]
    present = mass[mass > 0.4 * mass.max()]
    if len(present) == 0:
        return [8.5 * unit]
    area = np.quantile(present, [0.1, 0.35, 0.6, 0.85])
    radius = np.sqrt(area / np.pi) if kind == "ball" else np.sqrt(area) / 1.84
    sizes: list[float] = []
    for value in np.clip(radius, 5 * unit, 13 * unit):
        if all(abs(value - other) > 0.1 for other in sizes):
            sizes.append(float(value))
    return sizes


def fit_entity(spec: Spec, kind: str, pixels: np.ndarray, backdrop: np.ndarray, colour: str) -> Fit:
    """Fit an entity to every frame: the centre by mass, size and blur by the least residual, the
    pose by search.
    """
    count, height, width = pixels.shape[:3]
    unit = min(height, width) / 64
    rgb = measure_shade(pixels, backdrop, np.asarray(COLOURS[colour], np.float32))
    share = matte(pixels, backdrop, rgb)
    mass, x, y = centroid(share)
    peak = measure_solidity(share)
    strong = mass > 0.5 * np.quantile(mass, 0.9)
    probe = np.flatnonzero(strong)
    probe = (
        probe[np.linspace(0, len(probe) - 1, min(8, len(probe))).astype(int)] if len(probe) else np.arange(count)[:1]
    )
    x = np.where(np.isnan(x), width / 2, x)
    y = np.where(np.isnan(y), height / 2, y)
    text = glyph_rows(spec.text or STUDIO.words[0]) if kind == "sign" else ()

    def laid(size: float) -> Entity:
        entity = Entity(kind, tuple(rgb.tolist()), size, 0.0, {"x": x, "y": y}, text)
        return _align_centres(entity, share, backdrop, probe, rgb, 1.0, x, y)

    def misfit(
        entity: Entity, sigma: float
    ) -> float:  # a low quantile: up to two thirds of the frames may hold a defect
        return float(np.quantile(local_residual(pixels[probe] - draw_entity(entity, backdrop, probe, sigma)), 0.2))

    trials = [laid(size) for size in _sizes(kind, unit, mass)]
    entity = min(trials, key=lambda trial: misfit(trial, 0.7)) if len(trials) > 1 else trials[0]
    sharp = draw_entity(entity, backdrop, probe, 0.0)
    sigma = min(_BLURS, key=lambda trial: float(np.quantile(local_residual(pixels[probe] - blur(sharp, trial)), 0.2)))
    if kind != "sign":
        trials = [entity, *(laid(entity.size_px * step) for step in (0.975, 1.03))]
        entity = min(trials, key=lambda trial: misfit(trial, sigma))
    size = entity.size_px
    entity = Entity(kind, tuple(rgb.tolist()), size, 0.0, {"x": x, "y": y}, text)
    frames = np.arange(count)
    entity = _align_centres(entity, share, backdrop, frames, rgb, sigma, x, y)
    drawn = draw_entity(entity, backdrop, frames, sigma)
    expected = matte(drawn, backdrop, rgb).sum((1, 2))
    remaining = local_residual(pixels - drawn)
    if spec.motion == "bounce":  # solids give a little where they hit the ground
        close = np.flatnonzero(remaining > 0.4 * RESIDUAL_LIMITS[kind])
        for squash in (0.05, 0.1, 0.15):
            pressed = replace(entity, track={**entity.track, "squash": np.full(count, squash)})
            remaining[close] = np.minimum(
                remaining[close], local_residual(pixels[close] - draw_entity(pressed, backdrop, close, sigma))
            )
    return Fit(
        entity, sigma, remaining, mass, expected, peak, np.asarray(entity.track["x"]), np.asarray(entity.track["y"])
    )


def _align_centres(
    entity: Entity,
    share: np.ndarray,
    backdrop: np.ndarray,
    frames: np.ndarray,
    rgb: np.ndarray,
    sigma: float,
    x: np.ndarray,
    y: np.ndarray,
) -> Entity:
    """Move the entity so that its drawn centre of mass is the observed one on ``frames``; fit a
    figure's stride as well.
    """
    count = len(x)
    track = {"x": x.astype(np.float64).copy(), "y": y.astype(np.float64).copy()}
    if entity.kind == "figure":
        gait, shift_x, shift_y = _fit_figure_pose(entity, share, backdrop, frames, rgb, sigma, x, y)
        track["gait"] = np.zeros(count)
        track["gait"][frames], track["x"][frames], track["y"][frames] = gait, shift_x, shift_y
        return replace(entity, track=track)
    seen_x, seen_y = x[frames], y[frames]
    for _ in range(2):
        drawn = draw_entity(replace(entity, track=track), backdrop, frames, 0.0)
        _, at_x, at_y = centroid(matte(drawn, backdrop, rgb))
        track["x"][frames] += np.nan_to_num(seen_x - at_x)
        track["y"][frames] += np.nan_to_num(seen_y - at_y)
    return replace(entity, track=track)


def _fit_figure_pose(
    entity: Entity,
    share: np.ndarray,
    backdrop: np.ndarray,
    frames: np.ndarray,
    rgb: np.ndarray,
    sigma: float,
    x: np.ndarray,
    y: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A figure's stride and centre on each frame: the best of a bank of silhouettes with aligned
    centres of mass.
    """
    width = share.shape[2]
    middle = float(np.median(y[frames]))
    bank_frames = np.arange(len(_SWINGS))
    still = {"x": np.full(len(_SWINGS), width / 2), "y": np.full(len(_SWINGS), middle), "gait": np.arcsin(_SWINGS)}
    bank = matte(draw_entity(replace(entity, track=still), backdrop, bank_frames, sigma), backdrop, rgb)
    _, bank_x, bank_y = centroid(bank)
    half_w, half_h = int(0.95 * entity.size_px) + 1, int(1.2 * entity.size_px) + 1
    templates = _crops(bank, bank_x, bank_y, half_w, half_h)
    seen = _crops(share[frames], x[frames], y[frames], half_w, half_h)
    cost = np.abs(seen[:, None] - templates[None]).sum((2, 3))
    best = cost.argmin(1)
    return np.arcsin(_SWINGS[best]), x[frames] + width / 2 - bank_x[best], y[frames] + middle - bank_y[best]


def _crops(share: np.ndarray, x: np.ndarray, y: np.ndarray, half_w: int, half_h: int) -> np.ndarray:
    """Patches centred on (x, y) with linear interpolation. Shape (F, 2 · half_h, 2 · half_w)."""
    padded = np.pad(share, ((0, 0), (half_h + 2, half_h + 2), (half_w + 2, half_w + 2)))
    out = np.empty((len(share), 2 * half_h, 2 * half_w), np.float32)
    for index in range(len(share)):
        left, top = x[index] - 0.5 + 2, y[index] - 0.5 + 2
        x0, y0 = int(np.floor(left)), int(np.floor(top))
        fx, fy = left - x0, top - y0
        part = padded[index, y0 : y0 + 2 * half_h + 1, x0 : x0 + 2 * half_w + 1]
        part = part[:, :-1] * (1 - fx) + part[:, 1:] * fx
        out[index] = part[:-1] * (1 - fy) + part[1:] * fy
    return out
