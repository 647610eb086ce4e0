"""Video: every input becomes the same frames on the same clock, sampling facts of the paper hold, and bad input is named."""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cac_align.core.encoding import write_mp4
from cac_align.core.judgement import Window
from cac_align.core.limits import VideoLimits
from cac_align.core.video import Video

WAN_COUNT, WAN_FPS = 81, 16


def pixels(count: int = 5, height: int = 12, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def blank(count: int, fps: float = WAN_FPS) -> Video:
    return Video.open(np.zeros((count, 2, 4, 3), np.uint8), fps=fps, layout="THWC")


def truncated_images() -> list[Image.Image]:
    """Two PIL images, the second of which is a JPEG file that was cut; PIL notices when it decodes."""
    encoded = io.BytesIO()
    Image.fromarray(pixels(1, 64, 64)[0]).save(encoded, "JPEG")
    whole, cut = (Image.open(io.BytesIO(encoded.getvalue()[:size])) for size in (None, 900))
    return [whole, cut]


def uneven(times_s: tuple[float, ...]) -> Video:
    return Video(24.0, times_s, 2, 4, "uneven", np.zeros((len(times_s), 2, 4, 3), np.uint8))


# ---- inputs -------------------------------------------------------------------------------------------------------


def test_every_array_form_gives_the_same_frames() -> None:
    frames = pixels()
    floats = frames.astype(np.float32) / 255
    forms = [
        (frames, None),
        (frames.transpose(0, 3, 1, 2), None),  # TCHW
        (frames.transpose(3, 0, 1, 2), None),  # CTHW, as Wan's VAE writes it
        (frames.transpose(3, 0, 1, 2), "CTHW"),
        (floats, None),
        (floats.astype(np.float64).transpose(0, 3, 1, 2), "TCHW"),
        (torch.from_numpy(frames), None),
        (torch.from_numpy(floats).permute(0, 3, 1, 2), None),
        (torch.from_numpy(floats).permute(3, 0, 1, 2).requires_grad_(), "CTHW"),
        ([Image.fromarray(frame) for frame in frames], None),
    ]
    for source, layout in forms:
        video = Video.open(source, fps=8, layout=layout)
        assert (len(video), video.height, video.width, video.fps) == (5, 12, 16, 8.0)
        assert np.array_equal(video.frames(range(5)).pixels, frames)
        assert video.times_s == (0.0, 0.125, 0.25, 0.375, 0.5)


def test_bfloat16_keeps_what_it_can() -> None:
    frames = pixels()
    video = Video.open((torch.from_numpy(frames).float() / 255).to(torch.bfloat16), fps=8)
    assert np.abs(video.frames(range(5)).pixels.astype(int) - frames).max() <= 1  # 8 bits of mantissa


def test_slightly_overshooting_floats_are_clipped_and_wild_ones_refused() -> None:
    source = np.full((2, 4, 4, 3), 1.0005, np.float32)
    assert (Video.open(source, fps=8).sample(8).pixels == 255).all()
    for wrong in (1.5, -0.5, 255.0):
        with pytest.raises(ValueError, match=r"float pixels must lie in \[0, 1\].*rescale"):
            Video.open(np.full((2, 4, 4, 3), wrong, np.float32), fps=8)


def test_grey_and_transparent_images_become_rgb() -> None:
    video = Video.open([Image.new("L", (4, 2), 7), Image.new("L", (4, 2), 9)], fps=8)
    assert video.frames([0, 1]).pixels[:, 0, 0].tolist() == [[7, 7, 7], [9, 9, 9]]
    assert Video.open([Image.new("RGBA", (4, 2), (1, 2, 3, 0))], fps=8).frames([0]).pixels[0, 0, 0].tolist() == [
        1,
        2,
        3,
    ]


def test_a_video_is_a_video_already() -> None:
    video = blank(5)
    assert Video.open(video) is video and Video.open(video, fps=16) is video
    assert Video.open(video, fps=8).fps == 8


@pytest.mark.parametrize(
    ("source", "settings", "said"),
    [
        (np.zeros((5, 4, 4, 3), np.uint8), {}, "fps is required"),
        (torch.zeros(5, 3, 4, 4), {}, "fps is required"),
        (np.full((5, 4, 4, 3), np.nan, np.float32), {"fps": 8}, "240 NaN or infinite values"),
        (torch.full((2, 3, 4, 4), math.inf), {"fps": 8}, "96 NaN or infinite values"),
        (np.zeros((5, 4, 4), np.uint8), {"fps": 8}, "expected 4 axes"),
        (np.zeros((1, 5, 4, 4, 3), np.uint8), {"fps": 8}, "expected 4 axes"),
        (np.zeros((5, 4, 4, 1), np.uint8), {"fps": 8}, "no axis of shape .* has 3 channels"),
        (np.zeros((5, 4, 4, 4), np.uint8), {"fps": 8}, "has 3 channels"),
        (np.zeros((3, 3, 8, 8), np.uint8), {"fps": 8}, "can be read as TCHW or CTHW; pass layout="),
        (np.zeros((5, 3, 8, 3), np.uint8), {"fps": 8}, "can be read as THWC or TCHW; pass layout="),
        (np.zeros((3, 3, 8, 3), np.uint8), {"fps": 8}, "can be read as THWC or TCHW or CTHW; pass layout="),
        (np.zeros((5, 4, 4, 3), np.uint8), {"fps": 8, "layout": "TCHW"}, "layout TCHW expects 3 channels on axis 1"),
        (np.zeros((5, 4, 4, 3), np.uint8), {"fps": 8, "layout": "HWCT"}, "layout must be one of THWC, TCHW, CTHW"),
        (np.zeros((5, 4, 4, 3), np.int64), {"fps": 8}, "must be uint8 .* received int64"),
        (np.zeros((5, 4, 4, 3), bool), {"fps": 8}, "received bool"),
        (np.zeros((0, 4, 4, 3), np.uint8), {"fps": 8}, "at least one frame"),
        (np.zeros((0, 4, 4, 3), np.float32), {"fps": 8}, "at least one frame"),
        (np.zeros((5, 0, 4, 3), np.float32), {"fps": 8}, "at least one frame"),
        (np.zeros((VideoLimits.max_frames + 1, 1, 1, 3), np.uint8), {"fps": 8}, "10001 frames; at most 10000"),
        ([], {"fps": 8}, "empty list"),
        ([np.zeros((4, 4, 3))], {"fps": 8}, "list of PIL images, received a list of ndarray"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 5))], {"fps": 8}, "frames differ in size"),
        (np.zeros((5, 4, 4, 3), np.uint8), {"fps": 0}, "fps must be a positive number"),
        (np.zeros((5, 4, 4, 3), np.uint8), {"fps": -8}, "fps must be a positive number"),
        (np.zeros((5, 4, 4, 3), np.uint8), {"fps": math.nan}, "fps must be a positive number"),
        (np.zeros((5, 4, 4, 3), np.uint8), {"fps": math.inf}, "fps must be a positive number"),
        (np.zeros((5, 4, 4, 3), np.uint8), {"fps": 10**400}, "fps must be a positive number"),
        (np.zeros((5, 4, 4, 3), np.uint8), {"fps": "8"}, "fps must be a positive number"),
        (np.zeros((5, 4, 4, 3), np.uint8), {"fps": [8]}, "fps must be a positive number"),
        (np.zeros((5, 4, 4, 3), np.uint8), {"fps": True}, "fps must be a positive number"),
        (np.zeros((5, 4, 4, 3), np.uint8), {"fps": 8, "layout": []}, "layout must be one of"),
        (np.zeros((3, 16, 24, 1), np.uint8), {"fps": 8}, "can be read as CTHW or THWC; pass layout="),
        (np.zeros((3, 16, 24, 4), np.uint8), {"fps": 8}, "can be read as CTHW or THWC; pass layout="),
        (np.zeros((3, 4, 16, 24), np.uint8), {"fps": 8}, "can be read as CTHW or TCHW; pass layout="),
        (torch.zeros(5, 16, 16, 3).to_sparse(), {"fps": 8}, "dense tensor"),
        (torch.zeros(5, 16, 16, 3, device="meta"), {"fps": 8}, "dense tensor"),
        (torch.quantize_per_tensor(torch.zeros(5, 16, 16, 3), 0.1, 0, torch.quint8), {"fps": 8}, "dense tensor"),
        (io.BytesIO(b"video"), {"fps": 8}, "open file"),
        (truncated_images(), {"fps": 8}, "image 1 of the list cannot be read"),
        (42, {"fps": 8}, "expected a path, bytes, array, tensor or list of PIL images, received int"),
        (None, {"fps": 8}, "received NoneType"),
    ],
)
def test_bad_input_is_named(source: object, settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Video.open(source, **settings)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_frames": 8}, "9 frames; at most 8"),
        ({"max_duration_s": 0.4}, "at most 0.4 s"),
        ({"max_fps": 15}, "16 frames per second; at most 15"),
        ({"max_pixels": 100}, "at most 100 pixels"),
    ],
)
def test_limits_hold_for_arrays_and_files_alike(tmp_path: Path, limits: dict[str, Any], said: str) -> None:
    path = tmp_path / "clip.mp4"
    write_mp4(path, pixels(9), WAN_FPS)
    for source, fps in ((pixels(9), WAN_FPS), (path, None), (path, WAN_FPS)):
        with pytest.raises(ValueError, match=said):
            Video.open(source, fps=fps, limits=VideoLimits(**limits))


