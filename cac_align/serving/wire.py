"""What travels between our client and our service: typed JSON, JPEG frames or a file, and a Video rebuilt from the frames sent.

Video → plan → the frames a reward samples → FramesPart (JPEG) → packed → unpacked → Video on the same clock, sparse pixels

Anyone may post plain JSON with base64 images. Our client packs: the same JSON with byte counts in place of images, and the bytes
behind it (a quarter less on the wire, and nothing to decode).

A rebuilt video keeps the source's clock (every time stamp, so that indices, windows and "Frame n" mean the same on both sides) but
only has the pixels that were sent. Asking it for another frame is an error that names the frame; the service reports it as
``unsent`` and the client sends the whole video once more. So a plan is about bytes, never about correctness.
81 frames at 16 fps need 41 frames at 8 fps (they contain the 21 of 4 fps) and the 8 of ``int(i 81 / 16)`` that are odd: 49 of 81.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field, field_serializer

from cac_align.core.judgement import Window
from cac_align.core.video import MAX_FRAMES, Video
from cac_align.rewards.reward import Score

JPEG_QUALITY = 90


# ---- which frames ------------------------------------------------------------------------------------------------


class FramePlan(BaseModel):
    """Which frames a reward may ask for: scans of the whole video, looks into a window that starts at any scanned frame, counts.

    scan_fps, look_fps: frames per second (CaC: 4 and 8). counts: n frames at ``int(i N / n)`` (UnifiedReward: 16).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scan_fps: tuple[float, ...] = (4.0,)
    look_fps: tuple[float, ...] = (8.0,)
    counts: tuple[int, ...] = (16,)

    def indices(self, video: Video) -> tuple[int, ...]:
        """The union of all source indices the plan covers for this video's clock, increasing. No pixels are decoded."""
        wanted: set[int] = set()
        for fps in self.scan_fps:
            wanted.update(video.indices_at(fps))
        starts_s = sorted({video.times_s[index] for index in wanted})
        for fps in self.look_fps:
            # Where fps and the source's rate do not divide, each start has its own grid; windows that end early sample a subset.
            for start_s in starts_s:
                wanted.update(video.indices_at(fps, Window(start_s, video.times_s[-1])))
                wanted.update(video.indices_at(fps, Window(start_s, start_s)))
        for count in self.counts:
            wanted.update(int(i * len(video) / count) for i in range(count))
        return tuple(sorted(wanted))


# ---- the messages ------------------------------------------------------------------------------------------------


Binary = str | bytes | int
"""Encoded media in a message: base64 text, the bytes themselves (in memory), or how many of the packed body's bytes they are."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FramesPart(_Message):
    """Some frames of a video: ``images[n]`` (JPEG or PNG) is source frame ``indices[n]``; ``times_s`` is the whole clock."""

    kind: Literal["frames"] = "frames"
    fps: float = Field(gt=0, allow_inf_nan=False)
    times_s: tuple[float, ...] = Field(min_length=1, max_length=MAX_FRAMES)
    indices: tuple[int, ...] = Field(min_length=1, max_length=MAX_FRAMES)
    images: tuple[Binary, ...] = Field(min_length=1, max_length=MAX_FRAMES)
    name: str = "video"

    @field_serializer("images", when_used="json")
    def _images_text(self, images: tuple[Binary, ...]) -> list[str | int]:
        return [_text(image) for image in images]


class FilePart(_Message):
    """A whole encoded file (mp4, webm, gif …). ``fps`` overrides the container's clock."""

    kind: Literal["file"] = "file"
    data: Binary
    fps: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    name: str = "video"

    @field_serializer("data", when_used="json")
    def _data_text(self, data: Binary) -> str | int:
        return _text(data)


class PathPart(_Message):
    """A file the service can read itself, inside one of its roots."""

    kind: Literal["path"] = "path"
    path: str
    fps: float | None = Field(default=None, gt=0, allow_inf_nan=False)


VideoPart = Annotated[FramesPart | FilePart | PathPart, Field(discriminator="kind")]


class Item(_Message):
    prompt: str
    video: VideoPart


class ScoreRequest(_Message):
    """POST /v1/score. reward: one of the names in /health; None is the service's whole reward."""

    items: tuple[Item, ...]
    reward: str | None = None


class ScoreResult(BaseModel):
    """One ``Score`` as JSON (``score`` is null when there is none). unsent: frames the reward asked for and did not get."""

    model_config = ConfigDict(extra="ignore")

    score: float | None = Field(allow_inf_nan=False)
    parts: dict[str, float | None] = {}
    judgement: dict[str, Any] | None = None
    error: str | None = None
    provenance: dict[str, str] = {}
    unsent: tuple[int, ...] = ()

    def opened(self) -> Score:
        """Raises ``ValueError`` when the message contradicts itself: a score and an error, or neither."""
        try:
            return Score.from_json(self.model_dump())
        except (KeyError, TypeError) as error:
            raise ValueError(f"the service's answer is no Score: {error!r}") from error


