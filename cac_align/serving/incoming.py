"""What the service accepts: videos as path, file or frames, in three formats, checked before they
are decoded.

our VideoPart | UniRL's turn | Flow-Factory's frames → VideoPart → open_part → Video
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter

from cac_align.core.video import Video
from cac_align.serving.video_parts import media_bytes, video_from_frames
from cac_align.serving.wire import FilePart, FramesPart, Limits, PathPart, ScoreRequest, VideoPart

_SCORE_REQUEST = TypeAdapter(ScoreRequest)


def read_score_request(body: bytes) -> ScoreRequest:
    """The JSON body of POST /v1/score. Raises pydantic's ``ValidationError`` for a wrong message."""
    return _SCORE_REQUEST.validate_json(body)


class UniRLTurn(BaseModel):
    """One turn of UniRL's conversation: the prompt, and the media made from it."""

    text: str
    image_b64: str | None = None
    video_b64: str | None = None
    video_path: str | None = None


class UniRLItem(BaseModel):
    """One sample of UniRL's request; its last turn is what is scored."""

    history: list[UniRLTurn] = Field(min_length=1)
    required_rewards: list[str]
    metadata: dict[str, Any] | None = None


class UniRLRequest(BaseModel):
    """The body of UniRL's POST /score."""

    requests: list[UniRLItem]


class FlowFactoryRequest(BaseModel):
    """The body of Flow-Factory's POST /compute.

    video: per sample a list of base64 PNG or JPEG frames. Other media may be sent along and are
    ignored.
    """

    prompt: list[str]
    video: list[list[str]] | None = None


def open_part(part: VideoPart, roots: Sequence[Path], limits: Limits) -> Video:
    """The video that a message describes.

    Raises ``ValueError`` when it is unreadable, not allowed, or beyond a limit.
    """
    if isinstance(part, FramesPart):
        return video_from_frames(part, limits)
    if isinstance(part, PathPart):
        source: Path | bytes = path_inside_roots(part.path, roots)
    else:
        source = media_bytes(part.data, f"{part.name}: data")
    name = part.name if isinstance(part, FilePart) else None
    return Video.open(source, fps=part.fps, name=name, limits=limits.video)


def path_inside_roots(path: str, roots: Sequence[Path]) -> Path:
    """The real path (links followed), if it is a file inside one of the roots.

    Raises ``ValueError`` otherwise. The text is the same in all cases, so that a caller cannot find
    out which files exist elsewhere.
    """
    refused = ValueError(
        f"path {path!r} is not a file inside this service's roots; start it with --root FOLDER, or send frames"
    )
    try:
        real = Path(path).resolve(strict=True)
        if not Path(path).is_absolute() or not any(real.is_relative_to(root.resolve(strict=True)) for root in roots):
            raise refused
        if not real.is_file():
            raise refused
    except (OSError, RuntimeError) as error:
        raise refused from error
    return real


def unirl_part(turn: UniRLTurn, fps: float) -> VideoPart:
    """The video of UniRL's turn. fps: its true frame rate, because UniRL's files state a wrong one."""
    if turn.video_path is not None:
        return PathPart(path=turn.video_path, fps=fps)
    return FilePart(data=turn.video_b64 or "", fps=fps)


def flow_factory_part(frames: Sequence[str], fps: float) -> VideoPart:
    """The video of Flow-Factory's frames. fps: their rate, which Flow-Factory does not state."""
    times_s = tuple(index / fps for index in range(len(frames)))
    return FramesPart(fps, times_s, tuple(range(len(frames))), tuple(frames))
