"""Files → frames: an index of time stamps, then only the frames asked for. decord first, PyAV where
decord is absent or fails.

path or bytes → read_index (demux only: time stamps, size) → FileFrames.read(indices) → uint8 (T, H, W, 3)

Time stamps come from the container, never from index / average rate. The two decoders give the same
frames, bit for bit, on sound files; where decord would hand out a neighbour of the frame asked for,
PyAV reads in its stead (``_DECORD_CODECS``). A file is never silently short: the frames the index
promises are the frames that come back, or a ``ValueError`` says why. (A few flipped bytes inside a
frame are the exception: H.264 decoders conceal them, and a player would show the same smear.) Only
demuxers of real video containers may open a file, so that a play list handed in as bytes cannot
make us read other files.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

MAX_FRAMES = 10_000
"""Longer videos are refused before anything is decoded."""

_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,gif,apng,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ivf,flv,ogg,asf,nut,mxf,yuv4mpegpipe"
_DECORD_CONTAINERS, _DECORD_CODECS = frozenset({"mp4", "matroska"}), frozenset({"h264", "vp8", "vp9"})
"""Where decord may be trusted, unless a file has both B-frames and several key frames: then, and in
avi and MPEG-TS, and for HEVC and MPEG-4 part 2, it hands out a neighbour in place of some frames
without a word (found by decoding thousands of random picks).
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
    it may be trusted with this file.
    """

    stamps: tuple[int, ...]
    index: Index
    decord_is_right: bool


@dataclass(frozen=True)
class FileFrames:
    """A video file, on disk (``path``) or in memory (``bytes``), that is decoded on demand.
    Picklable, holds no open file.
    """

    source: Path | bytes

    @property
    def path(self) -> Path | None:
        return self.source if isinstance(self.source, Path) else None

    def data(self) -> bytes:
        """The encoded bytes. Raises ``ValueError`` when the file is missing or unreadable."""
        if not isinstance(self.source, Path):
            return bytes(self.source)
        try:
            return self.source.read_bytes()
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
        try:
            pixels = _read_decord(self.source, indices, len(stamps)) if self._table.decord_is_right else None
            if pixels is None:
                pixels = _read_av(self.source, indices, stamps)
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
        return _demux(self.source, self._name)


def read_index(frames: FileFrames, name: str) -> Index:
    """Time stamps, nominal fps and size of a file, without decoding it.

    ``name`` is what error messages call the file. Raises ``ValueError`` for anything that is not a
    whole, readable video: missing, empty, not a video container, a still image, no video stream,
    cut short, more than ``MAX_FRAMES`` frames.
    """
    if "_table" not in frames.__dict__:
        frames.__dict__["_table"] = _demux(
            frames.source, name
        )  # where cached_property keeps it, under the caller's name for it
    return frames._table.index


class _Broken(Exception):
    """One frame or more could not be decoded."""


# ---- index --------------------------------------------------------------------------------------------------------


def _demux(source: Path | bytes, name: str) -> _Table:
    head, size = _head(source, name)
    if size == 0:
        raise ValueError(f"{name}: the file is empty (0 bytes); expected mp4, webm, gif or another video container")
    for magic, still in _STILLS.items():
        if head.startswith(magic) and b"acTL" not in head:  # acTL: an animated PNG
            raise ValueError(f"{name}: a still {still} image, not a video; pass a list of PIL images and fps= instead")
    import av.error

    try:
        with _open_av(source, skip_frame="all") as container:  # all: opening decodes nothing, 1 ms in place of 12
            scan = _scan(container, name)
            if container.format.name == "gif" and not _gif_ends(source):
                raise ValueError(f"{name}: cut short: a GIF ends with the byte 0x3B, this one ends inside a frame")
        stamps: list[Any] = scan.stamps
        if None in stamps:
            stamps = _decoded_stamps(source, name)
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
    if len(set(stamps)) != len(stamps):
        raise ValueError(
            f"{name}: {len(stamps) - len(set(stamps))} frames repeat another's time stamp; re-encode the file"
        )
    times_s = tuple((stamp - stamps[0]) * scan.unit.numerator / scan.unit.denominator for stamp in stamps)
    longest_s = max((later - earlier for earlier, later in pairwise(times_s)), default=scan.stated_s)
    lacking_s = scan.stated_s - scan.reached_s
    if lacking_s > 2 * longest_s:  # the last frame's own length may be unknown, and is not above the others' by much
        raise ValueError(
            f"{name}: cut short: the track states {scan.stated_s:.2f} s, its last frame ends {lacking_s:.2f} s earlier"
        )
    rate = scan.rate
    if len(stamps) > 1:
        measured = (len(stamps) - 1) / times_s[-1]
        rate = rate if abs(rate - measured) <= 0.01 * measured else measured
    index = Index(times_s, rate or 1.0, scan.height, scan.width)
    return _Table(tuple(stamps), index, trusted and scan.eight_bit is not False)


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


def _scan(container: Any, name: str) -> _Scan:
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
    formats = set(container.format.name.split(","))
    # mov and mp4 list every sample up front: the one place where a cut file shows without decoding.
    listed = len(stream.index_entries) if "mp4" in formats else 0
    if listed > MAX_FRAMES:
        raise _too_long(name, listed)
    stamps: list[int | None] = []
    packets = key_frames = reached = 0
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        if listed and packet.is_corrupt:  # the file ends inside it
            break
        packets += 1
        reached = max(reached, (packet.pts or 0) + (packet.duration or 0))
        if packet.is_discard:
            continue  # before an edit list's start: decoded, never shown
        key_frames += packet.is_keyframe
        stamps.append(packet.pts)
        if len(stamps) > MAX_FRAMES:
            raise _too_long(name, f"more than {MAX_FRAMES}")
    if packets < listed:
        raise ValueError(f"{name}: cut short: its table lists {listed} frames, {packets} are in the file")
    if not stamps:
        raise ValueError(f"{name}: the video stream holds no frames")
    return _Scan(
        stamps=stamps,
        unit=stream.time_base,
        key_frames=key_frames,
        reached_s=float(reached * stream.time_base),
        stated_s=_track_duration_s(stream),
        rate=float(stream.average_rate or 0),
        height=codec.height,
        width=codec.width,
        eight_bit=_is_eight_bit(codec),
        known_to_decord=codec.name in _DECORD_CODECS and bool(formats & _DECORD_CONTAINERS),
    )


def _is_eight_bit(codec: Any) -> bool | None:
    """Whether pixels have 8 bits per channel; None when only decoding a frame could tell."""
    if codec.format is not None:
        return all(component.bits <= 8 for component in codec.format.components)
    extra = codec.extradata or b""
    if codec.name == "h264" and len(extra) > 1 and extra[0] == 1 and extra[1] in (66, 77, 88, 100):
        return True  # avcC's profile: Baseline, Main, Extended, High know 8 bits only
    return None


def _too_long(name: str, count: object) -> ValueError:
    return ValueError(f"{name}: {count} frames; at most {MAX_FRAMES} are accepted, cut the video first")


def _head(source: Path | bytes, name: str) -> tuple[bytes, int]:
    """The first bytes and the size. Raises ``ValueError`` for a path that is not a readable file."""
    if not isinstance(source, Path):
        return bytes(source[:4096]), len(source)
    try:
        if source.is_dir():
            raise ValueError(f"{name}: is a folder; expected a video file")
        with source.open("rb") as file:
            return file.read(4096), os.fstat(file.fileno()).st_size
    except FileNotFoundError as error:
        raise ValueError(f"{name}: no such file") from error
    except OSError as error:
        raise ValueError(f"{name}: cannot be read: {error.strerror or error}") from error


def _gif_ends(source: Path | bytes) -> bool:
    """Whether the GIF trailer is there; zero bytes and line ends after it are padding that some
    servers add.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - 64, 0))
            tail = file.read()
    else:
        tail = bytes(source[-64:])
    return tail.rstrip(b"\0\r\n").endswith(b";")


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


