"""A rendered sign: both twins carry it, and in one of them its text is broken. Character Anomalies.

The sign stands where nothing moves on any frame of the clip, so that it never covers what should cover
it, and where the picture has little detail. It follows the camera and takes the light of its place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cac_align.data.injection.injector import Edit, Injector, NotApplicable, SourceClip
from cac_align.data.injection.injectors.glyphs import broken, drawn, ink_of
from cac_align.data.injection.injectors.text import TYPE, edge_matte
from cac_align.data.injection.sources.background import median_frame, median_indices
from cac_align.data.injection.sources.camera import camera_motion, warped
from cac_align.data.injection.sources.masks import difference, dilated, grey, opened
from cac_align.data.injection.sources.planes import carried, put_back, quad_mask

SIGN_WORDS = (
    "BAKERY", "MUSEUM", "PARKING", "LIBRARY", "STATION", "PHARMACY", "MARKET", "GARDEN", "TICKETS", "CINEMA", "HARBOUR",
    "BOOKS", "COFFEE", "FLOWERS", "THEATRE", "REPAIRS", "CITY HALL", "OPEN DAILY", "NO ENTRY", "WAY OUT", "FIRST AID",
    "FRESH FISH", "KEEP CLEAR", "BUS STOP", "Main Street", "Tea House", "Welcome", "Please wait", "Reception",
)  # fmt: skip
"""What a sign may say."""

_COLOURS = (
    ((240, 238, 228), (28, 30, 40)),
    ((24, 62, 120), (244, 244, 240)),
    ((20, 92, 60), (246, 246, 236)),
    ((150, 28, 30), (250, 244, 236)),
    ((240, 200, 60), (30, 26, 20)),
    ((60, 44, 34), (236, 220, 190)),
)
"""Board and letters."""
_LEAST_ROWS = 14  # px: a lower sign cannot be read


def render_sign(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """A sign whose letters are broken; the sham's sign can be read."""
    try:
        motion = camera_motion(source.pixels)
    except ValueError as error:
        raise NotApplicable(f"a sign could not be fixed in place: {error}") from error
    plate, busy = _stillness(source, motion)
    words = SIGN_WORDS[int(rng.integers(len(SIGN_WORDS)))]
    width = round(float(rng.uniform(0.22, 0.36)) * source.shape[2])
    board, lettering = sign_board(words, width, rng)
    left, top = _place(plate, busy, board.shape[:2], rng)
    light = grey(plate[top : top + len(board), left : left + width]).mean() / 140
    board = board * float(np.clip(light, 0.35, 1.1))
    text = np.ascontiguousarray(board[lettering])
    ink = ink_of(text)
    garbled = board.copy()
    garbled[lettering] = drawn(text, ink, broken(ink, rng, 0.5 + 0.5 * severity))
    sway = 0.03 * len(board)
    quad = np.array([[0, 0], [width - 1, 0], [width - 1, len(board) - 1], [0, len(board) - 1]], float)
    quad += (left, top) + rng.uniform(-sway, sway, (4, 2))
    quads = [quad if motion is None else carried(np.linalg.inv(matrix), quad) for matrix in _matrices(source, motion)]
    if any(_outside(one, source) for one in quads):
        raise NotApplicable("the camera moves so far that no sign stays in the picture")
    seed, matte = int(rng.integers(2**31)), edge_matte(board.shape[:2])

    def carrying(sign: np.ndarray) -> np.ndarray:
        frames = []
        for index, (frame, one) in enumerate(zip(source.pixels, quads, strict=True)):
            grain = np.random.default_rng((seed, index)).standard_normal(sign.shape[:2], np.float32)
            frames.append(put_back(frame, sign + source.grain * grain[..., None], one, matte))
        return np.stack(frames)

    return Edit(
        carrying(garbled),
        carrying(board),
        TYPE,
        "unreadable text",
        "the letters on the sign are broken into pieces and cannot be read",
        "sign",
        np.stack([quad_mask(source.shape[1:], one) for one in quads]),
        numbers={"first": 0, "last": len(quads) - 1, "text": words},
    )


def _matrices(source: SourceClip, motion: np.ndarray | None) -> np.ndarray:
    return np.tile(np.eye(3), (len(source.pixels), 1, 1)) if motion is None else motion


