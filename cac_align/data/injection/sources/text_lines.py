"""Lines of text in a clip, found by a detection model and followed from frame to frame.

SourceClip → ``text_lines`` → TextLine: a quad on every frame on which the line can be seen whole

The models are those inside the wheel of rapidocr (PP-OCRv6, Apache-2.0); its code is not run. A
second model reads what was found: what it cannot read is taken for no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from cac_align.data.injection.injector import SourceClip
from cac_align.data.injection.sources.planes import followed, patch_shape, quad_mask, rectified

# Probability of text at a pixel, and how far a region of it is grown. The lower one may join a line with ornaments.
_SEEN = ((0.6, 1.8), (0.7, 1.8))
_SURE = 0.7  # its mean over a line
_SIDES = (736, 960)  # px of the shorter side of a frame in which text is looked for, first coarse and then fine
_READ = 0.75  # mean probability of the characters that are read
MIN_LINE_FRAMES = 8
"""Frames on which a line must be seen whole to be of use."""
_SHORTEST, _LOWEST = 3, 10  # characters of a line; px of its height
_HIDDEN = 0.03  # share of a line that something else that moves may cover


@dataclass(frozen=True, eq=False)
class TextLine:
    """A line of text. quads: (T, 4, 2) in px, NaN where it is not seen whole. text: as it was read."""

    quads: np.ndarray
    text: str
    shape: tuple[int, int]

    @cached_property
    def frames(self) -> np.ndarray:
        """Indices of the frames on which the line is seen whole."""
        return np.flatnonzero(np.isfinite(self.quads).all((1, 2)))


_found: WeakKeyDictionary[SourceClip, tuple[TextLine, ...]] = WeakKeyDictionary()


def text_lines(source: SourceClip) -> tuple[TextLine, ...]:
    """The lines of text of a clip, the largest first; looked for on its middle frame, then nearer its ends."""
    if source not in _found:
        _found[source] = _text_lines(source)
    return _found[source]


def _text_lines(source: SourceClip) -> tuple[TextLine, ...]:
    count = len(source.pixels)
    brief: tuple[TextLine, ...] = ()
    for start in (count // 2, count // 4, 3 * count // 4):
        lines = tuple(
            TextLine(_unhidden(source, followed(source.pixels, quad, start)), text, patch_shape(quad))
            for quad, text in _lines_of(source.pixels[start])
        )
        if any(len(line.frames) >= MIN_LINE_FRAMES for line in lines):
            return lines
        brief = brief or lines
    return brief


def _lines_of(frame: np.ndarray) -> list[tuple[np.ndarray, str]]:
    """Quads (4, 2) of the lines that can be read on a frame, and what they say; the largest first."""
    for side in _SIDES:
        quads = detected_quads(frame, side)
        if readable := _readable(frame, quads):
            return readable
        if not quads:  # nothing that looks like text: no second look
            break
    return []


def _readable(frame: np.ndarray, quads: list[np.ndarray]) -> list[tuple[np.ndarray, str]]:
    """The quads in which a line is read, and what; the largest first. Of several around one line the
    one that is read best.
    """
    found: list[tuple[float, np.ndarray, str]] = []
    for quad in quads:
        shape = patch_shape(quad)
        if shape[0] < _LOWEST or shape[1] < shape[0]:
            continue
        text, sure = read_text(rectified(frame, quad, shape))
        letters = len(text.replace(" ", ""))
        if sure >= _READ and letters >= _SHORTEST:
            found.append((letters * sure**3, quad, text))
    kept: list[tuple[np.ndarray, str]] = []
    taken = np.zeros(frame.shape[:2], bool)
    for _, quad, text in sorted(found, key=lambda line: -line[0]):
        area = quad_mask(frame.shape[:2], quad)
        if not (taken & area).any():
            taken |= area
            kept.append((quad, text))
    return sorted(kept, key=lambda line: -np.prod(patch_shape(line[0])))


def _unhidden(source: SourceClip, quads: np.ndarray) -> np.ndarray:
    """The quads without the frames on which a thing that moves covers a part of them. What carries the
    line covers nearly all of it and hides nothing.
    """
    quads = quads.copy()
    for frame in np.flatnonzero(np.isfinite(quads).all((1, 2))):
        area = quad_mask(source.shape[1:], quads[frame])
        shares = [float(thing.masks[frame][area].mean()) for thing in source.objects] if area.any() else [0.5]
        if any(_HIDDEN < share < 0.9 for share in shares):
            quads[frame] = np.nan
    return quads


# ---- the models ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _session(kind: str) -> Any:
    """The detection ("det") or reading ("rec") model. Raises ``FileNotFoundError`` where rapidocr has none."""
    import onnxruntime

    spec = find_spec("rapidocr")
    folder = Path(str(spec.origin)).parent / "models" if spec is not None else Path("models")
    files = sorted(folder.glob(f"*_{kind}_*.onnx"))
    if not files:
        raise FileNotFoundError(f"rapidocr's {kind} model is missing: pip install rapidocr==3.10.0")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(files[-1]), options, providers=["CPUExecutionProvider"])


def detected_quads(frame: np.ndarray, side: int = _SIDES[0]) -> list[np.ndarray]:
    """Quads (4, 2) around what may be lines of text in a frame (H, W, 3), often several around one line.

    side: the frame's shorter side is enlarged to this many px at most twofold, as the model wants it.
    """
    import PIL.Image

    height, width = frame.shape[:2]
    scale = min(max(side / min(height, width), 1.0), 2.0)
    size = [max(round(length * scale / 32), 1) * 32 for length in (width, height)]
    image = np.asarray(PIL.Image.fromarray(frame).resize((size[0], size[1])))[..., ::-1]
    batch = ((image.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]
    session = _session("det")
    likely = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(batch)})[0][0, 0]
    return [quad * (width / size[0], height / size[1]) for seen in _SEEN for quad in likely_quads(likely, *seen)]


def likely_quads(likely: np.ndarray, seen: float, unclip: float) -> list[np.ndarray]:
    """Quads (4, 2) around the regions of a map (H, W) of the probability of text that lie above ``seen``.
    The model marks a line's core; ``unclip`` says how far its quad is grown again, as a multiple of
    area / perimeter.
    """
    from scipy import ndimage

    labels = np.zeros(likely.shape, np.int32)
    ndimage.label(likely > seen, np.ones((3, 3), bool), labels)
    quads = []
    for index, area in enumerate(ndimage.find_objects(labels), 1):
        inside = labels[area] == index
        if inside.sum() < 16 or likely[area][inside].mean() < _SURE:
            continue
        y, x = np.nonzero(inside)
        quad = smallest_rectangle(np.stack([x + area[1].start, y + area[0].start], axis=1).astype(float))
        if quad is None:
            continue
        across, down = np.linalg.norm(quad[1] - quad[0]), np.linalg.norm(quad[3] - quad[0])
        grow = unclip * across * down / (2 * (across + down))
        right, below = (quad[1] - quad[0]) / across * grow, (quad[3] - quad[0]) / down * grow
        quads.append(quad + np.stack([-right - below, right - below, right + below, below - right]))
    return quads


def smallest_rectangle(points: np.ndarray) -> np.ndarray | None:
    """The smallest rectangle around points (N, 2): its corners (4, 2) from the upper left one on
    clockwise, its first side the one that is nearest to level. None where the points lie on a line.
    """
    from scipy.spatial import ConvexHull, QhullError

    try:
        hull = points[ConvexHull(points).vertices]
    except QhullError:
        return None
    best: tuple[float, np.ndarray] | None = None
    for x, y in np.roll(hull, -1, axis=0) - hull:
        angle = np.arctan2(y, x)
        angle = (angle + np.pi / 4) % (np.pi / 2) - np.pi / 4  # the same rectangle with its first side near level
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        low, high = (hull @ turn.T).min(0), (hull @ turn.T).max(0)
        area = float(np.prod(high - low))
        if best is None or area < best[0] - 1e-9:
            box = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]])
            best = (area, box @ turn)
    return None if best is None or best[0] < 1e-6 else best[1]


def read_text(patch: np.ndarray) -> tuple[str, float]:
    """What an upright patch (h, w, 3) of one line says, and the mean probability of its characters; 0
    where nothing is read.
    """
    import PIL.Image

    session = _session("rec")
    width = max(round(48 * patch.shape[1] / patch.shape[0]), 16)
    image = PIL.Image.fromarray(np.clip(patch, 0, 255).astype(np.uint8)).resize((width, 48))
    canvas = np.zeros((48, max(width, 320), 3), np.float32)
    canvas[:, :width] = np.asarray(image)[..., ::-1].astype(np.float32) / 127.5 - 1
    batch = np.ascontiguousarray(canvas.transpose(2, 0, 1)[None])
    chances = session.run(None, {session.get_inputs()[0].name: batch})[0][0]
    best = chances.argmax(-1)
    kept = (best > 0) & (np.diff(best, prepend=0) != 0)  # the first class is the blank; repeats are one character
    if not kept.any():
        return "", 0.0
    characters = ["", *_characters(session), " "]
    return "".join(characters[index] for index in best[kept]), float(chances.max(-1)[kept].mean())


def _characters(session: Any) -> list[str]:
    return session.get_modelmeta().custom_metadata_map["character"].splitlines()