class ScoreResponse(BaseModel):
    """One result per item, in order. provenance: of the reward that scored, so that a client notices when the service changed."""

    model_config = ConfigDict(extra="ignore")

    scores: list[ScoreResult]
    provenance: dict[str, str]


class Limits(_Message):
    """What the service accepts. Bytes are of one request's body; queued counts videos that wait."""

    max_body_bytes: int = Field(default=256 * 2**20, gt=0)
    max_items: int = Field(default=64, gt=0)
    max_frames: int = Field(default=1024, gt=0, le=MAX_FRAMES)
    max_pixels: int = Field(default=4096 * 2304, gt=0)
    max_queued: int = Field(default=256, gt=0)


class Health(BaseModel):
    """GET /health. rewards: names → readiness, as UniRL reads it. Per name: what identifies its scores, and the frames it samples
    (None: send all)."""

    model_config = ConfigDict(extra="ignore")

    status: Literal["ok", "stopping", "stuck"]
    rewards: dict[str, list[str]] = {}
    default: str = ""
    provenances: dict[str, dict[str, str]] = {}
    frame_plans: dict[str, FramePlan | None] = {}
    limits: Limits = Limits()


# ---- packing -----------------------------------------------------------------------------------------------------

PACKED = "application/x-cac-align-packed"
"""Content type: 4 bytes, the JSON's length (little endian); a ``ScoreRequest`` whose media are byte counts; the media, in order."""


def pack(request: ScoreRequest) -> bytes:
    """A request whose media are bytes, as one body."""
    blobs: list[bytes] = []

    def counted(media: Binary) -> int:
        assert isinstance(media, bytes)
        blobs.append(media)
        return len(media)

    header = _with_media(request, counted).model_dump_json().encode()
    return b"".join([len(header).to_bytes(4, "little"), header, *blobs])


def unpack(body: bytes) -> ScoreRequest:
    """Inverse of ``pack``. Raises ``ValueError`` when the counts and the bytes do not agree or the JSON is no ``ScoreRequest``."""
    start = 4 + int.from_bytes(body[:4], "little")
    if len(body) < max(start, 4):
        raise ValueError(f"packed body: the JSON ends at byte {start}, the body at {len(body)}")
    request = ScoreRequest.model_validate_json(body[4:start])

    def cut(media: Binary) -> bytes:
        nonlocal start
        if not isinstance(media, int) or not 0 <= media <= len(body) - start:
            raise ValueError(
                f"packed body: expected a byte count within the {len(body) - start} bytes left, received {str(media)[:40]!r}"
            )
        start += media
        return body[start - media : start]

    request = _with_media(request, cut)
    if start != len(body):
        raise ValueError(f"packed body: {len(body) - start} bytes are left over")
    return request


def _with_media(request: ScoreRequest, change: Callable[[Binary], Binary]) -> ScoreRequest:
    """The request with every image and file exchanged, in order."""
    items = []
    for item in request.items:
        video = item.video
        if isinstance(video, FramesPart):
            video = video.model_copy(update={"images": tuple(change(image) for image in video.images)})
        elif isinstance(video, FilePart):
            video = video.model_copy(update={"data": change(video.data)})
        items.append(item.model_copy(update={"video": video}))
    return request.model_copy(update={"items": tuple(items)})


def _text(media: Binary) -> str | int:
    return base64.b64encode(media).decode("ascii") if isinstance(media, bytes) else media


# ---- frames on the wire ------------------------------------------------------------------------------------------


def frames_part(video: Video, indices: tuple[int, ...], *, quality: int = JPEG_QUALITY) -> FramesPart:
    """These frames of the video as JPEG (4:2:0 below quality 95, 4:4:4 from there on). Raises ``ValueError`` when it cannot be read."""
    from PIL import Image

    frames = video.frames(indices)
    images = []
    for pixels in frames.pixels:
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG", quality=quality, subsampling=0 if quality >= 95 else 2)
        images.append(encoded.getvalue())
    return FramesPart(fps=video.fps, times_s=video.times_s, indices=indices, images=tuple(images), name=video.name)


def file_part(video: Video) -> FilePart:
    """The video's encoded file. Raises ``ValueError`` when it is not a file or cannot be read."""
    if video.path is None:
        raise ValueError(f"{video.name}: holds pixels, not a file; send its frames")
    try:
        encoded = video.path.read_bytes()
    except OSError as error:
        raise ValueError(f"{video.path}: cannot be read: {error.strerror or error}") from error
    return FilePart(data=encoded, fps=_override(video), name=video.name)


