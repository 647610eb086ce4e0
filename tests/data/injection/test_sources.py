"""What is cut off, cut up and followed: shots, subtitles, cameras that stand or move, moving objects."""

import numpy as np
import pytest

from cac_align.core.weights import shipped
from cac_align.data.injection.normals import NORMALS, make_normal
from cac_align.data.injection.sources import camera
from cac_align.data.injection.sources.background import median_frame
from cac_align.data.injection.sources.camera import camera_motion
from cac_align.data.injection.sources.clips import prepared_clip
from cac_align.data.injection.sources.shots import cuts, is_slide, picture_area
from cac_align.data.injection.vae import vae_round_trip
from tests.data.injection.squares import square_clip


def ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A soft texture, (height, width, 3) float."""
    coarse = rng.uniform(60, 190, (height // 8 + 1, width // 8 + 1, 3))
    return np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]


def test_cuts_are_found_and_a_flash_or_fast_motion_is_none():
    rng = np.random.default_rng(0)
    shots = [np.repeat(ground(rng, 96, 128)[None], 12, 0) for _ in range(3)]
    pixels = np.concatenate(shots).astype(np.uint8)
    assert cuts(pixels) == [12, 24]
    flash = np.clip(shots[0] * 1.0, 0, 255)
    flash[6:] = np.clip(flash[6:] + 50, 0, 255)
    assert cuts(flash.astype(np.uint8)) == []
    wide = ground(rng, 96, 400)
    pan = np.stack([wide[:, 10 * t : 10 * t + 128] for t in range(24)]).astype(np.uint8)
    assert cuts(pan) == [] and not is_slide(pan)
    assert is_slide(pixels[:12])


def test_the_median_is_that_of_numpy():
    frames = np.random.default_rng(1).integers(0, 256, (15, 8, 9, 3), np.uint8)
    assert np.array_equal(median_frame(frames), np.median(frames, axis=0).astype(np.uint8))


def test_black_bars_and_subtitles_are_cropped_and_a_plain_picture_is_not():
    rng = np.random.default_rng(2)
    picture = np.repeat(ground(rng, 120, 240)[None], 12, 0).astype(np.uint8)
    assert picture_area(picture) == (slice(0, 120), slice(0, 240), "")
    barred = picture.copy()
    barred[:, :16] = barred[:, -16:] = 3
    assert picture_area(barred) == (slice(16, 104), slice(0, 240), "black bars")
    titled = picture.copy()
    titled[:, 98:110, 40:200] = 10
    titled[:, 99:109, 44:196:4] = 250
    titled[:, 99:109, 45:196:4] = 250
    rows, columns, said = picture_area(titled)
    assert said == "subtitles" and rows.stop < 99 and (rows.start, columns) == (0, slice(0, 240))


def moving(shift: tuple[int, int], frames: int = 33) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """A square that crosses a texture while the camera shifts by ``shift`` px per frame; and its boxes."""
    rng = np.random.default_rng(3)
    world = ground(rng, 240, 360)
    pixels, boxes = [], []
    for t in range(frames):
        picture = world.copy()
        top, left = 100, 60 + 5 * t
        picture[top : top + 32, left : left + 32] = (250, 20, 30)
        y, x = 40 + shift[1] * t, 30 + shift[0] * t
        pixels.append(picture[y : y + 144, x : x + 200])
        boxes.append((left - x, top - y, left - x + 32, top - y + 32))
    return np.stack(pixels).astype(np.uint8), boxes


@pytest.mark.parametrize("opencv", [False, True])
@pytest.mark.parametrize("shift", [(0, 0), (2, 0), (2, 1)])
def test_an_object_is_followed_under_a_camera_that_stands_or_moves(shift, opencv, monkeypatch):
    if opencv:
        pytest.importorskip("cv2")
    else:
        monkeypatch.setattr(camera, "find_spec", lambda name: None)
    pixels, boxes = moving(shift)
    motion = camera_motion(pixels)
    assert (motion is None) == (shift == (0, 0))
    if motion is not None:  # the middle frame's coordinates; homographies may be off by a pixel
        shifts = motion[:, :2, 2] - motion[16, :2, 2]
        assert np.abs(shifts - np.outer(np.arange(33) - 16, shift)).max() < 0.75
    clip = prepared_clip(pixels, 16.0)
    thing = clip.objects[0]
    inside = [t for t in thing.frames if boxes[t][0] >= 0 and boxes[t][2] <= 200]
    assert len(inside) >= 20
    off = np.abs(thing.boxes[inside] - np.array(boxes, float)[inside])
    assert np.median(off) <= 2


@pytest.mark.parametrize("name", sorted(NORMALS))
def test_a_hard_normal_keeps_size_and_length_and_the_source(name):
    source = square_clip(starts=((100, 40),), steps=((4, 0),)) if name == "true exit" else square_clip()
    before = source.pixels.copy()
    pixels = NORMALS[name](source, np.random.default_rng(5))
    assert pixels.shape == before.shape and pixels.dtype == np.uint8
    assert np.array_equal(source.pixels, before)
    if name not in ("untouched", "true exit"):
        assert not np.array_equal(pixels, before)


def test_a_normal_is_drawn_by_its_stream():
    source = square_clip()
    one, other = (make_normal(source, np.random.default_rng(9)) for _ in range(2))
    assert one[0] == other[0] and np.array_equal(one[1], other[1])


def test_a_vae_round_trip_keeps_size_length_and_picture():
    pixels = square_clip(frames=15).pixels[:, :100, :118]  # neither length nor size fits the VAE's strides
    out = vae_round_trip(pixels, str(shipped("wan")))
    assert out.shape == pixels.shape and out.dtype == np.uint8
    error = np.abs(out.astype(float) - pixels).mean()
    assert 0 < error < 20
