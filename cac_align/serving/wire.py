"""The messages between client and service: typed JSON, and the same packed with its media as bytes.

Anyone may post plain JSON with base64 images. Our own client packs: the same JSON with byte counts
in place of the images, and the bytes behind it. That is a quarter less on the wire, and nothing has
to be decoded from base64.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer

from cac_align.core.video import MAX_FRAMES
from cac_align.rewards.reward import Score
from cac_align.serving.frame_plan import FramePlan

EncodedMedia = str | bytes | int
"""An image or file in a message: base64 text, its bytes (in memory), or how many of the packed body's
bytes it is.
"""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FramesPart(_Message):
    """Some frames of a video: ``images[n]`` (JPEG or PNG) is source frame ``indices[n]``.

    ``times_s`` holds the time stamp of every frame of the video, in seconds, also of those that are
    not sent.
    """

    kind: Literal["frames"] = "frames"
    fps: float = Field(gt=0, allow_inf_nan=False)
    times_s: tuple[float, ...] = Field(min_length=1, max_length=MAX_FRAMES)
    indices: tuple[int, ...] = Field(min_length=1, max_length=MAX_FRAMES)
    images: tuple[EncodedMedia, ...] = Field(min_length=1, max_length=MAX_FRAMES)
    name: str = "video"

    @field_serializer("images", when_used="json")
    def _images_text(self, images: tuple[EncodedMedia, ...]) -> list[str | int]:
        return [_text(image) for image in images]


class FilePart(_Message):
    """A whole encoded file (mp4, webm, gif …). ``fps`` overrides the file's own frame rate."""

    kind: Literal["file"] = "file"
    data: EncodedMedia
    fps: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    name: str = "video"

    @field_serializer("data", when_used="json")
    def _data_text(self, data: EncodedMedia) -> str | int:
        return _text(data)


class PathPart(_Message):
    """A file that the service reads from its own disk, inside one of its roots."""

    kind: Literal["path"] = "path"
    path: str
    fps: float | None = Field(default=None, gt=0, allow_inf_nan=False)


VideoPart = Annotated[FramesPart | FilePart | PathPart, Field(discriminator="kind")]


class ScoreItem(_Message):
    """One video and the prompt that it was made from."""

    prompt: str
    video: VideoPart


class ScoreRequest(_Message):
    """The body of POST /v1/score. reward: one of the names in /health; None for the service's whole
    reward.
    """

    items: tuple[ScoreItem, ...]
    reward: str | None = None


class ScoreResult(BaseModel):
    """One ``Score`` as JSON; ``score`` is null where there is none, and ``error`` then says why.

    missing_frames: source indices of frames that the reward asked for and the client had not sent.
    """

    model_config = ConfigDict(extra="ignore")

    score: float | None = Field(allow_inf_nan=False)
    parts: dict[str, float | None] = {}
    judgement: dict[str, Any] | None = None
    error: str | None = None
    provenance: dict[str, str] = {}
    missing_frames: tuple[int, ...] = ()

    def to_score(self) -> Score:
        """The score.

        Raises ``ValueError`` for a message with both a score and an error, or with neither.
        """
        try:
            return Score.from_json(self.model_dump())
        except (KeyError, TypeError) as error:
            raise ValueError(f"the service's answer is no Score: {error!r}") from error


class ScoreResponse(BaseModel):
    """One result per item, in order.

    provenance: of the reward that scored, so that a client notices when the service has another
    one.
    """

    model_config = ConfigDict(extra="ignore")

    scores: list[ScoreResult]
    provenance: dict[str, str]


class Limits(_Message):
    """What the service accepts.

    What goes beyond a limit is refused, and the answer names the limit.
    """

    # Bytes of one request's body.
    max_body_bytes: int = Field(default=256 * 2**20, gt=0)
    # Videos of one request.
    max_items: int = Field(default=64, gt=0)
    # Frames of one video.
    max_frames: int = Field(default=1024, gt=0, le=MAX_FRAMES)
    # Pixels of one frame.
    max_pixels: int = Field(default=4096 * 2304, gt=0)
    # Videos that wait to be scored, of all requests together.
    max_queued: int = Field(default=256, gt=0)


class Health(BaseModel):
    """The answer of GET /health.

    Everything but the status is left out for a caller without the token.
    """

    model_config = ConfigDict(extra="ignore")

    status: Literal["ok", "stopping", "stuck"]
    # Names of the rewards that can be asked for, each with its readiness, as UniRL reads it.
    rewards: dict[str, list[str]] = {}
    # The reward of a request that names none.
    default: str = ""
    # Per reward, what identifies its scores.
    provenances: dict[str, dict[str, str]] = {}
    # Per reward, the frames it reads; None where a client has to send them all.
    frame_plans: dict[str, FramePlan | None] = {}
    limits: Limits = Limits()


# ---- packing -----------------------------------------------------------------------------------------------------

PACKED = "application/x-cac-align-packed"
"""The content type of a packed request.

Four bytes hold the length of the JSON (little endian); the JSON follows, a ``ScoreRequest`` whose
media are byte counts; then the media, in order.
"""


def pack(request: ScoreRequest) -> bytes:
    """A request whose media are bytes, as one body."""
    blobs: list[bytes] = []

    def counted(media: EncodedMedia) -> int:
        assert isinstance(media, bytes)
        blobs.append(media)
        return len(media)

    header = _with_media(request, counted).model_dump_json().encode()
    return b"".join([len(header).to_bytes(4, "little"), header, *blobs])


def unpack(body: bytes) -> ScoreRequest:
    """The request in a packed body.

    Raises ``ValueError`` when the byte counts do not agree with the body, or the JSON is no
    ``ScoreRequest``.
    """
    start = 4 + int.from_bytes(body[:4], "little")
    if len(body) < max(start, 4):
        raise ValueError(f"packed body: the JSON ends at byte {start}, the body at {len(body)}")
    request = ScoreRequest.model_validate_json(body[4:start])

    def cut(media: EncodedMedia) -> bytes:
        nonlocal start
        if not isinstance(media, int) or not 0 <= media <= len(body) - start:
            raise ValueError(
                f"packed body: expected a byte count of at most {len(body) - start}, the bytes that are left; "
                f"received {str(media)[:40]!r}"
            )
        start += media
        return body[start - media : start]

    request = _with_media(request, cut)
    if start != len(body):
        raise ValueError(f"packed body: {len(body) - start} bytes are left over")
    return request


def _with_media(request: ScoreRequest, change: Callable[[EncodedMedia], EncodedMedia]) -> ScoreRequest:
    """The request with ``change`` applied to every image and file, in order."""
    items = []
    for item in request.items:
        video = item.video
        if isinstance(video, FramesPart):
            video = video.model_copy(update={"images": tuple(change(image) for image in video.images)})
        elif isinstance(video, FilePart):
            video = video.model_copy(update={"data": change(video.data)})
        items.append(item.model_copy(update={"video": video}))
    return request.model_copy(update={"items": tuple(items)})


def _text(media: EncodedMedia) -> str | int:
    return base64.b64encode(media).decode("ascii") if isinstance(media, bytes) else media
