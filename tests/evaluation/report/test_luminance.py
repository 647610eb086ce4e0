"""The luminance change of synthetic videos, by hand."""

import numpy as np
import pytest

from cac_align.core.video import Video
from cac_align.evaluation.report.luminance import luminance_change


def flicker(count, fps, *, side=64, low=0, high=255):
    """Alternates between two levels every 1/8 s."""
    times = np.arange(count) / fps
    pixels = np.where((np.floor(times * 8 + 1e-6) % 2 == 0)[:, None, None, None], low, high)
    return Video.open(np.broadcast_to(pixels, (count, side, side, 3)).astype(np.uint8), fps=fps)


@pytest.mark.parametrize(("count", "fps"), [(9, 8.0), (17, 16.0), (33, 32.0)])
def test_luminance_change_is_the_share_of_the_range_per_eighth_of_a_second_at_any_rate(count, fps):
    assert luminance_change(flicker(count, fps)) == pytest.approx(1.0)
    assert luminance_change(flicker(count, fps, low=100, high=151)) == pytest.approx(51 / 255, abs=1e-3)
    assert luminance_change(flicker(count, fps, low=90, high=90)) == 0.0


def test_luminance_change_counts_the_part_of_the_picture_that_moves_and_not_fine_noise():
    pixels = np.zeros((9, 64, 64, 3), np.uint8)
    pixels[1::2, :32] = 255
    assert luminance_change(Video.open(pixels, fps=8.0)) == pytest.approx(0.5)
    noise = np.random.default_rng(0).integers(0, 256, (9, 640, 640, 3), dtype=np.uint8)
    assert luminance_change(Video.open(noise, fps=8.0)) < 0.04  # a hundred pixels are averaged into one
    assert luminance_change(Video.open(pixels[:1], fps=8.0)) is None
