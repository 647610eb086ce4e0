"""Video files that were cut or whose bits were flipped, in eight containers."""

from __future__ import annotations

import io
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from hypothesis import strategies as st

from cac_align.core.video import Video
from tests.campaign.promise import Broken, Promise, refused

NUM_FRAMES = 33
# Container → (format, codec, pixel format, options).
_KINDS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "mp4": ("mp4", "libx264", "yuv420p", {}),
    "fragmented mp4": ("mp4", "libx264", "yuv420p", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "mkv": ("matroska", "libx264", "yuv420p", {}),
    "webm": ("webm", "libvpx-vp9", "yuv420p", {}),
    "avi": ("avi", "mpeg4", "yuv420p", {}),
    "gif": ("gif", "gif", "rgb8", {}),
    "ts": ("mpegts", "libx264", "yuv420p", {}),
    "flv": ("flv", "flv", "yuv420p", {}),
}


def write(kind: str) -> bytes:
    """A whole file of 33 frames of 48×64 px at 16 fps; a bright bar walks over noise."""
    format_name, codec, pixel_format, options = _KINDS[kind]
    noise = np.random.default_rng(0).integers(0, 90, (48, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format_name, options=options) as container:
        stream: Any = container.add_stream(codec, rate=Fraction(16))
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, pixel_format, 8
        for number in range(NUM_FRAMES):
            pixels = noise.copy()
            pixels[:, number : number + 8] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _prepare(folder: Path) -> tuple[dict[str, bytes], Path]:
    files = {kind: write(kind) for kind in _KINDS}
    for kind, data in files.items():
        video = Video.open(data, name=kind)
        if len(video) != NUM_FRAMES:
            raise Broken(f"{kind}: the whole file has {len(video)} frames of {NUM_FRAMES}")
    return files, folder


def _read(source: Any, name: str, fps: float | None) -> Video | None:
    """The video with every frame decoded once, or None where it is refused."""
    video = refused(Video.open, source, name=name, fps=fps)
    if video is None or refused(video.frames, range(len(video))) is None:
        return None
    if refused(video.sample, 4) is None or refused(lambda: video.content_hash) is None:
        return None
    times = np.asarray(video.times_s)
    if not (np.isfinite(times).all() and (np.diff(times) > 0).all() and math.isfinite(video.fps) and video.fps > 0):
        raise Broken("time stamps that are not finite and increasing")
    return video


def _whole_or_said(video: Video | None, kind: str) -> None:
    if video is not None and len(video) < NUM_FRAMES and video.length_verified:
        raise Broken(f"{kind}: {len(video)} of {NUM_FRAMES} frames, and nothing says so")


def _check_cut(context: tuple[dict[str, bytes], Path], case: tuple[str, float, bool]) -> None:
    kind, share, as_path = case
    files, folder = context
    data = files[kind][: int(share * len(files[kind]))]
    if len(data) == len(files[kind]):
        return
    source: Any = data
    if as_path:
        source = folder / f"cut.{kind.split()[-1]}"
        source.write_bytes(data)
    _whole_or_said(_read(source, kind, None), kind)


def _check_damage(context: tuple[dict[str, bytes], Path], case: tuple[str, list[tuple[bool, float, int]], Any]) -> None:
    kind, flips, fps = case
    data = bytearray(context[0][kind])
    for in_head, place, bit in flips:
        reach = min(len(data), 2048) if in_head else len(data)
        data[min(int(place * reach), reach - 1)] ^= 1 << bit
    _whole_or_said(_read(bytes(data), kind, fps), kind)


def _check_changed(context: tuple[dict[str, bytes], Path], case: tuple[str, float, str]) -> None:
    kind, share, other = case
    files, folder = context
    path = folder / f"changed.{kind.split()[-1]}"
    path.write_bytes(files[kind])
    video = Video.open(path)
    path.write_bytes(files[other][: int(share * len(files[other]))])
    refused(video.sample, 4)
    refused(video.frames, range(len(video)))


def _check_bytes(context: tuple[dict[str, bytes], Path], case: tuple[str, float, float, bytes]) -> None:
    kind, begin, end, instead = case
    data = context[0][kind]
    first, last = sorted((int(begin * len(data)), int(end * len(data))))
    video = _read(data[:first] + instead + data[last:], kind, None)
    if video is not None and not len(video):
        raise Broken("a video without frames")


_kind = st.sampled_from(sorted(_KINDS))
_share = st.floats(0, 1, exclude_max=True)
_flips = st.lists(st.tuples(st.booleans(), _share, st.integers(0, 7)), min_size=1, max_size=4)
PROMISES = (
    Promise("cut files", "A cut video is refused, or its length is called unverified", _prepare,
            st.tuples(_kind, _share, st.booleans()), _check_cut, 2.0),
    Promise("flipped bits", "A video with flipped bits is refused or read; it is not shorter unsaid", _prepare,
            st.tuples(_kind, _flips, st.sampled_from([None, 16.0])), _check_damage, 3.0),
    Promise("spliced files", "A video with bytes removed and put in is refused or read", _prepare,
            st.tuples(_kind, _share, _share, st.binary(max_size=64)), _check_bytes),
    Promise("changed files", "A video whose file is cut or replaced after it was opened is refused or read", _prepare,
            st.tuples(_kind, _share, _kind), _check_changed),
)  # fmt: skip
