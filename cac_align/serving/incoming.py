"""What the service lets in: videos as path, file or frames in three wire formats, each checked before anything is decoded.

our VideoPart | UniRL's turn | Flow-Factory's frames → VideoPart → open_part(roots, limits) → Video, or ValueError for that video alone
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from cac_align.core.video import Video
from cac_align.serving.wire import FilePart, FramesPart, Limits, PathPart, VideoPart, media_bytes, opened_frames


class UniRLTurn(BaseModel):
    text: str
    image_b64: str | None = None
    video_b64: str | None = None
    video_path: str | None = None


class UniRLItem(BaseModel):
    history: list[UniRLTurn] = Field(min_length=1)
    required_rewards: list[str]
    metadata: dict[str, Any] | None = None


class UniRLRequest(BaseModel):
    requests: list[UniRLItem]


class FlowFactoryRequest(BaseModel):
    """``video``: per sample a list of base64 PNG (or JPEG) frames. Other media may be sent along and are not looked at."""

    prompt: list[str]
    video: list[list[str]] | None = None


def open_part(part: VideoPart, roots: Sequence[Path], limits: Limits) -> Video:
    """The video a message describes. Raises ``ValueError`` when it is not readable, not allowed or beyond a limit."""
    if isinstance(part, FramesPart):
        return opened_frames(part, limits)
    if isinstance(part, PathPart):
        source: Path | bytes = inside_roots(part.path, roots)
    else:
        source = media_bytes(part.data, f"{part.name}: data")
    video = Video.open(source, fps=part.fps, name=part.name if isinstance(part, FilePart) else None)
    if len(video) > limits.max_frames or video.height * video.width > limits.max_pixels:
        raise ValueError(
            f"{video.name}: {len(video)} frames of {video.height}×{video.width} px; this service accepts {limits.max_frames} frames "
            f"of {limits.max_pixels} pixels"
        )
    return video


def inside_roots(path: str, roots: Sequence[Path]) -> Path:
    """The real path (links followed), if it is a file inside one of the roots.

    Raises ``ValueError`` otherwise, with one text for all cases: a caller must not learn which files exist elsewhere.
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
    if turn.video_path is not None:
        return PathPart(path=turn.video_path, fps=fps)
    return FilePart(data=turn.video_b64 or "", fps=fps)


def flow_factory_part(frames: Sequence[str], fps: float) -> VideoPart:
    times_s = tuple(index / fps for index in range(len(frames)))
    # model_construct: an empty list must become this video's own error, not the whole request's.
    return FramesPart.model_construct(
        fps=fps, times_s=times_s, indices=tuple(range(len(frames))), images=tuple(frames), name="video"
    )