def _decoded_stamps(source: Path | bytes, name: str) -> list[int]:
    """Time stamps found by decoding, for the few containers (avi) whose packets carry none."""
    import av.error

    with _open_av(source) as container:
        try:
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
        reader = decord.VideoReader(_openable(source), ctx=decord.cpu(0), fault_tol=_NO_FAULTS)  # pyright: ignore[reportArgumentType]
        if len(reader) != count:
            return None
        batch = reader.get_batch(list(indices))
        return (
            batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)
        )  # other code may have set decord's bridge
    except (RuntimeError, IndexError, decord.DECORDError, decord.DECORDLimitReachedError):
        return None  # PyAV reads it, or says what is wrong


_NO_FAULTS = 1e-9


def _read_av(source: Path | bytes, indices: tuple[int, ...], stamps: tuple[int, ...]) -> np.ndarray:
    """The frames through PyAV, found by time stamp. Raises ``_Broken`` when one is missing or
    damaged.
    """
    wanted = {stamps[index]: place for place, index in enumerate(indices)}
    found: dict[int, np.ndarray] = {}
    if indices and stamps[indices[0]] > stamps[0]:
        found = _collect(source, wanted, seek_to=stamps[indices[0]]) or {}
    if len(found) < len(wanted):
        found = _collect(source, wanted, seek_to=None) or {}
    missing = [indices[place] for stamp, place in sorted(wanted.items()) if stamp not in found]
    if missing:
        raise _Broken(f"frame {missing[0]} cannot be decoded ({len(missing)} of {len(indices)} asked for are missing)")
    return np.stack([found[stamps[index]] for index in indices])


def _collect(source: Path | bytes, wanted: dict[int, int], seek_to: int | None) -> dict[int, np.ndarray] | None:
    """Frames by time stamp; None when seeking landed behind the first one wanted."""
    import av.error

    found: dict[int, np.ndarray] = {}
    last = max(wanted)
    try:
        with _open_av(source) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if seek_to is not None:
                container.seek(seek_to, stream=stream)
            for position, frame in enumerate(container.decode(stream)):
                if seek_to is not None and position == 0 and not (frame.pts is not None and frame.pts <= seek_to):
                    return None
                if frame.pts in wanted and frame.pts not in found:
                    if frame.is_corrupt:
                        raise _Broken(f"frame at {float(frame.pts * stream.time_base):.3f} s is corrupt")
                    found[frame.pts] = frame.to_ndarray(format="rgb24")
                if frame.pts is not None and frame.pts >= last:
                    break
    except av.error.FFmpegError as error:
        if seek_to is None:
            raise _Broken(
                f"decoding stops with {error.strerror!r} after {len(found)} of {len(wanted)} frames"
            ) from error
        return None
    return found
