"""The oracle: judges a generated Studio clip against the scene its prompt asks for, by pixels and
physics alone.

prompt → expected entity; video → fit_backdrop → fit_entity → find_anomalies → OracleResult with its
OracleVerdict

It draws what the prompt asks for where the entity was found, blurs it like the clip, and looks at
what remains: an extra limb, a hole, a wrong letter or a torn shape all leave a residual. It asks no
model. It can see all five anomaly types as far as Studio scenes show them; ``UNSUPPORTED`` lists
what it does not look for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from cac_align.core.judgement import ANOMALY_TYPES, Status, Window
from cac_align.core.video import Video
from cac_align.miniature.oracle.checks import find_anomalies, measure_likeness, measure_path
from cac_align.miniature.oracle.fit import RESIDUAL_LIMITS, Fit, fit_entity
from cac_align.miniature.oracle.imaging import dominant_colour, fit_backdrop
from cac_align.miniature.world.grammar import OBJECTS, Spec, parse_prompt
from cac_align.miniature.world.settings import STUDIO

UNSUPPORTED: tuple[str, ...] = (
    "interpenetration of two entities (Studio clips hold one)",
    "defects of the backdrop",
    "an entity that looks like another prompt's entity throughout the clip (reported as follows['entity'] = False)",
)
"""What the oracle does not look for."""

TOLERANCE = 1.3
"""How many times its limit an object's residual may reach before the object counts as misshapen.

Of the small Wan's clips, two fifths of those that a factor of 1 calls anomalous have an outline
that is off by a pixel or two for a sixteenth of a second, without a gap between them and normal
ones; a person who watches the clip would not report them. All but a few rendered defects lie beyond
1.3 (docs/lab/oracle.md).
"""


@dataclass(frozen=True)
class OracleVerdict:
    """What the oracle says about one clip."""

    status: Status
    # The anomaly types found, in the paper's order.
    types: tuple[str, ...]
    # From the first to the last anomalous frame; None when normal.
    window: Window | None
    # Whether the clip follows the prompt's "entity", "colour" and "motion" (and "text" for a sign).
    follows: dict[str, bool]
    # Oracle displacement: mean speed of the entity's centre in px per second, a measure of dynamics.
    displacement_px_s: float
    # The reasons in words; empty when normal.
    reason: str


@dataclass(frozen=True, eq=False)
class OracleResult:
    """Everything that the oracle measured of one clip, beside its verdict."""

    verdict: OracleVerdict
    spec: Spec
    # The colour that was found.
    colour: str
    fit: Fit
    # For each anomaly type found, the frames that show it.
    frames_by_type: dict[str, Bool[np.ndarray, " T"]]
    reasons: dict[str, str]
    # The frames on which the entity is missing.
    missing: Bool[np.ndarray, " T"]
    # How much the entity looks like another object; above 1 it does.
    likeness: Float[np.ndarray, " T"]

    @property
    def shape_error(self) -> Float[np.ndarray, " T"]:
        """How far the entity is off its shape; 1 is the limit.

        It is the larger one of the residual and the likeness to another object.
        """
        return np.maximum(self.fit.residual / self.fit.limit, self.likeness)


def judge_clip(prompt: str, video: Video) -> OracleVerdict:
    """Judge a Studio clip (of any even size from 64 px on) against its prompt. Raises as
    ``analyse``.
    """
    return analyse(prompt, video).verdict


def analyse(prompt: str, video: Video, *, tolerance: float = TOLERANCE) -> OracleResult:
    """The verdict together with the measurements behind it; ``tolerance`` as ``TOLERANCE``.

    Raises ``ValueError`` for a prompt outside the grammar, with more than one entity or with an
    entity that the Studio lacks, and for a video of fewer than 5 frames.
    """
    spec = parse_prompt(prompt)
    if len(spec.actors) != 1 or spec.kind not in STUDIO.kinds:
        raise ValueError(f"the oracle judges prompts with one entity of {', '.join(STUDIO.kinds)}; received {prompt!r}")
    if len(video) < 5:
        raise ValueError(f"{video.name}: the oracle needs at least 5 frames, received {len(video)}")
    pixels = video.frames(range(len(video))).pixels.astype(np.float32)
    backdrop = fit_backdrop(spec, pixels)
    dominant = dominant_colour(pixels, backdrop)
    colour = dominant or spec.colour
    fit = fit_entity(spec, spec.kind, pixels, backdrop, colour)
    fit = replace(fit, tolerance=tolerance) if spec.kind in OBJECTS else fit
    likeness = measure_likeness(fit, pixels, backdrop)
    found, reasons, missing = find_anomalies(spec, fit, likeness, pixels, backdrop)
    displacement_px_s, follows_motion = measure_path(spec, fit, video.fps)
    resembles = bool(np.quantile(fit.residual, 0.25) < 1.25 * RESIDUAL_LIMITS[spec.kind])
    follows = {
        "entity": dominant is not None and resembles,
        "colour": dominant == spec.colour,
        "motion": follows_motion,
    }
    if spec.kind == "sign":
        follows["text"] = not bool(np.mean(found.get("Character Anomalies", np.zeros(1))) > 0.8)
    types = tuple(name for name in ANOMALY_TYPES if name in found and found[name].any())
    verdict = OracleVerdict("normal", (), None, follows, displacement_px_s, "")
    if types:
        frames = np.flatnonzero(np.any([found[name] for name in types], 0))
        window = Window(float(frames[0] / video.fps), float(frames[-1] / video.fps))
        reason = "; ".join(reasons[name] for name in types)
        verdict = OracleVerdict("abnormal", types, window, follows, displacement_px_s, reason)
    return OracleResult(verdict, spec, colour, fit, {name: found[name] for name in types}, reasons, missing, likeness)
