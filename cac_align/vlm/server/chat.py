"""Conversations in the OpenAI chat protocol: messages with image or video parts, and what vLLM
needs beside them.

Conversation → messages (+ media_io_kwargs, mm_processor_kwargs for a video part)
    → body of POST /v1/chat/completions

Frames are sampled and stamped here and never by the server: as single images, each after its time
("<0.5 seconds>", Qwen3-VL's own notation), or as one video part with frame indices and rate. vLLM
takes one set of indices per request, so that of several videos the first is a video part, which
leaves turn 2's prompt beginning with turn 1's, and the others are images. Qwen3-VL reads both alike
except that frames of a video are paired.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cac_align.core.video import Frames
from cac_align.vlm.protocol import Conversation, refuse_control_tokens


def chat_fields(conversation: Conversation, *, as_video: bool, quality: int, keyed: bool = False) -> dict[str, Any]:
    """The request's fields for a conversation. quality: of the JPEGs that are made here, 1 to 100.

    keyed: give every image and video part a "uuid", under which vLLM keeps it for later requests (``without_media``).

    Raises ``ValueError`` when a frame cannot be decoded or a text contains one of Qwen's control
    tokens, which a server would read as structure of the chat.
    """
    for message in conversation:
        refuse_control_tokens(message)
    video: Frames | None = None
    messages = []
    for message in conversation:
        content: Any = message.text
        if message.frames is not None:
            if message.as_images:
                parts = _image_parts(message.frames, message.captions, quality)
            elif as_video and video is None:
                video = message.frames
                parts = [_video_part(video, quality)]
            else:
                parts = _stamped_parts(message.frames, quality)
            content = [*parts, {"type": "text", "text": message.text}]
        messages.append({"role": message.role, "content": content})
    fields: dict[str, Any] = {"messages": messages}
    if video is not None:
        fields["media_io_kwargs"] = {"video": source_clock(video)}
        fields["mm_processor_kwargs"] = {"do_sample_frames": False}
    if keyed:
        _add_keys(fields)
    return fields


def without_media(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the keys of their images and videos alone: for a server that has just been sent them."""
    stripped = []
    for message in messages:
        content = message["content"]
        if isinstance(content, list):
            content = [{**part, part["type"]: None} if "uuid" in part else part for part in content]
        stripped.append({**message, "content": content})
    return stripped


def _add_keys(fields: dict[str, Any]) -> None:
    """Key every media part by the hash of all that decides what the model sees of it: bytes, clock and processing."""
    settings = json.dumps([fields.get("media_io_kwargs"), fields.get("mm_processor_kwargs")], sort_keys=True)
    for message in fields["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] in ("image_url", "video_url"):
                content = part["type"] + settings + part[part["type"]]["url"]
                part["uuid"] = hashlib.sha256(content.encode()).hexdigest()


def continuation(dialect: str) -> dict[str, Any]:
    """The request's fields that make a server continue the last message, an assistant's."""
    if dialect == "sglang":
        return {"continue_final_message": True}
    return {"continue_final_message": True, "add_generation_prompt": False}


def response_format(schema: Mapping[str, Any], dialect: str) -> dict[str, Any]:
    """The request's field for structured output. It is a hint for "openai", whose strict mode
    refuses most schemas.
    """
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": dialect != "openai", "schema": dict(schema)},
    }


def _jpegs(frames: Frames, quality: int) -> list[str]:
    """Every frame as base64 JPEG, unchanged if it is one. Raises ``ValueError`` for frames that
    cannot be decoded.
    """
    if frames.encoded is not None:  # a second encoding would cost time and detail
        return [base64.b64encode(jpeg).decode("ascii") for jpeg in frames.encoded]
    from PIL import Image

    encoded = []
    for pixels in frames.pixels:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality)
        encoded.append(base64.b64encode(buffer.getvalue()).decode("ascii"))
    return encoded


def _image_part(jpeg: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{jpeg}"}}


def _image_parts(frames: Frames, captions: Sequence[str] | None, quality: int) -> list[dict[str, Any]]:
    """Every frame as an image, each behind its caption if there are captions."""
    images = [_image_part(jpeg) for jpeg in _jpegs(frames, quality)]
    if captions is None:
        return images
    return [
        part
        for caption, image in zip(captions, images, strict=True)
        for part in ({"type": "text", "text": caption}, image)
    ]


def _stamped_parts(frames: Frames, quality: int) -> list[dict[str, Any]]:
    return _image_parts(frames, [f"<{time_s:.1f} seconds>" for time_s in frames.times_s], quality)


def _video_part(frames: Frames, quality: int) -> dict[str, Any]:
    jpegs = _jpegs(frames, quality)
    if len(jpegs) == 1:
        jpegs *= 2  # Qwen3-VL's temporal patch takes two frames
    return {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{','.join(jpegs)}"}}


def source_clock(frames: Frames) -> dict[str, Any]:
    """What tells vLLM the time of each frame, index / fps. num_frames is -1, because it else keeps
    32 frames.

    At a constant rate the indices are the source's own; at a variable one, milliseconds at 1000
    fps.
    """
    indices, times_s = list(frames.indices), frames.times_s
    fps = _constant_fps(frames)
    total = frames.num_source_frames
    if fps is None:
        fps, indices = 1000.0, [round(time_s * 1000) for time_s in times_s]
        total = indices[-1] + 1
    if len(indices) == 1:
        indices *= 2
    return {"num_frames": -1, "fps": fps, "frames_indices": indices, "total_num_frames": total}


def _constant_fps(frames: Frames) -> float | None:
    """Frames per second of the source if each frame is at index / fps, to a millisecond; else None."""
    last, last_s = frames.indices[-1], frames.times_s[-1]
    if last == 0:
        return frames.fps
    fps = last / last_s if last_s > 0 else math.inf
    steady = math.isfinite(fps) and all(
        abs(index / fps - time_s) < 1e-3 for index, time_s in zip(frames.indices, frames.times_s, strict=True)
    )
    return fps if steady else None
