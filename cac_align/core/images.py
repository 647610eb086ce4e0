"""Videos made of images, which Pillow reads: animated WebP, and folders of numbered images.

animated WebP → ``webp_index`` (its structure alone: a duration per frame) → ``read_webp``
folder → ``open_image_folder`` → ``FolderFrames`` (its clock is the caller's fps)

FFmpeg has no demuxer for animated WebP. Its clock is what the file says of each frame: writers merge
frames that are alike and let one last longer.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cac_align.core.limits import VideoLimits
from cac_align.core.shapes import UInt8

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Endings by which the images of a folder are found."""
_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")

# ---- animated WebP ------------------------------------------------------------------------------------------------


def is_webp(head: bytes) -> bool:
    """Whether these first bytes of a file (16 or more) are those of a WebP, animated or not."""
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def is_animated_webp(path: Path) -> bool:
    """Whether this file is an animated WebP by its head; False for one that cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(21)
    except OSError:
        return False
    return is_webp(head) and head[12:16] == b"VP8X" and bool(head[20:21] and head[20] & 2)


@dataclass(frozen=True)
class WebpIndex:
    """``stamps_ms``: when each frame appears, from 0, ascending; a frame of no duration repeats one.
    ``duration_ms``: until the last one ends. Size in pixels.
    """

    stamps_ms: tuple[int, ...]
    duration_ms: int
    height: int
    width: int


def webp_index(file: BinaryIO, size: int, limits: VideoLimits, name: str) -> WebpIndex:
    """The clock of an open WebP file of ``size`` bytes, read from its chunks without decoding.

    Raises ``ValueError`` that names the file for a still image, a file that was cut or whose chunks
    do not fit each other, and one beyond a limit.
    """
    file.seek(0)
    head = file.read(30)
    end = 8 + int.from_bytes(head[4:8], "little")
    if end > size:
        raise ValueError(f"{name}: cut short: its RIFF chunk ends at byte {end}, the file at byte {size}")
    if len(head) < 30 or head[12:16] != b"VP8X" or not head[20] & 2:
        raise ValueError(
            f"{name}: a still WebP image, not a video; pass a list of PIL images, or a folder of images, with fps="
        )
    width, height = (1 + int.from_bytes(head[place : place + 3], "little") for place in (24, 27))
    limits.check_size(height, width, name)
    durations: list[int] = []
    position = 12
    while position + 8 <= end:
        file.seek(position)
        kind, length = struct.unpack("<4sI", file.read(8))
        if position + 8 + length > end:
            raise ValueError(f"{name}: damaged: its chunk {kind!r} ends at byte {position + 8 + length}, behind {end}")
        if kind == b"ANMF":
            frame = file.read(16)
            if length < 24:
                raise ValueError(f"{name}: damaged: frame {len(durations)} holds no image")
            durations.append(int.from_bytes(frame[12:15], "little"))
            if len(durations) > limits.max_frames:
                limits.check_frames(len(durations), name)
        position += 8 + length + length % 2
    limits.check_frames(len(durations), name)
    ends = tuple(accumulate(durations))
    return WebpIndex((0, *ends[:-1]), ends[-1], height, width)


def read_webp(source: Path | bytes, indices: tuple[int, ...], count: int) -> UInt8[np.ndarray, "T H W 3"]:
    """These frames (increasing) of an animated WebP that has ``count`` of them. Every frame up to the
    last one asked for is decoded, because each changes the one before.

    Raises ``ValueError`` without the file's name when one of them cannot be decoded.
    """
    import io

    with _opened(source if isinstance(source, Path) else io.BytesIO(source), ("WEBP",)) as image:
        if getattr(image, "n_frames", 1) != count:
            raise ValueError(f"{count} frames are listed in it, {getattr(image, 'n_frames', 1)} can be read")
        pixels = np.empty((len(indices), image.height, image.width, 3), np.uint8)
        for place, index in enumerate(indices):
            try:
                image.seek(index)
                pixels[place] = np.asarray(image.convert("RGB"))
            except (EOFError, OSError) as error:
                raise ValueError(f"frame {index} cannot be decoded ({error})") from error
        return pixels


# ---- folders ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderFrames:
    """The images of a folder in the order of their numbers, decoded on demand. Picklable, holds no
    open file.
    """

    files: tuple[Path, ...]
    height: int
    width: int
    limits: VideoLimits = field(default_factory=VideoLimits.default)

    def data(self) -> bytes:
        """The encoded images, each after its length: what the content hash is taken over."""
        images = (_bytes_of(file) for file in self.files)
        return b"".join(len(image).to_bytes(8, "little") + image for image in images)

    def read(self, indices: tuple[int, ...]) -> UInt8[np.ndarray, "T H W 3"]:
        """These images, RGB. Raises ``ValueError`` for one that cannot be read, or was changed to
        another size since the folder was opened.
        """
        pixels = np.empty((len(indices), self.height, self.width, 3), np.uint8)

        def fill(place: int, index: int) -> None:
            with _opened(self.files[index]) as image:
                _check_image(image, self.files[index])
                if (image.height, image.width) != (self.height, self.width):
                    raise ValueError(_other_size(self.files[index], image, self.height, self.width))
                pixels[place] = np.asarray(image.convert("RGB"))

        # Pillow decodes outside the interpreter's lock.
        with ThreadPoolExecutor(min(len(indices), os.cpu_count() or 1)) as pool:
            list(pool.map(fill, range(len(indices)), indices))
        return pixels


def is_image_folder(folder: Path) -> bool:
    """Whether images lie directly in this folder, apart from hidden files."""
    return folder.is_dir() and any(map(_is_image, folder.iterdir()))


def open_image_folder(folder: Path, limits: VideoLimits, name: str) -> FolderFrames:
    """The images directly in a folder, ordered by their numbers: frame_2.png before frame_10.png.

    Of every image only the head is read. Raises ``ValueError`` when there is none, one cannot be
    read, they differ in size, go beyond a limit, or are no one series: names that are alike but for
    one number, without a gap (numbers may rise in larger steps, if all steps are the same).
    """
    try:
        files = [path for path in folder.iterdir() if _is_image(path)]
    except OSError as error:
        raise ValueError(f"{name}: cannot be read: {error.strerror or error}") from error
    if not files:
        raise ValueError(
            f"{name}: is a folder without images ({', '.join(IMAGE_SUFFIXES)}); expected a video file, or a folder "
            "with the numbered images of one video"
        )
    limits.check_frames(len(files), name)
    files = _in_order(files, name)
    height = width = 0
    for file in files:
        with _opened(file) as image:
            _check_image(image, file)
            height, width = height or image.height, width or image.width
            if (image.height, image.width) != (height, width):
                raise ValueError(_other_size(file, image, height, width))
    limits.check_size(height, width, name)
    return FolderFrames(tuple(files), height, width, limits)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _in_order(files: list[Path], name: str) -> list[Path]:
    """The files by the last number of their names; one file alone needs none."""
    if len(files) == 1:
        return files
    numbered: dict[int, Path] = {}
    series: dict[str, Path] = {}
    for file in sorted(files):
        match = re.search(r"(\d+)(\D*)$", file.stem)
        if match is None:
            raise ValueError(
                f"{name}: {file.name} has no number in its name; expected frame_0000.png, frame_0001.png, …"
            )
        series.setdefault(f"{file.stem[: match.start()]}*{match[2]}", file)
        if (twin := numbered.setdefault(int(match[1]), file)) is not file and len(series) == 1:
            raise ValueError(f"{name}: {twin.name} and {file.name} have the same number; which one is the frame?")
    if len(series) > 1:
        first, second = list(series.values())[:2]
        raise ValueError(
            f"{name}: {first.name} and {second.name} are no one series; expected one video's images only, whose names "
            "differ in one number, and each video in a folder of its own"
        )
    numbers = sorted(numbered)
    step = min(later - earlier for earlier, later in pairwise(numbers))
    for earlier, later in pairwise(numbers):
        if later - earlier != step:
            raise ValueError(
                f"{name}: number {earlier + step} is missing between {numbered[earlier].name} and "
                f"{numbered[later].name}; a video with a gap has another clock"
            )
    return [numbered[number] for number in numbers]


def _other_size(file: Path, image: Any, height: int, width: int) -> str:
    own = f"{image.height}×{image.width} px"
    return f"{file}: is {own}, the images before it {height}×{width}; expected images of one size"


def _check_image(image: Any, file: Path) -> None:
    """Raise ``ValueError`` for an image that is several, or whose pixels have more than 8 bits."""
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"{file}: holds {image.n_frames} images; expected one frame per file")
    if image.mode not in _EIGHT_BIT:
        raise ValueError(f"{file}: has pixels of mode {image.mode!r}; expected 8 bits per channel")


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror or error}") from error


@contextmanager
def _opened(source: Any, formats: tuple[str, ...] = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")) -> Iterator[Any]:
    """The image with its head read. Raises ``ValueError`` for what is none, also when that only shows
    while it is decoded in the block.
    """
    from PIL import Image

    label = f"{source}: " if isinstance(source, Path) else ""
    try:
        with Image.open(source, formats=formats) as image:
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{label}not a readable image ({str(error)[:200]})") from error
