"""The oracle: judges a generated Studio clip against the scene its prompt asks for, by pixels and physics alone.

prompt → expected entity; video → backdrop fit → matte of the entity's colour → track (place, size, pose)
→ synthesis of what should be there, blurred like the clip → residual → shape, presence, path and ground checks → ``Verdict``

The matte of a pixel p over backdrop b is its projection ⟨p − b, c − b⟩ / |c − b|² on the entity's colour c, which is linear and so
survives blur. Structure is judged by the largest 5 × 5 mean of |clip − synthesis|: an extra limb, a hole, a wrong glyph or a
torn shape all leave such a blot. No model is asked; thresholds were chosen on TRAIN seeds and are measured on TEST seeds.

It can see all five types as far as Studio scenes show them (``CLAIMS``); ``CANNOT`` lists what it does not look for.
Run ``python -m cac_align.miniature.oracle --n 1000`` for its agreement with the ground truth.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8

from cac_align.judgement import ANOMALY_TYPES, Status, Window
from cac_align.miniature.draw import Entity, blend, glyph_rows, layers
from cac_align.miniature.grammar import COLOURS, OBJECTS, Spec, parse_prompt
from cac_align.miniature.scene import Backdrop, Scene, foot, paint_backdrop
from cac_align.miniature.world import STUDIO, TEST_SEEDS, World, make_clip
from cac_align.video import Video

CLAIMS: tuple[str, ...] = ANOMALY_TYPES
"""Types it reports."""
CANNOT: tuple[str, ...] = (
    "interpenetration of two entities (Studio clips hold one)",
    "defects of the backdrop",
    "whole-clip defects of an entity that looks like another prompt's entity throughout (reported as follows.entity = False)",
)
"""What it does not look for."""

LIMITS = {"ball": 34.0, "box": 34.0, "figure": 44.0, "sign": 45.0}
RIVAL_FROM = 17.0
GONE, FAINT = 0.35, 0.62
JERK_PX = 3.4
LEAP_PX = 6.4
LIFT_PX = 3.0
BACK_PX = 1.6
_BLURS = (0.0, 0.7, 1.1, 1.6, 2.2)


@dataclass(frozen=True)
class Verdict:
    """What the oracle says of one clip.

    types: anomaly types seen, in the paper's order. window: hull of the frames on which something was seen (None when normal).
    follows: whether "entity", "colour" and "motion" (and "text" for a sign) are the prompt's.
    displacement_px: mean path of the entity in px per second, a measure of dynamics.
    """

    status: Status
    types: tuple[str, ...]
    window: Window | None
    follows: dict[str, bool]
    displacement_px: float
    reason: str


def judge(prompt: str, video: Video) -> Verdict:
    """Judge ``video`` (a Studio clip of any even size from 64 px) against its prompt.

    Raises ``ValueError`` for a prompt outside the grammar, with more than one entity or with an entity the Studio lacks, and for a
    video of fewer than 5 frames.
    """
    spec = parse_prompt(prompt)
    if len(spec.actors) != 1 or spec.kind not in STUDIO.kinds:
        raise ValueError(f"the oracle judges prompts with one entity of {', '.join(STUDIO.kinds)}; received {prompt!r}")
    if len(video) < 5:
        raise ValueError(f"{video.name}: the oracle needs at least 5 frames, received {len(video)}")
    pixels = video.frames(range(len(video))).pixels
    return _judge(spec, pixels.astype(np.float32), video.fps)


# ---- seeing -------------------------------------------------------------------------------------------------------


def _fit_backdrop(spec: Spec, pixels: Float[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "H W 3"]:
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


def _matte(pixels: np.ndarray, backdrop: np.ndarray, colour: np.ndarray) -> Float[np.ndarray, "T H W"]:
    """Share of the entity's colour in each pixel, about 0 to 1; faint shares (noise, tint) count as none."""
    axis = colour - backdrop
    axis = axis / (axis * axis).sum(-1, keepdims=True)
    off = (pixels - backdrop) * axis
    share = off[..., 0] + off[..., 1] + off[..., 2]
    return np.where(share > 0.12, np.minimum(share, 1.1), 0)


