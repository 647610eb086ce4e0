"""Draws entities: signed distances in small patches, for all frames of an entity at once, blended
on a float canvas.

Entity (track of x, y, angle, …) → layers (coverage, colour, corner) → blend → canvas (F, H, W, 3)
float32 in [0, 255]

The coverage of a pixel is clip(½ - d, 0, 1), where d is its signed distance to the outline in
pixels; this gives one pixel of anti-aliasing. Shape letters: F frames, P × Q patch, H × W frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from cac_align.miniature.world.grammar import GLYPHS, RGB

SKIN: RGB = (222, 178, 140)
INK: RGB = (24, 24, 30)
BOARD_POST: RGB = (96, 84, 78)

LIMBS = ("near arm", "far arm", "near leg", "far leg")
"""The limbs of a figure."""

PixelBox = tuple[int, int, int, int]
"""Left, top, right, bottom in px; right and bottom are exclusive."""

LimbLine = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""The two ends of a line, (ax, ay, bx, by) in px, each of shape (F, 1, 1)."""


@dataclass(frozen=True, eq=False)
class Entity:
    """Something that is drawn."""

    # One of ``grammar.KINDS``.
    kind: str
    rgb: RGB
    # The radius of an object, half the height of a figure, or the side of one cell of a sign's letters.
    size_px: float
    # Entities of a larger depth are drawn over those of a smaller one.
    depth: float
    # Arrays over all frames. Always there: x, y (centre in px, world coordinates). Optional: angle, gait, wave (rad),
    # squash (log aspect), alpha and glow (0 to 1). Set by defects only: melt, gap, hole (px), shear,
    # floor (the y in px below which the entity is hidden).
    track: Mapping[str, Float[np.ndarray, " T"]]
    # A sign's letters, each a tuple of rows of "0" and "1".
    glyphs: tuple[tuple[str, ...], ...] = ()
    # The limbs that a figure has.
    limbs: tuple[str, ...] = LIMBS
    # Offsets (dx, dy) in px of parts that are out of place.
    shift: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    # Angle of an extra limb, in rad from straight down.
    extra_angle: float = 0.0
    # Factor on the opacity.
    see_through: float = 1.0

    def at(self, name: str, frames: np.ndarray, default: float = 0.0) -> Float[np.ndarray, "F 1 1"]:
        """One track on these frames; ``default`` everywhere when the entity has no such track."""
        values = self.track.get(name)
        picked = np.full(len(frames), default, np.float32) if values is None else np.asarray(values, np.float32)[frames]
        return picked[:, None, None]


@dataclass(frozen=True, eq=False)
class Layer:
    """One part of an entity in a patch: coverage in [0, 1], colour, and the patch's top left corner
    on every frame.
    """

    alpha: Float[np.ndarray, "F P Q"]
    rgb: Float[np.ndarray, "F 3"]
    top: np.ndarray
    left: np.ndarray


def glyph_rows(text: str) -> tuple[tuple[str, ...], ...]:
    """The letters of a text as rows of cells."""
    return tuple(GLYPHS[letter] for letter in text)


