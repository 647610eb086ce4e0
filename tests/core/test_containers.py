"""A file that was cut is refused, or its length is said to be unverified; never silently shorter."""

from __future__ import annotations

import multiprocessing
import random
import re
import struct
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cac_align.core.video import Video

NUM_FRAMES = 33

# Container options and codec of each format; "piped" writers cannot go back and state a length.
FORMATS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "mp4": ("mp4", "libx264", "yuv420p", {"movflags": "faststart"}),
    "fragmented mp4": ("mp4", "libx264", "yuv420p", {"movflags": "frag_keyframe+empty_moov"}),
    "fragmented mp4, piped": ("mp4", "libx264", "yuv420p", {"movflags": "frag_keyframe+empty_moov+skip_trailer"}),
    "MPEG-TS": ("mpegts", "libx264", "yuv420p", {}),
    "FLV": ("flv", "libx264", "yuv420p", {}),
    "FLV, piped": ("flv", "libx264", "yuv420p", {"flvflags": "no_duration_filesize"}),
    "webm": ("webm", "libvpx-vp9", "yuv420p", {}),
    "webm, live": ("webm", "libvpx-vp9", "yuv420p", {"live": "1"}),
    "mkv": ("matroska", "libx264", "yuv420p", {}),
    "avi": ("avi", "mpeg4", "yuv420p", {}),
    "gif": ("gif", "gif", "rgb8", {}),
}
UNVERIFIED = {"fragmented mp4, piped", "MPEG-TS", "FLV, piped", "webm, live"}


