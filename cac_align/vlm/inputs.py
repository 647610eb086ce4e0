"""Conversations as model input: the chat template's text, frames with their own time stamps, one
left-padded batch.

Conversation → chat template → Qwen3-VL's processor (video expanded to "<t seconds>" + patches)
    → encode_one →
collate → tensors

Two consecutive frames make one temporal patch, stamped with the mean of their times to a tenth of a
second. The processor computes a stamp as frame index / fps. It is given the source clock itself
(fps = 1, "indices" = seconds), so the stamps are right for variable frame rates too. transformers ≥
5.10 keeps a <|vision_start|> … <|vision_end|> pair around the whole video; older versions and
servers do not. ``video_layout`` says what this processor writes, and it is part of the provenance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from cac_align.core.video import Frames
from cac_align.vlm.engine.spelling import vocabulary
from cac_align.vlm.protocol import ControlToken as ControlToken
from cac_align.vlm.protocol import Conversation, Message, refuse_control_tokens

# Values of mm_token_type_ids.
TEXT, IMAGE, VIDEO = 0, 1, 2


def encode(
    processor: Any,
    conversations: Sequence[Conversation],
    *,
    add_generation_prompt: bool = True,
    max_pixels: int | None = None,
    device: torch.device | str | None = None,
) -> dict[str, torch.Tensor]:
    """One left-padded batch with all inputs of ``Qwen3VLForConditionalGeneration.forward``.

    input_ids, attention_mask and mm_token_type_ids are (B, L) int64. With videos there are
    pixel_values_videos (Σ t·h·w, 1536) float32 and video_grid_thw (number of videos, 3), with
    images pixel_values and image_grid_thw, in the order of the conversations. A last assistant
    message is continued: its text, tokenised on its own as if the model had written it, ends the
    prompt without end token. Otherwise the template's generation prompt ends it, if
    add_generation_prompt.

    max_pixels: limit over all frames of one video (or of one image) instead of the checkpoint's
    own. device: where frames are resized. Raises ``ValueError`` that names the conversation which
    cannot be encoded.
    """
    rows = []
    for number, conversation in enumerate(conversations):
        try:
            rows.append(
                encode_one(
                    processor,
                    conversation,
                    add_generation_prompt=add_generation_prompt,
                    max_pixels=max_pixels,
                    device=device,
                )
            )
        except ValueError as error:
            raise ValueError(f"conversation {number}: {error}") from error
    return collate(rows, pad_id=pad_id(processor))


def encode_one(
    processor: Any,
    conversation: Conversation,
    *,
    add_generation_prompt: bool = True,
    max_pixels: int | None = None,
    device: torch.device | str | None = None,
) -> dict[str, torch.Tensor]:
    """One conversation as ``encode`` returns a batch of one. Raises ``ValueError`` when it cannot
    be encoded.
    """
    (row,) = _encode_batch(processor, [conversation], max_pixels, device, add_generation_prompt)
    return row


def _encode_batch(
    processor: Any,
    conversations: Sequence[Conversation],
    max_pixels: int | None,
    device: torch.device | str | None,
    add_generation_prompt: bool = True,
) -> Iterator[dict[str, torch.Tensor]]:
    """Each conversation's tokens, patches and grids, from one call of the processor for all of
    them.
    """
    texts, with_frames = [], []
    for conversation in conversations:
        check_conversation(conversation)
        for message in conversation:
            refuse_control_tokens(message, vocabulary(processor.tokenizer).special)
        asked = conversation[:-1] if conversation[-1].role == "assistant" else conversation
        texts.append(
            processor.apply_chat_template(
                [{"role": message.role, "content": _parts(message)} for message in asked],
                tokenize=False,
                add_generation_prompt=add_generation_prompt or asked is not conversation,
            )
        )
        with_frames.append([message for message in asked if message.frames is not None])
    videos = [message.frames for messages in with_frames for message in messages if not message.as_images]
    images = [message.frames for messages in with_frames for message in messages if message.as_images]
    encoded = processor(
        text=texts,
        **_video_arguments(processor, videos, max_pixels, device),
        **_image_arguments(processor, images, max_pixels, device),
        padding=True,
        return_tensors="pt",
    )
    at = {"pixel_values_videos": 0, "pixel_values": 0, "video_grid_thw": 0, "image_grid_thw": 0}
    for number, (conversation, messages) in enumerate(zip(conversations, with_frames, strict=True)):
        ids = encoded["input_ids"][number][encoded["attention_mask"][number].bool()][None]
        if conversation[-1].role == "assistant" and conversation[-1].text:
            prefix = processor.tokenizer(conversation[-1].text, add_special_tokens=False).input_ids
            ids = torch.cat([ids, torch.tensor([prefix], dtype=ids.dtype)], dim=1)
        row = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": modality(processor, ids)}
        grids = {
            "video": sum(not message.as_images for message in messages),
            "image": sum(len(message.frames) for message in messages if message.as_images),
        }
        for kind, pixels in (("video", "pixel_values_videos"), ("image", "pixel_values")):
            if not grids[kind]:
                continue
            grid = f"{kind}_grid_thw"
            row[grid] = encoded[grid][at[grid] : at[grid] + grids[kind]].cpu()
            patches = int(row[grid].prod(1).sum())
            row[pixels] = encoded[pixels][at[pixels] : at[pixels] + patches]
            at[grid], at[pixels] = at[grid] + grids[kind], at[pixels] + patches
        yield row


def encode_each(
    processor: Any,
    conversations: Sequence[Conversation],
    *,
    max_pixels: int | None = None,
    device: torch.device | str | None = None,
) -> list[dict[str, torch.Tensor] | Exception]:
    """``encode_one`` of each conversation, with all frames preprocessed together; an exception in
    place of a failed row.

    The rows are the same as from ``encode_one``.
    """
    if len(conversations) > 1:
        try:
            return list(_encode_batch(processor, conversations, max_pixels, device))
        except Exception:  # one of them failed; encode them one by one to find out which
            pass
    rows: list[dict[str, torch.Tensor] | Exception] = []
    for conversation in conversations:
        try:
            rows.append(encode_one(processor, conversation, max_pixels=max_pixels, device=device))
        except Exception as error:  # a failure does not affect the other conversations
            rows.append(error)
    return rows


def collate(rows: Sequence[Mapping[str, torch.Tensor]], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Rows of ``encode_one`` as one left-padded batch; pixels and grids are concatenated in order."""
    if not rows:
        raise ValueError("expected at least one conversation, received none")
    length = max(row["input_ids"].shape[1] for row in rows)
    batch = {
        key: torch.cat([torch.nn.functional.pad(row[key], (length - row[key].shape[1], 0), value=fill) for row in rows])
        for key, fill in (("input_ids", pad_id), ("attention_mask", 0), ("mm_token_type_ids", TEXT))
    }
    for key in ("pixel_values_videos", "video_grid_thw", "pixel_values", "image_grid_thw"):
        present = [row[key] for row in rows if key in row]
        if present:
            batch[key] = torch.cat(present)
    return batch


