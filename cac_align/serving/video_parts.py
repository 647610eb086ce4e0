"""Videos on the way between client and service: what is sent of a video, and the video rebuilt from
what was sent.

Video → frames_part | file_part | path_part → message → video_from_frames → Video

A rebuilt video keeps the source's clock, so that frame indices and windows mean the same on both
sides, but it only has the pixels of the frames that were sent. Reading another frame is a
``ValueError`` that names it; the service reports such frames as ``missing_frames``.
"""

from __future__ import annotations

import binascii
import io
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cac_align.core.shapes import UInt8
from cac_align.core.video import Video
from cac_align.serving.wire import EncodedMedia, FilePart, FramesPart, Limits, PathPart

JPEG_QUALITY = 90
"""The quality of sent frames, of 1 to 100, where the caller names none."""


def frames_part(video: Video, indices: tuple[int, ...], *, quality: int = JPEG_QUALITY) -> FramesPart:
    """These frames of the video as JPEG, with 4:2:0 chroma below quality 95 and 4:4:4 from there
    on.

    Raises ``ValueError`` when the video cannot be read.
    """
    from PIL import Image

    frames = video.frames(indices)
    images = []
    for pixels in frames.pixels:
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG", quality=quality, subsampling=0 if quality >= 95 else 2)
        images.append(encoded.getvalue())
    return FramesPart(fps=video.fps, times_s=video.times_s, indices=indices, images=tuple(images), name=video.name)


def file_part(video: Video) -> FilePart:
    """The video's encoded file.

    Raises ``ValueError`` when the video is not a file or cannot be read.
    """
    if video.path is None:
        raise ValueError(f"{video.name}: holds pixels, not a file; send its frames")
    try:
        encoded = video.path.read_bytes()
    except OSError as error:
        raise ValueError(f"{video.path}: cannot be read: {error.strerror or error}") from error
    return FilePart(data=encoded, fps=_constant_fps(video), name=video.name)


def path_part(video: Video) -> PathPart:
    """The path of the video's file, for a service that reads the same disk.

    Raises ``ValueError`` when the video is not a file.
    """
    if video.path is None:
        raise ValueError(f"{video.name}: holds pixels, not a file; send its frames")
    return PathPart(path=str(video.path.absolute()), fps=_constant_fps(video))


def _constant_fps(video: Video) -> float | None:
    """The frame rate that gives the service this video's clock; None where its frames are not evenly
    spaced.
    """
    constant = all(abs(time_s - index / video.fps) < 1e-6 for index, time_s in enumerate(video.times_s))
    return video.fps if constant else None


@dataclass(frozen=True, eq=False)
class SentFrames:
    """The pixels behind a rebuilt video: encoded images by source index. Picklable."""

    images: Mapping[int, bytes]
    height: int
    width: int
    name: str = "video"
    # Whether every image is a whole RGB JPEG file, which may be passed on as it is.
    jpegs: bool = False
    # Source indices that were asked for and not sent; the service reports them, and the client sends more.
    missing: list[int] = field(default_factory=list)

    def read(self, indices: tuple[int, ...]) -> SentImages:
        """These frames, not decoded yet. Raises ``ValueError`` when one was not sent."""
        absent = [index for index in indices if index not in self.images]
        if absent:
            self.missing.extend(absent)
            raise ValueError(f"{self.name}: frames {absent} were not sent; send the whole video")
        return SentImages(self, indices)

    def data(self) -> bytes:
        """The encoded images with their indices: what the content hash is taken over."""
        return b"".join(index.to_bytes(4, "little") + image for index, image in sorted(self.images.items()))