def _dominant(pixels: np.ndarray, backdrop: np.ndarray) -> tuple[str | None, dict[str, float]]:
    """Which of the Studio's colours covers most pixels per frame."""
    pixels = pixels[:: max(len(pixels) // 11, 1)]
    seen = pixels[_strongest(pixels - backdrop) > 36]
    if len(seen) == 0:
        return None, {}
    names = STUDIO.colours
    palette = np.asarray([COLOURS[name] for name in names], np.float32)
    far = _strongest(seen[:, None] - palette)
    nearest = far.argmin(1)
    votes = {name: float(((nearest == index) & (far[:, index] < 56)).sum() / len(pixels)) for index, name in enumerate(names)}
    best = max(votes, key=votes.get)
    return (best if votes[best] > 8 else None), votes


def _centroid(share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mass (px²) and centre of mass (px) per frame; NaN centre where there is no mass."""
    mass = share.sum((1, 2))
    safe = np.where(mass > 1e-6, mass, np.nan)
    x = (share.sum(1) * (np.arange(share.shape[2]) + 0.5)).sum(1) / safe
    y = (share.sum(2) * (np.arange(share.shape[1]) + 0.5)).sum(1) / safe
    return mass, x, y


def _blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    if sigma == 0:
        return pixels
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(gaussian_filter1d(pixels, sigma, axis=-3, truncate=2.5), sigma, axis=-2, truncate=2.5)


def _synthesise(entity: Entity, backdrop: np.ndarray, frames: np.ndarray, sigma: float) -> Float[np.ndarray, "F H W 3"]:
    canvas = np.repeat(backdrop[None].astype(np.float32), len(frames), 0)
    for layer in layers(entity, frames):
        blend(canvas, layer)
    return _blur(canvas, sigma)


def _strongest(difference: np.ndarray) -> np.ndarray:
    """The largest absolute value over the three channels (written out: numpy reduces short last axes slowly)."""
    size = np.abs(difference)
    return np.maximum(np.maximum(size[..., 0], size[..., 1]), size[..., 2])


def _blot(difference: np.ndarray) -> np.ndarray:
    """Largest 5 × 5 mean of the strongest channel's absolute difference, per frame, in grey levels."""
    strongest = _strongest(difference)
    total = np.pad(strongest, ((0, 0), (1, 0), (1, 0))).cumsum(1).cumsum(2)
    size = 5
    window = total[:, size:, size:] - total[:, :-size, size:] - total[:, size:, :-size] + total[:, :-size, :-size]
    return window.max((1, 2)) / size**2


# ---- fitting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Fit:
    """An entity laid over the clip: its track (frame coordinates), the residual blot per frame, what was seen of its colour."""

    entity: Entity
    sigma: float
    blot: Float[np.ndarray, "T"]
    mass: Float[np.ndarray, "T"]
    expected: Float[np.ndarray, "T"]
    peak: Float[np.ndarray, "T"]
    x: Float[np.ndarray, "T"]
    y: Float[np.ndarray, "T"]


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


def _fit(spec: Spec, kind: str, pixels: np.ndarray, backdrop: np.ndarray, colour: str) -> Fit:
    """Lay an entity of ``kind`` over every frame: centre by mass, size and blur by the least residual, pose by search."""
    count, height, width = pixels.shape[:3]
    unit = min(height, width) / 64
    rgb = np.asarray(COLOURS[colour], np.float32)
    share = _matte(pixels, backdrop, rgb)
    mass, x, y = _centroid(share)
    peak = _peak(share)
    strong = mass > 0.5 * np.quantile(mass, 0.9)
    probe = np.flatnonzero(strong)
    probe = probe[np.linspace(0, len(probe) - 1, min(11, len(probe))).astype(int)] if len(probe) else np.arange(count)[:1]
    x = np.where(np.isnan(x), width / 2, x)
    y = np.where(np.isnan(y), height / 2, y)
    text = glyph_rows(spec.text or STUDIO.words[0]) if kind == "sign" else ()

    def laid(size: float) -> Entity:
        entity = Entity(kind, COLOURS[colour], size, 0.0, {"x": x, "y": y}, text)
        return _settle(entity, pixels, share, backdrop, probe, rgb, 1.0, x, y)

    def misfit(entity: Entity, sigma: float) -> float:  # a low quantile: up to two thirds of the frames may hold a defect
        return float(np.quantile(_blot(pixels[probe] - _synthesise(entity, backdrop, probe, sigma)), 0.2))

    trials = [laid(size) for size in _sizes(kind, unit, mass)]
    entity = min(trials, key=lambda trial: misfit(trial, 0.7))
    sigma = min(_BLURS, key=lambda trial: misfit(entity, trial))
    if kind != "sign":
        trials = [entity, *(laid(entity.size_px * step) for step in (0.975, 1.03))]
        entity = min(trials, key=lambda trial: misfit(trial, sigma))
    size = entity.size_px
    entity = Entity(kind, COLOURS[colour], size, 0.0, {"x": x, "y": y}, text)
    frames = np.arange(count)
    entity = _settle(entity, pixels, share, backdrop, frames, rgb, sigma, x, y)
    drawn = _synthesise(entity, backdrop, frames, sigma)
    expected = _matte(drawn, backdrop, rgb).sum((1, 2))
    blot = _blot(pixels - drawn)
    if spec.motion == "bounce":  # solids give a little where they hit the ground
        close = np.flatnonzero(blot > 0.4 * LIMITS[kind])
        for squash in (0.05, 0.1, 0.15):
            pressed = replace(entity, track={**entity.track, "squash": np.full(count, squash)})
            blot[close] = np.minimum(blot[close], _blot(pixels[close] - _synthesise(pressed, backdrop, close, sigma)))
    return Fit(entity, sigma, blot, mass, expected, peak, np.asarray(entity.track["x"]), np.asarray(entity.track["y"]))


def _peak(share: np.ndarray) -> np.ndarray:
    """Highest 3 × 3 mean of the matte per frame: how solid the most solid part is."""
    total = np.pad(share, ((0, 0), (1, 0), (1, 0))).cumsum(1).cumsum(2)
    window = total[:, 3:, 3:] - total[:, :-3, 3:] - total[:, 3:, :-3] + total[:, :-3, :-3]
    return window.max((1, 2)) / 9


def _settle(entity: Entity, pixels, share, backdrop, frames, rgb, sigma: float, x: np.ndarray, y: np.ndarray) -> Entity:
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
        drawn = _synthesise(replace(entity, track=track), backdrop, frames, 0.0)
        _, at_x, at_y = _centroid(_matte(drawn, backdrop, rgb))
        track["x"][frames] += np.nan_to_num(seen_x - at_x)
        track["y"][frames] += np.nan_to_num(seen_y - at_y)
    return replace(entity, track=track)


def _pose(entity, share, backdrop, frames, rgb, sigma, x, y) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stride and centre of a figure per frame: the best of a bank of silhouettes, compared after aligning centres of mass."""
    height, width = share.shape[1:]
    middle = float(np.median(y[frames]))
    bank_frames = np.arange(len(_SWINGS))
    still = {"x": np.full(len(_SWINGS), width / 2), "y": np.full(len(_SWINGS), middle), "gait": np.arcsin(_SWINGS)}
    bank = _matte(_synthesise(replace(entity, track=still), backdrop, bank_frames, sigma), backdrop, rgb)
    _, bank_x, bank_y = _centroid(bank)
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


# ---- judging ------------------------------------------------------------------------------------------------------


def _judge(spec: Spec, pixels: np.ndarray, fps: float) -> Verdict:
    backdrop = _fit_backdrop(spec, pixels)
    dominant, _ = _dominant(pixels, backdrop)
    follows = {"entity": True, "colour": dominant == spec.colour, "motion": True}
    colour = dominant or spec.colour
    fit = _fit(spec, spec.kind, pixels, backdrop, colour)
    seen, notes = _faults(spec, fit, pixels, backdrop)
    follows["entity"] = dominant is not None and bool(np.quantile(fit.blot, 0.25) < 1.25 * LIMITS[spec.kind])
    path, follows["motion"] = _path(spec, fit, fps)
    if spec.kind == "sign":
        follows["text"] = not bool(np.mean(seen.get("Character Anomalies", np.zeros(1))) > 0.8)
    types = tuple(name for name in ANOMALY_TYPES if name in seen and seen[name].any())
    if not types:
        return Verdict("normal", (), None, follows, path, "")
    frames = np.flatnonzero(np.any([seen[name] for name in types], 0))
    reason = "; ".join(notes[name] for name in types)
    return Verdict("abnormal", types, Window(frames[0] / fps, frames[-1] / fps), follows, path, reason)


def _resembles_another(fit: Fit, pixels: np.ndarray, backdrop: np.ndarray) -> np.ndarray:
    """Frames on which another object of the same size explains the pixels much better, for at least two frames in a row."""
    rival = np.full(len(pixels), np.inf)
    frames = np.flatnonzero(fit.blot > RIVAL_FROM)
    other = replace(fit.entity, kind={"ball": "box", "box": "ball"}[fit.entity.kind])
    rival[frames] = _blot(pixels[frames] - _synthesise(other, backdrop, frames, fit.sigma))
    better = (fit.blot > RIVAL_FROM) & (rival < 0.72 * fit.blot)
    paired = better.copy()
    paired[1:] &= better[:-1]
    paired[:-1] |= paired[1:]
    return paired & better


def _faults(spec: Spec, fit: Fit, pixels: np.ndarray, backdrop: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Per type the frames (T booleans) on which it is seen, and a sentence."""
    unit = min(pixels.shape[1:3]) / 64
    ratio = fit.mass / np.maximum(fit.expected, 1e-6)
    usual = np.median(fit.expected)
    ratio = fit.mass / max(usual, 1e-6)
    gone = (ratio < GONE) | (fit.peak < FAINT)
    here = ~gone
    seen: dict[str, np.ndarray] = {}
    notes: dict[str, str] = {}
    grounded = spec.motion in ("left", "right", "still") and spec.kind in (*OBJECTS, "figure")

    wrong = here & (fit.blot > LIMITS[spec.kind])
    if spec.kind in OBJECTS:
        wrong |= here & _resembles_another(fit, pixels, backdrop)
    if grounded and wrong.any():
        sunk = _sunk(fit, pixels, backdrop, wrong)
        if sunk.any():
            seen["Physical Violations"], notes["Physical Violations"] = sunk, f"the {spec.kind} sinks into the ground"
            wrong = wrong & ~_widen(sunk)
    if wrong.any():
        name = {"figure": "Human Distortion", "sign": "Character Anomalies"}.get(spec.kind, "Object Distortion")
        seen[name] = wrong
        notes[name] = {"figure": "the body is not that of a figure", "sign": "the letters are not the prompt's"}.get(
            spec.kind, f"the {spec.kind} loses its shape"
        )

    motion = gone.copy()
    motion |= _jerks(spec, fit, here, unit)
    lift = np.zeros_like(gone)
    if grounded and here.any():
        rest = np.quantile(fit.y[here], 0.8)
        lift = here & (rest - fit.y > LIFT_PX * unit) & ~motion & ~wrong
        if _longest(lift) >= 3:
            earlier = seen.get("Physical Violations", np.zeros_like(gone))
            seen["Physical Violations"] = earlier | lift
            notes["Physical Violations"] = f"the {spec.kind} floats"
    back = _backwards(spec, fit, here & ~motion, unit)
    if back.any() and not motion.any() and not wrong.any():
        seen["Physical Violations"] = seen.get("Physical Violations", np.zeros_like(gone)) | back
        notes["Physical Violations"] = f"the {spec.kind} runs backwards"
    if motion.any():
        seen["Motion Anomalies"] = motion
        notes["Motion Anomalies"] = f"the {spec.kind} is missing" if gone.any() else f"the {spec.kind} jumps"
    return seen, notes


def _sunk(fit: Fit, pixels: np.ndarray, backdrop: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Frames that a whole entity, lowered behind the line on which it usually stands, explains."""
    entity, frames = fit.entity, np.flatnonzero(wrong)
    calm = ~wrong & (fit.mass > 0.7 * np.median(fit.expected))
    level = np.median(fit.y[calm]) if calm.any() else np.quantile(fit.y, 0.3)
    floor = level + foot(entity.kind, entity.size_px)
    height = 2 * entity.size_px
    result = np.zeros_like(wrong)
    least = np.full(len(frames), np.inf)
    for depth in np.arange(0.06, 0.75, 0.06) * height:
        track = {key: np.asarray(value).copy() for key, value in entity.track.items()}
        track["y"] = np.full(len(fit.y), level + depth)
        track["floor"] = np.full(len(fit.y), floor)
        drawn = _synthesise(replace(entity, track=track), backdrop, frames, fit.sigma)
        least = np.minimum(least, _blot(pixels[frames] - drawn))
    result[frames] = (least < LIMITS[entity.kind]) & (least < 0.75 * fit.blot[frames])
    return result


def _jerks(spec: Spec, fit: Fit, here: np.ndarray, unit: float) -> np.ndarray:
    """Frames at which the path breaks: the second difference (first difference along a bounce) is more than any force here gives."""
    found = np.zeros_like(here)
    frames = np.flatnonzero(here)
    for one, two, three in zip(frames, frames[1:], frames[2:], strict=False):
        if three - one != 2:
            continue
        bend_x = fit.x[three] - 2 * fit.x[two] + fit.x[one]
        bend_y = fit.y[three] - 2 * fit.y[two] + fit.y[one]
        if spec.motion == "bounce":
            bend_y = 0.0
        if np.hypot(bend_x, bend_y) > JERK_PX * unit:
            found[two] = True
    if spec.motion == "bounce":
        for one, two in zip(frames, frames[1:], strict=False):
            if two - one == 1 and abs(fit.y[two] - fit.y[one]) > LEAP_PX * unit:
                found[two] = True
    return found


def _backwards(spec: Spec, fit: Fit, fine: np.ndarray, unit: float) -> np.ndarray:
    """Frames on which the entity loses ground against the prompt's direction."""
    found = np.zeros_like(fine)
    if spec.motion not in ("left", "right", "up", "down") or fine.sum() < 6:
        return found
    place = {"left": -fit.x, "right": fit.x, "up": -fit.y, "down": fit.y}[spec.motion]
    frames = np.flatnonzero(fine)
    reached = np.maximum.accumulate(place[frames])
    lost = reached - place[frames]
    if np.quantile(lost, 1.0) > BACK_PX * unit:
        found[frames] = lost > 0.5 * BACK_PX * unit
    return found


def _longest(flags: np.ndarray) -> int:
    best = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        best = max(best, run)
    return best


def _widen(flags: np.ndarray, by: int = 2) -> np.ndarray:
    out = flags.copy()
    for step in range(1, by + 1):
        out[step:] |= flags[:-step]
        out[:-step] |= flags[step:]
    return out


def _path(spec: Spec, fit: Fit, fps: float) -> tuple[float, bool]:
    """Mean path in px per second, and whether it goes the prompt's way."""
    here = fit.mass > GONE * max(np.median(fit.expected), 1e-6)
    both = here[1:] & here[:-1]
    if not both.any():
        return 0.0, False
    step_x, step_y = np.diff(fit.x)[both], np.diff(fit.y)[both]
    path = float(np.hypot(step_x, step_y).mean() * fps)
    x, y = fit.x[here], fit.y[here]
    far_x, far_y = np.median(step_x) * len(fit.x), np.median(step_y) * len(fit.x)
    unit = fit.entity.size_px / {"sign": 4.0, "figure": 16.5}.get(spec.kind, 8.5)
    least = 7 * unit
    went = {
        "right": far_x > least and abs(far_y) < 0.6 * abs(far_x),
        "left": far_x < -least and abs(far_y) < 0.6 * abs(far_x),
        "down": far_y > 0.5 * least and abs(far_x) < 0.6 * abs(far_y),
        "up": far_y < -0.5 * least and abs(far_x) < 0.6 * abs(far_y),
        "still": abs(far_x) < least and abs(far_y) < least,
        "bounce": float(np.ptp(y)) > 0.7 * least and float(np.abs(np.median(step_x))) * len(fit.x) < least and len(x) > 4,
    }[spec.motion]
    return path, bool(went)


# ---- agreement ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Agreement with the ground truth on rendered clips: n clips, share with the right status, recall by type, false alarms."""

    n: int
    accuracy: float
    type_accuracy: float
    false_alarms: float
    recall: dict[str, float]
    missed: tuple[tuple[int, str], ...]
    wrong: tuple[tuple[int, str], ...]
    follows: dict[str, float]


def degrade(pixels: UInt8[np.ndarray, "T H W 3"], seed: int, *, sigma: float = 1.0, noise: float = 4.0, tint: float = 10.0):
    """A stand-in for a small VAE: Gaussian blur (px), noise (levels) and a constant tint per clip of up to ± ``tint`` levels."""
    rng = np.random.default_rng((seed, 77))
    soft = _blur(pixels.astype(np.float32), sigma) + rng.normal(0, noise, pixels.shape) + rng.uniform(-tint, tint, 3)
    return np.clip(soft + 0.5, 0, 255).astype(np.uint8)


def agreement(seeds: Iterable[int], world: World = STUDIO, *, blurred: bool = False) -> Agreement:
    """Judge rendered clips of ``seeds``, every other one anomalous, and compare with their truth."""
    counts, right, typed, alarms, normals = Counter(), 0, 0, 0, 0
    caught: Counter = Counter()
    follows: Counter = Counter()
    missed, wrong = [], []
    n = 0
    for n, seed in enumerate(seeds, 1):
        clip = make_clip(seed, world, anomalous=bool(n % 2))
        pixels = degrade(clip.pixels, seed) if blurred else clip.pixels
        verdict = judge(clip.prompt, Video.open(pixels, fps=clip.fps))
        right += verdict.status == clip.status
        for name, held in verdict.follows.items():
            follows[name] += held
            counts[f"follows {name}"] += 1
        if clip.status == "normal":
            normals += 1
            if verdict.status != "normal":
                alarms += 1
                wrong.append((seed, f"{clip.prompt}: {verdict.reason}"))
            continue
        truth = clip.anomalies[0].type
        counts[truth] += 1
        typed += truth in verdict.types
        caught[truth] += verdict.status == "abnormal"
        if verdict.status == "normal":
            missed.append((seed, f"{clip.defects[0].subtype} {clip.defects[0].first}-{clip.defects[0].last}: {clip.prompt}"))
    if n == 0:
        raise ValueError("agreement needs at least one seed, received none")
    return Agreement(
        n,
        right / n,
        typed / max(n - normals, 1),
        alarms / max(normals, 1),
        {name: caught[name] / counts[name] for name in ANOMALY_TYPES if counts[name]},
        tuple(missed),
        tuple(wrong),
        {name: held / counts[f"follows {name}"] for name, held in follows.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Agreement of the oracle with the world's ground truth (TEST seeds by default).")
    parser.add_argument("--n", type=int, default=1000, help="clips, half of them anomalous")
    parser.add_argument("--seed", type=int, default=TEST_SEEDS.start, help="first seed")
    parser.add_argument("--show", action="store_true", help="list the clips on which it errs")
    options = parser.parse_args()
    for name, blurred in (("clean", False), ("blurred", True)):
        found = agreement(range(options.seed, options.seed + options.n), blurred=blurred)
        recall = ", ".join(f"{kind} {value:.3f}" for kind, value in found.recall.items())
        print(f"{name}: n {found.n}  accuracy {found.accuracy:.4f}  type {found.type_accuracy:.3f}  false alarms {found.false_alarms:.4f}")
        print(f"  recall: {recall}")
        print("  follows: " + ", ".join(f"{kind} {value:.3f}" for kind, value in found.follows.items()))
        if options.show:
            for seed, words in (*found.missed, *found.wrong):
                print(f"  {seed} {words}")


if __name__ == "__main__":
    main()