def encoded(folder: Path, name: str, still: bool = False) -> bytes:
    """A clip of 33 frames of noise in this format; all different, or all the same."""
    noise = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, 48, 64, 3)).astype(np.uint8)
    muxer, codec, pixel_format, options = FORMATS[name]
    path = folder / "clip"
    with av.open(str(path), "w", format=muxer, options=options) as container:
        stream: Any = container.add_stream(codec, rate=10, options={"g": "6"} if codec != "gif" else {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        for number in range(NUM_FRAMES):
            pixels = noise[0 if still else number]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel_format)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One clip of 33 different frames in every format."""
    return {name: encoded(tmp_path_factory.mktemp("clip"), name) for name in FORMATS}


def accepted(content: bytes) -> Video | None:
    """The video, with every frame decoded, or None where it is refused."""
    try:
        video = Video.open(content)
        video.frames(range(len(video)))
    except ValueError:
        return None
    return video


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_file_is_accepted_and_says_whether_its_length_is_verified(files: dict[str, bytes], name: str) -> None:
    video = accepted(files[name])
    assert video is not None and len(video) == NUM_FRAMES
    assert video.length_verified == (name not in UNVERIFIED)


@pytest.mark.parametrize("name", FORMATS)
def test_no_cut_makes_a_verified_shorter_video(files: dict[str, bytes], name: str) -> None:
    content = files[name]
    rng = random.Random(0)
    cuts = {int(len(content) * (n + rng.random()) / 40) for n in range(40)} | {len(content) - 1}
    cuts |= {188 * (len(content) // 188 * n // 10) for n in range(1, 10)}  # between two packets of MPEG-TS
    for cut in sorted(cuts - {0}):
        video = accepted(content[:cut])
        assert video is None or len(video) == NUM_FRAMES or not video.length_verified, f"cut at {cut}"


def test_a_transport_stream_cut_between_packets_is_accepted_with_an_unverified_length(files: dict[str, bytes]) -> None:
    content = files["MPEG-TS"]
    shorter = [accepted(content[: 188 * (len(content) // 188 * n // 10)]) for n in range(5, 10)]
    assert any(video is not None and len(video) < NUM_FRAMES and not video.length_verified for video in shorter)


@pytest.mark.parametrize("name", ["mp4", "fragmented mp4"])
def test_no_flipped_bit_in_the_tables_hides_frames(files: dict[str, bytes], name: str) -> None:
    content = files[name]
    end = content.find(b"mdat") if name == "mp4" else len(content)
    rng = random.Random(1)
    for _ in range(150):
        bit = rng.randrange(8 * 32, 8 * end)
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        video = accepted(bytes(damaged))
        assert video is None or len(video) == NUM_FRAMES or not video.length_verified, f"bit {bit}"


@pytest.mark.parametrize("name", ["avi", "gif", "mkv"])
def test_no_flipped_bits_hide_frames_of_what_has_no_table(files: dict[str, bytes], name: str) -> None:
    rng, shorter = random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(files[name])
        for _ in range(rng.randint(1, 4)):
            reach = len(damaged) if rng.random() < 0.5 else 2048
            damaged[rng.randrange(reach)] ^= 1 << rng.randrange(8)
        video = accepted(bytes(damaged))
        shorter += video is not None and len(video) < NUM_FRAMES
        assert video is None or len(video) == NUM_FRAMES or not video.length_verified
    assert shorter or name == "gif"


@pytest.mark.parametrize("still", [False, True])
@pytest.mark.parametrize("name", ["webm", "mkv"])
def test_a_block_under_another_name_is_not_hidden(tmp_path: Path, name: str, still: bool) -> None:
    """One flipped bit makes a block (A3) an element that a cluster may hold (A7, AB), which a demuxer passes over.

    Blocks of a video that stands still have as few bytes as such an element may have.
    """
    content, hidden = encoded(tmp_path, name, still), 0
    blocks = [
        found.start() for found in re.finditer(rb"\xa3(?:[\x80-\xff]|[\x40-\x7f].|[\x20-\x3f]..)\x81", content, re.S)
    ]
    assert len(blocks) >= NUM_FRAMES
    for place in blocks:
        for other in (0xA7, 0xAB, 0xAF, 0xE7):
            video = accepted(content[:place] + bytes([other]) + content[place + 1 :])
            hidden += video is not None and len(video) < NUM_FRAMES
            assert video is None or len(video) == NUM_FRAMES or not video.length_verified, (place, other)
    assert hidden >= NUM_FRAMES


def test_a_gif_whose_blocks_have_a_damaged_length_is_refused_or_not_verified(files: dict[str, bytes]) -> None:
    damaged = bytearray(files["gif"])
    damaged[damaged.index(b"!\xf9\x04", len(damaged) // 2) + 2] = 5
    with pytest.raises(ValueError, match="another length than 4"):
        Video.open(bytes(damaged))
    # A first block that is one byte longer, with the count that follows moved into it: whole, and yet not as written.
    content = files["gif"]
    block = content.index(b"\xff", content.index(b"!\xf9\x04"))
    shifted = content[:block] + b"\xfe" + content[block + 1 : block + 255] + b"\x01" + content[block + 255 :]
    video = accepted(shifted)
    assert video is not None and not video.length_verified


def test_a_matroska_that_states_a_length_of_centuries_does_not_end_the_process(files: dict[str, bytes]) -> None:
    content = files["mkv"]
    place = content.index(b"\x44\x89\x88") + 3  # the file's length as a float of 8 bytes
    assert struct.unpack_from(">d", content, place)[0] == pytest.approx(100 * NUM_FRAMES)
    damaged = content[:place] + struct.pack(">d", 100 * NUM_FRAMES * 2.0**32) + content[place + 8 :]
    assert _read_in_a_process_of_its_own(damaged) == NUM_FRAMES


def _read_in_a_process_of_its_own(content: bytes) -> int:
    """How many frames it has; raises ``BrokenProcessPool`` where reading them ends the process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return len(pool.submit(accepted, content).result() or ())


def test_tables_that_contradict_each_other_are_refused(files: dict[str, bytes]) -> None:
    content = bytearray(files["mp4"])
    count = content.find(b"stsz") + 12
    assert int.from_bytes(content[count : count + 4], "big") == NUM_FRAMES
    content[count + 3] = NUM_FRAMES - 8
    with pytest.raises(ValueError, match="durations"):
        Video.open(bytes(content))


def test_lists_within_lists_without_end_are_refused() -> None:
    """They are read one by one; a function per list would end in ``RecursionError``, which no host takes for a bad file."""
    body = b""
    for _ in range(2000):
        body = b"LIST" + (4 + len(body)).to_bytes(4, "little") + b"hdrl" + body
    with pytest.raises(ValueError, match="not a readable video"):
        Video.open(b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"AVI " + body)


def test_padding_behind_a_file_is_no_damage(files: dict[str, bytes]) -> None:
    for name in ("mp4", "webm", "avi", "gif", "mkv"):
        video = accepted(files[name] + bytes(64))
        assert video is not None and len(video) == NUM_FRAMES, name


def test_a_file_says_its_length_is_unverified_after_pickling_too(files: dict[str, bytes], tmp_path: Path) -> None:
    import pickle

    path = tmp_path / "clip.ts"
    path.write_bytes(files["MPEG-TS"])
    assert not pickle.loads(pickle.dumps(Video.open(path))).length_verified