def _patch(
    x: np.ndarray, y: np.ndarray, half_w: float, half_h: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pixel centres relative to (x, y): u (F, 1, Q), v (F, P, 1), and the patch's corner (top,
    left).
    """
    x, y = x.reshape(-1), y.reshape(-1)
    wide, high = int(np.ceil(half_w)) + 2, int(np.ceil(half_h)) + 2
    left, top = np.floor(x).astype(np.int64) - wide, np.floor(y).astype(np.int64) - high
    u = (left - x + 0.5).astype(np.float32)[:, None, None] + np.arange(2 * wide + 1, dtype=np.float32)
    v = (top - y + 0.5).astype(np.float32)[:, None, None] + np.arange(2 * high + 1, dtype=np.float32)[:, None]
    return u, v, top, left


def _cover(distance: np.ndarray) -> np.ndarray:
    return np.clip(0.5 - distance, 0, 1)


def _shape(kind: str, u: np.ndarray, v: np.ndarray, r: float) -> np.ndarray:
    """Signed distance (exact or a close bound) of a solid of radius ``r`` px around the origin."""
    if kind in ("ball", "lamp"):
        return np.sqrt(u * u + v * v) - r
    if kind == "box":
        return np.maximum(np.abs(u), np.abs(v)) - r * 0.92
    if kind == "triangle":  # centred on the middle of its height, so that it rests on its base
        return np.maximum(0.894 * np.abs(u) - 0.447 * (v + r), v - 0.85 * r)
    if kind == "star":  # fold the plane into one arm (five-fold symmetry), then the edge from the tip to the notch
        u, v = np.abs(u), -v
        for nx, ny in ((0.809017, -0.587785), (-0.809017, -0.587785)):
            reach = np.maximum(nx * u + ny * v, 0)
            u, v = u - 2 * reach * nx, v - 2 * reach * ny
        tip = 1.2 * r
        edge_u, edge_v = 0.5 * tip * 0.587785, 0.5 * tip * 0.809017 - tip
        return ((v - tip) * edge_u - np.abs(u) * edge_v) / float(np.hypot(edge_u, edge_v))
    raise ValueError(f"cannot draw {kind!r} as an object")


def _capsule(u: np.ndarray, v: np.ndarray, segment: LimbLine, width: float) -> np.ndarray:
    """Signed distance (F, P, Q) to a line of this half-width with round ends."""
    ax, ay, bx, by = segment
    du, dv, ex, ey = u - ax, v - ay, bx - ax, by - ay
    along = np.clip((du * ex + dv * ey) / (ex * ex + ey * ey + 1e-6), 0, 1)
    du, dv = du - along * ex, dv - along * ey
    return np.sqrt(du * du + dv * dv) - width


def _tint(rgb: RGB, frames: np.ndarray, glow: np.ndarray | None = None) -> np.ndarray:
    colour = np.broadcast_to(np.asarray(rgb, np.float32), (len(frames), 3))
    return colour if glow is None else colour * glow.reshape(-1, 1)


def layers(entity: Entity, frames: np.ndarray, only: str | None = None) -> Iterator[Layer]:
    """The parts of ``entity`` on these frames, back to front; ``only`` names one part (a limb,
    "head", "glyph 2", "hole").
    """
    if entity.kind == "figure":
        yield from _figure(entity, frames, only)
    elif entity.kind == "sign":
        yield from _sign(entity, frames, only)
    else:
        yield from _object(entity, frames, only)


def _object(entity: Entity, frames: np.ndarray, only: str | None) -> Iterator[Layer]:
    r = entity.size_px
    x, y, squash = entity.at("x", frames), entity.at("y", frames), entity.at("squash", frames)
    melt, gap, hole, shear = (entity.at(name, frames) for name in ("melt", "gap", "hole", "shear"))
    reach = (
        r * 1.25 * float(np.exp(np.abs(squash).max()))
        + float(melt.max())
        + float(gap.max())
        + r * float(np.abs(shear).max())
    )
    u, v, top, left = _patch(x, y, reach, reach)
    corner_v = v
    if gap.any():
        cut = gap - np.abs(u)
        u = u - np.sign(u) * gap
    hole_u, hole_v = u, v
    if shear.any():
        u = u - shear * v
    if squash.any():
        u, v = u * np.exp(-squash), v * np.exp(squash)
    if melt.any():
        u, v = u + melt * np.sin(0.75 * v + x), v + melt * np.sin(0.6 * u + 1.3)
    angle = entity.at("angle", frames)
    if angle.any() and entity.kind != "ball":
        cos, sin = np.cos(angle), np.sin(angle)
        u, v = u * cos + v * sin, v * cos - u * sin
    distance = _shape(entity.kind, u, v, r)
    if gap.any():
        distance = np.maximum(distance, cut)
    if hole.any():
        inside = np.sqrt((hole_u - 0.15 * r) ** 2 + (hole_v + 0.1 * r) ** 2) - hole
        distance = np.maximum(distance, -inside)
        if only == "hole":
            yield Layer(_cover(inside - 1.5), _tint(entity.rgb, frames), top, left)
            return
    alpha = _finish(entity, frames, _cover(distance), corner_v, y)
    glow = entity.at("glow", frames, 1.0) if "glow" in entity.track else None
    yield Layer(alpha, _tint(entity.rgb, frames, glow), top, left)
    if only is None and entity.kind in ("ball", "box"):  # a soft highlight, so that solids have a top
        shine = np.sqrt((hole_u + 0.35 * r) ** 2 + (hole_v + 0.4 * r) ** 2) / (0.45 * r)
        light = np.asarray(entity.rgb, np.float32) * 0.5 + 127
        yield Layer(alpha * np.clip(1 - shine, 0, 1) * 0.8, np.broadcast_to(light, (len(frames), 3)), top, left)


def _finish(entity: Entity, frames: np.ndarray, alpha: np.ndarray, v: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Transparency and the part hidden below a floor."""
    if "floor" in entity.track:
        alpha = alpha * np.clip(entity.at("floor", frames) - (v + y) + 0.5, 0, 1)
    if "alpha" in entity.track:
        alpha = alpha * entity.at("alpha", frames)
    return alpha if entity.see_through == 1.0 else alpha * entity.see_through


