"""Frames written as mp4 come back as the same frames on the same clock, under their final name only when complete."""

import numpy as np
import pytest

from cac_align.encoding import write_mp4
from cac_align.video import Video


def clip(num_frames=17, height=48, width=64):
    y, x = np.mgrid[:height, :width]
    frames = [np.stack([x + 4 * t, 2 * y + t, np.full_like(x, 10 * t)], -1) for t in range(num_frames)]
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 64), (49, 33), (16, 16)])
def test_pixels_size_and_clock_come_back(tmp_path, height, width):
    pixels = clip(height=height, width=width)
    write_mp4(tmp_path / "a.mp4", pixels, 16)
    video = Video.open(tmp_path / "a.mp4")
    assert (len(video), video.height, video.width, video.fps) == (17, height, width, 16)
    assert video.times_s == tuple(i / 16 for i in range(17))
    error = np.abs(video.frames(range(17)).pixels.astype(int) - pixels)
    assert error.mean() < 2.5  # of 255
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_odd_rates_are_kept(tmp_path):
    write_mp4(tmp_path / "a.mp4", clip(5), 23.976)
    video = Video.open(tmp_path / "a.mp4")
    assert video.fps == pytest.approx(23.976, abs=1e-3)
    assert video.times_s[-1] == pytest.approx(4 / 23.976, abs=1e-3)


def test_the_same_frames_give_the_same_bytes(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_mp4(tmp_path / name, clip(), 16)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_an_existing_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.mp4"
    write_mp4(path, clip(), 16)
    before = path.read_bytes()
    for pixels, fps, message in [
        (clip().astype(float), 16, "expected uint8 pixels"),
        (clip()[0], 16, "expected uint8 pixels"),
        (clip()[:0], 16, "expected uint8 pixels"),
        (clip(), 0, "fps must be a positive"),
        (clip(), float("nan"), "fps must be a positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_mp4(path, pixels, fps)
    assert path.read_bytes() == before
    with pytest.raises(OSError):
        write_mp4(tmp_path / "absent" / "a.mp4", clip(), 16)