def check_conversation(conversation: Conversation) -> None:
    """Raise ``ValueError`` for a conversation without user message, or with frames where none are
    allowed.
    """
    if not conversation:
        raise ValueError("expected a conversation with at least one message, received none")
    for number, message in enumerate(conversation):
        if not isinstance(message, Message):
            raise ValueError(f"message {number}: expected a Message, received {type(message).__name__}")
        if message.role not in ("system", "user", "assistant"):
            raise ValueError(f"message {number}: role must be system, user or assistant, received {message.role!r}")
        if message.frames is not None and message.role != "user":
            raise ValueError(
                f"message {number}: frames belong into a user message, received them with role {message.role!r}"
            )
        if message.frames is not None and (len(message.frames) == 0 or message.frames.pixels.ndim != 4):
            raise ValueError(
                f"message {number}: expected frames of shape (T ≥ 1, H, W, 3), received {message.frames.pixels.shape}"
            )
    if not any(message.role == "user" for message in conversation):
        raise ValueError(
            "expected at least one user message, received roles " + ", ".join(m.role for m in conversation)
        )
    if conversation[-1].role == "system":
        raise ValueError(
            "a conversation ends with the user's message, or with an assistant's to be continued; "
            "this one ends with system"
        )


def modality(processor: Any, ids: Int64[torch.Tensor, "B L"]) -> Int64[torch.Tensor, "B L"]:
    """mm_token_type_ids: 0 text, 1 image, 2 video (transformers 5 needs them for M-RoPE on every
    multimodal forward).
    """
    return (ids == processor.image_token_id) * IMAGE + (ids == processor.video_token_id) * VIDEO


