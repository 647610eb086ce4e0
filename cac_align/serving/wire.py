"""The messages between client and service: typed JSON, and the same packed with its media as bytes.

Anyone may post plain JSON with base64 images. Our own client packs: the same JSON with byte counts
in place of the images, and the bytes behind it. That is a quarter less on the wire, and nothing has
to be decoded from base64.

The messages are plain dataclasses, because a client runs in a host's environment, which may hold an
old pydantic or none. The service validates what it receives with pydantic; the client reads
answers by ``read_health`` and ``read_score_response``.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Optional, Union, cast

from cac_align.core.limits import VideoLimits
from cac_align.rewards.reward import Score
from cac_align.serving.frame_plan import FramePlan

# These aliases are evaluated when the module is loaded, on Python 3.10 as well.
EncodedMedia = Union[str, bytes, int]  # noqa: UP007
"""An image or file in a message: base64 text, its bytes (in memory), or how many of the packed body's
bytes it is.
"""


def _check_fps(fps: float | None) -> None:
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be a positive number of frames per second, received {fps}")


@dataclass(frozen=True)
class FramesPart:
    """Some frames of a video: ``images[n]`` (JPEG or PNG) is source frame ``indices[n]``.

    ``times_s`` holds the time stamp of every frame of the video, in seconds, also of those that are
    not sent.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    fps: float
    times_s: tuple[float, ...]
    indices: tuple[int, ...]
    images: tuple[EncodedMedia, ...]
    name: str = "video"
    kind: Literal["frames"] = "frames"

    def __post_init__(self) -> None:
        _check_fps(self.fps)


@dataclass(frozen=True)
class FilePart:
    """A whole encoded file (mp4, webm, gif …). ``fps`` overrides the file's own frame rate."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    data: EncodedMedia
    fps: Optional[float] = None  # noqa: UP045
    name: str = "video"
    kind: Literal["file"] = "file"

    def __post_init__(self) -> None:
        _check_fps(self.fps)


@dataclass(frozen=True)
class PathPart:
    """A file that the service reads from its own disk, inside one of its roots."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    path: str
    fps: Optional[float] = None  # noqa: UP045
    kind: Literal["path"] = "path"

    def __post_init__(self) -> None:
        _check_fps(self.fps)


class _ByKind:
    """Tells pydantic, where the service uses it, that ``kind`` says which of the parts a message is."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic import Field

        return handler.generate_schema(Annotated[source, Field(discriminator="kind")])


VideoPart = Annotated[Union[FramesPart, FilePart, PathPart], _ByKind()]  # noqa: UP007


@dataclass(frozen=True)
class ScoreItem:
    """One video and the prompt that it was made from."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    prompt: str
    video: VideoPart


