"""Files → frames: both decoders agree bit for bit, time stamps are the container's, and damage is named, never papered over."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from cac_align.core.decoding import FileFrames, _read_av, _read_decord, read_index
from cac_align.core.limits import VideoLimits
from cac_align.core.video import Video

MS = Fraction(1, 1000)
UNEVEN_MS = tuple(np.cumsum([0, *np.random.default_rng(1).integers(30, 120, 39)]).tolist())


def write(
    path: Path,
    count: int = 40,
    *,
    size: tuple[int, int] = (64, 48),
    fps: int = 16,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    gop: int | None = None,
    b_frames: int | None = None,
    stamps_ms: Any = None,
    **options: str,
) -> Path:
    """A clip whose every frame differs from every other."""
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        if stamps_ms is not None:
            stream.time_base = stream.codec_context.time_base = MS
        if gop is not None:
            stream.codec_context.gop_size = gop
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        for n in range(count):
            pixels = np.stack(
                [(columns * 2 + 5 * n) % 256, (rows * 3 + 2 * n) % 256, (rows + columns + 7 * n) % 256], -1
            )
            frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24").reformat(format=pixel_format)
            if stamps_ms is not None:
                frame.pts, frame.time_base = int(stamps_ms[n]), MS
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


CLIPS: dict[str, dict[str, Any]] = {
    "default.mp4": {"sc_threshold": "0"},
    "intra.mp4": {"gop": 1, "b_frames": 0},
    "b_frames.mp4": {"gop": 12, "b_frames": 3},
    "two_groups.mp4": {"gop": 37, "b_frames": 3},
    "open_group.mkv": {"x264-params": "open-gop=1:keyint=10:bframes=3:b-adapt=0"},
    "hevc.mp4": {"codec": "libx265", "x265-params": "log-level=none:keyint=10:bframes=3"},
    "faststart.mp4": {"count": 17},
    "uneven.mp4": {"stamps_ms": UNEVEN_MS, "sc_threshold": "0"},
    "odd_width.mp4": {"size": (70, 50)},
    "yuv444.mp4": {"pixel_format": "yuv444p"},
    "ten_bit.mp4": {"pixel_format": "yuv420p10le", "count": 8},
    "one.mp4": {"count": 1},
    "clip.mkv": {"sc_threshold": "0"},
    "clip.avi": {"codec": "mpeg4", "b_frames": 2},
    "clip.ts": {"gop": 12},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "uneven.webm": {"codec": "libvpx-vp9", "stamps_ms": UNEVEN_MS},
    "clip.gif": {"codec": "gif", "pixel_format": "rgb8", "fps": 10, "count": 20},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {name: write(folder / name, **settings) for name, settings in CLIPS.items()}


@pytest.fixture(scope="module")
def mp4(clips: dict[str, Path]) -> bytes:
    """moov in front, so that a cut file still opens."""
    path = clips["b_frames.mp4"].with_name("table_first.mp4")
    with (
        av.open(str(clips["b_frames.mp4"])) as source,
        av.open(str(path), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    whole = path.read_bytes()
    assert whole.find(b"moov") < whole.find(b"mdat")
    return whole


def by_plain_decoding(path: Path) -> tuple[list[float], np.ndarray]:
    """Every frame with its time, in the order a player shows them: the reference."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    first = frames[0].pts
    return [float((frame.pts - first) * frame.time_base) for frame in frames], np.stack(
        [frame.to_ndarray(format="rgb24") for frame in frames]
    )


def whole(source: Path | bytes, name: str = "clip") -> np.ndarray:
    frames = FileFrames(source)
    return frames.read(tuple(range(len(read_index(frames, name).times_s))))


