"""Which part of a body an injector changes: whole limbs, hands and faces, and where they are.

SourceClip + random stream → ``choose_body`` or ``choose_limb`` → Body, joints, frames; ``capsule`` and
``hull_masks`` → masks
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from cac_align.data.injection.injector import NotApplicable, SourceClip
from cac_align.data.injection.injectors.compositing import choose_span
from cac_align.data.injection.sources.bodies import MIN_BODY_FRAMES, Body, bodies
from cac_align.data.injection.sources.body_models import Kind

_SEEN = 0.6  # probability that a joint can be seen
_WORDS = {"pose": "person", "hand": "hand", "face": "face"}
_TORSO = (11, 12, 23, 24)  # shoulders and hips
_ON_MASK = 0.7  # share of a bone that must lie on the person's mask
_LIMBS = {"forearm": ((13, 15), (14, 16)), "upper arm": ((11, 13), (12, 14)), "shin": ((25, 27), (26, 28))}


def choose_body(source: SourceClip, rng: np.random.Generator, kind: Kind) -> Body:
    able = bodies(source, kind)
    if not able:
        raise NotApplicable(f"no {_WORDS[kind]} is seen on {MIN_BODY_FRAMES} frames")
    return able[int(rng.integers(len(able)))]


def choose_limb(
    source: SourceClip, rng: np.random.Generator, names: Sequence[str]
) -> tuple[Body, str, tuple[int, int]]:
    """A person and a limb of theirs, root and end, that is seen long enough."""
    people = bodies(source, "pose")
    if not people:
        raise NotApplicable(f"no person is seen on {MIN_BODY_FRAMES} frames")
    able = [
        (body, name, joints)
        for body in people
        for name in names
        for joints in _LIMBS[name]
        if len(visible_frames(source, body, joints)) >= MIN_BODY_FRAMES
    ]
    if not able:
        raise NotApplicable("no arm or leg of a person is seen whole")
    return able[int(rng.integers(len(able)))]


def visible_frames(source: SourceClip, body: Body, joints: tuple[int, int]) -> np.ndarray:
    """The frames on which shoulders, hips and these joints lie inside the picture, the joints can be
    seen, and the bone between them is on the person's mask and not foreshortened away.
    """
    frames = inside_frames(source, body, [*_TORSO, *joints])
    if len(frames) == 0:
        return frames
    ends = body.points[frames][:, list(joints)]
    long = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1) >= max(source.shape[1] / 48, 8)
    shown = [
        body.mask is not None and _covered(source, body.mask[frame], body.points[frame][list(joints)])
        for frame in frames
    ]
    return frames[long & np.array(shown) & (body.seen[frames][:, list(joints)] >= _SEEN).all(1)]


def _covered(source: SourceClip, mask: np.ndarray, ends: np.ndarray) -> bool:
    """Whether a bone lies on the person's mask (H, W): what the model only guesses does not."""
    bone = capsule(source, ends, 1.0)
    return bool(mask[bone].mean() >= _ON_MASK) if bone.any() else False


def inside_frames(source: SourceClip, body: Body, joints: Sequence[int]) -> np.ndarray:
    """The frames on which all these points lie in the picture."""
    points = body.points[body.frames][:, list(joints)]
    limit = (source.shape[2] - 2, source.shape[1] - 2)
    return body.frames[((points >= 1) & (points <= limit)).all((1, 2))]


def choose_body_span(rng: np.random.Generator, frames: np.ndarray, least: int, most: int) -> tuple[int, int]:
    try:
        return choose_span(rng, frames, least, most)
    except NotApplicable:
        raise NotApplicable(f"the part of the body is not seen whole on {least + 2} frames in a row") from None


def unit_axes(direction: np.ndarray) -> np.ndarray:
    """Rows: a direction as a unit vector, and the one at right angles to it."""
    x, y = direction / max(float(np.linalg.norm(direction)), 1e-6)
    return np.array([[x, y], [-y, x]])


def capsule(source: SourceClip, points: np.ndarray, radius: float) -> np.ndarray:
    """The pixels nearer than ``radius`` to a line through points (N, 2), bool (H, W)."""
    mask = np.zeros(source.shape[1:], bool)
    low = np.maximum(np.floor(points.min(0) - radius).astype(int), 0)
    high = np.minimum(np.ceil(points.max(0) + radius).astype(int) + 1, source.shape[:0:-1])
    if np.any(low >= high):
        return mask
    rows, columns = np.mgrid[low[1] : high[1], low[0] : high[0]]
    near = np.full(rows.shape, np.inf)
    for one, other in pairwise(points):
        way = other - one
        share = ((columns - one[0]) * way[0] + (rows - one[1]) * way[1]) / max(float(way @ way), 1e-6)
        share = np.clip(share, 0, 1)
        near = np.minimum(near, np.hypot(columns - one[0] - share * way[0], rows - one[1] - share * way[1]))
    mask[low[1] : high[1], low[0] : high[0]] = near <= radius
    return mask


def hull_masks(source: SourceClip, body: Body, points: Sequence[int], first: int, last: int) -> np.ndarray:
    """The convex hull of a body's points on these frames, bool (T, H, W)."""
    import PIL.Image
    import PIL.ImageDraw
    from scipy.spatial import ConvexHull

    masks = np.zeros(source.shape, bool)
    for frame in range(first, last + 1):
        corners = body.points[frame][list(points)]
        image = PIL.Image.new("1", (source.shape[2], source.shape[1]))
        outline = [(float(x), float(y)) for x, y in corners[ConvexHull(corners).vertices]]
        PIL.ImageDraw.Draw(image).polygon(outline, fill=1)
        masks[frame] = np.asarray(image)
    return masks


def skin(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Where a frame (H, W, 3) has the colour of a hand's palm, bool (H, W). points: the hand's, (21, 2)."""
    palm = points[[0, 5, 17]].mean(0) + np.mgrid[-2:3, -2:3].reshape(2, -1).T
    columns, rows = (np.clip(palm[:, axis].astype(int), 0, frame.shape[1 - axis] - 1) for axis in (0, 1))
    own = np.median(frame[rows, columns].astype(np.float32), axis=0) + 1
    light = frame.astype(np.float32) + 1
    total = light.sum(-1)
    hue = np.abs(light / total[..., None] - own / own.sum()).max(-1) < 0.07
    return hue & (total > 0.4 * own.sum()) & (total < 1.8 * own.sum())
