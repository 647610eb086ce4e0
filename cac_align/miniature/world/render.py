"""Renders a scene: backdrop, entities, what stands in front, light and noise; then the frames that
show a defect.

Scene → paint_backdrop (F, H, W, 3) → compose (entities in order of depth) → uint8; compose_defects
redraws defective frames

A defect redraws its own frames only, on the same backdrop, so that all other frames keep their
bytes. Shape letters: F frames, H × W frame.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float, UInt8

from cac_align.miniature.world.defects import apply_defect
from cac_align.miniature.world.draw import Entity, Layer, blend, layers
from cac_align.miniature.world.grammar import PLACES
from cac_align.miniature.world.scene import Scene

HORIZON = 0.56
"""The horizon's distance from the upper edge, as a share of the frame's height."""
POST: tuple[int, int, int] = (70, 62, 58)

_NOISE = np.random.default_rng(20260401).standard_normal(1 << 18).astype(np.float32)


def _soft(rng: np.random.Generator, height: int, width: int, step: int) -> np.ndarray:
    """A smooth random field in about [-1, 1] that repeats seamlessly in x: interpolated coarse
    noise.
    """
    rows, columns = height // step + 2, max(width // step, 2)
    coarse = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    y, x = np.arange(height, dtype=np.float32) / step, np.arange(width, dtype=np.float32) * (columns / width)
    y0, x0 = y.astype(int), x.astype(int)
    fy, fx = (y - y0)[:, None], (x - x0)[None]
    fy, fx = fy * fy * (3 - 2 * fy), fx * fx * (3 - 2 * fx)
    right = (x0 + 1) % columns
    upper = coarse[y0][:, x0] * (1 - fx) + coarse[y0][:, right] * fx
    lower = coarse[y0 + 1][:, x0] * (1 - fx) + coarse[y0 + 1][:, right] * fx
    return upper * (1 - fy) + lower * fy


def paint_backdrop(scene: Scene, frames: np.ndarray) -> Float[np.ndarray, "F H W 3"]:
    """The ground, the sky, their textures and the pattern that flows over them; no entities, noise
    or shading.
    """
    setting, height, width = scene.backdrop, scene.height, scene.width
    drifts = bool(np.abs(scene.camera).max() > 1e-6)
    margin = int(np.ceil(np.abs(scene.camera).max())) + 2 if drifts else 0
    rng = np.random.default_rng((setting.seed, 11))
    top, low, ground = (np.asarray(colour, np.float32) for colour in PLACES[setting.place])
    rows = np.arange(-margin, height + margin, dtype=np.float32)
    horizon = HORIZON * height
    mix = np.clip(rows / horizon, 0, 1)[:, None]
    column = np.where(
        rows[:, None] < horizon, top + (low - top) * mix, ground * (1 + 0.1 * (rows[:, None] - horizon) / height)
    )
    sheet = np.repeat(column[:, None], width + 2 * margin, 1)
    if setting.texture:
        grain = _soft(rng, len(rows), width + 2 * margin, 5) + 0.6 * _soft(rng, len(rows), width + 2 * margin, 2)
        sheet = sheet + (setting.texture * grain * np.where(rows < horizon, 0.35, 1.0)[:, None])[:, :, None]
    if drifts:
        canvas = np.empty((len(frames), height, width, 3), np.float32)
        for index, (dx, dy) in enumerate(scene.camera[frames]):
            x, y = margin + dx, margin + dy
            x0, y0 = int(np.floor(x)), int(np.floor(y))
            fx, fy = np.float32(x - x0), np.float32(y - y0)
            part = sheet[y0 : y0 + height + 1, x0 : x0 + width + 1]
            part = part[:, :-1] + fx * (part[:, 1:] - part[:, :-1])
            canvas[index] = part[:-1] + fy * (part[1:] - part[:-1])
    else:
        canvas = np.repeat(sheet[None].astype(np.float32), len(frames), 0)
    if setting.flow:
        tile = setting.flow * _soft(rng, height, 2 * width, 9)
        columns = (np.arange(width)[None] + np.rint(setting.flow_speed * frames).astype(int)[:, None]) % (2 * width)
        canvas += np.moveaxis(tile[:, columns], 1, 0)[..., None]
    return canvas


def compose(
    scene: Scene, frames: np.ndarray, backdrop: np.ndarray, entities: tuple[Entity, ...]
) -> UInt8[np.ndarray, "F H W 3"]:
    """Entities on a copy of the backdrop, then the post in front, the light and the sensor noise."""
    canvas = backdrop.copy()
    moved = scene.camera[frames]
    for entity in sorted(entities, key=lambda entity: entity.depth):
        for layer in layers(in_frame_coordinates(entity, scene), frames):
            blend(canvas, layer)
    setting = scene.backdrop
    if setting.post is not None:
        left, right = setting.post
        u = np.arange(scene.width, dtype=np.float32)[None, None] + 0.5 + moved[:, :1, None].astype(np.float32)
        alpha = np.clip(np.minimum(u - left, right - u) + 0.5, 0, 1)
        alpha = np.broadcast_to(alpha, (len(frames), scene.height, scene.width))
        zero = np.zeros(len(frames), np.int64)
        blend(canvas, Layer(alpha, np.broadcast_to(np.asarray(POST, np.float32), (len(frames), 3)), zero, zero))
    if setting.shade:
        light = 1 + setting.shade * np.sin(2 * np.pi * frames / setting.shade_period + setting.seed % 7)
        canvas *= light.astype(np.float32)[:, None, None, None]
    if setting.noise:
        size = scene.height * scene.width
        for index, frame in enumerate(frames):
            start = (setting.seed * 31 + int(frame) * 7919) % (len(_NOISE) - size) if size < len(_NOISE) else 0
            canvas[index] += setting.noise * np.resize(_NOISE[start : start + size], size).reshape(
                scene.height, scene.width, 1
            )
    np.clip(canvas, 0, 255, out=canvas)
    canvas += 0.5
    return canvas.astype(np.uint8)


def in_frame_coordinates(entity: Entity, scene: Scene) -> Entity:
    """The entity with its tracks in frame coordinates: the camera's position is subtracted."""
    if not np.abs(scene.camera).max() > 1e-6:
        return entity
    track = dict(entity.track)
    track["x"], track["y"] = track["x"] - scene.camera[:, 0], track["y"] - scene.camera[:, 1]
    if "floor" in track:
        track["floor"] = track["floor"] - scene.camera[:, 1]
    return replace(entity, track=track)