def path_part(video: Video) -> PathPart:
    """The file's own path, for a service that sees the same disk. Raises ``ValueError`` when the video is not a file."""
    if video.path is None:
        raise ValueError(f"{video.name}: holds pixels, not a file; send its frames")
    return PathPart(path=str(video.path.absolute()), fps=_override(video))


def _override(video: Video) -> float | None:
    """The rate that gives the other side this video's clock; None where only the container's own time stamps do."""
    constant = all(abs(time_s - index / video.fps) < 1e-6 for index, time_s in enumerate(video.times_s))
    return video.fps if constant else None


@dataclass(frozen=True, eq=False)
class SentFrames:
    """The pixels behind a rebuilt video: encoded images by source index. Picklable.

    jpegs: every image is a whole RGB JPEG file, which may be passed on as it is.
    missed: source indices that were asked for and are not here; the service sends them back so that the client can send more.
    """

    images: Mapping[int, bytes]
    height: int
    width: int
    name: str = "video"
    jpegs: bool = False
    missed: list[int] = field(default_factory=list)

    def read(self, indices: tuple[int, ...]) -> SentImages:
        """Raises ``ValueError`` when a frame was not sent."""
        absent = [index for index in indices if index not in self.images]
        if absent:
            self.missed.extend(absent)
            raise ValueError(
                f"{self.name}: frames {absent} were not sent; the client sends the whole video when told so"
            )
        return SentImages(self, indices)

    def data(self) -> bytes:
        """The encoded images with their indices: what the content hash is taken over."""
        return b"".join(index.to_bytes(4, "little") + image for index, image in sorted(self.images.items()))


@dataclass(frozen=True, eq=False)
class SentImages:
    """Some of the sent frames, not decoded yet (``video.Encoded``)."""

    sent: SentFrames
    indices: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.indices), self.sent.height, self.sent.width, 3

    @property
    def jpegs(self) -> tuple[bytes, ...] | None:
        return tuple(self.sent.images[index] for index in self.indices) if self.sent.jpegs else None

    def decode(self) -> UInt8[np.ndarray, "T H W 3"]:
        """Raises ``ValueError`` for an image whose body is broken, naming the frame."""
        pixels = np.empty(self.shape, dtype=np.uint8)

        def fill(position: int, index: int) -> None:
            with _opened(self.sent.images[index], f"{self.sent.name}: frame {index}") as image:
                pixels[position] = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))

        # Pillow decodes outside the interpreter's lock: one judge thread must not leave the other cores idle.
        with ThreadPoolExecutor(min(len(self.indices), os.cpu_count() or 1)) as pool:
            list(pool.map(fill, range(len(self.indices)), self.indices))
        return pixels


@contextmanager
def _opened(image: bytes, label: str) -> Iterator[Any]:
    """The PIL image with its header read. Raises ``ValueError`` when header, or body as it is decoded, is no JPEG or PNG."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(image), formats=("JPEG", "PNG")) as opened:
            yield opened
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{label} is not a readable JPEG or PNG: {error}") from error


def _sent_frames(images: Mapping[int, bytes], name: str, max_pixels: int) -> SentFrames:
    """The images behind a video, only their headers read. Raises ``ValueError`` naming one that is none, too large, or of another size."""
    sizes: set[tuple[int, int]] = set()
    jpegs = True
    for index, image in images.items():
        with _opened(image, f"{name}: frame {index}") as opened:
            height, width = opened.height, opened.width
            # Grey ones, and those that EXIF turns or that end early, may be read otherwise on the other side: decoded here.
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


def media_bytes(media: Binary, label: str) -> bytes:
    """The bytes of a medium. Raises ``ValueError`` for anything that is neither bytes nor strict base64."""
    if isinstance(media, bytes):
        return media
    try:
        return binascii.a2b_base64(str(media).encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError(f"{label} is not base64: {error}") from error


def opened_frames(part: FramesPart, limits: Limits) -> Video:
    """The video behind a ``FramesPart``: its whole clock, and the frames that were sent.

    Raises ``ValueError`` for a clock that does not increase from 0, indices that do not fit, images that are none, or a limit passed.
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
    if len(part.indices) != len(part.images):
        raise ValueError(
            f"{part.name}: expected one image per index, received {len(part.images)} for {len(part.indices)}"
        )
    if list(part.indices) != sorted(set(part.indices)) or part.indices[0] < 0 or part.indices[-1] >= count:
        raise ValueError(f"{part.name}: indices must increase within [0, {count - 1}]")
    images = {
        index: media_bytes(image, f"{part.name}: frame {index}")
        for index, image in zip(part.indices, part.images, strict=True)
    }
    sent = _sent_frames(images, part.name, limits.max_pixels)
    return Video(part.fps, part.times_s, sent.height, sent.width, part.name, sent)