def _outside(quad: np.ndarray, source: SourceClip) -> bool:
    return bool(quad.min() < 0 or np.any(quad.max(0) > (source.shape[2] - 1, source.shape[1] - 1)))


def _stillness(source: SourceClip, motion: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The clip without what moves, as its middle frame sees it (H, W, 3); and where something moves on
    any frame, or what some frame does not show, bool (H, W).
    """
    matrices = _matrices(source, motion)
    aligned = [
        (frame, np.ones(frame.shape[:2], bool)) if motion is None else warped(frame, matrix)
        for frame, matrix in zip(source.pixels, matrices, strict=True)
    ]
    chosen = median_indices(len(aligned))
    plate = median_frame(np.stack([aligned[index][0] for index in chosen]))
    noise, speck = max(16.0, 6 * source.grain), max(source.shape[1] // 240, 1)
    busy = np.zeros(plate.shape[:2], bool)
    for index, (image, seen) in enumerate(aligned):
        busy |= opened(difference(image, plate) > noise, speck) | ~seen
        for thing in source.objects:
            mask = thing.masks[index]
            busy |= mask if motion is None else warped(_picture(mask), matrices[index])[0][..., 0] > 0
    return plate, busy


def _picture(mask: np.ndarray) -> np.ndarray:
    return np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=-1)


def _place(plate: np.ndarray, busy: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """Left and top of the place of a sign of this shape: of many free ones that with the least detail.

    Raises ``NotApplicable`` where none is free.
    """
    height, width = busy.shape
    margin = max(height // 60, 2)
    rows, columns = (size - side - 2 * margin for size, side in zip((height, width), shape, strict=True))
    if rows < 1 or columns < 1 or shape[0] < _LEAST_ROWS:
        raise NotApplicable("the picture is too small for a sign")
    taken = np.pad(dilated(busy, margin).astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    light = grey(plate)
    detail = np.abs(np.diff(light, axis=1, prepend=light[:, :1])) + np.abs(np.diff(light, axis=0, prepend=light[:1]))
    detail = np.pad(detail.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    free: list[tuple[float, int, int]] = []
    for _ in range(400):
        top, left = int(rng.integers(margin, margin + rows)), int(rng.integers(margin, margin + columns))
        if _within(taken, top, left, shape) == 0:
            free.append((_within(detail, top, left, shape), left, top))
        if len(free) == 12:
            break
    if not free:
        raise NotApplicable("something moves in front of every place where a sign could stand")
    _, left, top = min(free)
    return left, top


def _within(sums: np.ndarray, top: int, left: int, shape: tuple[int, int]) -> float:
    bottom, right = top + shape[0], left + shape[1]
    return float(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left])


def sign_board(words: str, width: int, rng: np.random.Generator) -> tuple[np.ndarray, tuple[slice, slice]]:
    """A board with these words, float32 (h, width, 3), and the rows and columns of its lettering."""
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    board, letters = _COLOURS[int(rng.integers(len(_COLOURS)))]
    scale = 3  # drawn larger and made smaller: smooth edges
    left, _, right, _ = PIL.ImageFont.load_default(100).getbbox(words)
    font: Any = PIL.ImageFont.load_default(100 * 0.8 * width * scale / (right - left))
    left, top, right, bottom = (round(value) for value in font.getbbox(words))
    height = round((bottom - top) / scale * 2.1)
    image = PIL.Image.new("RGB", (width * scale, height * scale), board)
    pen = PIL.ImageDraw.Draw(image)
    frame = max(height * scale // 24, 1)
    pen.rectangle((frame, frame, width * scale - frame - 1, height * scale - frame - 1), outline=letters, width=frame)
    x, y = (width * scale - (right - left)) // 2, (height * scale - (bottom - top)) // 2
    pen.text((x - left, y - top), words, fill=letters, font=font)
    small = np.asarray(image.resize((width, height), PIL.Image.Resampling.BOX)).astype(np.float32)
    pad = max((bottom - top) // scale // 5, 2)
    rows = slice(max(y // scale - pad, 0), min((y + bottom - top) // scale + pad, height))
    columns = slice(max(x // scale - pad, 0), min((x + right - left) // scale + pad, width))
    return small, (rows, columns)


SIGN_INJECTORS = (Injector("rendered_sign", "inject", render_sign),)
"""A sign that is put into a clip."""
