"""Frames → mp4: one function, so that every file this package writes has the same codec, quality and clock.

pixels (T, H, W, 3) uint8 → libx264, crf 12 → whole_file

A file under its final name is complete: whoever resumes a run may trust it. A video's bytes are its
identity in the ledger: ``REPEATABLE``.
"""

from __future__ import annotations

import math
import os
import struct
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from cac_align.core.shapes import UInt8
from cac_align.core.whole_file import whole_file

CRF = 12
"""Constant rate factor of x264: visually lossless, about 2 MB for 81 frames of 480P."""
REPEATABLE = {"threads": "1", "x264-params": "cpu-independent=1"}
"""The same frames, the same bytes: x264's output depends on its number of threads, and its fastest
code rounds by where memory lies.
"""


def write_mp4(
    path: str | os.PathLike[str],
    pixels: UInt8[np.ndarray, "T H W 3"],
    fps: float,
    *,
    lossless: Literal["", "yuv420p", "rgb"] = "",
) -> None:
    """Write frames as H.264 in mp4, atomically. RGB in [0, 255]; frame i stands at i / fps seconds.

    Even sizes are stored as yuv420p, which every player shows; odd ones as yuv444p, which keeps
    their size. lossless: nothing is lost ("rgb", which browsers do not show), or only the colours'
    resolution ("yuv420p"). Raises ``ValueError`` for pixels that are not a uint8 video or an fps
    that is not positive, ``OSError`` with the path where it cannot be written.
    """
    import av

    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise ValueError(f"{path}: expected uint8 pixels of shape (T, H, W, 3), received {pixels.dtype} {pixels.shape}")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"{path}: fps must be a positive number of frames per second, received {fps!r}")
    _, height, width, _ = pixels.shape
    with (
        whole_file(path) as part,
        av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        codec = "libx264rgb" if lossless == "rgb" else "libx264"
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height = width, height
        even = width % 2 == 0 and height % 2 == 0
        stream.pix_fmt = "rgb24" if lossless == "rgb" else "yuv420p" if even else "yuv444p"
        quality = {"qp": "0", "preset": "veryfast"} if lossless else {"crf": str(CRF), "preset": "medium"}
        stream.options = {**quality, **REPEATABLE}
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def pad_mp4(path: str | os.PathLike[str], size: int) -> None:
    """Make an mp4 file ``size`` bytes long with an empty ``free`` box at its end, which every reader passes over.

    size: bytes, at least the file's own length + 8 (the head of the box), below 2^32 more than it.
    Raises ``ValueError`` for another size.
    """
    content = Path(path).read_bytes()
    length = size - len(content)
    if not 8 <= length < 2**32:
        raise ValueError(f"{path} has {len(content)} bytes; expected a size at least 8 bytes above, received {size}")
    with whole_file(path) as part:
        part.write_bytes(content + struct.pack(">I4s", length, b"free") + bytes(length - 8))
