"""Conversations as the OpenAI chat protocol writes them: messages with image or video parts, and what vLLM needs beside them.

Conversation → messages (+ media_io_kwargs, mm_processor_kwargs for a video part) → the body of POST /v1/chat/completions

Frames are sampled and stamped here, never by the server: single images behind their time ("<0.5 seconds>", Qwen3-VL's own notation),
or one video part whose frame indices and clock travel along. vLLM takes one set of indices per request, so a conversation with
several videos goes out as images. Qwen3-VL reads both alike up to its pairing of frames: a video is a run of one-patch images.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

from cac_align.core.video import Frames
from cac_align.vlm.protocol import Conversation, refuse_control_tokens


def chat(conversation: Conversation, *, as_video: bool, quality: int) -> dict[str, Any]:
    """The fields of the request that carry the conversation. ``quality``: of the JPEGs made here, 1 to 100.

    Raises ``ValueError`` when a frame turns out broken as it is decoded, or a text holds one of Qwen's control tokens: a server would
    read it as the chat's own structure.
    """
    for message in conversation:
        refuse_control_tokens(message)
    clips = [message.frames for message in conversation if message.frames is not None and not message.as_images]
    as_video = as_video and len(clips) == 1
    messages = []
    for message in conversation:
        content: Any = message.text
        if message.frames is not None:
            if message.as_images:
                parts = [_image_part(jpeg) for jpeg in _jpegs(message.frames, quality)]
            elif as_video:
                parts = [_video_part(message.frames, quality)]
            else:
                parts = _stamped_parts(message.frames, quality)
            content = [*parts, {"type": "text", "text": message.text}]
        messages.append({"role": message.role, "content": content})
    if not as_video:
        return {"messages": messages}
    return {
        "messages": messages,
        "media_io_kwargs": {"video": source_clock(clips[0])},
        "mm_processor_kwargs": {"do_sample_frames": False},
    }


def continuation(dialect: str) -> dict[str, Any]:
    """What makes a server go on with the last message, an assistant's, in place of beginning a new one."""
    if dialect == "sglang":
        return {"continue_final_message": True}
    return {"continue_final_message": True, "add_generation_prompt": False}


def response_format(schema: Mapping[str, Any], dialect: str) -> dict[str, Any]:
    """Structured output. OpenAI's own strict mode refuses most of JSON schema: there it is a hint, and the reader checks as always."""
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": dialect != "openai", "schema": dict(schema)},
    }


def _jpegs(frames: Frames, quality: int) -> list[str]:
    """Every frame as base64 JPEG: as it arrived where it is one already. Raises ``ValueError`` for frames that cannot be decoded."""
    if frames.encoded is not None:  # encoding a second time would cost milliseconds per frame, and detail
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


def _stamped_parts(frames: Frames, quality: int) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for time_s, jpeg in zip(frames.times_s, _jpegs(frames, quality), strict=True):
        parts += [{"type": "text", "text": f"<{time_s:.1f} seconds>"}, _image_part(jpeg)]
    return parts


def _video_part(frames: Frames, quality: int) -> dict[str, Any]:
    jpegs = _jpegs(frames, quality)
    if len(jpegs) == 1:
        jpegs *= 2  # Qwen3-VL's temporal patch takes two frames
    return {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{','.join(jpegs)}"}}


def source_clock(frames: Frames) -> dict[str, Any]:
    """What tells vLLM when each frame was: index / fps. num_frames -1, because it otherwise keeps the first 32 only.

    Where the source has a constant rate these are its own indices; with variable frame rate, milliseconds at 1000 per second.
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
    """Source frames per second, if every frame shown stands at index / fps (to a millisecond)."""
    last, last_s = frames.indices[-1], frames.times_s[-1]
    if last == 0:
        return frames.fps
    fps = last / last_s if last_s > 0 else math.inf
    steady = math.isfinite(fps) and all(
        abs(index / fps - time_s) < 1e-3 for index, time_s in zip(frames.indices, frames.times_s, strict=True)
    )
    return fps if steady else None