def joints(entity: Entity, frames: np.ndarray) -> dict[str, LimbLine]:
    """Each part of a figure as a segment relative to the figure's centre."""
    h = entity.size_px
    gait, wave = entity.at("gait", frames), entity.at("wave", frames)
    swing = np.sin(gait)
    shoulder, hip, reach, stride = -0.42 * h, 0.2 * h, 0.62 * h, 0.78 * h
    angles = {  # from straight down, positive to the right
        "near arm": (shoulder, -0.55 * swing - 0.45 + 0 * wave, reach),
        "far arm": (shoulder, 0.55 * swing + 0.45 + wave, reach),
        "near leg": (hip, 0.42 * swing - 0.2, stride),
        "far leg": (hip, -0.42 * swing + 0.2, stride),
        "extra arm": (shoulder + 0.12 * h, entity.extra_angle + 0.25 * swing, reach * 1.05),
        "extra leg": (hip, entity.extra_angle + 0.25 * swing, stride),
    }
    zero = np.zeros_like(gait)
    parts: dict[str, LimbLine] = {"torso": (zero, zero + shoulder, zero, zero + hip)}
    for name, (start, angle, length) in angles.items():
        parts[name] = (zero, zero + start, length * np.sin(angle), start + length * np.cos(angle))
    parts["head"] = (zero, zero - 0.74 * h, zero, zero - 0.74 * h)
    for name, (dx, dy) in entity.shift.items():
        ax, ay, bx, by = parts[name]
        parts[name] = (ax + dx, ay + dy, bx + dx, by + dy)
    return parts


def _figure(entity: Entity, frames: np.ndarray, only: str | None) -> Iterator[Layer]:
    h = entity.size_px
    x, y = entity.at("x", frames), entity.at("y", frames)
    far = max((abs(dx) + abs(dy) for dx, dy in entity.shift.values()), default=0.0)
    u, v, top, left = _patch(x, y, 0.85 * h + far, 1.05 * h + far)
    parts = joints(entity, frames)
    drawn = [only] if only else ["torso", *entity.limbs]
    if only == "head":
        drawn = []
    distance = None
    for name in drawn:
        part = _capsule(u, v, parts[name], (0.17 if name == "torso" else 0.115) * h)
        distance = part if distance is None else np.minimum(distance, part)
    if distance is not None:
        yield Layer(_finish(entity, frames, _cover(distance), v, y), _tint(entity.rgb, frames), top, left)
    if only in (None, "head"):
        head = _capsule(u, v, parts["head"], 0.25 * h)
        yield Layer(_finish(entity, frames, _cover(head), v, y), _tint(SKIN, frames), top, left)


def sign_size(entity: Entity) -> tuple[float, float]:
    """Half the width and half the height of a sign's board in px."""
    cell = entity.size_px
    return (len(entity.glyphs) * 4 - 1) * cell / 2 + 0.9 * cell, 2.5 * cell + 0.9 * cell


