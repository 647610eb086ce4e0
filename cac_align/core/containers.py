"""How long a container says it is, read from its structure alone, before a decoder sees the file.

open file → stated_length → StatedLength, or a ``ValueError`` that says where the file breaks off

A demuxer takes what it finds: of a file that was cut, or whose table was damaged, it hands out fewer
frames and calls that the end. What the writer promised stands in the container: sizes of boxes and
chunks, tables that must agree with each other, a declared duration, an end mark. Where a container
promises nothing (MPEG-TS, live streams), ``verified`` is False.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np


@dataclass(frozen=True)
class StatedLength:
    """What the container promises. None or 0 where it says nothing."""

    # Whether a file that was cut anywhere would have been noticed.
    verified: bool = False
    # Whether its structure does not add up, so that a demuxer may pass over frames; then nothing verifies the length.
    contradicted: bool = False
    # Frames that are stored, whether or not an edit list shows them.
    frames: int | None = None
    # Seconds that are shown.
    duration_s: float = 0.0
    # Whether ``duration_s`` is exact to a fraction of a frame, or may count a frame more than there is.
    exact: bool = False
    # Seconds from each frame to the next, where all are the same; else 0.
    frame_s: float = 0.0


UNKNOWN = StatedLength()


def stated_length(file: BinaryIO, size: int, max_frames: int) -> StatedLength:
    """What the container of this open file of ``size`` bytes says about its length.

    Raises ``ValueError`` (without the file's name) when the file ends before its structure does,
    when its tables contradict each other, or when they list more than ``max_frames`` frames.
    """
    file.seek(0)
    head = file.read(256)
    for matches, read in _CONTAINERS:
        if matches(head):
            try:
                return read(file, size, max_frames)
            except (struct.error, IndexError) as error:
                raise ValueError("cut short or damaged: a table of its container ends too early") from error
    return UNKNOWN


def _cut(what: str, end: int, size: int) -> ValueError:
    return ValueError(f"cut short: {what} ends at byte {end}, the file at byte {size}")


def _damaged(what: str) -> ValueError:
    return ValueError(f"damaged: {what}")


# ---- mp4 and mov --------------------------------------------------------------------------------------------------

_TOP_BOXES = frozenset(
    b"ftyp styp moov moof mdat mfra free skip wide uuid sidx ssix meta emsg prft pdin udta pnot PICT".split()
)
_NO_DURATION = (0, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


def _is_mp4(head: bytes) -> bool:
    return head[4:8] in _TOP_BOXES


def _mp4(file: BinaryIO, size: int, max_frames: int) -> StatedLength:
    """Box sizes against the file's, and the first video track's tables against each other."""
    track: _Track | None = None
    moofs: list[bytes] = []
    fragments = media_boxes = index_boxes = 0
    position, stored = 0, 0
    last = b""
    while position + 8 <= size:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        header = 8
        if length == 1:
            length, header = struct.unpack(">Q", file.read(8))[0], 16
        elif length == 0:
            length = size - position
        if length < header or (kind not in _TOP_BOXES and position + length > size):
            if track is not None and track.fragmented:
                raise _damaged(f"byte {position} begins no box, and a fragmented file may go on behind it")
            break  # padding behind the last box
        if position + length > size:
            raise _cut(f"its box {kind.decode()}", position + length, size)
        if kind == b"moov" and track is None:
            track = _track(file.read(length - header), max_frames)
        elif kind == b"moof":
            if fragments > media_boxes:
                raise _damaged("a fragment without its media data")
            fragments += 1
            moofs.append(file.read(length - header))
        elif kind == b"mdat":
            media_boxes += 1
            stored += length - header
            if track is not None and track.fragmented and media_boxes > fragments + (track.frames > 0):
                raise _damaged("media data without the head of its fragment")
        elif kind in (b"mfra", b"sidx"):
            index_boxes += kind == b"mfra"
        last = kind
        position += length
    if track is None:
        return UNKNOWN  # the demuxer says what is wrong
    if not track.fragmented:
        return StatedLength(True, False, track.frames, track.duration_s, exact=True, frame_s=track.frame_s)
    rest = size - position
    if last == b"moof" or 0 < rest < 8:
        raise ValueError("cut short: the file ends inside a fragment")
    frames = track.frames
    former = -1
    for moof in moofs:
        count, base = _fragment(moof, track, max_frames, stored)
        if base is not None and base < former:
            raise _damaged("a fragment begins before the one in front of it")
        former = former if base is None else base
        frames += count
        if frames > max_frames:
            raise ValueError(f"{frames} frames; at most {max_frames} are accepted, cut the video first")
    return StatedLength(bool(index_boxes or track.duration_s), False, frames, track.duration_s)


@dataclass(frozen=True)
class _Track:
    """The first video track: samples listed in the head, seconds shown, tracks that fragments may extend."""

    id: int
    frames: int
    duration_s: float
    frame_s: float
    fragmented: bool
    all_ids: frozenset[int]


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) of the boxes in ``data``."""
    position = 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        header = 8
        if length == 1:
            length, header = struct.unpack_from(">Q", data, position + 8)[0], 16
        elif length == 0:
            length = len(data) - position
        if length < header or position + length > len(data):
            if not any(data[position : position + 8]):
                return  # a terminator of QuickTime
            raise _damaged(f"box {kind!r} is {length} bytes long, and its parent has {len(data) - position} left")
        yield kind, data[position + header : position + length]
        position += length


def _inside(data: bytes, *path: bytes) -> bytes | None:
    """The content of the first box at this path."""
    for step in path:
        inside = (content for kind, content in _boxes(data) if kind == step)
        data = next(inside, None)  # pyright: ignore[reportAssignmentType]
        if data is None:
            return None
    return data


def _versioned(box: bytes, short: str, long: str) -> tuple[int, ...]:
    """The integers of a full box that has 32-bit fields in version 0 and 64-bit ones in version 1."""
    return struct.unpack_from(">" + (long if box[0] == 1 else short), box, 4)


def _track(moov: bytes, max_frames: int) -> _Track | None:
    tracks = [content for kind, content in _boxes(moov) if kind == b"trak"]
    video = next((each for each in tracks if (_inside(each, b"mdia", b"hdlr") or b"")[8:12] == b"vide"), None)
    if video is None:
        return None
    ids = frozenset(_track_id(each) for each in tracks)
    stbl, mdhd = _inside(video, b"mdia", b"minf", b"stbl"), _inside(video, b"mdia", b"mdhd")
    fragmented = _inside(moov, b"mvex") is not None
    if stbl is None or mdhd is None:
        raise _damaged("its video track has no table of samples or no clock")
    frames, ticks, constant = _samples(stbl, max_frames)
    _, _, scale, stated = _versioned(mdhd, "IIII", "QQIQ")
    if scale == 0:
        raise _damaged("its video track's clock has 0 ticks per second")
    if stated not in _NO_DURATION and frames and stated > ticks + 2 * ticks / frames and not fragmented:
        raise _damaged(f"its video track states {stated / scale:.2f} s, its table of samples {ticks / scale:.2f} s")
    mvhd = _inside(moov, b"mvhd")
    movie_scale = _versioned(mvhd, "III", "QQI")[2] if mvhd is not None else 0
    shown_s = 0.0
    if movie_scale and not fragmented:
        shown_s = _edited_s(video, movie_scale, frames, ticks / scale)
        hides = 0 < shown_s < (ticks - 0.75 * ticks / max(frames, 1)) / scale
        if hides and stated not in _NO_DURATION and ticks > stated + 2 * ticks / frames:
            # The edit list hides frames of a table that contradicts the track's duration.
            raise _damaged(f"its video track states {stated / scale:.2f} s, its table {ticks / scale:.2f} s")
    elif movie_scale and (mehd := _inside(moov, b"mvex", b"mehd")) is not None:
        (duration,) = _versioned(mehd, "I", "Q")
        shown_s = 0.0 if duration in _NO_DURATION else duration / movie_scale
    return _Track(_track_id(video), frames, shown_s, constant / scale, fragmented, ids)


def _track_id(track: bytes) -> int:
    head = _inside(track, b"tkhd")
    if head is None:
        raise _damaged("a track without its head")
    return _versioned(head, "III", "QQI")[2]


def _samples(stbl: bytes, max_frames: int) -> tuple[int, int, int]:
    """(number of samples, their durations' sum in ticks, the duration of each where all are equal, else 0).

    Sizes, durations and chunks must tell of the same samples.
    """
    tables = dict(_boxes(stbl))
    sizes = tables.get(b"stsz") or tables.get(b"stz2")
    if sizes is None or b"stts" not in tables or b"stsc" not in tables:
        raise _damaged("its video track lists no sizes, durations or chunks of samples")
    constant, count = struct.unpack_from(">II", sizes, 4)
    if count > max_frames:
        raise ValueError(f"{count} frames; at most {max_frames} are accepted, cut the video first")
    if b"stsz" in tables and constant == 0 and len(sizes) < 12 + 4 * count:
        raise _damaged(f"its table of sizes lists {count} samples and has room for {(len(sizes) - 12) // 4}")
    durations = _rows(tables[b"stts"], 2, "durations")
    timed, ticks = int(durations[:, 0].sum()), int((durations[:, 0] * durations[:, 1]).sum())
    if timed != count:
        raise _damaged(f"its table of sizes lists {count} samples, its table of durations {timed}")
    wide = b"co64" in tables
    offsets = tables.get(b"co64" if wide else b"stco")
    if offsets is None:
        raise _damaged("its video track lists no chunks")
    chunks = struct.unpack_from(">I", offsets, 4)[0]
    if len(offsets) < 8 + (8 if wide else 4) * chunks:
        raise _damaged(f"its table of chunks lists {chunks} and ends before")
    runs = _rows(tables[b"stsc"], 3, "samples per chunk")
    firsts = np.append(runs[:, 0], chunks + 1)
    if chunks and (len(runs) == 0 or firsts[0] != 1 or (np.diff(firsts) <= 0).any()):
        raise _damaged(f"its table of samples per chunk does not fit its {chunks} chunks")
    held = int((np.diff(firsts) * runs[:, 1]).sum()) if chunks else 0
    if held != count:
        raise _damaged(f"its table of sizes lists {count} samples, its chunks hold {held}")
    return count, ticks, int(durations[0, 1]) if len(durations) == 1 else 0


def _rows(box: bytes, width: int, what: str) -> np.ndarray:
    """A table of 32-bit integers, int64, shape (rows, width)."""
    count = struct.unpack_from(">I", box, 4)[0]
    if len(box) < 8 + 4 * width * count:
        raise _damaged(f"its table of {what} lists {count} rows and ends before")
    return np.frombuffer(box, ">u4", count * width, 8).reshape(count, width).astype(np.int64)


def _edited_s(track: bytes, movie_scale: int, frames: int, table_s: float) -> float:
    """Seconds that the track's edit list shows; 0 where there is none. They must add up to the track's own duration."""
    edits, head = _inside(track, b"edts", b"elst"), _inside(track, b"tkhd")
    stated = _versioned(head, "IIIII", "QQIIQ")[4] if head is not None else 0
    stated_s = 0.0 if stated in _NO_DURATION else stated / movie_scale
    frame_s = table_s / frames if frames else 0.0
    if edits is None:
        if stated_s > table_s + 2 * frame_s + 2 / movie_scale:
            raise _damaged(f"its video track states {stated_s:.2f} s, its table of samples {table_s:.2f} s")
        return 0.0
    count = struct.unpack_from(">I", edits, 4)[0]
    row = ">Qq" if edits[0] == 1 else ">Ii"
    step = struct.calcsize(row) + 4
    if len(edits) < 8 + count * step:
        raise _damaged(f"its edit list states {count} edits and ends before")
    rows = [struct.unpack_from(row, edits, 8 + step * n) for n in range(count)]
    if stated_s > sum(duration for duration, _ in rows) / movie_scale + 0.75 * frame_s + 2 / movie_scale:
        raise _damaged("its video track states a longer duration than its edit list shows")
    return sum(duration for duration, begin in rows if begin >= 0) / movie_scale


def _fragment(moof: bytes, track: _Track, max_frames: int, stored: int) -> tuple[int, int | None]:
    """(frames that this fragment adds to the track, its first decoding time where it is stated)."""
    frames, base = 0, None
    runs = [content for kind, content in _boxes(moof) if kind == b"traf"]
    if not runs:
        raise _damaged("a fragment without a track")
    for traf in runs:
        boxes = list(_boxes(traf))
        head = next((content for kind, content in boxes if kind == b"tfhd"), None)
        if head is None:
            raise _damaged("a fragment's track without its head")
        flags, track_id = struct.unpack_from(">II", head)
        if track_id not in track.all_ids:
            raise _damaged(f"a fragment belongs to track {track_id}, and there is none")
        tables = [content for kind, content in boxes if kind == b"trun"]
        if not tables and not flags & 0x010000:
            raise _damaged("a fragment's track lists no samples")
        for run in tables:
            count = _run_length(run, stored)
            frames += count if track_id == track.id else 0
            if frames > max_frames:
                raise ValueError(f"{frames} frames; at most {max_frames} are accepted, cut the video first")
        if track_id == track.id:
            times = next((content for kind, content in boxes if kind == b"tfdt"), None)
            base = base if times is None else _versioned(times, "I", "Q")[0]
    return frames, base


def _run_length(run: bytes, stored: int) -> int:
    """Number of samples in a track run, whose table must have exactly that many rows and fit into the media data."""
    flags, count = struct.unpack_from(">II", run)
    begin = 8 + 4 * bool(flags & 0x1) + 4 * bool(flags & 0x4)
    columns = [bit for bit in (0x100, 0x200, 0x400, 0x800) if flags & bit]
    if columns and len(run) - begin != 4 * len(columns) * count:
        raise _damaged(f"a fragment lists {count} samples, and its table has another length")
    if 0x200 in columns:
        rows = np.frombuffer(run, ">u4", count * len(columns), begin).reshape(count, len(columns))
        if int(rows[:, columns.index(0x200)].astype(np.int64).sum()) > stored:
            raise _damaged(f"a fragment's samples are larger than the media data ({stored} bytes)")
    return count


# ---- matroska and webm --------------------------------------------------------------------------------------------

_SEGMENT, _CLUSTER, _TRACKS, _TRACK = 0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE
_SIMPLE_BLOCK, _BLOCK_GROUP = 0xA3, 0xA0
_CLUSTER_HEAD = {
    0xE7,
    0xA7,
    0xAB,
}  # a cluster's time, its place and the size of the one before: numbers of at most 8 bytes
_IN_SEGMENT = {_CLUSTER, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, 0xEC, 0xBF}
_IN_CLUSTER = {0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xEC, 0xBF}


def _matroska(file: BinaryIO, size: int, max_frames: int) -> StatedLength:
    """The segment's size; for a live stream, which states none, at least that no element is cut."""
    position, live = 0, False
    while position < size:
        file.seek(position)
        head = file.read(12)
        kind, id_length = _ebml_number(head, keep_marker=True)
        length, size_length = _ebml_number(head[id_length:], keep_marker=False)
        begin = position + id_length + size_length
        unknown = length == (1 << 7 * size_length) - 1
        if kind == _SEGMENT and not unknown:
            if begin + length > size:
                raise _cut("its segment", begin + length, size)
            return _blocks(file, begin, begin + length)
        if kind in (_SEGMENT, _CLUSTER) and unknown:
            live, position = True, begin
            continue
        if begin + length > size:
            if not live:
                raise _cut("its header", begin + length, size)
            raise _cut("its last element", begin + length, size)
        position = begin + length
    return UNKNOWN


def _blocks(file: BinaryIO, position: int, end: int) -> StatedLength:
    """The blocks of a segment. Known elements, one behind the other, must fill it and its clusters: a demuxer skips
    what it does not know, and the frames in it. They are frames where the file has one track. A cluster's
    head stands once and before its blocks; an element of that name elsewhere is a block whose name is damaged.
    """
    cluster_end = blocks = tracks = 0
    head_over: set[int] = set()  # names of the cluster's head that may not come any more
    while position < end:
        file.seek(position)
        head = file.read(12)
        try:
            kind, id_length = _ebml_number(head, keep_marker=True)
            length, size_length = _ebml_number(head[id_length:], keep_marker=False)
        except (ValueError, IndexError):
            return StatedLength(contradicted=True)
        inside = position < cluster_end
        position += id_length + size_length
        if kind == _CLUSTER and length == (1 << 7 * size_length) - 1:
            return StatedLength(verified=True)  # where this cluster ends is not said; the segment's end is
        if kind not in (_IN_CLUSTER if inside else _IN_SEGMENT) or position + length > (cluster_end if inside else end):
            return StatedLength(contradicted=True)
        if inside and kind in _CLUSTER_HEAD and (kind in head_over or length > 8):
            return StatedLength(contradicted=True)
        if kind == _CLUSTER:
            head_over = set()
        elif inside:
            head_over |= _CLUSTER_HEAD if kind in (_SIMPLE_BLOCK, _BLOCK_GROUP) else {kind}
        if kind == _TRACKS:
            tracks += _children(_read_at(file, position, length), _TRACK)
        blocks += kind in (_SIMPLE_BLOCK, _BLOCK_GROUP)
        if kind == _CLUSTER:
            cluster_end = position + length
        else:
            position += length
    return StatedLength(True, frames=blocks if tracks == 1 else None)


def _read_at(file: BinaryIO, position: int, length: int) -> bytes:
    file.seek(position)
    return file.read(length)


def _children(data: bytes, wanted: int) -> int:
    """How many of the elements in ``data`` are of this kind."""
    position = found = 0
    while position < len(data):
        kind, id_length = _ebml_number(data[position : position + 12], keep_marker=True)
        length, size_length = _ebml_number(data[position + id_length : position + 12], keep_marker=False)
        found += kind == wanted
        position += id_length + size_length + length
    return found


def _ebml_number(data: bytes, *, keep_marker: bool) -> tuple[int, int]:
    """(value, length in bytes) of a variable-length integer; an identifier keeps its length marker."""
    length = 9 - data[0].bit_length()
    if length > 8 or len(data) < length:
        raise ValueError("cut short or damaged: no element begins where one should")
    value = int.from_bytes(data[:length], "big")
    return (value if keep_marker else value & ((1 << 7 * length) - 1)), length


# ---- the others ---------------------------------------------------------------------------------------------------


def _riff(file: BinaryIO, size: int, max_frames: int) -> StatedLength:
    """AVI: one RIFF chunk, and more for files above 1 GB; a writer that was killed leaves 0 as size.

    Inside, the chunks of the first video stream are counted; where there are fewer than its head states,
    one has lost its name, and the length is not verified.
    """
    position = streams = chunks = frames = 0
    stated, video = 0, b""
    while position + 12 <= size:
        file.seek(position)
        kind, length, form = struct.unpack("<4sI4s", file.read(12))
        if kind != b"RIFF" or form not in (b"AVI ", b"AVIX"):
            break  # padding behind the last chunk
        if length in (0, 0xFFFFFFFF):
            return UNKNOWN
        if position + 8 + length > size:
            raise _cut("its RIFF chunk", position + 8 + length, size)
        for kind, begin, held in _riff_chunks(file, position + 12, position + 8 + length):
            if kind == b"strh":
                file.seek(begin)
                head = file.read(36)
                if head[:4] == b"vids" and not video:
                    video, stated = b"%02d" % streams, struct.unpack_from("<I", head, 32)[0]
                streams += 1
            elif video and kind[:2] == video and kind[2:] in (b"dc", b"db"):
                chunks += 1
                frames += held > 0  # an empty one shows the frame before it once more
                if frames > max_frames:
                    raise ValueError(
                        f"more than {max_frames} frames; at most {max_frames} are accepted, cut the video first"
                    )
        position += 8 + length + length % 2
    return StatedLength(True, chunks < stated, frames)


def _riff_chunks(file: BinaryIO, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, place and length of the content) of the chunks between two places, those inside lists included."""
    lists = [(end, end)]  # of every list that is open: where it ends, and where the chunk behind it begins
    while lists:
        if position + 8 > lists[-1][0]:
            position = lists.pop()[1]
            continue
        file.seek(position)
        kind, length = struct.unpack("<4sI", file.read(8))
        behind = position + 8 + length + length % 2
        if kind == b"LIST":
            lists.append((min(position + 8 + length, lists[-1][0]), behind))
            position += 12
        else:
            yield kind, position + 8, length
            position = behind


def _flv(file: BinaryIO, size: int, max_frames: int) -> StatedLength:
    """Every tag repeats its size behind it; the head may state the file's size and duration."""
    file.seek(0)
    head = file.read(65536)
    stated = _flv_number(head, b"filesize")
    if stated and stated > size:
        raise _cut("the file by its own head", int(stated), size)
    file.seek(size - 4)
    tag = int.from_bytes(file.read(4), "big")
    begin = size - 4 - tag
    if size > 13:
        if tag < 11 or begin < 9:
            raise ValueError("cut short: the file ends inside a tag")
        file.seek(begin + 1)
        if int.from_bytes(file.read(3), "big") != tag - 11:
            raise ValueError("cut short: the file ends inside a tag")
    if stated:
        return StatedLength(verified=True)
    duration_s = _flv_number(head, b"duration")
    if not duration_s:
        return UNKNOWN
    file.seek(begin + 4)
    stamp = file.read(4)
    last_s = (int.from_bytes(stamp[:3], "big") | stamp[3] << 24) / 1000
    if last_s < duration_s - 1.0:
        raise ValueError(f"cut short: its head states {duration_s:.2f} s, its last tag is at {last_s:.2f} s")
    return StatedLength(duration_s=duration_s)


def _flv_number(head: bytes, name: bytes) -> float:
    """A number of the script tag ``onMetaData``, 0 where it is missing."""
    position = head.find(len(name).to_bytes(2, "big") + name + b"\0")
    return struct.unpack_from(">d", head, position + len(name) + 3)[0] if position >= 0 else 0.0


def _gif(file: BinaryIO, size: int, max_frames: int) -> StatedLength:
    """Every block up to the trailer 0x3B; a cut file may end in that byte by chance.

    A damaged block length may hide the frame behind it. Writers fill the blocks of a frame, all but its
    last one; where these have several lengths, the number of frames is not verified.
    """
    file.seek(0)
    data = file.read()
    cut = ValueError("cut short: a GIF ends with the byte 0x3B, this one ends inside a frame")

    def colours(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    verified, frames, position = True, 0, 13 + colours(data[10])
    while position < size:
        kind = data[position]
        if kind == 0x3B:
            return StatedLength(True, not verified, frames)
        if kind == 0x21:
            position += 2
            if data[position - 1] == 0xF9 and (data[position], data[position + 5]) != (4, 0):
                raise _damaged(f"the head of a frame of the GIF, at byte {position}, has another length than 4")
        elif kind == 0x2C and position + 10 < size:
            frames += 1
            position += 11 + colours(data[position + 9])
        else:
            raise cut if kind == 0x2C else _damaged(f"no block begins at byte {position} of the GIF")
        if frames > max_frames:
            raise ValueError(f"more than {max_frames} frames; at most {max_frames} are accepted, cut the video first")
        lengths = []
        while position < size and data[position]:
            lengths.append(data[position])
            position += 1 + data[position]
        position += 1
        verified = verified and (kind == 0x21 or len(set(lengths[:-1])) < 2)
    raise cut


def _is_transport_stream(head: bytes) -> bool:
    return len(head) > 196 and any(head[start] == head[start + step] == 0x47 for start, step in ((0, 188), (4, 192)))


def _transport_stream(file: BinaryIO, size: int, max_frames: int) -> StatedLength:
    """MPEG-TS says nothing about its length; a cut shows only where it falls inside a packet."""
    file.seek(0)
    head = file.read(189)
    step = 188 if head[0] == head[188] == 0x47 else 192  # 192: with a time stamp before each packet
    if size % step:
        raise ValueError(f"cut short: MPEG-TS has packets of {step} bytes, the last one here has {size % step}")
    return UNKNOWN


def _png(file: BinaryIO, size: int, max_frames: int) -> StatedLength:
    """Animated PNG: its chunks up to IEND, and the number of frames in acTL."""
    position, frames = 8, None
    while position + 12 <= size:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        if position + 12 + length > size:
            raise _cut(f"its chunk {kind!r}", position + 12 + length, size)
        if kind == b"acTL":
            frames = struct.unpack(">I", file.read(4))[0]
        if kind == b"IEND":
            return StatedLength(True, frames=frames)
        position += 12 + length
    raise ValueError("cut short: the PNG has no end mark")


def _ogg(file: BinaryIO, size: int, max_frames: int) -> StatedLength:
    """The last page must be whole and carry the end-of-stream flag."""
    position = flags = 0
    while position + 27 <= size:
        file.seek(position)
        head = file.read(27)
        if head[:4] != b"OggS":
            break
        flags = head[5]
        position += 27 + head[26] + sum(file.read(head[26]))
    if position > size:
        raise _cut("its last page", position, size)
    return StatedLength(verified=bool(flags & 4))


def _ivf(file: BinaryIO, size: int, max_frames: int) -> StatedLength:
    """IVF states its number of frames (0 when its writer was killed)."""
    file.seek(24)
    frames = struct.unpack("<I", file.read(4))[0]
    return StatedLength(bool(frames), frames=frames or None)


_CONTAINERS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, int, int], StatedLength]], ...] = (
    (_is_mp4, _mp4),
    (lambda head: head.startswith(b"\x1aE\xdf\xa3"), _matroska),
    (lambda head: head.startswith(b"RIFF") and head[8:12] == b"AVI ", _riff),
    (lambda head: head.startswith(b"FLV"), _flv),
    (lambda head: head.startswith(b"GIF8"), _gif),
    (lambda head: head.startswith(b"\x89PNG"), _png),
    (lambda head: head.startswith(b"OggS"), _ogg),
    (lambda head: head.startswith(b"DKIF"), _ivf),
    (_is_transport_stream, _transport_stream),
)
