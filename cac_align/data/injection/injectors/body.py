"""Bodies that are wrong: Human Distortion. An arm or a finger too many, a bone that bends, a hand or a
face that melts.

A bent part is resampled twice, in the anomalous twin by half the displacement each time, in the sham
there and back. An extra part is a turned copy; the sham has the part pasted onto itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cac_align.data.injection.injector import Edit, Injector, NotApplicable, SourceClip
from cac_align.data.injection.injectors.body_parts import (
    capsule,
    choose_body,
    choose_body_span,
    choose_limb,
    hull_masks,
    inside_frames,
    skin,
    unit_axes,
    visible_frames,
)
from cac_align.data.injection.injectors.compositing import during, radius_of, resampled, undoing
from cac_align.data.injection.sources.masks import snug

_TYPE = "Human Distortion"
_NEEDS = ("ai_edge_litert",)

# Landmarks of MediaPipe's pose (33), hand (21) and face (468).
_TIPS = {13: 19, 14: 20, 25: 31, 26: 32}  # a forearm ends with the index finger, a shin with the foot
_FINGERS = ((1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12), (13, 14, 15, 16), (17, 18, 19, 20))
_SHOWN = 0.6  # share of a finger that must have the colour of the palm: else something hides it
_FEATURES = {
    "right eye": (33, 133, 159, 145),
    "left eye": (362, 263, 386, 374),
    "mouth": (61, 291, 13, 14),
    "nose": (1, 4, 98, 327),
}
_FACE_ENDS = (234, 454)  # its right and left edge

_Field = Callable[[int, np.ndarray, np.ndarray], np.ndarray]
"""(frame, columns, rows) → displacement in px (2, h, w): down, right."""


# ---- bent parts ---------------------------------------------------------------------------------------------------


def break_joint(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """A forearm, an upper arm or a shin is bent in its middle, where there is no joint."""
    body, name, (start, end) = choose_limb(source, rng, ("forearm", "upper arm", "shin"))
    first, last = choose_body_span(rng, visible_frames(source, body, (start, end)), 6, 24)
    side = 1 if rng.random() < 0.5 else -1
    bend = side * (0.25 + 0.25 * severity)

    def field(frame: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        bone = body.points[frame, end] - body.points[frame, start]
        length = float(np.linalg.norm(bone))
        across = np.array([-bone[1], bone[0]]) / length
        middle = (body.points[frame, start] + body.points[frame, end]) / 2
        along = ((x - middle[0]) * bone[0] + (y - middle[1]) * bone[1]) / length
        beside = (x - middle[0]) * across[0] + (y - middle[1]) * across[1]
        bump = np.exp(-0.5 * ((along / (0.3 * length)) ** 2 + (beside / (0.4 * length)) ** 2))
        return bend * length * bump * across[::-1, None, None]

    subject = np.zeros(source.shape, bool)
    for frame in range(first, last + 1):
        ends = body.points[frame, [start, end]]
        subject[frame] = capsule(source, ends, 0.2 * float(np.linalg.norm(ends[1] - ends[0])))
    return _bent(
        source, field, subject, (first, last), ("broken limb", f"the {name} is bent where it has no joint", name)
    )


def warp_hand(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """The hand melts: its fingers run into one another and bend in ways that fingers cannot."""
    body = choose_body(source, rng, "hand")
    first, last = choose_body_span(rng, inside_frames(source, body, range(21)), 8, 24)
    knots = rng.permutation([6, 7, 8, 10, 11, 12, 14, 15, 16, 18, 19, 20])[:5]
    ways = rng.standard_normal((5, 2))
    ways /= np.maximum(np.linalg.norm(ways, axis=1, keepdims=True), 1e-6)

    def field(frame: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        points = body.points[frame]
        palm = float(np.linalg.norm(points[9] - points[0]))
        frame_axes = unit_axes(points[9] - points[0])
        total, weight = np.zeros((2, *x.shape)), np.zeros(x.shape)
        for knot, way in zip(knots, ways @ frame_axes, strict=True):
            away = ((x - points[knot][0]) ** 2 + (y - points[knot][1]) ** 2) / (0.22 * palm) ** 2
            near = np.exp(-0.5 * away)
            total += near * way[::-1, None, None]
            weight += near
        return (0.12 + 0.16 * severity) * palm * total / np.maximum(weight, 1)

    subject = hull_masks(source, body, range(21), first, last)
    said = ("hand deformity", "the fingers of the hand melt and bend in ways that fingers cannot", "hand")
    return _bent(source, field, subject, (first, last), said)


def warp_face(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """An eye, the nose or the mouth drifts out of its place and back."""
    body = choose_body(source, rng, "face")
    first, last = choose_body_span(rng, inside_frames(source, body, range(468)), 8, 24)
    name = sorted(_FEATURES)[int(rng.integers(len(_FEATURES)))]
    angle = rng.uniform(0, 2 * np.pi)
    way = np.array([np.cos(angle), np.sin(angle)])

    def shape(frame: int) -> tuple[np.ndarray, float]:
        points = body.points[frame]
        width = float(np.linalg.norm(points[_FACE_ENDS[1]] - points[_FACE_ENDS[0]]))
        return points[list(_FEATURES[name])].mean(0), width

    def field(frame: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        centre, width = shape(frame)
        points = body.points[frame]
        moved_by = (0.1 + 0.12 * severity) * width * (way @ unit_axes(points[_FACE_ENDS[1]] - points[_FACE_ENDS[0]]))
        away = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (0.17 * width) ** 2
        return np.exp(-0.5 * away) * moved_by[::-1, None, None]

    subject = np.zeros(source.shape, bool)
    for frame in range(first, last + 1):
        centre, width = shape(frame)
        subject[frame] = capsule(source, np.stack([centre, centre]), 0.17 * width)
    said = ("face deformity", f"the {name} drifts out of its place in the face", name)
    return _bent(source, field, subject, (first, last), said)


def _bent(
    source: SourceClip, field: _Field, subject: np.ndarray, span: tuple[int, int], said: tuple[str, str, str]
) -> Edit:
    """Both twins of a displacement that swells and fades. said: subtype, reason, region."""
    first, last = span

    def resampled_twice(bent: bool) -> np.ndarray:
        out = source.pixels.copy()
        for frame in range(first, last + 1):
            swell = float(np.sin(np.pi * (frame - first + 0.5) / (last - first + 1)) ** 2)
            area = _around(subject[frame])
            rows, columns = np.mgrid[area].astype(float)
            moved_by = field(frame, columns, rows) * _fade(rows.shape) * swell
            piece = resampled(out[frame][area].astype(np.float32), 0.5 * moved_by)
            piece = resampled(piece, 0.5 * moved_by if bent else undoing(0.5 * moved_by))
            out[frame][area] = np.clip(piece + 0.5, 0, 255).astype(np.uint8)
        return out

    subtype, reason, region = said
    numbers = {"first": first, "last": last}
    return Edit(resampled_twice(True), resampled_twice(False), _TYPE, subtype, reason, region, subject, numbers=numbers)


def _around(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of what a mask (H, W) spans and as much as four fifths of it on every side."""
    out = []
    for axis in (1, 0):
        found = np.flatnonzero(mask.any(axis))
        margin = max(round(0.8 * (found[-1] + 1 - found[0])), 4)
        out.append(slice(max(int(found[0]) - margin, 0), min(int(found[-1]) + 1 + margin, mask.shape[1 - axis])))
    return out[0], out[1]


