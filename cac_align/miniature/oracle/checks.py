"""The oracle's checks of shape, presence, path and ground: on which frames does a clip violate what
its prompt implies?

Fit + likeness + pixels → find_anomalies → frames and reasons by anomaly type, and the frames on
which the entity is missing

All thresholds were chosen on TRAIN seeds and are measured on TEST seeds.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from cac_align.miniature.oracle.fit import Fit
from cac_align.miniature.oracle.imaging import draw_entity, local_residual
from cac_align.miniature.world.grammar import OBJECTS, Spec
from cac_align.miniature.world.scene import foot

# Lengths are in px for frames of 64 px, residuals in grey levels.
# Residual from which another object's silhouette is tried.
_MIN_RIVAL_RESIDUAL = 17.0
# The entity looks like the other object where that one leaves less than this share of the residual.
_RIVAL_SHARE = 0.72
# Shares of the usual mass and of the usual solidity below which the entity counts as missing.
_MISSING_MASS, _MISSING_SOLIDITY = 0.35, 0.62
# Second difference of the path that no force of this world gives.
_JERK_PX = 3.4
# Step along a bounce that gravity cannot give.
_LEAP_PX = 6.4
# Height above the usual level at which a grounded entity floats.
_LIFT_PX = 3.0
# Way lost against the prompt's direction.
_BACKWARD_PX = 1.6
# A residual of this many limits counts on a single frame, a smaller one on two in a row only (no rater sees 1/16 s).
_GROSS = 1.5
# Residual above the usual one, between a frame and the median frame of a still figure.
_CHANGE = 16.0


def measure_likeness(fit: Fit, pixels: np.ndarray, backdrop: np.ndarray) -> np.ndarray:
    """How much the entity looks like another object of the same size on each frame, (T,); above 1
    it does.
    """
    if fit.entity.kind not in OBJECTS:
        return np.zeros(len(pixels))
    rival = np.full(len(pixels), np.inf)
    frames = np.flatnonzero(fit.residual > _MIN_RIVAL_RESIDUAL)
    other = replace(fit.entity, kind={"ball": "box", "box": "ball"}[fit.entity.kind])
    rival[frames] = local_residual(pixels[frames] - draw_entity(other, backdrop, frames, fit.sigma))
    return _RIVAL_SHARE * fit.residual / np.maximum(rival, 1e-6)


def find_anomalies(
    spec: Spec, fit: Fit, likeness: np.ndarray, pixels: np.ndarray, backdrop: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, str], np.ndarray]:
    """The frames (T booleans) and a reason for each anomaly type found, and the frames on which the
    entity is missing.
    """
    unit = min(pixels.shape[1:3]) / 64
    ratio = fit.mass / max(np.median(fit.expected_mass), 1e-6)
    usual_mass, usual_solidity = (float(np.clip(np.quantile(values, 0.8), 0.5, 1)) for values in (ratio, fit.solidity))
    missing = (ratio < _MISSING_MASS * usual_mass) | (fit.solidity < _MISSING_SOLIDITY * usual_solidity)
    here = ~missing
    found: dict[str, np.ndarray] = {}
    reasons: dict[str, str] = {}
    grounded = spec.motion in ("left", "right", "still") and spec.kind in (*OBJECTS, "figure")

    misshapen = here & (fit.residual > fit.limit)
    if spec.kind in OBJECTS:
        another = likeness > 1
        misshapen = _keep_lasting(misshapen, fit.residual > _GROSS * fit.limit) | (
            here & _keep_lasting(another, np.zeros_like(another))
        )
    if grounded and misshapen.any():
        sunk = _find_sinking(fit, pixels, backdrop, misshapen)
        if sunk.any():
            found["Physical Violations"], reasons["Physical Violations"] = (
                sunk,
                f"the {spec.kind} sinks into the ground",
            )
            misshapen = misshapen & ~_widen(sunk)
    if misshapen.any():
        name = {"figure": "Human Distortion", "sign": "Character Anomalies"}.get(spec.kind, "Object Distortion")
        found[name] = misshapen
        reasons[name] = {"figure": "the body is not that of a figure", "sign": "the letters are not the prompt's"}.get(
            spec.kind, f"the {spec.kind} loses its shape"
        )

    motion = missing.copy()
    motion |= _find_jerks(spec, fit, here, unit)
    lift = np.zeros_like(missing)
    if grounded and here.any():
        rest = np.quantile(fit.y[here], 0.8)
        lift = here & (rest - fit.y > _LIFT_PX * unit) & ~motion & ~misshapen
        if _longest_run(lift) >= 3:
            earlier = found.get("Physical Violations", np.zeros_like(missing))
            found["Physical Violations"] = earlier | lift
            reasons["Physical Violations"] = f"the {spec.kind} floats"
    back = _find_reversal(spec, fit, here & ~motion, unit)
    if back.any() and not motion.any() and not misshapen.any():
        found["Physical Violations"] = found.get("Physical Violations", np.zeros_like(missing)) | back
        reasons["Physical Violations"] = f"the {spec.kind} runs backwards"
    if motion.any():
        found["Motion Anomalies"] = motion
        reasons["Motion Anomalies"] = f"the {spec.kind} is missing" if missing.any() else f"the {spec.kind} jumps"
    if not found and spec.kind == "figure" and spec.motion == "still":
        # Legs that stand together hide a missing one; but nothing in a still figure may change at all.
        change = local_residual(pixels - np.median(pixels, axis=0))
        stirs = change > np.median(change) + _CHANGE
        if stirs[0]:  # most of the clip is the changed part: it begins normal
            stirs = ~stirs
        if stirs.any():
            found["Human Distortion"], reasons["Human Distortion"] = stirs, "the body of a still figure changes"
    return found, reasons, missing


def _find_sinking(fit: Fit, pixels: np.ndarray, backdrop: np.ndarray, misshapen: np.ndarray) -> np.ndarray:
    """Frames that are explained by a whole entity, lowered behind the line on which it usually
    stands.
    """
    entity, frames = fit.entity, np.flatnonzero(misshapen)
    calm = ~misshapen & (fit.mass > 0.7 * np.median(fit.expected_mass))
    level = np.median(fit.y[calm]) if calm.any() else np.quantile(fit.y, 0.3)
    floor = level + foot(entity.kind, entity.size_px)
    height = 2 * entity.size_px
    result = np.zeros_like(misshapen)
    least = np.full(len(frames), np.inf)
    for depth in np.arange(0.06, 0.75, 0.06) * height:
        track = {key: np.asarray(value).copy() for key, value in entity.track.items()}
        track["y"] = np.full(len(fit.y), level + depth)
        track["floor"] = np.full(len(fit.y), floor)
        drawn = draw_entity(replace(entity, track=track), backdrop, frames, fit.sigma)
        least = np.minimum(least, local_residual(pixels[frames] - drawn))
    result[frames] = (least < fit.limit) & (least < 0.75 * fit.residual[frames])
    return result


def _find_jerks(spec: Spec, fit: Fit, here: np.ndarray, unit: float) -> np.ndarray:
    """Frames at which the path breaks: no force of this world gives such a second difference (along
    a bounce: step).
    """
    found = np.zeros_like(here)
    frames = np.flatnonzero(here)
    for one, two, three in zip(frames, frames[1:], frames[2:], strict=False):
        if three - one != 2:
            continue
        bend_x = fit.x[three] - 2 * fit.x[two] + fit.x[one]
        bend_y = fit.y[three] - 2 * fit.y[two] + fit.y[one]
        if spec.motion == "bounce":
            bend_y = 0.0
        if np.hypot(bend_x, bend_y) > _JERK_PX * unit:
            found[two] = True
    if spec.motion == "bounce":
        for one, two in itertools.pairwise(frames):
            if two - one == 1 and abs(fit.y[two] - fit.y[one]) > _LEAP_PX * unit:
                found[two] = True
    return found


def _find_reversal(spec: Spec, fit: Fit, fine: np.ndarray, unit: float) -> np.ndarray:
    """Frames on which the entity moves against the prompt's direction."""
    found = np.zeros_like(fine)
    if spec.motion not in ("left", "right", "up", "down") or fine.sum() < 6:
        return found
    place = {"left": -fit.x, "right": fit.x, "up": -fit.y, "down": fit.y}[spec.motion]
    frames = np.flatnonzero(fine)
    reached = np.maximum.accumulate(place[frames])
    lost = reached - place[frames]
    if np.quantile(lost, 1.0) > _BACKWARD_PX * unit:
        found[frames] = lost > 0.5 * _BACKWARD_PX * unit
    return found


def _keep_lasting(flags: np.ndarray, gross: np.ndarray) -> np.ndarray:
    """The flags that have a neighbour or are gross."""
    beside = np.zeros_like(flags)
    beside[1:] |= flags[:-1]
    beside[:-1] |= flags[1:]
    return flags & (beside | gross)


def _longest_run(flags: np.ndarray) -> int:
    """The length of the longest run of flags."""
    best = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        best = max(best, run)
    return best


def _widen(flags: np.ndarray, by: int = 2) -> np.ndarray:
    """The flags and ``by`` frames on either side."""
    out = flags.copy()
    for step in range(1, by + 1):
        out[step:] |= flags[:-step]
        out[:-step] |= flags[step:]
    return out


def measure_path(spec: Spec, fit: Fit, fps: float) -> tuple[float, bool]:
    """The oracle displacement in px per second, and whether the entity moves as the prompt says."""
    here = fit.mass > _MISSING_MASS * max(np.median(fit.expected_mass), 1e-6)
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
        "bounce": float(np.ptp(y)) > 0.7 * least
        and float(np.abs(np.median(step_x))) * len(fit.x) < least
        and len(x) > 4,
    }[spec.motion]
    return path, bool(went)
