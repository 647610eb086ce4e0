"""How the oracle sees: what is backdrop, what is the entity, where it is, how large, in which pose, under how much blur.

prompt's Spec + pixels → fit_backdrop → matte of the entity's colour → fit_entity → ``Fit``: track, blur, residual blot per frame

The matte of a pixel p over backdrop b is its projection ⟨p − b, c − b⟩ / |c − b|² on the entity's colour c, which is linear and so
survives blur. Everything is analysis by synthesis: the entity is drawn where it was seen, blurred, and subtracted.
Shape letters: T frames of the clip, F some of them, H × W frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from cac_align.miniature.world.draw import Entity, blend, glyph_rows, layers
from cac_align.miniature.world.grammar import COLOURS, Spec
from cac_align.miniature.world.render import paint_backdrop
from cac_align.miniature.world.scene import Backdrop, Scene
from cac_align.miniature.world.settings import STUDIO

LIMITS = {"ball": 42.0, "box": 42.0, "figure": 44.0, "sign": 45.0}
"""Largest blot (grey levels) at which an entity still passes for sound, by kind. Rendered sound balls and boxes leave 15 at most, blurred
ones too; the mildest melting ones 38 to 50. The limit stands at the far end of that gap, so that an outline that is merely soft, as a
small generator draws it, is not called a defect."""
_BLURS = (0.0, 0.7, 1.1, 1.6, 2.2)
"""Standard deviations (px) of the Gaussian that may stand between the renderer and the clip."""


def fit_backdrop(spec: Spec, pixels: Float[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "H W 3"]:
    """The place's backdrop, each row shifted by the median difference of those pixels that resemble it (a tint, a drift of hue)."""
    count, height, width = pixels.shape[:3]
    scene = Scene(spec, height, width, count, 16.0, (), Backdrop(spec.place, 0), np.zeros((count, 2)), {})
    sheet = paint_backdrop(scene, np.arange(1))[0]
    off = pixels[:: max(count // 9, 1)] - sheet
    near = (_strongest(off) < 42).transpose(1, 0, 2).reshape(height, -1)
    rows = off.transpose(1, 0, 2, 3).reshape(height, -1, 3)
    tint = np.full((height, 3), np.nan, np.float32)
    for row in range(height):
        if near[row].mean() > 0.08:
            tint[row] = np.median(rows[row][near[row]], 0)
    known = np.flatnonzero(~np.isnan(tint[:, 0]))
    if len(known) == 0:
        return sheet
    for channel in range(3):
        tint[:, channel] = np.interp(np.arange(height), known, tint[known, channel])
    return sheet + tint[:, None]


def matte(pixels: np.ndarray, backdrop: np.ndarray, colour: np.ndarray) -> Float[np.ndarray, "T H W"]:
    """Share of the entity's colour in each pixel, about 0 to 1; faint shares (noise, tint) count as none."""
    axis = colour - backdrop
    axis = axis / (axis * axis).sum(-1, keepdims=True)
    off = (pixels - backdrop) * axis
    share = off[..., 0] + off[..., 1] + off[..., 2]
    return np.where(share > 0.12, np.minimum(share, 1.1), 0)


def dominant_colour(pixels: np.ndarray, backdrop: np.ndarray) -> tuple[str | None, dict[str, float]]:
    """Which of the Studio's colours covers most pixels per frame."""
    pixels = pixels[:: max(len(pixels) // 11, 1)]
    seen = pixels[_strongest(pixels - backdrop) > 36]
    if len(seen) == 0:
        return None, {}
    names = STUDIO.colours
    palette = np.asarray([COLOURS[name] for name in names], np.float32)
    far = _strongest(seen[:, None] - palette)
    nearest = far.argmin(1)
    votes = {
        name: float(((nearest == index) & (far[:, index] < 56)).sum() / len(pixels)) for index, name in enumerate(names)
    }
    best = max(votes, key=votes.get)
    return (best if votes[best] > 8 else None), votes


def centroid(share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mass (px²) and centre of mass (px) per frame; NaN centre where there is no mass."""
    mass = share.sum((1, 2))
    safe = np.where(mass > 1e-6, mass, np.nan)
    x = (share.sum(1) * (np.arange(share.shape[2]) + 0.5)).sum(1) / safe
    y = (share.sum(2) * (np.arange(share.shape[1]) + 0.5)).sum(1) / safe
    return mass, x, y


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    if sigma == 0:
        return pixels
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(gaussian_filter1d(pixels, sigma, axis=-3, truncate=2.5), sigma, axis=-2, truncate=2.5)


def synthesise(entity: Entity, backdrop: np.ndarray, frames: np.ndarray, sigma: float) -> Float[np.ndarray, "F H W 3"]:
    canvas = np.repeat(backdrop[None].astype(np.float32), len(frames), 0)
    if len(frames):
        for layer in layers(entity, frames):
            blend(canvas, layer)
    return blur(canvas, sigma)


def _strongest(difference: np.ndarray) -> np.ndarray:
    """The largest absolute value over the three channels (written out: numpy reduces short last axes slowly)."""
    size = np.abs(difference)
    return np.maximum(np.maximum(size[..., 0], size[..., 1]), size[..., 2])


def residual_blot(difference: np.ndarray) -> np.ndarray:
    """Largest 5 × 5 mean of the strongest channel's absolute difference, per frame, in grey levels."""
    strongest = _strongest(difference)
    total = np.pad(strongest, ((0, 0), (1, 0), (1, 0))).cumsum(1).cumsum(2)
    size = 5
    window = total[:, size:, size:] - total[:, :-size, size:] - total[:, size:, :-size] + total[:, :-size, :-size]
    return window.max((1, 2)) / size**2


# ---- fitting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Fit:
    """An entity laid over the clip: its track (frame coordinates), the residual blot per frame, what was seen of its colour.

    tolerance: factor on the limit (``oracle.TOLERANCE``).
    """

    entity: Entity
    sigma: float
    blot: Float[np.ndarray, " T"]
    mass: Float[np.ndarray, " T"]
    expected: Float[np.ndarray, " T"]
    peak: Float[np.ndarray, " T"]
    x: Float[np.ndarray, " T"]
    y: Float[np.ndarray, " T"]
    tolerance: float = 1.0

    @property
    def limit(self) -> float:
        """Blot from which a frame counts as misshapen: the kind's limit, raised (by 25 at most) by what the best frames leave.

        A soft or slightly misdrawn clip is thus judged against itself; one that is wrong throughout still fails.
        """
        return self.tolerance * (LIMITS[self.entity.kind] + float(np.clip(np.quantile(self.blot, 0.2) - 18, 0, 25)))


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
    """Lay an entity of ``kind`` over every frame: centre by mass, size and blur by the least residual, pose by search."""
    count, height, width = pixels.shape[:3]
    unit = min(height, width) / 64
    rgb = _shade(pixels, backdrop, np.asarray(COLOURS[colour], np.float32))
    share = matte(pixels, backdrop, rgb)
    mass, x, y = centroid(share)
    peak = _peak(share)
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
        return _settle(entity, share, backdrop, probe, rgb, 1.0, x, y)

    def misfit(
        entity: Entity, sigma: float
    ) -> float:  # a low quantile: up to two thirds of the frames may hold a defect
        return float(np.quantile(residual_blot(pixels[probe] - synthesise(entity, backdrop, probe, sigma)), 0.2))

    trials = [laid(size) for size in _sizes(kind, unit, mass)]
    entity = min(trials, key=lambda trial: misfit(trial, 0.7)) if len(trials) > 1 else trials[0]
    sharp = synthesise(entity, backdrop, probe, 0.0)
    sigma = min(_BLURS, key=lambda trial: float(np.quantile(residual_blot(pixels[probe] - blur(sharp, trial)), 0.2)))
    if kind != "sign":
        trials = [entity, *(laid(entity.size_px * step) for step in (0.975, 1.03))]
        entity = min(trials, key=lambda trial: misfit(trial, sigma))
    size = entity.size_px
    entity = Entity(kind, tuple(rgb.tolist()), size, 0.0, {"x": x, "y": y}, text)
    frames = np.arange(count)
    entity = _settle(entity, share, backdrop, frames, rgb, sigma, x, y)
    drawn = synthesise(entity, backdrop, frames, sigma)
    expected = matte(drawn, backdrop, rgb).sum((1, 2))
    blot = residual_blot(pixels - drawn)
    if spec.motion == "bounce":  # solids give a little where they hit the ground
        close = np.flatnonzero(blot > 0.4 * LIMITS[kind])
        for squash in (0.05, 0.1, 0.15):
            pressed = replace(entity, track={**entity.track, "squash": np.full(count, squash)})
            blot[close] = np.minimum(
                blot[close], residual_blot(pixels[close] - synthesise(pressed, backdrop, close, sigma))
            )
    return Fit(entity, sigma, blot, mass, expected, peak, np.asarray(entity.track["x"]), np.asarray(entity.track["y"]))


def _shade(pixels: np.ndarray, backdrop: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """The colour as this clip shows it: the median of its most solid pixels, at most 40 levels per channel from the word's."""
    some = pixels[:: max(len(pixels) // 11, 1)]
    solid = some[(matte(some, backdrop, colour) > 0.7) & (_strongest(some - colour) < 60)]
    if len(solid) < 40:
        return colour
    return colour + np.clip(np.median(solid, 0) - colour, -40, 40).astype(np.float32)


def _peak(share: np.ndarray) -> np.ndarray:
    """Highest 3 × 3 mean of the matte per frame: how solid the most solid part is."""
    total = np.pad(share, ((0, 0), (1, 0), (1, 0))).cumsum(1).cumsum(2)
    window = total[:, 3:, 3:] - total[:, :-3, 3:] - total[:, 3:, :-3] + total[:, :-3, :-3]
    return window.max((1, 2)) / 9


def _settle(
    entity: Entity,
    share: np.ndarray,
    backdrop: np.ndarray,
    frames: np.ndarray,
    rgb: np.ndarray,
    sigma: float,
    x: np.ndarray,
    y: np.ndarray,
) -> Entity:
    """Move the entity so that its drawn centre of mass is the observed one (on ``frames``); a figure also finds its stride."""
    count = len(x)
    track = {"x": x.astype(np.float64).copy(), "y": y.astype(np.float64).copy()}
    if entity.kind == "figure":
        gait, shift_x, shift_y = _pose(entity, share, backdrop, frames, rgb, sigma, x, y)
        track["gait"] = np.zeros(count)
        track["gait"][frames], track["x"][frames], track["y"][frames] = gait, shift_x, shift_y
        return replace(entity, track=track)
    seen_x, seen_y = x[frames], y[frames]
    for _ in range(2):
        drawn = synthesise(replace(entity, track=track), backdrop, frames, 0.0)
        _, at_x, at_y = centroid(matte(drawn, backdrop, rgb))
        track["x"][frames] += np.nan_to_num(seen_x - at_x)
        track["y"][frames] += np.nan_to_num(seen_y - at_y)
    return replace(entity, track=track)


def _pose(
    entity: Entity,
    share: np.ndarray,
    backdrop: np.ndarray,
    frames: np.ndarray,
    rgb: np.ndarray,
    sigma: float,
    x: np.ndarray,
    y: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stride and centre of a figure per frame: the best of a bank of silhouettes, compared after aligning centres of mass."""
    width = share.shape[2]
    middle = float(np.median(y[frames]))
    bank_frames = np.arange(len(_SWINGS))
    still = {"x": np.full(len(_SWINGS), width / 2), "y": np.full(len(_SWINGS), middle), "gait": np.arcsin(_SWINGS)}
    bank = matte(synthesise(replace(entity, track=still), backdrop, bank_frames, sigma), backdrop, rgb)
    _, bank_x, bank_y = centroid(bank)
    half_w, half_h = int(0.95 * entity.size_px) + 1, int(1.2 * entity.size_px) + 1
    templates = _crops(bank, bank_x, bank_y, half_w, half_h)
    seen = _crops(share[frames], x[frames], y[frames], half_w, half_h)
    cost = np.abs(seen[:, None] - templates[None]).sum((2, 3))
    best = cost.argmin(1)
    return np.arcsin(_SWINGS[best]), x[frames] + width / 2 - bank_x[best], y[frames] + middle - bank_y[best]


def _crops(share: np.ndarray, x: np.ndarray, y: np.ndarray, half_w: int, half_h: int) -> np.ndarray:
    """Patches centred on (x, y), sampled between pixels linearly. Shape (F, 2·half_h, 2·half_w)."""
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