def test_frames_that_are_too_many_at_once_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_mp4(path, pixels(9), WAN_FPS)
    video = Video.open(path, limits=VideoLimits(max_decoded_pixels=4 * 12 * 16))
    assert len(video.frames(range(4))) == 4
    with pytest.raises(ValueError, match="5 frames of 12×16 px at once"):
        video.frames(range(5))
    with pytest.raises(ValueError, match="at once"):
        pickle.loads(pickle.dumps(video)).sample(16)


def test_the_environment_changes_the_limits_of_every_video(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAC_ALIGN_VIDEO_LIMITS", "max_frames=8, max_fps=50")
    with pytest.raises(ValueError, match="9 frames; at most 8"):
        blank(9)
    monkeypatch.setenv("CAC_ALIGN_VIDEO_LIMITS", "max_frames=9")
    assert len(blank(9)) == 9
    monkeypatch.setenv("CAC_ALIGN_VIDEO_LIMITS", "frames=9")
    with pytest.raises(ValueError, match="max_duration_s"):
        blank(9)


@pytest.mark.parametrize("last_s", [1e8, 1e4])
def test_two_frames_far_apart_cost_no_memory(last_s: float) -> None:
    """Two time stamps 1e8 s apart once asked for 9 GB of sampling times."""
    tracemalloc.start()
    try:
        if last_s > VideoLimits().max_duration_s:
            with pytest.raises(ValueError, match="at most 14400 s"):
                uneven((0.0, last_s)).sample(8)
        else:
            assert uneven((0.0, last_s)).indices_at(240) == (0, 1)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_a_rate_near_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="lasts"):
        blank(9, fps=1e-6)
    with pytest.raises(ValueError, match="lasts"):
        blank(9).with_fps(1e-6)


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "clip.mp4")
    script = f"from cac_align.core.video import Video; Video.open({str(tmp_path / 'clip.mp4')!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "regular file" in done.stderr
    with pytest.raises(ValueError, match="regular file"):
        Video.open("/dev/zero")


