"""Animated WebP and folders of images are videos: their frames, their clock, and what is wrong with damaged ones."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cac_align.core.images import is_animated_webp, is_image_folder
from cac_align.core.judgement import Window
from cac_align.core.limits import VideoLimits
from cac_align.core.video import Video, is_video_file

DURATIONS_MS = [40, 60, 100, 100, 30, 250, 40, 80]


def pictures(count: int = 8, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def write_webp(path: Path, pixels: np.ndarray, durations_ms: list[int] | int = 62) -> Path:
    first, *rest = [Image.fromarray(frame) for frame in pixels]
    first.save(path, save_all=True, append_images=rest, duration=durations_ms, loop=0, lossless=True)
    return path


def write_folder(folder: Path, pixels: np.ndarray, name: str = "frame_{}.png", step: int = 1) -> Path:
    folder.mkdir(parents=True)
    for number, frame in enumerate(pixels):
        Image.fromarray(frame).save(folder / name.format(number * step))
    return folder


def test_an_animated_webp_has_its_own_pixels_and_durations_as_its_clock(tmp_path: Path) -> None:
    pixels = pictures()
    path = write_webp(tmp_path / "comfy.webp", pixels, DURATIONS_MS)
    for source in (path, path.read_bytes()):
        video = Video.open(source)
        assert video.times_s == (0.0, 0.04, 0.1, 0.2, 0.3, 0.33, 0.58, 0.62)
        assert video.fps == pytest.approx(7 / 0.62) and video.length_verified
        assert (video.height, video.width) == (24, 32)
        assert np.array_equal(video.frames(range(8)).pixels, pixels)
        assert np.array_equal(video.frames([1, 6]).pixels, pixels[[1, 6]])
    video = Video.open(path, fps=16)
    assert video.fps == 16 and video.times_s[-1] == 7 / 16
    assert pickle.loads(pickle.dumps(video)).content_hash == video.content_hash != Video.open(path).content_hash
    assert video.path == path and is_video_file(path)


def test_frames_that_a_writer_merged_leave_the_others_at_their_times(tmp_path: Path) -> None:
    pixels = pictures(6)
    pixels[3] = pixels[2]
    video = Video.open(write_webp(tmp_path / "still_inside.webp", pixels, 50))
    assert video.times_s == (0.0, 0.05, 0.1, 0.2, 0.25)
    assert video.clip(Window(0.2, 0.25), fps=20).indices == (3, 4)
    assert np.array_equal(video.frames([3]).pixels[0], pixels[4])


def test_a_still_webp_is_no_video(tmp_path: Path) -> None:
    Image.fromarray(pictures(1)[0]).save(tmp_path / "still.webp", lossless=True)
    with pytest.raises(ValueError, match="still WebP image"):
        Video.open(tmp_path / "still.webp")
    assert not is_animated_webp(tmp_path / "still.webp") and not is_animated_webp(tmp_path / "none.webp")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.999])
def test_a_cut_webp_is_refused(tmp_path: Path, share: float) -> None:
    whole = write_webp(tmp_path / "whole.webp", pictures(), DURATIONS_MS).read_bytes()
    with pytest.raises(ValueError, match="cut short"):
        Video.open(whole[: max(21, int(len(whole) * share))])


def test_a_webp_cut_with_its_size_mended_or_damaged_inside_is_refused(tmp_path: Path) -> None:
    whole = bytearray(write_webp(tmp_path / "whole.webp", pictures(), DURATIONS_MS).read_bytes())
    shorter = whole[: len(whole) // 2]
    shorter[4:8] = (len(shorter) - 8).to_bytes(4, "little")
    with pytest.raises(ValueError, match="damaged: its chunk"):
        Video.open(bytes(shorter))
    at = whole.rindex(b"VP8L")  # the last frame's image
    whole[at + 14 :] = b"\xff" * (len(whole) - at - 14)
    video = Video.open(bytes(whole))
    assert len(video.frames([0, 1]).pixels) == 2
    with pytest.raises(ValueError, match="frame 7 cannot be decoded.*damaged, render or download it again"):
        video.frames([7])
    whole[at + 8 : at + 14] = bytes(6)  # its head: the decoder refuses the whole file
    with pytest.raises(ValueError, match="damaged, render or download it again"):
        Video.open(bytes(whole)).frames([0])


def test_limits_hold_for_webp_and_frames_of_no_duration_are_refused(tmp_path: Path) -> None:
    path = write_webp(tmp_path / "clip.webp", pictures(), 1000)
    for limits, said in (
        (VideoLimits(max_frames=7), "at most 7"),
        (VideoLimits(max_pixels=700), "at most 700 pixels"),
        (VideoLimits(max_duration_s=3), "lasts 7 s"),
    ):
        with pytest.raises(ValueError, match=said):
            Video.open(path, limits=limits)
    with pytest.raises(ValueError, match="more than 5000"):
        Video.open(path, limits=VideoLimits(max_decoded_pixels=5000)).frames(range(8))
    with pytest.raises(ValueError, match="7 frames repeat another's time stamp"):
        Video.open(write_webp(tmp_path / "timeless.webp", pictures(), 0))


@pytest.mark.parametrize("name", ["frame_{}.png", "{:05d}.png", "clip7_{}_final.bmp"])
def test_a_folder_of_images_is_a_video_in_the_order_of_its_numbers(tmp_path: Path, name: str) -> None:
    pixels = pictures(12)
    folder = write_folder(tmp_path / "clip", pixels, name, step=3)
    (folder / "prompt.txt").write_text("a ball")
    (folder / ".hidden.png").write_bytes(b"no image")
    video = Video.open(folder, fps=16)
    assert video.times_s == tuple(n / 16 for n in range(12)) and (video.height, video.width) == (24, 32)
    assert np.array_equal(video.frames(range(12)).pixels, pixels)
    assert np.array_equal(video.frames([2, 10]).pixels, pixels[[2, 10]])
    assert is_image_folder(folder) and video.path is None
    other = write_folder(tmp_path / "other", pixels, "x{}.png")
    same = name == "frame_{}.png" or name == "{:05d}.png"
    assert (Video.open(other, fps=16).content_hash == video.content_hash) == same  # the images' bytes, not their names
    assert pickle.loads(pickle.dumps(video)).content_hash == video.content_hash


def test_a_folder_of_images_needs_a_rate_and_has_limits(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clip", pictures())
    with pytest.raises(ValueError, match=r"carries no clock; pass fps \(--fps 16"):
        Video.open(folder)
    for limits, said in (
        (VideoLimits(max_frames=7), "at most 7"),
        (VideoLimits(max_pixels=700), "at most 700 pixels"),
        (VideoLimits(max_duration_s=0.2), "lasts 0.4375 s"),
    ):
        with pytest.raises(ValueError, match=said):
            Video.open(folder, fps=16, limits=limits)


def test_what_is_wrong_with_a_folder_of_images_is_named(tmp_path: Path) -> None:
    def refused(said: str) -> None:
        with pytest.raises(ValueError, match=said):
            Video.open(folder, fps=16)

    folder = tmp_path / "clip"
    folder.mkdir()
    refused("is a folder without images")
    write_folder(tmp_path / "whole", pictures(4))
    folder = tmp_path / "whole"
    (folder / "frame_4.png").write_bytes(b"no image at all")
    refused("frame_4.png: not a readable image")
    Image.fromarray(pictures(1, 24, 30)[0]).save(folder / "frame_4.png")
    refused("frame_4.png: is 24×30 px, the images before it 24×32")
    (folder / "frame_4.png").rename(folder / "frame_5.png")
    refused("number 4 is missing between frame_3.png and frame_5.png")
    (folder / "frame_5.png").rename(folder / "frame_03.png")
    refused("frame_03.png and frame_3.png have the same number")
    (folder / "frame_03.png").rename(folder / "mask_3.png")
    refused("frame_0.png and mask_3.png are no one series")
    (folder / "mask_3.png").rename(folder / "thumbnail.png")
    refused("thumbnail.png has no number")
    (folder / "thumbnail.png").unlink()
    Image.fromarray(np.zeros((24, 32), np.uint16)).save(folder / "frame_4.png")
    refused("mode 'I;16'; expected 8 bits")
    first, second = (Image.fromarray(frame) for frame in pictures(2))
    first.save(folder / "frame_4.png", save_all=True, append_images=[second])
    refused("holds 2 images")
    (folder / "frame_4.png").unlink()
    assert len(Video.open(folder, fps=16)) == 4


def test_an_image_that_breaks_off_or_changes_later_is_no_frame(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clip", pictures())
    video = Video.open(folder, fps=16)
    whole = (folder / "frame_3.png").read_bytes()
    (folder / "frame_3.png").write_bytes(whole[: len(whole) // 2])
    assert len(video.frames([0, 2]).pixels) == 2
    with pytest.raises(ValueError, match=r"frame_3.png: not a readable image"):
        video.frames([2, 3])
    (folder / "frame_3.png").unlink()
    with pytest.raises(ValueError, match=r"frame_3.png"):
        video.frames([3])
    buffer = io.BytesIO()
    Image.fromarray(pictures(1, 8, 8)[0]).save(buffer, "PNG")
    (folder / "frame_3.png").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="is 8×8 px"):
        video.frames([3])