@dataclass(frozen=True, eq=False)
class SentImages:
    """Some of the sent frames, not decoded yet (an ``Encoded`` of ``cac_align.core.video``)."""

    sent: SentFrames
    indices: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.indices), self.sent.height, self.sent.width, 3

    @property
    def jpegs(self) -> tuple[bytes, ...] | None:
        return tuple(self.sent.images[index] for index in self.indices) if self.sent.jpegs else None

    def decode(self) -> UInt8[np.ndarray, "T H W 3"]:
        """The pixels. Raises ``ValueError`` for an image that cannot be decoded, naming the frame."""
        pixels = np.empty(self.shape, dtype=np.uint8)

        def fill(position: int, index: int) -> None:
            with _open_image(self.sent.images[index], f"{self.sent.name}: frame {index}") as image:
                pixels[position] = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))

        # Pillow decodes outside the interpreter's lock: one judge thread must not leave the other cores idle.
        with ThreadPoolExecutor(min(len(self.indices), os.cpu_count() or 1)) as pool:
            list(pool.map(fill, range(len(self.indices)), self.indices))
        return pixels


@contextmanager
def _open_image(image: bytes, label: str) -> Iterator[Any]:
    """The PIL image with its header read.

    Raises ``ValueError`` for what is no JPEG or PNG, also when that only shows while the body is
    decoded in the block.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(image), formats=("JPEG", "PNG")) as opened:
            yield opened
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{label} is not a readable JPEG or PNG: {error}") from error


def _check_images(images: Mapping[int, bytes], name: str, max_pixels: int) -> SentFrames:
    """The images of a video, of which only the headers are read.

    Raises ``ValueError`` naming an image that cannot be read, is too large, or has another size
    than the others.
    """
    sizes: set[tuple[int, int]] = set()
    jpegs = True
    for index, image in images.items():
        with _open_image(image, f"{name}: frame {index}") as opened:
            height, width = opened.height, opened.width
            # An image that is grey, rotated by EXIF or cut off may be decoded differently by a judge's server, so that
            # it is decoded here and not passed on.
            plain = opened.format == "JPEG" and opened.mode == "RGB" and "exif" not in opened.info
            jpegs = jpegs and plain and image.endswith(b"\xff\xd9")
        sizes.add((height, width))
        if height * width > max_pixels:
            raise ValueError(f"{name}: frames of {height}×{width} px, this service accepts {max_pixels} pixels")
        if len(sizes) > 1:
            raise ValueError(
                f"{name}: frame {index} is {height}×{width} px, frames before it are not; send frames of one size"
            )
    return SentFrames(images, height, width, name, jpegs)


def media_bytes(media: EncodedMedia, label: str) -> bytes:
    """The bytes of a medium.

    Raises ``ValueError`` for anything that is neither bytes nor strict base64.
    """
    if isinstance(media, bytes):
        return media
    try:
        return binascii.a2b_base64(str(media).encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError(f"{label} is not base64: {error}") from error


def video_from_frames(part: FramesPart, limits: Limits) -> Video:
    """The video that a ``FramesPart`` describes: its whole clock, and the frames that were sent.

    Raises ``ValueError`` for time stamps that do not increase from 0, indices that do not fit them,
    images that cannot be read, or a video beyond a limit.
    """
    if not (count := len(part.times_s)):
        raise ValueError(f"{part.name}: a video needs at least one frame, received none")
    if count > limits.max_frames:
        raise ValueError(f"{part.name}: {count} frames, this service accepts {limits.max_frames}; send a shorter video")
    if not all(math.isfinite(time_s) for time_s in part.times_s):
        raise ValueError(f"{part.name}: time stamps must be finite seconds")
    if part.times_s[0] != 0 or any(
        later <= earlier for earlier, later in zip(part.times_s, part.times_s[1:], strict=False)
    ):
        raise ValueError(f"{part.name}: time stamps must start at 0 and increase")
    if not part.indices or len(part.indices) != len(part.images):
        raise ValueError(
            f"{part.name}: expected one image per index, received {len(part.images)} for {len(part.indices)}"
        )
    if list(part.indices) != sorted(set(part.indices)) or part.indices[0] < 0 or part.indices[-1] >= count:
        raise ValueError(f"{part.name}: indices must increase within [0, {count - 1}]")
    images = {
        index: media_bytes(image, f"{part.name}: frame {index}")
        for index, image in zip(part.indices, part.images, strict=True)
    }
    limits.video.check_clock(part.times_s[-1], part.fps, part.name)
    sent = _check_images(images, part.name, limits.max_pixels)
    return Video(part.fps, part.times_s, sent.height, sent.width, part.name, sent, limits.video)
