"""A video inside a page: small copies of its frames, an embedded preview that every browser plays, and
the boxes that the page's script draws over it while it plays.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import UInt8

from cac_align.core.encoding import REPEATABLE
from cac_align.core.judgement import Anomaly
from cac_align.core.video import Video
from cac_align.evaluation.pages.page import TYPE_COLOURS, Picture, TimelineSpan, frame_strip, timeline_spans

MAX_BYTES = 28_000_000
"""Bytes for all clips of a page that is one file; plots, tables and rounding take the rest of 30 MB."""


PREVIEW_PX = 320
"""Longest side of the frames that a page embeds, in pixels."""


SMALLER_PX = 224
"""Longest side of a preview whose first version (``PREVIEW_PX``) does not fit."""


_CHUNK = 32  # frames decoded at one time
_MAX_PREVIEW_FRAMES = 1500  # their small copies are held in memory


@dataclass(frozen=True)
class Player:
    """One video as a page plays it, with its boxes drawn over it.

    source: a data URI, or the file relative to the page; None: frames only. overlay: see
    ``box_overlay``.
    """

    source: str | None
    width: int
    height: int
    overlay: str
    pictures: tuple[Picture, ...]
    spans: tuple[TimelineSpan, ...]
    duration_s: float


def embedded_player(video: Video, anomalies: Sequence[Anomaly], max_bytes: int) -> Player:
    """A player that carries a small copy of the video. max_bytes: what frames and copy may take; a
    copy that does not fit is left out.

    Raises ``ValueError`` when the video cannot be decoded.
    """
    if len(video) > _MAX_PREVIEW_FRAMES:
        return _player(video, anomalies, frame_strip(video, anomalies), None)
    pixels = shrink_frames(video, PREVIEW_PX)
    small = Video(video.fps, video.times_s, pixels.shape[1], pixels.shape[2], video.name, pixels)
    pictures = frame_strip(small, anomalies)
    left = max_bytes - sum(len(picture.uri) for picture in pictures)
    return _player(video, anomalies, pictures, preview_uri(pixels, video.times_s, video.fps, left))


def file_player(video: Video, anomalies: Sequence[Anomaly], source: str | None) -> Player:
    """A player of the file ``source``, relative to the page. Raises ``ValueError`` when the video
    cannot be decoded.
    """
    return _player(video, anomalies, frame_strip(video, anomalies), source)


def _player(video: Video, anomalies: Sequence[Anomaly], pictures: tuple[Picture, ...], source: str | None) -> Player:
    return Player(
        source=source,
        width=video.width,
        height=video.height,
        overlay=box_overlay(video, anomalies),
        pictures=pictures,
        spans=timeline_spans(video, anomalies),
        duration_s=video.duration_s,
    )


def shrink_frames(video: Video, side_px: int, indices: Sequence[int] | None = None) -> UInt8[np.ndarray, "T H W 3"]:
    """Frames scaled down by area to at most ``side_px`` a side, never up, with even sizes: uint8
    (T, H, W, 3).

    indices: which frames; None takes all. Frames are decoded a few at a time, so memory stays
    small. Raises ``ValueError`` when the video cannot be decoded.
    """
    import PIL.Image

    indices = range(len(video)) if indices is None else indices
    scale = min(side_px / max(video.width, video.height), 1.0)
    size = (max(round(video.width * scale / 2) * 2, 2), max(round(video.height * scale / 2) * 2, 2))
    small = np.empty((len(indices), size[1], size[0], 3), dtype=np.uint8)
    for start in range(0, len(indices), _CHUNK):
        pixels = video.frames(indices[start : start + _CHUNK]).pixels
        for offset, frame in enumerate(pixels):
            if frame.shape[:2] != small.shape[1:3]:
                frame = np.asarray(PIL.Image.fromarray(frame).resize(size, PIL.Image.Resampling.BOX))
            small[start + offset] = frame
    return small


def box_overlay(video: Video, anomalies: Sequence[Anomaly]) -> str:
    """JSON for the page's script: per box [start_s, end_s, xmin, ymin, xmax, ymax, colour]. A box
    stays until the next one.
    """
    rows = []
    for anomaly in anomalies:
        frames = sorted(frame for frame in anomaly.boxes if frame < len(video))
        last_s = anomaly.window.end_s + 1 / video.fps if anomaly.window else video.duration_s
        for frame, following in zip(frames, [*frames[1:], None], strict=False):  # without a frame there is no row
            until_s = (
                video.times_s[following] if following is not None else max(last_s, video.times_s[frame] + 1 / video.fps)
            )
            for box in anomaly.boxes[frame]:
                rows.append(
                    [round(video.times_s[frame], 4), round(until_s, 4), *box.to_json(), TYPE_COLOURS[anomaly.type]]
                )
    return json.dumps(rows)


def preview_uri(
    pixels: UInt8[np.ndarray, "T H W 3"], times_s: Sequence[float], fps: float, max_bytes: int
) -> str | None:
    """The video as a data URI of at most ``max_bytes``; None when even the smaller version does not
    fit.
    """
    for crf, side_px in ((20 if max(pixels.shape[1:3]) <= 128 else 27, PREVIEW_PX), (33, SMALLER_PX)):
        tried = pixels if side_px >= max(pixels.shape[1:3]) else shrink_frames(Video.open(pixels, fps=1.0), side_px)
        uri = "data:video/mp4;base64," + base64.b64encode(_mp4(tried, times_s, fps, crf)).decode()
        if len(uri) <= max_bytes:
            return uri
    return None


def _mp4(pixels: UInt8[np.ndarray, "T H W 3"], times_s: Sequence[float], fps: float, crf: int) -> bytes:
    """H.264 that every browser plays, in memory, with the source's own time stamps (to the
    millisecond).
    """
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = pixels.shape[2], pixels.shape[1], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = {"crf": str(crf), "preset": "veryfast", **REPEATABLE}
        for time_s, image in zip(times_s, pixels, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = round(1000 * time_s), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()