# ---- sound files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLIPS)
def test_index_and_frames_equal_plain_decoding(clips: dict[str, Path], name: str) -> None:
    times_s, pixels = by_plain_decoding(clips[name])
    frames = FileFrames(clips[name])
    index = read_index(frames, name)
    assert index.times_s == pytest.approx(times_s, abs=1e-9)
    assert (index.height, index.width) == pixels.shape[1:3]
    assert index.times_s[0] == 0 and len(index.times_s) == CLIPS[name].get("count", 40)
    count = len(times_s)
    picks = [
        tuple(range(count)),
        tuple(range(0, count, 4)),
        tuple(range(count // 2, count)),
        *((n,) for n in range(count)),
    ]
    for wanted in picks:  # single frames too: that is where a decoder's seeking goes wrong
        assert np.array_equal(frames.read(wanted), pixels[list(wanted)])


@pytest.mark.parametrize("name", CLIPS)
def test_both_decoders_give_the_same_frames(clips: dict[str, Path], name: str) -> None:
    frames = FileFrames(clips[name])
    count = len(read_index(frames, name).times_s)
    for wanted in (tuple(range(count)), tuple(range(0, count, 3)), (count - 1,), tuple(range(count // 3, count, 2))):
        from_av = _read_av(frames.source, wanted, frames._table.stamps, frames.limits.max_pixels)
        from_decord = _read_decord(frames.source, wanted, count) if frames._table.decord_is_right else None
        if from_decord is not None:
            assert np.array_equal(from_decord, from_av)
        else:  # what decord cannot do, or does wrong
            assert name not in {"default.mp4", "intra.mp4", "uneven.mp4", "clip.mkv"}
            assert name != "vp9.webm" or not frames._table.decord_is_right


def test_a_bridge_that_other_code_has_set_changes_nothing(clips: dict[str, Path]) -> None:
    """decord's bridge is one for the whole process; data sets set it, and then batches are torch's."""
    decord = pytest.importorskip("decord")
    frames = FileFrames(clips["default.mp4"])
    plain = _read_decord(frames.source, (0, 3), 40)
    decord.bridge.set_bridge("torch")
    try:
        bridged = _read_decord(frames.source, (0, 3), 40)
    finally:
        decord.bridge.set_bridge("native")
    assert isinstance(bridged, np.ndarray) and plain is not None and np.array_equal(bridged, plain)


@pytest.mark.parametrize("name", ["default.mp4", "clip.gif", "vp9.webm"])
def test_bytes_are_as_good_as_a_path(clips: dict[str, Path], name: str) -> None:
    assert np.array_equal(whole(clips[name].read_bytes()), whole(clips[name]))


@pytest.mark.parametrize(
    ("name", "fps"), [("default.mp4", 16), ("one.mp4", 16), ("clip.gif", 10), ("vp9.webm", 16), ("clip.avi", 16)]
)
def test_nominal_rate(clips: dict[str, Path], name: str, fps: float) -> None:
    assert read_index(FileFrames(clips[name]), name).fps == pytest.approx(fps, rel=1e-3)


@pytest.mark.parametrize("name", ["uneven.mp4", "uneven.webm"])
def test_uneven_rate_is_mapped_by_time_stamps(clips: dict[str, Path], name: str) -> None:
    video = Video.open(clips[name])
    assert video.times_s == pytest.approx([ms / 1000 for ms in UNEVEN_MS], abs=1e-6)
    assert video.fps == pytest.approx(39 / UNEVEN_MS[-1] * 1000, rel=0.01)
    indices = video.indices_at(4)
    for wanted_s, index in zip(np.arange(len(indices)) / 4, indices, strict=True):
        assert abs(video.times_s[index] - wanted_s) == min(abs(time_s - wanted_s) for time_s in video.times_s)
    assert indices != tuple(round(n * video.fps / 4) for n in range(len(indices)))  # what index / rate would have taken


def test_frames_before_an_edit_lists_start_do_not_count(clips: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    with av.open(str(clips["b_frames.mp4"])) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux():
            if packet.dts is not None:
                shift = int(Fraction(5, 16) / packet.time_base)  # five frames
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                target.mux(packet)
    assert np.array_equal(whole(path), by_plain_decoding(clips["b_frames.mp4"])[1][5:])


def test_threads_may_share_one_file(clips: dict[str, Path]) -> None:
    frames = FileFrames(clips["b_frames.mp4"])
    expected = whole(clips["b_frames.mp4"])
    wanted = [tuple(range(start, 40, step)) for start in range(4) for step in (1, 5)]
    with ThreadPoolExecutor(4) as pool:
        for indices, pixels in zip(wanted, pool.map(frames.read, wanted), strict=True):
            assert np.array_equal(pixels, expected[list(indices)])


def test_a_file_survives_pickling(clips: dict[str, Path]) -> None:
    frames = FileFrames(clips["default.mp4"])
    read_index(frames, "clip")
    twin = pickle.loads(pickle.dumps(frames))
    assert twin == frames and np.array_equal(twin.read((3, 7)), frames.read((3, 7)))


def test_importing_loads_no_decoder() -> None:
    code = "import sys, cac_align.core.decoding; print(sorted({'decord', 'av', 'torch'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_without_decord_pyav_reads_the_file(clips: dict[str, Path]) -> None:
    code = (
        "import sys; sys.modules['decord'] = None\n"
        "from pathlib import Path; from hashlib import sha256\n"
        "from cac_align.core.decoding import FileFrames\n"
        "print(sha256(FileFrames(Path(sys.argv[1])).read((2, 9, 30)).tobytes()).hexdigest())"
    )
    from hashlib import sha256

    path = clips["b_frames.mp4"]
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == sha256(FileFrames(path).read((2, 9, 30)).tobytes()).hexdigest()


# ---- what is no video ---------------------------------------------------------------------------------------------


def png(folder: Path) -> Path:
    path = folder / "still.mp4"  # whatever it is called
    Image.new("RGB", (32, 24), "red").save(path, format="PNG")
    return path


def audio(folder: Path) -> Path:
    path = folder / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def with_bytes(name: str, content: bytes) -> Any:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    return make


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (with_bytes("empty.mp4", b""), "empty \\(0 bytes\\)"),
        (with_bytes("text.mp4", b"this is no video\n" * 50), "not a readable video"),
        (with_bytes("notes.txt", b"\x1b[31mansi art" * 50), "not a readable video"),
        (with_bytes("random.webm", random.Random(0).randbytes(4000)), "not a readable video"),
        (
            with_bytes("list.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n/etc/hostname\n#EXT-X-ENDLIST\n"),
            "not a readable",
        ),
        (with_bytes("list.ffconcat", b"ffconcat version 1.0\nfile /etc/hostname\n"), "not a readable video"),
        (png, "still PNG image"),
        (with_bytes("photo.mp4", b"\xff\xd8\xff\xe0" + b"x" * 100), "still JPEG image"),
        (audio, "no video stream.*audio"),
        (lambda folder: folder / "nowhere.mp4", "no such file"),
        (lambda folder: folder, "is a folder"),
    ],
)
def test_what_is_no_video_is_named(tmp_path: Path, make: Any, said: str) -> None:
    path = make(tmp_path)
    with pytest.raises(ValueError, match=said) as error:
        Video.open(path)
    assert str(path) in str(error.value)
    if path.is_file():
        with pytest.raises(ValueError, match=said):
            Video.open(path.read_bytes())


def test_a_path_cannot_smuggle_in_a_protocol() -> None:
    with pytest.raises(ValueError, match="no such file"):
        Video.open("concat:/etc/hostname|/etc/hosts")


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv"])
def test_too_many_frames_are_refused_before_decoding(tmp_path: Path, name: str) -> None:
    codec, pixel_format = ("mpeg4", "yuv420p") if name.endswith("mp4") else ("mjpeg", "yuvj420p")
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=100)
        stream.width, stream.height, stream.pix_fmt = 16, 16, pixel_format
        frame = av.VideoFrame(16, 16, pixel_format)
        for n in range(VideoLimits.max_frames + 1):
            frame.pts = n
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"frames; at most 10000 are accepted"):
        Video.open(path)


# ---- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.99])
def test_a_cut_mp4_is_refused(mp4: bytes, share: float) -> None:
    with pytest.raises(ValueError, match="cut short"):
        Video.open(mp4[: int(len(mp4) * share)], name="render.mp4")


def test_an_mp4_without_its_table_is_refused(clips: dict[str, Path]) -> None:
    content = clips["default.mp4"].read_bytes()
    with pytest.raises(ValueError, match="cut short"):
        Video.open(content[: len(content) // 2])


@pytest.mark.parametrize("name", ["vp9.webm", "clip.mkv", "clip.gif"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_other_cut_files_are_refused_too(clips: dict[str, Path], name: str, share: float) -> None:
    content = clips[name].read_bytes()
    with pytest.raises(ValueError):
        whole(content[: int(len(content) * share)])


def test_wiped_frames_are_an_error_not_repeated_neighbours(mp4: bytes) -> None:
    damaged = bytearray(mp4)
    begin = mp4.find(b"mdat") + 4 + (len(mp4) - mp4.find(b"mdat")) // 4
    damaged[begin : begin + (len(mp4) - begin) // 2] = bytes((len(mp4) - begin) // 2)
    video = Video.open(bytes(damaged), name="wiped.mp4")
    with pytest.raises(ValueError, match="the file is damaged"):
        video.sample(16)


def test_a_file_that_shrinks_after_it_was_opened_is_an_error(clips: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "shrinks.mp4"
    path.write_bytes(clips["default.mp4"].read_bytes())
    video = Video.open(path)
    path.write_bytes(clips["faststart.mp4"].read_bytes())  # 17 frames in place of 40
    with pytest.raises(ValueError, match=r"shrinks\.mp4.*damaged"):
        video.sample(16)
    path.unlink()
    with pytest.raises(ValueError, match=r"shrinks\.mp4"):
        video.sample(16)


def test_a_title_that_is_not_utf8_is_no_reason_to_refuse_a_video(tmp_path: Path) -> None:
    path = tmp_path / "titled.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "plain title"
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    content = path.read_bytes()
    assert content.count(b"plain title") == 1
    path.write_bytes(content.replace(b"plain title", b"pl\xe9\xff\xfe title"))
    video = Video.open(path)
    assert len(video) == 3 and video.frames((0, 2)).pixels.shape == (2, 48, 64, 3)


def test_a_frame_that_the_file_does_not_have_is_an_error(clips: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="has frames 0 to 39"):
        FileFrames(clips["default.mp4"]).read((0, 40))


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_never_gives_fewer_frames(mp4: bytes, seed: int) -> None:
    """Flipped bytes in the header or the frames: the promised number of frames, or a ValueError; nothing in between."""
    rng = random.Random(seed)
    damaged = bytearray(mp4)
    begin, end = (40, mp4.find(b"mdat")) if seed % 2 else (mp4.find(b"mdat") + 4, len(mp4))
    for _ in range(3 + 10 * seed):
        damaged[rng.randrange(begin, end)] = rng.randrange(256)
    try:
        video = Video.open(bytes(damaged))
        pixels = video.frames(range(len(video))).pixels
    except ValueError as error:
        assert "bytes" in str(error)
    else:
        assert len(pixels) == len(video)


def test_frames_that_a_decoder_gives_out_of_order_are_all_found(tmp_path):
    order = [0, 2, 1, 4, 3, 5]  # time stamps in the order of the packets
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=8, options={"strict": "unofficial"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        packets = []
        for stamp in order:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 40 * stamp, np.uint8), format="rgb24")
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for number, packet in enumerate(packets):
            packet.pts, packet.dts = order[number] + 2, number
            container.mux(packet)
    video = Video.open(tmp_path / "a.mkv")
    shown = video.frames((1, 2)).pixels
    assert [round(float(pixels.mean()) / 40) for pixels in shown] == [1, 2]
