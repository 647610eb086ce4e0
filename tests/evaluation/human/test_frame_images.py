"""Frames for the rating page: exact, decoded in chunks, forgotten when there are too many."""

import io

import numpy as np
import PIL.Image
import pytest

from cac_align.core.video import Video
from cac_align.evaluation.human import frame_images
from cac_align.evaluation.human.frame_images import FRAMES_PER_CHUNK, FrameImages


def opened(content):
    return np.asarray(PIL.Image.open(io.BytesIO(content)))


def test_small_videos_come_pixel_by_pixel_across_chunks():
    pixels = np.random.default_rng(0).integers(0, 256, (FRAMES_PER_CHUNK + 3, 16, 24, 3), dtype=np.uint8)
    images = FrameImages({"t": Video.open(pixels, fps=8.0)})
    for index in (FRAMES_PER_CHUNK + 2, 0, FRAMES_PER_CHUNK, FRAMES_PER_CHUNK - 1):
        np.testing.assert_array_equal(opened(images.image("t", index)), pixels[index])


def test_large_videos_come_as_jpeg_close_to_the_source():
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    pixels = np.broadcast_to(ramp[None, None, :, None], (2, 288, 512, 3))
    image = FrameImages({"t": Video.open(np.ascontiguousarray(pixels), fps=8.0)}).image("t", 1)
    assert image[:3] == b"\xff\xd8\xff" and np.abs(opened(image).astype(int) - pixels[1]).max() <= 6


def test_the_cache_stays_bounded_and_right(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (3 * FRAMES_PER_CHUNK, 16, 16, 3), dtype=np.uint8)
    images = FrameImages({"t": Video.open(pixels, fps=8.0)})
    monkeypatch.setattr(frame_images, "CACHED_BYTES", 60_000)
    for index in (0, FRAMES_PER_CHUNK, 2 * FRAMES_PER_CHUNK, 1):
        np.testing.assert_array_equal(opened(images.image("t", index)), pixels[index])
    assert images._bytes <= 60_000
    with pytest.raises(KeyError):
        images.image("unknown", 0)
