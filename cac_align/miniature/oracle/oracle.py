"""The oracle: judges a generated Studio clip against the scene its prompt asks for, by pixels and physics alone.

prompt → expected entity; video → backdrop fit → matte of the entity's colour → track (place, size, pose)
→ synthesis of what should be there, blurred like the clip → residual → shape, presence, path and ground checks → ``Verdict``

The matte of a pixel p over backdrop b is its projection ⟨p − b, c − b⟩ / |c − b|² on the entity's colour c, which is linear and so
survives blur. Structure is judged by the largest 5 × 5 mean of |clip − synthesis|: an extra limb, a hole, a wrong glyph or a
torn shape all leave such a blot. No model is asked; thresholds were chosen on TRAIN seeds and are measured on TEST seeds.

It can see all five types as far as Studio scenes show them (``CLAIMS``); ``CANNOT`` lists what it does not look for.
Run ``python -m cac_align.miniature.oracle.oracle --n 1000`` for its agreement with the ground truth.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from cac_align.core.judgement import ANOMALY_TYPES, Status, Window
from cac_align.core.video import Video
from cac_align.miniature.oracle.fit import (
    LIMITS,
    Fit,
    blur,
    dominant_colour,
    fit_backdrop,
    fit_entity,
    residual_blot,
    synthesise,
)
from cac_align.miniature.world.grammar import OBJECTS, Spec, parse_prompt
from cac_align.miniature.world.scene import foot
from cac_align.miniature.world.settings import STUDIO, TEST_SEEDS, World
from cac_align.miniature.world.world import make_clip

CLAIMS: tuple[str, ...] = ANOMALY_TYPES
"""Types it reports."""
CANNOT: tuple[str, ...] = (
    "interpenetration of two entities (Studio clips hold one)",
    "defects of the backdrop",
    "whole-clip defects of an entity that looks like another prompt's entity throughout (reported as follows.entity = False)",
)
"""What it does not look for."""

# Thresholds, chosen on TRAIN seeds. Lengths are px at a frame side of 64; blots are grey levels.
RIVAL_FROM = 17.0  # blot from which another object's silhouette is tried
RIVAL = 0.72  # share of the blot below which that one leaves so little that two frames in a row of it are a defect
GONE, FAINT = 0.35, 0.62  # share of the usual mass, and of the usual solidity, below which the entity counts as missing
JERK_PX = 3.4  # second difference of the path that no force of this world gives
LEAP_PX = 6.4  # step along a bounce that gravity cannot give
LIFT_PX = 3.0  # height above the usual level at which a grounded entity floats
BACK_PX = 1.6  # ground lost against the prompt's direction
GROSS = 1.5  # times the limit: an object this misshapen counts on one frame, a milder one on two in a row (no rater sees 1/16 s)
TOLERANCE = 1.3
"""How many times its limit an object's outline may be off before it counts as misshapen. Of what the small Wan draws, two fifths of the clips
that a factor of 1 calls broken are outlines off by a pixel or two for a sixteenth of a second, with no gap between them and sound ones:
a person who watches the clip would not report them. All but a few rendered defects lie beyond 1.3 (docs/lab/LOG.md)."""
STIR = 16.0  # blot above the usual one between a frame and the median frame of a still figure


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
    return look(prompt, video).verdict


@dataclass(frozen=True, eq=False)
class Sight:
    """All that the oracle saw of one clip: the verdict, the entity laid over it, per type the frames (T booleans) and the words.

    gone: the frames (T booleans) on which the entity is missing. likeness: per frame, how much it looks like another object (above 1: it does).
    """

    verdict: Verdict
    spec: Spec
    colour: str
    fit: Fit
    seen: dict[str, np.ndarray]
    notes: dict[str, str]
    gone: np.ndarray
    likeness: np.ndarray

    @property
    def bent(self) -> np.ndarray:
        """Per frame (T), how far the entity is off its shape: off its own outline or like another object's, whichever is more; 1: the limit."""
        return np.maximum(self.fit.blot / self.fit.limit, self.likeness)


def look(prompt: str, video: Video, *, tolerance: float = TOLERANCE) -> Sight:
    """The verdict with what it rests on. tolerance: of an object's outline, in units of its limit. Raises as ``judge``."""
    spec = parse_prompt(prompt)
    if len(spec.actors) != 1 or spec.kind not in STUDIO.kinds:
        raise ValueError(f"the oracle judges prompts with one entity of {', '.join(STUDIO.kinds)}; received {prompt!r}")
    if len(video) < 5:
        raise ValueError(f"{video.name}: the oracle needs at least 5 frames, received {len(video)}")
    pixels = video.frames(range(len(video))).pixels
    return _look(spec, pixels.astype(np.float32), video.fps, tolerance)


# ---- judging ------------------------------------------------------------------------------------------------------


def _look(spec: Spec, pixels: np.ndarray, fps: float, tolerance: float) -> Sight:
    backdrop = fit_backdrop(spec, pixels)
    dominant, _ = dominant_colour(pixels, backdrop)
    follows = {"entity": True, "colour": dominant == spec.colour, "motion": True}
    colour = dominant or spec.colour
    fit = fit_entity(spec, spec.kind, pixels, backdrop, colour)
    fit = replace(fit, tolerance=tolerance) if spec.kind in OBJECTS else fit
    likeness = _likeness(fit, pixels, backdrop)
    seen, notes, gone = _faults(spec, fit, likeness, pixels, backdrop)
    follows["entity"] = dominant is not None and bool(np.quantile(fit.blot, 0.25) < 1.25 * LIMITS[spec.kind])
    path, follows["motion"] = _path(spec, fit, fps)
    if spec.kind == "sign":
        follows["text"] = not bool(np.mean(seen.get("Character Anomalies", np.zeros(1))) > 0.8)
    types = tuple(name for name in ANOMALY_TYPES if name in seen and seen[name].any())
    verdict = Verdict("normal", (), None, follows, path, "")
    if types:
        frames = np.flatnonzero(np.any([seen[name] for name in types], 0))
        window = Window(float(frames[0] / fps), float(frames[-1] / fps))
        verdict = Verdict("abnormal", types, window, follows, path, "; ".join(notes[name] for name in types))
    return Sight(verdict, spec, colour, fit, {name: seen[name] for name in types}, notes, gone, likeness)