def _sign(entity: Entity, frames: np.ndarray, only: str | None) -> Iterator[Layer]:
    cell = entity.size_px
    wide, high = sign_size(entity)
    x, y = entity.at("x", frames), entity.at("y", frames)
    if only is None:
        u, v, top, left = _patch(x, y + high + 2 * cell, 0.5 * cell + 1, 2 * cell)
        post = np.maximum(np.abs(u) - 0.45 * cell, np.abs(v) - 2 * cell)
        yield Layer(_finish(entity, frames, _cover(post), v, y + high + 2 * cell), _tint(BOARD_POST, frames), top, left)
        u, v, top, left = _patch(x, y, wide, high)
        board = np.maximum(np.abs(u) - wide, np.abs(v) - high)
        yield Layer(_finish(entity, frames, _cover(board), v, y), _tint(entity.rgb, frames), top, left)
    chosen = range(len(entity.glyphs)) if only is None else [int(only.split()[1])]
    u, v, top, left = _patch(x, y, wide, high)
    cover = np.zeros(np.broadcast_shapes(u.shape, v.shape), np.float32)
    start = -(len(entity.glyphs) * 4 - 1) * cell / 2
    for position in chosen:
        for row, bits in enumerate(entity.glyphs[position]):
            lit = "111" if only else bits
            across = _cells(u, start + position * 4 * cell, cell, lit)
            if across is not None:
                cover += across * _cells(v, (row - 2.5) * cell, cell, "1")
    alpha = _finish(entity, frames, np.minimum(cover, 1), v, y)
    yield Layer(alpha, _tint(INK, frames), top, left)


def _cells(u: np.ndarray, start: float, cell: float, bits: str) -> np.ndarray | None:
    """The share of each pixel, along one axis, that the cells with a "1" cover; None when there is
    none.
    """
    cover = None
    for index, bit in enumerate(bits):
        if bit == "1":
            low, high = start + index * cell, start + (index + 1) * cell
            part = np.clip(np.minimum(u + 0.5, high) - np.maximum(u - 0.5, low), 0, 1)
            cover = part if cover is None else cover + part
    return cover


def blend(canvas: Float[np.ndarray, "F H W 3"], layer: Layer) -> None:
    """Paint a layer on the canvas in place; what lies outside the frame is cut off."""
    height, width = canvas.shape[1:3]
    high, wide = layer.alpha.shape[1:]
    for index in range(len(canvas)):
        top, left = int(layer.top[index]), int(layer.left[index])
        y0, y1, x0, x1 = max(top, 0), min(top + high, height), max(left, 0), min(left + wide, width)
        if y0 >= y1 or x0 >= x1:
            continue
        region = canvas[index, y0:y1, x0:x1]
        alpha = layer.alpha[index, y0 - top : y1 - top, x0 - left : x1 - left, None]
        region += alpha * (layer.rgb[index] - region)


def join_boxes(one: PixelBox, other: PixelBox) -> PixelBox:
    """The smallest box that holds both."""
    return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])


def extent(
    entity: Entity, frames: np.ndarray, height: int, width: int, part: str | None = None
) -> list[PixelBox | None]:
    """The tight box of what is drawn of ``entity`` (or of one part of it) on each frame.

    It is None where nothing of it (coverage over one half) lies inside the frame. Entities in front
    do not shrink it: annotators approximate the full extent under partial occlusion (Appendix
    B.1.3).
    """
    boxes: list[PixelBox | None] = [None] * len(frames)
    for layer in layers(entity, frames, part):
        solid = np.asarray(layer.alpha > 0.5)
        rows, columns = np.any(solid, axis=2), np.any(solid, axis=1)
        high, wide = solid.shape[1:]
        tops, lefts = layer.top + rows.argmax(1), layer.left + columns.argmax(1)
        bottoms, rights = layer.top + high - rows[:, ::-1].argmax(1), layer.left + wide - columns[:, ::-1].argmax(1)
        for index in range(len(frames)):
            if not rows[index].any():
                continue
            box = (
                max(int(lefts[index]), 0),
                max(int(tops[index]), 0),
                min(int(rights[index]), width),
                min(int(bottoms[index]), height),
            )
            if box[0] >= box[2] or box[1] >= box[3]:
                continue
            old = boxes[index]
            boxes[index] = box if old is None else join_boxes(old, box)
    return boxes