def render(scene: Scene, frames: np.ndarray | None = None) -> UInt8[np.ndarray, "F H W 3"]:
    """The pixels of ``scene`` on these frames (all by default), with its defects."""
    frames = np.arange(scene.num_frames) if frames is None else np.asarray(frames)
    backdrop = paint_backdrop(scene, frames)
    pixels = compose(scene, frames, backdrop, scene.entities)
    if scene.defects:
        hit = np.flatnonzero([any(frame in defect.frames for defect in scene.defects) for frame in frames])
        if len(hit):
            pixels[hit] = compose_defects(scene, frames[hit], backdrop[hit])
    return pixels


def compose_defects(scene: Scene, frames: np.ndarray, backdrop: np.ndarray) -> UInt8[np.ndarray, "F H W 3"]:
    """The frames on which defects are active, drawn with the edited entities; frames with the same
    defects together.
    """
    pixels = np.empty(backdrop.shape, np.uint8)
    active = np.array([[frame in defect.frames for frame in frames] for defect in scene.defects])
    for pattern in np.unique(active, axis=1).T:
        rows = np.flatnonzero((active == pattern[:, None]).all(0))
        entities = scene.entities
        for defect, on in zip(scene.defects, pattern, strict=True):
            if on:
                entities = apply_defect(defect, scene, entities)
        pixels[rows] = compose(scene, frames[rows], backdrop[rows], entities)
    return pixels