def test_a_layout_settles_what_the_shape_leaves_open() -> None:
    source = np.arange(3 * 3 * 8 * 8).reshape(3, 3, 8, 8).astype(np.uint8)
    by_time = Video.open(source, fps=8, layout="TCHW").frames([0, 1, 2]).pixels
    by_channel = Video.open(source, fps=8, layout="CTHW").frames([0, 1, 2]).pixels
    assert np.array_equal(by_time, source.transpose(0, 2, 3, 1))
    assert np.array_equal(by_channel, source.transpose(1, 2, 3, 0))


# ---- the clock ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fps", "expected"), [(4, tuple(range(0, 81, 4))), (8, tuple(range(0, 81, 2))), (16, tuple(range(81)))]
)
def test_a_wan_clip_is_sampled_as_the_paper_says(fps: float, expected: tuple[int, ...]) -> None:
    frames = blank(WAN_COUNT).sample(fps)
    assert frames.indices == expected and len(expected) in (21, 41, 81)
    assert frames.times_s == tuple(index / 16 for index in expected)
    assert (frames.fps, frames.num_source_frames) == (fps, 81)


def test_sampling_above_the_source_rate_takes_every_frame_once() -> None:
    assert blank(5, fps=8).indices_at(32) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("count", "fps", "rate", "expected"),
    [
        (1, 16, 4, (0,)),  # one frame is a video
        (2, 16, 4, (0, 1)),  # 1/16 s: a single sample is widened, a video needs two frames to be seen
        (3, 16, 4, (0, 2)),
        (5, 16, 4, (0, 4)),
        (12, 24, 4, (0, 6)),  # 11/24 s
        (9, 30, 4, (0, 7)),  # 8/30 s: 0.25 s lies between 7/30 and 8/30, and nearer to 7.5/30 → the earlier
    ],
)
def test_clips_below_a_second(count: int, fps: float, rate: float, expected: tuple[int, ...]) -> None:
    assert blank(count, fps).indices_at(rate) == expected


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (Window(0.0, 0.5), (0, 2, 4, 6, 8)),
        (Window(4.5, 5.0), (72, 74, 76, 78, 80)),
        (Window(4.5, 9.0), (72, 74, 76, 78, 80)),  # cut at the last frame
        (Window(2.0, 3.5), tuple(range(32, 57, 2))),  # 13 frames
        (Window(0.0, 0.0), (0, 2)),
        (Window(5.0, 5.0), (78, 80)),
        (Window(2.5, 2.5), (40, 42)),
        (Window(2.03, 2.04), (32, 34)),  # between two frames: the nearest, and its neighbour at 8 fps
        (Window(5.0000005, 6.0), (78, 80)),  # rounding behind the last frame
    ],
)
def test_windows_at_both_ends_and_between(window: Window, expected: tuple[int, ...]) -> None:
    frames = blank(WAN_COUNT).clip(window)
    assert frames.indices == expected and frames.fps == 8