def _fade(shape: tuple[int, int]) -> np.ndarray:
    """1 inside, 0 at the border (h, w)."""
    near = np.minimum.outer(*(np.minimum(np.arange(size), np.arange(size)[::-1]) for size in shape))
    return np.clip(near / max(min(shape) / 6, 1.0), 0, 1)


# ---- extra parts --------------------------------------------------------------------------------------------------


def extra_limb(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """A second forearm with its hand, or a second shin, grows out of the same joint."""
    body, name, (start, end) = choose_limb(source, rng, ("forearm", "shin"))
    first, last = choose_body_span(rng, visible_frames(source, body, (start, end)), 6, 24)
    tip = _TIPS.get(start, end)

    def part(frame: int) -> tuple[np.ndarray, np.ndarray]:
        points = body.points[frame]
        length = float(np.linalg.norm(points[end] - points[start]))
        reach = points[tip] if tip != end else points[end] + 0.2 * (points[end] - points[start])
        shape = capsule(source, np.stack([points[start], points[end], reach]), 0.22 * length)
        assert body.mask is not None
        return shape & body.mask[frame], points[start]

    angles = rng.permutation([-1, 1]) * rng.uniform(0.6, 0.8 + 0.8 * severity, 2)
    middle = (first + last) // 2
    assert body.mask is not None
    free = body.mask[middle]
    said = ("extra limb", f"a second {name} grows out of the same joint", f"extra {name}")
    return _doubled(source, part, angles, free, (first, last), said)


def extra_finger(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """A finger is there twice: a copy stands off from the same knuckle."""
    body = choose_body(source, rng, "hand")
    first, last = choose_body_span(rng, inside_frames(source, body, range(21)), 6, 24)
    middle = (first + last) // 2

    def whole(frame: int, finger: Sequence[int]) -> np.ndarray:
        points = body.points[frame]
        lengths = np.linalg.norm(np.diff(points[list(finger)], axis=0), axis=1)
        return capsule(source, points[list(finger[1:])], max(0.14 * float(lengths.sum()), 2.0))

    able = [
        finger
        for finger in _FINGERS
        if _share(skin(source.pixels[middle], body.points[middle]), whole(middle, finger)) >= _SHOWN
    ]
    if not able:
        raise NotApplicable("no finger is seen whole")
    finger = able[int(rng.integers(len(able)))]

    def part(frame: int) -> tuple[np.ndarray, np.ndarray]:
        points = body.points[frame]
        return whole(frame, finger) & skin(source.pixels[frame], points), points[finger[1]]

    angles = rng.permutation([-1, 1]) * rng.uniform(0.4, 0.5 + 0.5 * severity, 2)
    free = hull_masks(source, body, range(21), middle, middle)[middle]
    said = ("extra finger", "the hand has a finger too many", "extra finger")
    return _doubled(source, part, angles, free, (first, last), said)


def _share(mask: np.ndarray, within: np.ndarray) -> float:
    """The share of ``within`` that a mask covers."""
    return float((mask & within).sum() / max(within.sum(), 1))


def _doubled(
    source: SourceClip,
    part: Callable[[int], tuple[np.ndarray, np.ndarray]],
    angles: Sequence[float] | np.ndarray,
    taken: np.ndarray,
    span: tuple[int, int],
    said: tuple[str, str, str],
) -> Edit:
    """Both twins of a part that is there twice: turned about its root by the angle at which the copy
    hides least of what is ``taken`` (H, W) already. part: its mask and its root on a frame.
    """
    first, last = span
    middle = (first + last) // 2
    mask, root = part(middle)
    if mask.sum() < 30:
        raise NotApplicable("the part is too small to be doubled")
    hidden = []
    for angle in angles:
        copy = _turned(mask.astype(np.float32), root, angle) > 0.5
        if copy.sum() < 0.85 * mask.sum():
            hidden.append(1.0)  # it leaves the picture
        else:
            hidden.append(float((copy & taken).sum() / copy.sum()))
    if min(hidden) > 0.65:
        raise NotApplicable("there is no room beside the part for its copy")
    chosen = float(angles[int(np.argmin(hidden))])
    subject = np.zeros(source.shape, bool)

    def pasted(angle: float, mark: bool) -> np.ndarray:
        out, radius = source.pixels.copy(), radius_of(source)
        for frame in range(first, last + 1):
            mask, root = part(frame)
            if mask.sum() < 30:
                continue
            alpha = _turned(snug(mask, radius), root, angle)
            canvas = source.pixels[frame].astype(np.float32)
            copy = np.stack([_turned(canvas[..., channel], root, angle, "nearest") for channel in range(3)], axis=-1)
            out[frame] = np.clip(canvas + alpha[..., None] * (copy - canvas) + 0.5, 0, 255).astype(np.uint8)
            if mark:
                subject[frame] = alpha > 0.5
        return out

    anomalous, sham = pasted(chosen, True), pasted(0.0, False)
    subtype, reason, region = said
    numbers = {"first": first, "last": last, "turn": chosen}
    return Edit(anomalous, sham, _TYPE, subtype, reason, region, during(subject, first, last), numbers=numbers)


def _turned(image: np.ndarray, root: np.ndarray, angle: float, mode: str = "constant") -> np.ndarray:
    """An image (H, W) turned about a point (x, y) by an angle, clockwise on screen. mode: what comes in,
    0 or the image's border ("nearest").
    """
    from scipy import ndimage

    if angle == 0:
        return image
    c, s = np.cos(angle), np.sin(angle)
    back = np.array([[c, -s], [s, c]])  # rows and columns of the result → of the image
    middle = root[::-1]
    offset: Any = middle - back @ middle
    return ndimage.affine_transform(image, back, offset, order=1, mode=mode)


BODY_INJECTORS = (
    Injector("extra_limb", "inject", extra_limb, requires=_NEEDS, unmoved=True, body_models=True),
    Injector("extra_finger", "inject", extra_finger, requires=_NEEDS, unmoved=True, body_models=True),
    Injector("joint_break", "inject", break_joint, requires=_NEEDS, unmoved=True, body_models=True),
    Injector("hand_warp", "inject", warp_hand, requires=_NEEDS, unmoved=True, body_models=True),
    Injector("face_warp", "inject", warp_face, requires=_NEEDS, unmoved=True, body_models=True),
)
"""What is wrong with people, hands and faces."""