def _likeness(fit: Fit, pixels: np.ndarray, backdrop: np.ndarray) -> np.ndarray:
    """How much better another object of the same size explains each frame, in units of what makes it look like that one (1)."""
    if fit.entity.kind not in OBJECTS:
        return np.zeros(len(pixels))
    rival = np.full(len(pixels), np.inf)
    frames = np.flatnonzero(fit.blot > RIVAL_FROM)
    other = replace(fit.entity, kind={"ball": "box", "box": "ball"}[fit.entity.kind])
    rival[frames] = residual_blot(pixels[frames] - synthesise(other, backdrop, frames, fit.sigma))
    return RIVAL * fit.blot / np.maximum(rival, 1e-6)


def _faults(
    spec: Spec, fit: Fit, likeness: np.ndarray, pixels: np.ndarray, backdrop: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, str], np.ndarray]:
    """Per type the frames (T booleans) on which it is seen, and a sentence; and the frames on which the entity is missing."""
    unit = min(pixels.shape[1:3]) / 64
    ratio = fit.mass / max(np.median(fit.expected), 1e-6)
    usual_mass, usual_peak = (float(np.clip(np.quantile(values, 0.8), 0.5, 1)) for values in (ratio, fit.peak))
    gone = (ratio < GONE * usual_mass) | (fit.peak < FAINT * usual_peak)
    here = ~gone
    seen: dict[str, np.ndarray] = {}
    notes: dict[str, str] = {}
    grounded = spec.motion in ("left", "right", "still") and spec.kind in (*OBJECTS, "figure")

    wrong = here & (fit.blot > fit.limit)
    if spec.kind in OBJECTS:
        another = likeness > 1
        wrong = _lasting(wrong, fit.blot > GROSS * fit.limit) | (here & _lasting(another, np.zeros_like(another)))
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
    if not seen and spec.kind == "figure" and spec.motion == "still":
        # Legs that stand together hide a missing one; but nothing in a still figure may change at all.
        change = residual_blot(pixels - np.median(pixels, axis=0))
        stirs = change > np.median(change) + STIR
        if stirs[0]:  # most of the clip is the changed part: it begins sound
            stirs = ~stirs
        if stirs.any():
            seen["Human Distortion"], notes["Human Distortion"] = stirs, "the body of a still figure changes"
    return seen, notes, gone


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
        drawn = synthesise(replace(entity, track=track), backdrop, frames, fit.sigma)
        least = np.minimum(least, residual_blot(pixels[frames] - drawn))
    result[frames] = (least < fit.limit) & (least < 0.75 * fit.blot[frames])
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
        for one, two in itertools.pairwise(frames):
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


def _lasting(flags: np.ndarray, gross: np.ndarray) -> np.ndarray:
    """The flags that have a neighbour, or are gross."""
    beside = np.zeros_like(flags)
    beside[1:] |= flags[:-1]
    beside[:-1] |= flags[1:]
    return flags & (beside | gross)


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
        "bounce": float(np.ptp(y)) > 0.7 * least
        and float(np.abs(np.median(step_x))) * len(fit.x) < least
        and len(x) > 4,
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


def degrade(
    pixels: UInt8[np.ndarray, "T H W 3"], seed: int, *, sigma: float = 1.0, noise: float = 4.0, tint: float = 10.0
):
    """A stand-in for a small VAE: Gaussian blur (px), noise (levels) and a constant tint per clip of up to ± ``tint`` levels."""
    rng = np.random.default_rng((seed, 77))
    soft = blur(pixels.astype(np.float32), sigma) + rng.normal(0, noise, pixels.shape) + rng.uniform(-tint, tint, 3)
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
            missed.append(
                (seed, f"{clip.defects[0].subtype} {clip.defects[0].first}-{clip.defects[0].last}: {clip.prompt}")
            )
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
    parser = argparse.ArgumentParser(
        description="Agreement of the oracle with the world's ground truth (TEST seeds by default)."
    )
    parser.add_argument("--n", type=int, default=1000, help="clips, half of them anomalous")
    parser.add_argument("--seed", type=int, default=TEST_SEEDS.start + 1000, help="first seed")
    parser.add_argument("--show", action="store_true", help="list the clips on which it errs")
    options = parser.parse_args()
    for name, blurred in (("clean", False), ("blurred", True)):
        found = agreement(range(options.seed, options.seed + options.n), blurred=blurred)
        recall = ", ".join(f"{kind} {value:.3f}" for kind, value in found.recall.items())
        print(
            f"{name}: n {found.n}  accuracy {found.accuracy:.4f}  type {found.type_accuracy:.3f}  false alarms {found.false_alarms:.4f}"
        )
        print(f"  recall: {recall}")
        print("  follows: " + ", ".join(f"{kind} {value:.3f}" for kind, value in found.follows.items()))
        if options.show:
            for seed, words in (*found.missed, *found.wrong):
                print(f"  {seed} {words}")


if __name__ == "__main__":
    main()