def test_a_window_behind_the_video_is_refused() -> None:
    with pytest.raises(ValueError, match=r"window starts at 5\.500 s, after the last frame at 5\.000 s"):
        blank(WAN_COUNT).clip(Window(5.5, 6.0))


def test_uneven_time_stamps_decide_not_indices() -> None:
    video = uneven((0.0, 0.05, 0.24, 0.6, 0.74, 1.0))
    assert video.indices_at(4) == (0, 2, 3, 4, 5)  # 0, .25, .5 (nearest .6), .75, 1.0
    assert video.clip(Window(0.5, 1.0), fps=4).indices == (3, 4, 5)
    assert video.duration_s == pytest.approx(1.0 + 1 / 24)


def test_the_caller_may_override_the_clock(tmp_path: Path) -> None:
    path = tmp_path / "tagged_wrong.mp4"
    write_mp4(path, pixels(9, 16, 16), fps=30)
    assert Video.open(path).fps == 30
    video = Video.open(path, fps=16)
    assert (video.fps, video.times_s) == (16.0, tuple(n / 16 for n in range(9)))
    assert video.indices_at(4) == (0, 4, 8)
    assert np.array_equal(video.sample(4).pixels, Video.open(path).frames([0, 4, 8]).pixels)
    assert uneven((0.0, 0.5, 0.6)).with_fps(4).times_s == (0.0, 0.25, 0.5)
    with pytest.raises(ValueError, match="positive number"):
        video.with_fps(0)


