"""Files → frames: an index of time stamps, then only the frames asked for. decord first, PyAV where
decord is absent or fails.

path or bytes → read_index (demux only: time stamps, size) → FileFrames.read(indices) → uint8 (T, H, W, 3)

Time stamps come from the container, never from index / average rate. The two decoders give the same
frames, bit for bit, on sound files; where decord would hand out a neighbour of the frame asked for,
PyAV reads in its stead (``_DECORD_CODECS``). A file is never silently short: the frames the index
promises are the frames that come back, or a ``ValueError`` says why, and where the container cannot
say how many there should be, ``length_verified`` is False. (A few flipped bytes inside a
frame are the exception: H.264 decoders conceal them, and a player would show the same smear.) Only
demuxers of real video containers may open a file, so that a play list handed in as bytes cannot
make us read other files.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cac_align.core.containers import StatedLength, stated_length
from cac_align.core.images import is_webp, read_webp, webp_index
from cac_align.core.limits import VideoLimits
from cac_align.core.shapes import UInt8

_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,gif,apng,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ivf,flv,ogg,asf,nut,"
    "mxf,yuv4mpegpipe"
)
_DECORD_CONTAINERS, _DECORD_CODECS = frozenset({"mp4", "matroska"}), frozenset({"h264"})
"""Where decord may be trusted, unless a file has both B-frames and several key frames: then, and in
avi and MPEG-TS, and for HEVC and MPEG-4 part 2, it hands out a neighbour in place of some frames
without a word (found by decoding thousands of random picks). A damaged VP9 frame that states another
size makes it end the whole process.
"""

_STILLS = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"II*\x00": "TIFF", b"MM\x00*": "TIFF"}


@dataclass(frozen=True)
class Index:
    """What the container says: one time stamp per frame in seconds starting at 0, nominal fps, size
    in pixels.
    """

    times_s: tuple[float, ...]
    fps: float
    height: int
    width: int


@dataclass(frozen=True)
class _Table:
    """``stamps``: presentation times in the container's own unit, ascending. ``decord_is_right``:
    it may be trusted with this file. ``length_verified``: a cut would have shown. ``webp``: an
    animated WebP, which Pillow reads.
    """

    stamps: tuple[int, ...]
    index: Index
    decord_is_right: bool
    length_verified: bool
    webp: bool = False


@dataclass(frozen=True)
class FileFrames:
    """A video file, on disk (``path``) or in memory (``bytes``), that is decoded on demand.
    Picklable, holds no open file.
    """

    source: Path | bytes
    limits: VideoLimits = field(default_factory=VideoLimits.default)

    @property
    def length_verified(self) -> bool:
        """Whether the container would have shown that the file was cut; False for MPEG-TS and live streams."""
        return self._table.length_verified

    @property
    def path(self) -> Path | None:
        return self.source if isinstance(self.source, Path) else None

    def data(self) -> bytes:
        """The encoded bytes. Raises ``ValueError`` when the file is missing or unreadable."""
        if not isinstance(self.source, Path):
            return bytes(self.source)
        with _open_regular(self.source, str(self.source)) as file:
            try:
                return file.read()
            except OSError as error:
                raise ValueError(f"{self.source}: cannot be read: {error.strerror or error}") from error

    def read(self, indices: tuple[int, ...]) -> UInt8[np.ndarray, "T H W 3"]:
        """These frames (increasing source indices), RGB, in order; a reader is opened per call, so
        threads may share the object.

        Raises ``ValueError`` when an index lies outside the file or the file's damage keeps one of
        the frames from decoding.
        """
        name, stamps = self._name, self._table.stamps
        if any(not 0 <= index < len(stamps) for index in indices):
            raise ValueError(f"{name}: asked for frames {indices}, but the file has frames 0 to {len(stamps) - 1}")
        pixels = None
        try:
            if self._table.webp:
                pixels = _read_webp(self.source, indices, len(stamps))
            elif self._table.decord_is_right:
                pixels = _read_decord(self.source, indices, len(stamps))
            if pixels is None:
                pixels = _read_av(self.source, indices, stamps, self.limits.max_pixels)
        except _Broken as error:
            raise ValueError(f"{name}: {error}; the file is damaged, render or download it again") from error
        if len(pixels) != len(indices):
            raise ValueError(f"{name}: asked for {len(indices)} frames, received {len(pixels)}; the file is damaged")
        return pixels

    @property
    def _name(self) -> str:
        return str(self.source) if isinstance(self.source, Path) else f"{len(self.source)} bytes of video"

    @cached_property
    def _table(self) -> _Table:
        """Kept, so that many reads of one file cost one pass over its packets."""
        return _demux(self.source, self._name, self.limits)


def read_index(frames: FileFrames, name: str) -> Index:
    """Time stamps, nominal fps and size of a file, without decoding it.

    ``name`` is what error messages call the file. Raises ``ValueError`` for anything that is not a
    whole, readable video: missing, empty, not a regular file, not a video container, a still image,
    no video stream, cut short, beyond one of the limits.
    """
    if "_table" not in frames.__dict__:
        frames.__dict__["_table"] = _demux(
            frames.source, name, frames.limits
        )  # where cached_property keeps it, under the caller's name for it
    return frames._table.index


class _Broken(Exception):
    """One frame or more could not be decoded."""


# ---- index --------------------------------------------------------------------------------------------------------


def _demux(source: Path | bytes, name: str, limits: VideoLimits) -> _Table:
    with _open_regular(source, name) as file:
        if is_webp(file.read(16)):
            return _webp_table(file, name, limits)
    stated = _check_container(source, name, limits)
    import av.error

    try:
        with _open_av(source, skip_frame="all") as container:  # all: opening decodes nothing, 1 ms in place of 12
            scan = _scan(container, name, stated, limits)
        stamps: list[Any] = scan.stamps
        if None in stamps:
            stamps = _decoded_stamps(source, name, limits)
        # In order means no B-frames.
        trusted = scan.known_to_decord and (scan.key_frames <= 1 or stamps == sorted(stamps))
        if trusted and scan.eight_bit is None:
            with _open_av(source) as container:  # decodes a frame to know
                trusted = bool(_is_eight_bit(container.streams.video[0].codec_context))
    except av.error.FFmpegError as error:
        raise ValueError(
            f"{name}: not a readable video ({error.strerror}); expected a whole mp4, webm, gif, …"
        ) from error
    stamps = sorted(stamps)
    _check_repeats(stamps, name)
    times_s = tuple((stamp - stamps[0]) * scan.unit.numerator / scan.unit.denominator for stamp in stamps)
    longest_s = max(
        (later - earlier for earlier, later in pairwise(times_s)), default=max(scan.stated_s, stated.duration_s)
    )
    first_s = float(stamps[0] * scan.unit)
    for stated_s, begin_s, slack in (
        (scan.stated_s, 0.0, 2.0),  # the last frame's own length may be unknown, and is not above the others' by much
        (stated.duration_s, first_s, 0.75 if stated.exact else 2.0),
    ):
        lacking_s = stated_s - (scan.reached_s - begin_s)
        if lacking_s > slack * longest_s:
            raise ValueError(
                f"{name}: cut short: the track states {stated_s:.2f} s, its last frame ends {lacking_s:.2f} s earlier"
            )
    if stated.frame_s and len(stamps) < stated.duration_s / stated.frame_s - 0.75:
        expected = round(stated.duration_s / stated.frame_s)
        raise ValueError(f"{name}: damaged: its head states {expected} frames to show, {len(stamps)} have a valid time")
    rate = scan.rate
    if len(stamps) > 1:
        measured = (len(stamps) - 1) / times_s[-1]
        rate = rate if abs(rate - measured) <= 0.01 * measured else measured
    index = Index(times_s, rate or 1.0, scan.height, scan.width)
    verified = not stated.contradicted and (stated.verified or scan.stated_s > 0)
    return _Table(tuple(stamps), index, trusted and scan.eight_bit is not False, verified)


def _webp_table(file: BinaryIO, name: str, limits: VideoLimits) -> _Table:
    webp = webp_index(file, file.seek(0, os.SEEK_END), limits, name)
    stamps = webp.stamps_ms
    _check_repeats(stamps, name)
    lasting_ms = stamps[-1] / (len(stamps) - 1) if len(stamps) > 1 else webp.duration_ms
    times_s = tuple(stamp / 1000 for stamp in stamps)
    index = Index(times_s, 1000 / lasting_ms if lasting_ms else 1.0, webp.height, webp.width)
    return _Table(stamps, index, decord_is_right=False, length_verified=True, webp=True)


def _check_repeats(stamps: Sequence[int], name: str) -> None:
    """Raise ``ValueError`` where two frames have the same time stamp."""
    if repeats := len(stamps) - len(set(stamps)):
        raise ValueError(f"{name}: {repeats} frames repeat another's time stamp; re-encode the file")


def _check_container(source: Path | bytes, name: str, limits: VideoLimits) -> StatedLength:
    """What the container states. Raises ``ValueError`` for what is no video file, and for one that was cut."""
    with _open_regular(source, name) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(4096)
        if size == 0:
            raise ValueError(
                f"{name}: the file is empty (0 bytes); expected mp4, webm, gif, animated WebP or another video"
            )
        for magic, still in _STILLS.items():
            if head.startswith(magic) and b"acTL" not in head:  # acTL: an animated PNG
                raise ValueError(
                    f"{name}: a still {still} image, not a video; pass a list of PIL images and fps= instead"
                )
        try:
            return stated_length(file, size, limits.max_frames)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        except OSError as error:
            raise ValueError(f"{name}: cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True)
class _Scan:
    """What one pass over the packets tells. ``stamps`` in packet order, in ``unit``; None where the
    container gives none.
    """

    stamps: list[int | None]
    unit: Fraction
    key_frames: int
    reached_s: float
    stated_s: float
    rate: float
    height: int
    width: int
    eight_bit: bool | None
    known_to_decord: bool


def _scan(container: Any, name: str, stated: StatedLength, limits: VideoLimits) -> _Scan:
    """One pass over the first video stream's packets. Raises ``ValueError`` when they are not a
    whole video of a fair length.
    """
    if not container.streams.video:
        kinds = " and ".join(sorted({stream.type for stream in container.streams})) or "no streams"
        raise ValueError(f"{name}: no video stream in it (found: {kinds}); expected a video")
    stream = container.streams.video[0]
    codec = stream.codec_context
    if codec is None or not (codec.height > 0 and codec.width > 0 and stream.time_base):
        raise ValueError(f"{name}: its video stream states no codec, size or clock; expected a whole video file")
    limits.check_size(codec.height, codec.width, name)
    formats = set(container.format.name.split(","))
    file_s = (container.duration or 0) / 1_000_000
    listed = stated.frames or 0
    stamps: list[int | None] = []
    packets = key_frames = reached = 0
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        if packet.is_corrupt:  # the file ends inside it, or a part of it is missing
            raise ValueError(f"{name}: cut short or damaged: frame {packets} is incomplete")
        packets += 1
        reached = max(reached, (packet.pts or 0) + (packet.duration or 0))
        if packet.is_discard:
            continue  # before an edit list's start: decoded, never shown
        key_frames += packet.is_keyframe
        stamps.append(packet.pts)
        if len(stamps) > limits.max_frames:
            limits.check_frames(len(stamps), name)
    if packets < listed:
        raise ValueError(f"{name}: cut short: its table lists {listed} frames, {packets} are in the file")
    if not stamps:
        raise ValueError(f"{name}: the video stream holds no frames")
    reached_s = float(reached * stream.time_base)
    return _Scan(
        stamps=stamps,
        unit=stream.time_base,
        key_frames=key_frames,
        reached_s=reached_s,
        stated_s=_track_duration_s(stream),
        rate=float(stream.average_rate or 0),
        height=codec.height,
        width=codec.width,
        eight_bit=_is_eight_bit(codec),
        # decord ends the process when it cannot allocate what a damaged file length asks for.
        known_to_decord=codec.name in _DECORD_CODECS
        and bool(formats & _DECORD_CONTAINERS)
        and file_s <= 10 * reached_s + 60,
    )


def _is_eight_bit(codec: Any) -> bool | None:
    """Whether pixels have 8 bits per channel; None when only decoding a frame could tell."""
    if codec.format is not None:
        return all(component.bits <= 8 for component in codec.format.components)
    extra = codec.extradata or b""
    if codec.name == "h264" and len(extra) > 1 and extra[0] == 1 and extra[1] in (66, 77, 88, 100):
        return True  # avcC's profile: Baseline, Main, Extended, High know 8 bits only
    return None


def _open_regular(source: Path | bytes, name: str) -> BinaryIO:
    """The file or the bytes, opened for reading.

    Raises ``ValueError`` for a path that is not a readable regular file. A pipe is not even opened:
    opening it would wait for a writer, for ever.
    """
    if not isinstance(source, Path):
        return io.BytesIO(source)
    try:
        mode = source.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ValueError(f"{name}: is a folder; expected a video file")
        if not stat.S_ISREG(mode):
            raise ValueError(f"{name}: is a pipe, socket or device; expected a regular file, so write it to one first")
        return source.open("rb")
    except FileNotFoundError as error:
        raise ValueError(f"{name}: no such file") from error
    except OSError as error:
        raise ValueError(f"{name}: cannot be read: {error.strerror or error}") from error


def _track_duration_s(stream: Any) -> float:
    """Length that a matroska or webm track states for itself ("00:00:05.062000000"), 0 when it
    states none.
    """
    text = stream.metadata.get("DURATION", "")
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0.0


def _decoded_stamps(source: Path | bytes, name: str, limits: VideoLimits) -> list[int]:
    """Time stamps found by decoding, for the few containers (avi) whose packets carry none."""
    import av.error

    with _open_av(source) as container:
        try:
            container.streams.video[0].codec_context.options = {"max_pixels": str(limits.max_pixels)}
            stamps = [frame.pts for frame in container.decode(container.streams.video[0])]
        except av.error.FFmpegError as error:
            raise ValueError(f"{name}: cannot be decoded ({error.strerror})") from error
    if not stamps or any(stamp is None for stamp in stamps):
        raise ValueError(f"{name}: its frames carry no time stamps; re-encode it as mp4")
    return stamps


# ---- frames -------------------------------------------------------------------------------------------------------


def _openable(source: Path | bytes) -> Any:
    # An absolute path cannot be taken for a protocol ("concat:…"), and BytesIO leaves the bytes where they are.
    return os.path.abspath(source) if isinstance(source, Path) else io.BytesIO(source)


def _open_av(source: Path | bytes, **options: str) -> Any:
    import av

    # Text that is not UTF-8 is no reason to refuse a video. PyAV 19 has no switch for that any more.
    lenient: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
    return av.open(_openable(source), options={"format_whitelist": _CONTAINERS, **options}, **lenient)


def _read_webp(source: Path | bytes, indices: tuple[int, ...], count: int) -> np.ndarray:
    try:
        return read_webp(source, indices, count)
    except ValueError as error:
        raise _Broken(str(error)) from error


def _read_decord(source: Path | bytes, indices: tuple[int, ...], count: int) -> np.ndarray | None:
    """The frames through decord; None when decord is absent, fails, or sees other frames than the
    index (edit lists).
    """
    try:
        import decord
    except (ImportError, OSError):
        return None
    decord.logging.set_level(decord.logging.QUIET)  # its complaints about one frame would bury ours about the file
    try:
        # fault_tol: decord otherwise hands out a neighbour in place of a frame that it could not decode.
        opened: Any = _openable(source)
        tolerance: Any = _NO_FAULTS  # decord takes a float, its stub an int
        reader = decord.VideoReader(opened, ctx=decord.cpu(0), fault_tol=tolerance)
        if len(reader) != count:
            return None
        batch = reader.get_batch(list(indices))
        return (
            batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)
        )  # other code may have set decord's bridge
    except (RuntimeError, IndexError, decord.DECORDError, decord.DECORDLimitReachedError):
        return None  # PyAV reads it, or says what is wrong


_NO_FAULTS = 1e-9


def _read_av(source: Path | bytes, indices: tuple[int, ...], stamps: tuple[int, ...], max_pixels: int) -> np.ndarray:
    """The frames through PyAV, found by time stamp. Raises ``_Broken`` when one is missing or
    damaged.
    """
    wanted = {stamps[index]: place for place, index in enumerate(indices)}
    found = _Found(len(indices))
    if indices and stamps[indices[0]] > stamps[0]:
        found = _collect(source, wanted, max_pixels, seek_to=stamps[indices[0]]) or found
    if len(found.places) < len(wanted):
        found = _collect(source, wanted, max_pixels, seek_to=None) or _Found(len(indices))
    missing = [index for place, index in enumerate(indices) if place not in found.places]
    if missing or found.pixels is None:
        raise _Broken(f"frame {missing[0]} cannot be decoded ({len(missing)} of {len(indices)} asked for are missing)")
    return found.pixels


class _Found:
    """Decoded frames, each written to its place in one array that is made when the first one is there."""

    def __init__(self, count: int) -> None:
        self.count, self.places = count, set[int]()
        self.pixels: np.ndarray | None = None

    def add(self, place: int, frame: Any) -> None:
        pixels = frame.to_ndarray(format="rgb24")
        if self.pixels is None:
            self.pixels = np.empty((self.count, *pixels.shape), np.uint8)
        if self.pixels.shape[1:] != pixels.shape:
            raise _Broken(f"frames differ in size: {self.pixels.shape[1:3]} and {pixels.shape[:2]}")
        self.pixels[place] = pixels
        self.places.add(place)


def _collect(source: Path | bytes, wanted: dict[int, int], max_pixels: int, seek_to: int | None) -> _Found | None:
    """Frames by time stamp; None when seeking landed behind the first one wanted."""
    import av.error

    found = _Found(len(wanted))
    try:
        with _open_av(source) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:
                raise _Broken("it changed since it was opened, and has no video stream that can be decoded any more")
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(max_pixels)}
            if seek_to is not None:
                container.seek(seek_to, stream=stream)
            for position, frame in enumerate(container.decode(stream)):
                if seek_to is not None and position == 0 and not (frame.pts is not None and frame.pts <= seek_to):
                    return None
                if frame.pts in wanted and wanted[frame.pts] not in found.places:
                    if frame.is_corrupt:
                        raise _Broken(f"frame at {float(frame.pts * stream.time_base):.3f} s is corrupt")
                    found.add(wanted[frame.pts], frame)
                if len(found.places) == len(wanted):  # not the last time stamp: decoders may give frames out of order
                    break
    except av.error.FFmpegError as error:
        if seek_to is None:
            raise _Broken(
                f"decoding stops with {error.strerror!r} after {len(found.places)} of {len(wanted)} frames"
            ) from error
        return None
    return found