def video_layout(processor: Any) -> str:
    """How this processor writes a video into the prompt: the text of two frames at 0 and 1 s, one
    pad per run of pads.
    """
    frames = Frames(np.zeros((2, 32, 32, 3), np.uint8), (0, 1), (0.0, 1.0), 1.0, 2)
    row = encode_one(processor, (Message("user", "|", frames),), add_generation_prompt=False)
    ids = row["input_ids"][0].tolist()
    runs = [
        token for at, token in enumerate(ids) if not (token == processor.video_token_id and at and ids[at - 1] == token)
    ]
    text = processor.tokenizer.decode(runs)
    at = text.find("<|vision_start|>")
    at = min(at, text.find("<0.5 seconds>")) if "<0.5 seconds>" in text else at
    return text[at : text.rfind("<|vision_end|>") + len("<|vision_end|>")]


def pad_id(processor: Any) -> int:
    """The token that fills short rows; it is masked, so its value does not matter."""
    found = processor.tokenizer.pad_token_id
    return processor.tokenizer.eos_token_id if found is None else found


def _parts(message: Message) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    if message.frames is not None and message.as_images:
        for caption in message.captions or (None,) * len(message.frames):
            parts += [] if caption is None else [{"type": "text", "text": caption}]
            parts.append({"type": "image"})
    elif message.frames is not None:
        parts.append({"type": "video"})
    return [*parts, {"type": "text", "text": message.text}]


def _video_arguments(processor: Any, videos: Sequence[Frames], max_pixels: int | None, device: Any) -> dict[str, Any]:
    if not videos:
        return {}
    pixels, clocks = [], []
    for frames in videos:
        array, times = frames.pixels, list(frames.times_s)
        if len(times) == 1:  # one temporal patch is two frames: Qwen3-VL refuses a single one
            array, times = np.repeat(array, 2, axis=0), times * 2
        pixels.append(_channels_first(array))
        clocks.append({"fps": 1.0, "frames_indices": times, "total_num_frames": len(times)})
    options: dict[str, Any] = {
        "video_metadata": clocks,
        "do_sample_frames": False,
        "input_data_format": "channels_first",
    }
    part_processor = processor.video_processor
    if _cap_is_open(part_processor):
        options["cap_pixels_per_frame"] = True
    return {"videos": pixels, "videos_kwargs": {**options, **_limit(part_processor, max_pixels, device)}}


def set_frame_pixel_cap(processor: Any) -> None:
    """Set ``cap_pixels_per_frame`` when the checkpoint leaves it open.

    A frame of a short video is then never larger than one of a long video may be: Qwen's reference
    behaviour and transformers' announced default. Saved with a judge, it also holds where a server
    loads it.
    """
    if _cap_is_open(processor.video_processor):
        processor.video_processor.cap_pixels_per_frame = True


def _cap_is_open(video_processor: Any) -> bool:
    return (
        "cap_pixels_per_frame" in video_processor.valid_kwargs.__annotations__
        and video_processor.cap_pixels_per_frame is None
    )


def _image_arguments(processor: Any, images: Sequence[Frames], max_pixels: int | None, device: Any) -> dict[str, Any]:
    if not images:
        return {}
    pixels = [frame for frames in images for frame in _channels_first(frames.pixels)]
    options = {"input_data_format": "channels_first", **_limit(processor.image_processor, max_pixels, device)}
    return {"images": pixels, "images_kwargs": options}


def _limit(part_processor: Any, max_pixels: int | None, device: Any) -> dict[str, Any]:
    options: dict[str, Any] = {} if device is None else {"device": str(torch.device(device))}
    if max_pixels is not None:
        smallest = min(part_processor.size["shortest_edge"], max_pixels)
        options["size"] = {"shortest_edge": smallest, "longest_edge": max_pixels}
    return options


def _channels_first(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