@given(st.integers(1, 60), st.floats(1, 60), st.floats(0.5, 40), st.floats(0, 1), st.floats(0, 1))
def test_sampling_always_gives_increasing_frames_of_the_window(
    count: int, fps: float, rate: float, start: float, length: float
) -> None:
    video = blank(count, fps)
    last_s = video.times_s[-1]
    window = Window(start * last_s, start * last_s + length)
    for indices in (video.indices_at(rate), video.indices_at(rate, window)):
        assert list(indices) == sorted(set(indices)) and indices[0] >= 0 and indices[-1] < count
        assert len(indices) >= min(2, count)
    inside = video.indices_at(rate, window)
    slack_s = 1.5 / fps + 1 / rate + 1e-6  # a single sample takes its neighbour along
    assert video.times_s[inside[0]] >= window.start_s - slack_s
    assert video.times_s[inside[-1]] <= min(window.end_s, last_s) + slack_s


@pytest.mark.parametrize("fps", [0, -1, math.nan, math.inf])
def test_sampling_rates_must_be_positive(fps: float) -> None:
    with pytest.raises(ValueError, match="positive number"):
        blank(5).indices_at(fps)


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ((), "no frames asked for"),
        ((1, 0), "increasing"),
        ((1, 1), "increasing"),
        ((-1, 0), "increasing"),
        ((4, 5), r"\[0, 4\]"),
    ],
)
def test_frames_are_asked_for_in_order(indices: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        blank(5).frames(indices)


# ---- identity -----------------------------------------------------------------------------------------------------


def test_the_content_hash_is_that_of_the_encoded_bytes_and_the_clock(tmp_path: Path) -> None:
    path, copy = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_mp4(path, pixels(5, 16, 16), fps=16)
    copy.write_bytes(path.read_bytes())
    expected = hashlib.sha256(path.read_bytes() + np.arange(5, dtype="<f8").__truediv__(16).tobytes()).hexdigest()
    assert Video.open(path).content_hash == expected
    assert Video.open(copy).content_hash == expected == Video.open(path.read_bytes()).content_hash
    assert Video.open(bytearray(path.read_bytes())).content_hash == expected
    assert Video.open(path, fps=8).content_hash != expected


def test_the_content_hash_of_pixels_sees_every_pixel_the_shape_and_the_clock() -> None:
    frames = pixels()
    changed = frames.copy()
    changed[4, 11, 15, 2] ^= 1
    hashes = {
        Video.open(frames, fps=8).content_hash,
        Video.open(changed, fps=8).content_hash,
        Video.open(frames, fps=9).content_hash,
        Video.open(frames.reshape(5, 16, 12, 3), fps=8).content_hash,
    }
    assert len(hashes) == 4
    assert Video.open(frames.transpose(3, 0, 1, 2), fps=8).content_hash == Video.open(frames.copy(), fps=8).content_hash
    assert Video.open(frames, fps=8, name="another name").content_hash == Video.open(frames, fps=8).content_hash


def test_a_video_survives_pickling(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_mp4(path, pixels(5, 16, 16), fps=16)
    for video in (
        Video.open(path),
        Video.open(path.read_bytes(), name="bytes"),
        Video.open(pixels(), fps=8, name="pixels"),
    ):
        _ = video.content_hash
        twin = pickle.loads(pickle.dumps(video))
        assert (twin.times_s, twin.fps, twin.name, twin.path) == (video.times_s, video.fps, video.name, video.path)
        assert twin.content_hash == video.content_hash
        assert np.array_equal(twin.sample(4).pixels, video.sample(4).pixels)
    assert Video.open(path).path == path and Video.open(pixels(), fps=8).path is None


def test_names_are_what_messages_call_it(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_mp4(path, pixels(5, 16, 16), fps=16)
    content = path.read_bytes()
    assert Video.open(path).name == str(path)
    assert Video.open(content).name == f"{len(content)} bytes"
    with pytest.raises(ValueError, match="candidate 3: "):
        Video.open(b"", name="candidate 3")