@dataclass(frozen=True)
class ScoreRequest:
    """The body of POST /v1/score. reward: one of the names in /health; None for the service's whole
    reward.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    items: tuple[ScoreItem, ...]
    reward: Optional[str] = None  # noqa: UP045


@dataclass(frozen=True)
class ScoreResult:
    """One ``Score`` as JSON; ``score`` is null where there is none, and ``error`` then says why.

    missing_frames: source indices of frames that the reward asked for and the client had not sent.
    """

    score: float | None
    parts: Mapping[str, float | None] = field(default_factory=dict)
    judgement: Mapping[str, Any] | None = None
    error: str | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    missing_frames: tuple[int, ...] = ()

    def to_score(self) -> Score:
        """The score.

        Raises ``ValueError`` for a message with both a score and an error, or with neither.
        """
        try:
            return Score.from_json({item.name: getattr(self, item.name) for item in fields(self)})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the service's answer is no Score: {error!r}") from error


@dataclass(frozen=True)
class ScoreResponse:
    """One result per item, in order.

    provenance: of the reward that scored, so that a client notices when the service has another
    one.
    """

    scores: Sequence[ScoreResult]
    provenance: Mapping[str, str]


@dataclass(frozen=True)
class Limits:
    """What the service accepts.

    What goes beyond a limit is refused, and the answer names the limit. Raises ``ValueError`` for a
    limit that is not positive.
    """

    # Bytes of one request's body.
    max_body_bytes: int = 256 * 2**20
    # Videos of one request.
    max_items: int = 64
    # Frames of one video.
    max_frames: int = 1024
    # Pixels of one frame.
    max_pixels: int = 4096 * 2304
    # Seconds from a video's first frame to its last one.
    max_duration_s: float = 600.0
    # Frames per second of a video's clock.
    max_fps: float = 240.0
    # Pixels of all the frames of one video that are decoded together; each takes three bytes.
    max_decoded_pixels: int = 2**28
    # Videos that wait to be scored, of all requests together.
    max_queued: int = 256

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{item.name} must be a positive number, received {value!r}")
        if self.max_frames > VideoLimits.max_frames:
            raise ValueError(f"max_frames must be at most {VideoLimits.max_frames}, received {self.max_frames}")

    @property
    def video(self) -> VideoLimits:
        """The limits that hold for one video."""
        return VideoLimits(self.max_frames, self.max_duration_s, self.max_fps, self.max_pixels, self.max_decoded_pixels)


@dataclass(frozen=True)
class Health:
    """The answer of GET /health.

    Everything but the status is left out for a caller without the token.
    """

    # unready: a server that a judge runs on does not answer.
    status: Literal["ok", "stopping", "stuck", "unready"]
    # Names of the rewards that can be asked for, each with its readiness, as UniRL reads it.
    rewards: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # The reward of a request that names none.
    default: str = ""
    # Per reward, what identifies its scores.
    provenances: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    # Per reward, the lowest and highest score that it can give; None where it states none.
    bounds: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)
    # Per reward, the frames it reads; None where a client has to send them all.
    frame_plans: Mapping[str, FramePlan | None] = field(default_factory=dict)
    limits: Limits = Limits()
    # Whether a request would be scored now.
    ready: bool = True
    # Per reward that would not, why.
    unready: Mapping[str, str] = field(default_factory=dict)


# ---- JSON ------------------------------------------------------------------------------------------------------------


def message_to_json(message: Any) -> Any:
    """A message as JSON values: bytes become base64 text, numbers that are not finite null."""
    if is_dataclass(message) and not isinstance(message, type):
        return {item.name: message_to_json(getattr(message, item.name)) for item in fields(message)}
    if isinstance(message, Mapping):
        return {key: message_to_json(value) for key, value in message.items()}
    if isinstance(message, (list, tuple)):
        return [message_to_json(value) for value in message]
    if isinstance(message, bytes):
        return base64.b64encode(message).decode("ascii")
    return None if isinstance(message, float) and not math.isfinite(message) else message


def encode_message(message: Any) -> bytes:
    """A message as a JSON text."""
    return json.dumps(message_to_json(message), separators=(",", ":"), allow_nan=False).encode("ascii")


def read_score_response(body: bytes) -> ScoreResponse:
    """The answer of POST /v1/score. Raises ``ValueError`` for anything else; unknown keys are ignored."""
    row = _object(_parse(body), "the answer")
    results = []
    for one in _list(row.get("scores"), "scores"):
        one = _object(one, "a score")
        if "score" not in one:
            raise ValueError("a score without the key score")
        results.append(
            ScoreResult(
                None if one["score"] is None else _number(one["score"], "score"),
                {
                    name: None if part is None else _number(part, f"part {name}")
                    for name, part in _object(one.get("parts", {}), "parts").items()
                },
                None if one.get("judgement") is None else _object(one["judgement"], "judgement"),
                None if one.get("error") is None else _text(one["error"], "error"),
                _texts(one.get("provenance", {}), "provenance"),
                tuple(
                    int(_number(index, "missing_frames")) for index in _list(one.get("missing_frames", []), "frames")
                ),
            )
        )
    return ScoreResponse(results, _texts(row.get("provenance"), "provenance"))


def read_health(body: bytes) -> Health:
    """The answer of GET /health. Raises ``ValueError`` for anything else; unknown keys are ignored."""
    row = _object(_parse(body), "the answer")
    if row.get("status") not in ("ok", "stopping", "stuck", "unready"):
        raise ValueError(f"status must be ok, stopping, stuck or unready, received {row.get('status')!r}")
    bounds: dict[str, tuple[float, float] | None] = {}
    for name, given in _object(row.get("bounds", {}), "bounds").items():
        ends = None if given is None else [_number(end, "bounds") for end in _list(given, "bounds")]
        if ends is not None and not (len(ends) == 2 and ends[0] < ends[1]):
            raise ValueError(f"bounds of {name} must be two increasing numbers, received {given!r}")
        bounds[name] = None if ends is None else (ends[0], ends[1])
    plans: dict[str, FramePlan | None] = {}
    for name, given in _object(row.get("frame_plans", {}), "frame_plans").items():
        plans[name] = None if given is None else _frame_plan(_object(given, "a frame plan"))
    known = {item.name for item in fields(Limits)}
    limits = {key: _number(value, key) for key, value in _object(row.get("limits", {}), "limits").items()}
    return Health(
        cast(Any, row["status"]),
        {
            name: tuple(_text(state, "readiness") for state in _list(states, "readiness"))
            for name, states in _object(row.get("rewards", {}), "rewards").items()
        },
        _text(row.get("default", ""), "default"),
        {name: _texts(one, "provenance") for name, one in _object(row.get("provenances", {}), "provenances").items()},
        bounds,
        plans,
        Limits(**{key: cast(Any, value) for key, value in limits.items() if key in known}),
        row["status"] == "ok",
        _texts(row.get("unready", {}), "unready"),
    )


def _frame_plan(row: Mapping[str, Any]) -> FramePlan:
    numbers = {
        item.name: tuple(_number(value, item.name) for value in _list(row.get(item.name), item.name))
        for item in fields(FramePlan)
    }
    return FramePlan(numbers["scan_fps"], numbers["look_fps"], tuple(int(count) for count in numbers["counts"]))


def _parse(body: bytes) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON number")

    try:
        return json.loads(body, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected an object, received {str(value)[:80]!r}")
    return value


def _list(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name}: expected a list, received {str(value)[:80]!r}")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected a text, received {str(value)[:80]!r}")
    return value


def _texts(value: Any, name: str) -> dict[str, str]:
    return {key: _text(one, f"{name} {key}") for key, one in _object(value, name).items()}


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise ValueError(f"{name}: expected a finite number, received {str(value)[:80]!r}")
    return value


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

    header = encode_message(_with_media(request, counted))
    return b"".join([len(header).to_bytes(4, "little"), header, *blobs])


def unpack(body: bytes, read: Callable[[bytes], ScoreRequest]) -> ScoreRequest:
    """The request in a packed body. read: of the JSON in it, validating.

    Raises ``ValueError`` when the byte counts do not agree with the body, or the JSON is no
    ``ScoreRequest``.
    """
    start = 4 + int.from_bytes(body[:4], "little")
    if len(body) < max(start, 4):
        raise ValueError(f"packed body: the JSON ends at byte {start}, the body at {len(body)}")
    request = read(body[4:start])

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
            video = replace(video, images=tuple(change(image) for image in video.images))
        elif isinstance(video, FilePart):
            video = replace(video, data=change(video.data))
        items.append(replace(item, video=video))
    return replace(request, items=tuple(items))
