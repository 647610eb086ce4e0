"""Frames written as mp4 come back as the same frames on the same clock, under their final name only when complete."""

import os
import subprocess
import sys

import numpy as np
import pytest

from cac_align.core.encoding import pad_mp4, write_mp4
from cac_align.core.video import Video
from cac_align.evaluation.pages.player import _mp4


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


def grainy(num_frames=17, side=64):
    """A red ball over waves, with noise: the encoder has close decisions to take."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    frames = []
    for t in range(num_frames):
        frame = (120 + 60 * np.sin(x / 7) + 40 * np.cos(y / 5))[..., None] * np.array([1, 0.8, 0.6])
        frame[(x - 10 - 2.6 * t) ** 2 + (y - 30 - 8 * np.sin(t / 2)) ** 2 < 64] = (220, 40, 30)
        frames.append(np.clip(frame + rng.normal(0, 3, frame.shape), 0, 255))
    return np.stack(frames).astype(np.uint8)


@pytest.mark.parametrize("way", ["file", "report"])
def test_the_same_frames_give_the_same_bytes(tmp_path, way):
    """x264's fast code rounds by where its memory lies: of sixty files of these frames the commonest was a third of all, of other clips all were alike."""
    rng, kept, found = np.random.default_rng(1), [], set()
    for _ in range(30):
        kept += [np.empty(size, np.uint8) for size in rng.integers(1, 50_000, 20)][
            ::2
        ]  # memory lies elsewhere each time
        if way == "report":
            found.add(_mp4(grainy(), [t / 16 for t in range(17)], 16, 20))
            continue
        write_mp4(tmp_path / "a.mp4", grainy(), 16)
        found.add((tmp_path / "a.mp4").read_bytes())
    assert len(found) == 1


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


def test_what_a_killed_process_left_of_a_video_goes_when_the_video_is_written(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    pixels = np.zeros((4, 16, 16, 3), np.uint8)
    leftover = tmp_path / f".a [1].mp4.{dead.pid}.part"
    at_work, of_another = tmp_path / f".a [1].mp4.{os.getppid()}.part", tmp_path / f".b.mp4.{dead.pid}.part"
    for part in (leftover, at_work, of_another):
        part.write_bytes(b"half")
    write_mp4(tmp_path / "a [1].mp4", pixels, fps=8)
    assert not leftover.exists() and at_work.exists() and of_another.exists()


def test_lossless_rgb_gives_back_every_pixel_and_lossless_yuv_every_grey_one(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 96, 3), np.uint8)
    write_mp4(tmp_path / "rgb.mp4", noise, 16, lossless="rgb")
    assert np.array_equal(Video.open(tmp_path / "rgb.mp4").frames(range(5)).pixels, noise)
    grey = np.repeat(noise[..., :1], 3, -1)
    write_mp4(tmp_path / "yuv.mp4", grey, 16, lossless="yuv420p")
    read = Video.open(tmp_path / "yuv.mp4").frames(range(5)).pixels
    assert np.abs(read.astype(int) - grey).max() <= 2  # 219 levels of luma for 256 of grey


def test_padding_makes_two_files_equally_long_and_changes_no_frame(tmp_path):
    paths = [tmp_path / "short.mp4", tmp_path / "long.mp4"]
    for path, pixels in zip(paths, (np.zeros_like(clip(9)), clip(9)), strict=True):
        write_mp4(path, pixels, 16, lossless="yuv420p")
    before = [Video.open(path) for path in paths]
    frames = [video.frames(range(9)).pixels for video in before]
    size = max(path.stat().st_size for path in paths) + 8
    for path in paths:
        pad_mp4(path, size)
        assert path.stat().st_size == size
    for path, video, pixels in zip(paths, before, frames, strict=True):
        after = Video.open(path)
        assert after.times_s == video.times_s
        assert np.array_equal(after.frames(range(9)).pixels, pixels)
    with pytest.raises(ValueError, match="8 bytes"):
        pad_mp4(paths[0], size + 7)
