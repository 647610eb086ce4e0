"""What a conversation looks like on the wire; the requests as a whole are tested in test_server.py."""

from __future__ import annotations

import numpy as np
import pytest

from cac_align.core.video import Frames
from cac_align.vlm.protocol import Message
from cac_align.vlm.server.chat import chat_fields, continuation, response_format, source_clock


def frames(indices: tuple[int, ...], times_s: tuple[float, ...], count: int = 81) -> Frames:
    return Frames(np.zeros((len(indices), 8, 8, 3), np.uint8), indices, times_s, 4.0, count)


@pytest.mark.parametrize(
    ("indices", "times_s", "fps"),
    [
        ((0, 4, 8), (0.0, 0.25, 0.5), 16.0),
        ((32, 34, 36), (2.0, 2.125, 2.25), 16.0),  # turn 2: absolute times are kept
        ((0, 1001), (0.0, 1001 / 29.97), 29.97),
        ((5,), (0.5,), 10.0),
        ((0,), (0.0,), 4.0),
    ],
)
def test_a_constant_rate_keeps_source_indices(indices: tuple[int, ...], times_s: tuple[float, ...], fps: float) -> None:
    clock = source_clock(frames(indices, times_s))
    assert clock["fps"] == pytest.approx(fps) and clock["num_frames"] == -1 and clock["total_num_frames"] == 81
    assert clock["frames_indices"] == list(indices if len(indices) > 1 else indices * 2)
    for index, time_s in zip(clock["frames_indices"], times_s, strict=False):
        assert index / clock["fps"] == pytest.approx(time_s, abs=1e-3)


def test_a_variable_rate_goes_out_in_milliseconds() -> None:
    clock = source_clock(frames((0, 5, 6), (0.0, 0.3004, 1.25)))
    assert clock == {"num_frames": -1, "fps": 1000.0, "frames_indices": [0, 300, 1250], "total_num_frames": 1251}


def test_messages_keep_their_order_and_roles() -> None:
    shown = frames((0, 4), (0.0, 0.25))
    conversation = (
        Message("system", "be strict"),
        Message("user", "look", shown),
        Message("assistant", "ok"),
        Message("user", "so?"),
    )
    messages = chat_fields(conversation, as_video=True, quality=95)["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in messages[1]["content"]] == ["video_url", "text"]
    assert (messages[0]["content"], messages[3]["content"]) == ("be strict", "so?")


def test_dialects() -> None:
    assert continuation("vllm") == {"continue_final_message": True, "add_generation_prompt": False}
    assert continuation("sglang") == {"continue_final_message": True}
    assert response_format({"type": "object"}, "openai")["json_schema"]["strict"] is False
