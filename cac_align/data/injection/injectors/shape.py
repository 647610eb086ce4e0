"""Objects of the wrong shape: Object Distortion.

Warp, duplicate part, omit part, split and fuse two entities; a part is a piece of a moving object that
sticks out, followed in the coordinates of its box.
"""

from __future__ import annotations

import numpy as np

from cac_align.data.injection.injector import Edit, Injector, MovingObject, NotApplicable, SourceClip
from cac_align.data.injection.injectors.compositing import (
    IDENTITY,
    Cutout,
    Placement,
    choose_object,
    choose_span,
    during,
    moved,
    radius_of,
    resampled,
    undoing,
)
from cac_align.data.injection.sources.masks import dilated, snug, soft

_TYPE = "Object Distortion"


def warp(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """The object melts and bulges: a smooth displacement that swells and fades over 8 to 24 frames.

    Both twins are resampled twice: the anomalous one twice by half the displacement, the sham there
    and back.
    """
    thing = choose_object(source, rng)
    first, last = choose_span(rng, thing.frames, 8, 24)
    reach = float((0.1 + 0.22 * severity) * thing.size.min())
    coarse = rng.standard_normal((2, 4, 4)).astype(np.float32)
    coarse /= np.abs(coarse).max()

    def resampled_twice(bent: bool) -> np.ndarray:
        out = source.pixels.copy()
        for frame in range(first, last + 1):
            swell = float(np.sin(np.pi * (frame - first + 0.5) / (last - first + 1)) ** 2)
            area, field = _displacement(source, thing, frame, coarse, reach * swell)
            piece = resampled(out[frame][area].astype(np.float32), 0.5 * field)
            piece = resampled(piece, 0.5 * field if bent else undoing(0.5 * field))
            out[frame][area] = np.clip(piece + 0.5, 0, 255).astype(np.uint8)
        return out

    return Edit(
        resampled_twice(True),
        resampled_twice(False),
        _TYPE,
        "warp",
        f"the {thing.noun} melts and its outline is bent out of shape",
        thing.noun,
        during(thing.masks, first, last),
        numbers={"first": first, "last": last, "reach": reach},
    )


def _displacement(
    source: SourceClip, thing: MovingObject, frame: int, coarse: np.ndarray, reach: float
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Rows and columns around the object, and how far each pixel of them is displaced, (2, h, w) in px:
    most inside the object, nothing at the border.
    """
    from scipy import ndimage

    _, height, width = source.shape
    left, top, right, bottom = thing.boxes[frame].astype(int)
    margin = max(int(0.25 * min(right - left, bottom - top)), 3)
    area = (
        slice(max(top - margin, 0), min(bottom + margin, height)),
        slice(max(left - margin, 0), min(right + margin, width)),
    )
    shape = (area[0].stop - area[0].start, area[1].stop - area[1].start)
    grid = np.meshgrid(*(np.linspace(0, 3, size) for size in shape), indexing="ij")
    field = np.stack([ndimage.map_coordinates(plane, grid, order=3, mode="nearest") for plane in coarse])
    falloff = ndimage.gaussian_filter(thing.masks[frame][area].astype(np.float32), margin / 2.5)
    edge = np.minimum.outer(
        np.minimum(np.arange(shape[0]), np.arange(shape[0])[::-1]),
        np.minimum(np.arange(shape[1]), np.arange(shape[1])[::-1]),
    )
    falloff *= np.clip(edge / max(margin / 2, 1), 0, 1)
    return area, field * falloff * reach


# ---- parts --------------------------------------------------------------------------------------------------------


def _part(thing: MovingObject, rng: np.random.Generator, share: float) -> tuple[np.ndarray, np.ndarray]:
    """A piece of the object that lies at its outline, on every frame, bool (T, H, W); and the
    direction in which it sticks out, (2,).

    It is what an ellipse around a point of the outline cuts off; both scale with the object's box.
    share: the ellipse's diameter as a share of the box.
    """
    middle = int(thing.frames[len(thing.frames) // 2])
    left, top, right, bottom = thing.boxes[middle]
    y, x = np.nonzero(thing.masks[middle])
    u, v = (x + 0.5 - left) / (right - left) - 0.5, (y + 0.5 - top) / (bottom - top) - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    outward = u * direction[0] + v * direction[1]
    tip = int(np.argmax(outward))
    centre = 0.8 * np.array([u[tip], v[tip]])
    part = np.zeros_like(thing.masks)
    for frame in thing.frames:
        left, top, right, bottom = thing.boxes[frame]
        rows, columns = np.nonzero(thing.masks[frame])
        away = ((columns + 0.5 - left) / (right - left) - 0.5 - centre[0]) ** 2
        away = away + ((rows + 0.5 - top) / (bottom - top) - 0.5 - centre[1]) ** 2
        inside = away <= (share / 2) ** 2
        part[frame][rows[inside], columns[inside]] = True
    return part, direction


def duplicate_part(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """A part of the object is there twice: a copy grows out beside it and moves along.

    The sham has the part pasted onto itself.
    """
    thing = choose_object(source, rng)
    part, direction = _part(thing, rng, 0.35 + 0.25 * severity)
    seen = np.flatnonzero(part.any((1, 2)))
    first, last = choose_span(rng, seen, 4, 24)
    middle = (first + last) // 2
    size = _extent(part[middle])
    best: tuple[float, int, int] | None = None
    for turned in rng.permutation([-1.2, -0.7, 0.0, 0.7, 1.2]):
        c, s = np.cos(turned), np.sin(turned)
        way = np.array([c * direction[0] - s * direction[1], s * direction[0] + c * direction[1]])
        dx, dy = (round(float(value)) for value in 0.75 * way * size)
        copy = moved(part[middle], dx, dy)
        if copy.sum() < 0.9 * part[middle].sum():
            continue
        hidden = float((copy & thing.masks[middle]).sum() / max(copy.sum(), 1))
        if best is None or hidden < best[0]:
            best = (hidden, dx, dy)
    if best is None or best[0] > 0.6:
        raise NotApplicable("there is no room beside the part for its copy")
    _, dx, dy = best

    def pasted(dx: int, dy: int) -> np.ndarray:
        out, radius = source.pixels.copy(), radius_of(source)
        for frame in range(first, last + 1):
            alpha = moved(snug(part[frame], radius), dx, dy)[..., None]
            canvas = source.pixels[frame].astype(np.float32)
            canvas += alpha * (moved(source.pixels[frame], dx, dy) - canvas)
            out[frame] = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
        return out

    subject = np.zeros_like(part)
    for frame in range(first, last + 1):
        subject[frame] = moved(part[frame], dx, dy)
    return Edit(
        pasted(dx, dy),
        pasted(0, 0),
        _TYPE,
        "duplicate part",
        f"a part of the {thing.noun} is there twice",
        f"extra part of the {thing.noun}",
        subject,
        numbers={"first": first, "last": last, "dx": dx, "dy": dy},
    )


def _extent(mask: np.ndarray) -> np.ndarray:
    """Width and height of what a mask (H, W) spans, in px."""
    rows, columns = np.flatnonzero(np.any(mask, axis=1)), np.flatnonzero(np.any(mask, axis=0))
    return np.array([columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1])


def omit_part(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """A part of the object is missing: the background is seen in its place.

    Beside the object a piece of background of the same shape is filled in the same way, in both
    twins, so that a fill is no sign of a defect.
    """
    thing = choose_object(source, rng)
    part, _ = _part(thing, rng, 0.4 + 0.3 * severity)
    whole = Cutout.of(source, thing, rng)
    cutout = Cutout(source, part, whole.seed, part=True)
    first, last = choose_span(rng, np.flatnonzero(part.any((1, 2))), 4, 24)
    gone = Placement(opacity=0.0)
    decoy = _decoy(source, thing, part, rng)

    def finished(pixels: np.ndarray) -> np.ndarray:
        for frame in range(first, last + 1):
            alpha = soft(moved(part[frame], *decoy), radius_of(source))[..., None]
            canvas = pixels[frame].astype(np.float32)
            canvas += alpha * (cutout.filled(frame) - canvas)
            pixels[frame] = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
        return pixels

    return Edit(
        finished(cutout.pasted(lambda frame: (gone if first <= frame <= last else IDENTITY,))),
        finished(cutout.sham()),
        _TYPE,
        "missing part",
        f"a part of the {thing.noun} is missing",
        f"missing part of the {thing.noun}",
        during(part, first, last),
        numbers={"first": first, "last": last},
    )


def _decoy(source: SourceClip, thing: MovingObject, part: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """An offset at which the part's shape lies on known background, away from all objects."""
    assert source.background_known is not None
    middle = int(thing.frames[len(thing.frames) // 2])
    busy = np.any([other.masks[middle] for other in source.objects], axis=0)
    _, height, width = source.shape
    for _ in range(30):
        dx, dy = int(rng.integers(-width // 2, width // 2)), int(rng.integers(-height // 2, height // 2))
        there = moved(part[middle], dx, dy)
        clear = there.sum() >= 0.95 * part[middle].sum() and not (there & busy).any()
        if clear and source.background_known[middle][there].mean() > 0.95:
            return dx, dy
    raise NotApplicable("no background beside the object to fill as well")


def split(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """The object falls into two halves that stand apart."""
    thing = choose_object(source, rng)
    cutout = Cutout.of(source, thing, rng)
    first, last = choose_span(rng, thing.frames, 5, 20)
    across = rng.random() < 0.5
    gap = max((0.12 + 0.25 * severity) * float(thing.size[0 if across else 1]), 2.0)
    rows, columns = np.indices(source.shape[1:])

    def placements(frame: int) -> tuple[Placement, ...]:
        if not (first <= frame <= last and thing.masks[frame].any()):
            return (IDENTITY,)
        step = max(round(gap / 2 * min((frame - first + 1) / 2, (last + 1 - frame) / 2, 1.0)), 1)
        x, y = thing.centres[frame]
        grid, line = (columns, x) if across else (rows, y)
        lower = Placement(dx=-step if across else 0, dy=0 if across else -step, keep=(grid < line - step))
        upper = Placement(dx=step if across else 0, dy=0 if across else step, keep=(grid >= line + step))
        return lower, upper

    return Edit(
        cutout.pasted(placements),
        cutout.sham(),
        _TYPE,
        "split",
        f"the {thing.noun} is split into two halves",
        thing.noun,
        cutout.subject(placements, first, last) | during(thing.masks, first, last),
        numbers={"first": first, "last": last, "gap": gap},
    )


def fuse(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """Two things grow into one another: one of them is drawn into the other and half of it shows
    through.
    """
    pairs = [
        (one, other)
        for one in source.objects
        for other in source.objects
        if one is not other and len(np.intersect1d(one.frames, other.frames)) >= 10
    ]
    if not pairs:
        raise NotApplicable("no two moving objects are seen together long enough")
    thing, host = pairs[int(rng.integers(len(pairs)))]
    cutout = Cutout.of(source, thing, rng)
    first, last = choose_span(rng, np.intersect1d(thing.frames, host.frames), 5, 16)
    middle = (first + last) // 2
    apart = host.centres[middle] - thing.centres[middle]
    reach = float(np.linalg.norm(apart))
    if reach > 4 * max(float(thing.size.max()), float(host.size.max())):
        raise NotApplicable("the moving objects are too far from each other to be fused")
    way = apart / max(reach, 1e-6)
    touching = 0.5 * float(np.abs(way) @ (thing.size + host.size))
    overlap = (0.35 + 0.4 * severity) * float(np.abs(way) @ np.minimum(thing.size, host.size))

    def placements(frame: int) -> tuple[Placement, ...]:
        if not (first <= frame <= last):
            return (IDENTITY,)
        offset = host.centres[frame] - way * (touching - overlap) - thing.centres[frame]
        through = 1 - 0.5 * soft(host.masks[frame], radius_of(source))
        return (Placement(dx=round(float(offset[0])), dy=round(float(offset[1])), keep=through),)

    subject = cutout.subject(placements, first, last) | during(host.masks, first, last)
    return Edit(
        cutout.pasted(placements),
        cutout.sham(),
        _TYPE,
        "fusion",
        f"the {thing.noun} and another one are fused into one body",
        f"{thing.noun} and what it is fused with",
        subject,
        cutout.vacated(first, last) & ~dilated(subject, 2),
        numbers={"first": first, "last": last, "overlap": overlap},
    )


SHAPE_INJECTORS = (
    Injector("warp", "core", warp),
    Injector("duplicate_part", "core", duplicate_part),
    Injector("omit_part", "core", omit_part),
    Injector("split", "core", split),
    Injector("fuse", "core", fuse),
)
"""What bends, doubles, cuts and joins things."""
