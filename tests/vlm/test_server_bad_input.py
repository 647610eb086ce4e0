"""Servers that cannot do what is asked, and replies that are malformed: one sentence with the flag or setting, one video's error."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from cac_align.core.weights import shipped
from cac_align.plugins.doctor.server import _LocalProcessor, check_server, expected_tokens
from cac_align.rewards.cac import CaC
from cac_align.rewards.combine import combine
from cac_align.rewards.reachable import check_reachable
from cac_align.vlm.server.server import ServerVlm
from tests.support.chat_server import Answer, completion, some_frames, user, vlm_for


@pytest.mark.parametrize(
    ("status", "message", "named"),
    [
        (
            400,
            "Per-request mm_processor_kwargs are disabled by default because they can change",
            "--trust-request-mm-kwargs",
        ),
        (400, "Per-request media_io_kwargs are disabled by default because", "--trust-request-mm-kwargs"),
        (400, "At most 0 video(s) may be provided in one prompt.", "--limit-mm-per-prompt '{\"video\": 1}'"),
        (400, "Unknown part type: video_url", "frames: images"),
        (400, "At most 1 image(s) may be provided in one prompt.", "--limit-mm-per-prompt"),
        (400, "This model's maximum context length is 4096 tokens. However, you requested", "--max-model-len"),
        (404, "The model `cac` does not exist.", "--served-model-name"),
        (404, "Not Found", "served_model"),
        (401, "Unauthorized", "api_key_env"),
    ],
)
def test_a_refused_request_names_the_flag_or_setting(serve: Any, status: int, message: str, named: str) -> None:
    server = serve(lambda body, number: Answer({"error": {"message": message}}, status=status))
    (reply,) = vlm_for(server).answer([user("look", some_frames(8, 8, 4))], max_new_tokens=5)
    assert reply.error is not None and named in reply.error and message in reply.error and "\n" not in reply.error
    assert len(server.requests) == 1


GOOD = completion("fine")
NESTED = b"[" * 2000 + b"]" * 2000


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps({**GOOD, "usage": [1, 2]}).encode(),
        json.dumps({**GOOD, "usage": {"prompt_tokens": "many"}}).encode(),
        json.dumps({**GOOD, "usage": {"prompt_tokens": [1]}}).encode(),
        json.dumps({**GOOD, "usage": {"prompt_tokens": float("inf")}}).encode(),
        json.dumps({**GOOD, "usage": {"completion_tokens": 10**400}}).encode(),
        b'{"choices": ' + NESTED + b"}",
        NESTED,
        b"",
        b"<html>",
        b"null",
        json.dumps({"choices": [{"message": {"content": 5}}]}).encode(),
        json.dumps({"choices": []}).encode(),
    ],
)
def test_a_malformed_reply_is_its_own_videos_error(serve: Any, raw: bytes) -> None:
    server = serve(lambda body, number: Answer(raw=raw) if body["messages"][0]["content"] == "bad" else Answer(GOOD))
    first, bad, last = vlm_for(server).answer([user("a"), user("bad"), user("b")], max_new_tokens=5)
    assert (first.text, last.text, bad.text) == ("fine", "fine", "") and bad.error


@pytest.mark.parametrize("top", [5, "x", [5], [[]], [{"token": 3}], {"a": 1}, None])
def test_malformed_log_probabilities_are_no_probabilities(serve: Any, top: Any) -> None:
    from cac_align.cac.readout import STATUS_READOUT

    text = '{"status": "normal"}'
    content = [
        {"token": text[:12], "logprob": 0.0},
        {"token": "normal", "logprob": -0.1, "top_logprobs": top},
        {"token": '"}', "logprob": 0.0},
    ]
    server = serve(lambda body, number: Answer(completion(text, {"content": content})))
    (reply,) = vlm_for(server, dialect="openai").answer([user()], max_new_tokens=5, readout=STATUS_READOUT)
    assert reply.error is None and reply.log_p is None and reply.readout_error


def test_all_servers_are_asked_at_once_before_the_first_video() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{probe.getsockname()[1]}"
    reward = combine({name: CaC(ServerVlm(dead, f"judge-{name}")) for name in ("a", "b")})
    with pytest.raises(ValueError) as error:
        check_reachable(reward)
    lines = str(error.value).splitlines()
    assert len(lines) == 2 and all(dead in line and "vllm serve" in line for line in lines)
    assert "judge-a" in lines[0] and "judge-b" in lines[1]


def test_a_server_with_another_model_is_named_before_the_first_video(serve: Any) -> None:
    server = serve(lambda body, number: Answer(GOOD))
    assert ServerVlm(server.url, "cac").why_unreachable() is None
    why = ServerVlm(server.url, "wrong").why_unreachable()
    assert why is not None and "serves cac, other" in why and "served_model" in why


def test_waiting_is_announced_with_a_countdown(serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    busy = Answer({"error": {"message": "loading"}}, status=503)
    server = serve(lambda body, number: busy if number < 2 else Answer(GOOD))
    (reply,) = vlm_for(server, backoff_s=0.6).answer([user()], max_new_tokens=5)
    lines = [line for line in capsys.readouterr().err.splitlines() if "attempt" in line]
    assert reply.text == "fine" and server.url in lines[0] and "503: loading" in lines[0] and "giving up in" in lines[0]


@pytest.mark.parametrize("kept", [2, 16, 32])
def test_the_doctor_finds_a_server_that_drops_frames(serve: Any, kept: int) -> None:
    def respond(body: dict[str, Any], number: int) -> Answer:
        content = body["messages"][0]["content"]
        parts = content if isinstance(content, list) else []
        frames = sum(part["video_url"]["url"].count(",") for part in parts if part["type"] == "video_url")
        answer = completion("fine")
        answer["usage"]["prompt_tokens"] = 10 + 8 * (min(frames, kept) // 2)
        return Answer(answer)

    wrong = [check for check in check_server(serve(respond).url) if check.ok is False]
    assert any("num_frames" in check.fix or "frames" in check.name for check in wrong)


def spelled_out(text: str) -> list[int]:
    """A tokenizer with one token per character."""
    return [ord(character) for character in text]


def counting(body: dict[str, Any], *, honours_times: bool) -> Answer:
    """A server that counts 8 tokens per pair of frames and one per character of its time stamp, as if times were 0 to 9 s
    unless it honours those of the request.
    """
    content = body["messages"][0]["content"]
    urls = [part["video_url"]["url"] for part in content if part["type"] == "video_url"] if content[0] != "I" else []
    answer = completion('{"COT": "", "status": "normal"}')
    count = 10
    for url in urls:
        clock = body["media_io_kwargs"]["video"]
        times_s = [index / clock["fps"] for index in clock["frames_indices"]]
        assert len(times_s) == url.count(",")
        for first, second in zip(times_s[::2], times_s[1::2], strict=True):
            count += 8 + len(f"<{(first + second) / 2 if honours_times else 0:.1f} seconds>")
    answer["usage"]["prompt_tokens"] = count
    return Answer(answer)


@pytest.mark.parametrize("honours_times", [True, False])
def test_the_doctor_finds_a_server_that_stamps_frames_itself(serve: Any, honours_times: bool) -> None:
    server = serve(lambda body, number: counting(body, honours_times=honours_times), tokenize=spelled_out)
    checks = {check.name: check for check in check_server(server.url)}
    assert checks["frames"].ok is True and checks["structured output"].ok is True
    assert checks["time stamps"].ok is honours_times
    assert honours_times or "--trust-request-mm-kwargs" in checks["time stamps"].fix
    assert checks["processor"].ok is None and "not on this machine" in checks["processor"].text
    assert len(server.requests) < 12


def test_the_processor_of_a_checkpoint_on_this_machine_is_asked_and_waited_for_no_longer_than_said(serve: Any) -> None:
    assert expected_tokens(str(shipped("cac"))) == 423  # as a real vLLM 0.32 counted
    checkpoint = {"data": [{"id": "cac", "root": str(shipped("cac"))}]}
    server = serve(lambda body, number: Answer(GOOD), models=Answer(checkpoint))
    processor = _LocalProcessor(str(shipped("cac")))
    found = processor.check(ServerVlm(server.url, "cac"), timeout_s=0.01)
    assert found.ok is None and "longer to load" in found.text
    assert processor._process is not None and processor._process.poll() is not None


# What the server's tokenizer makes of these texts: 7 marks a picture, 6 and 5 fill it.
TOKENS = {
    "<|vision_start|><|video_pad|>": [7, 6],
    "<|vision_start|><|image_pad|>": [7, 5],
    "<|im_start|>user\n": [1, 2],
}


@pytest.mark.parametrize("pairs, told", [(11, None), (10, "10 of 11 pairs of frames"), (1, "1 of 11"), (None, None)])
def test_a_server_that_drops_frames_gives_no_answer(serve, pairs, told):
    """21 frames are 11 pairs, each behind its time stamp (9), in a mark of their own around all, as a real vLLM 0.32
    writes them. A server that does not return its tokens cannot be checked.
    """

    def respond(body, number):
        tokens = {} if pairs is None else {"prompt_token_ids": [1, 2, 7, *[9, 7, 6, 6, 8] * pairs, 8, 3]}
        return Answer(completion("fine") | (tokens if body.get("return_token_ids") else {}))

    server = serve(respond, tokenize=lambda text: TOKENS.get(text, [4]))
    vlm = vlm_for(server)
    first, second = (vlm.answer([user("look", some_frames())], max_new_tokens=8)[0] for _ in range(2))
    assert (first.error is None) == (told is None) and (told or "") in (first.error or "")
    assert "num_frames" in str(first.error) or told is None
    assert second.error == first.error
    asked = [bool(body.get("return_token_ids")) for body in server.requests]
    assert asked == ([True, False] if pairs == 11 else [True, True])  # what was seen whole is not asked for again


def test_a_model_that_marks_a_video_as_a_whole_is_not_taken_for_one_that_drops_frames(serve):
    """Qwen2.5-VL (VideoScore2) writes <|vision_start|> once per video, and no time stamps."""

    def respond(body, number):
        return Answer(completion("fine") | {"prompt_token_ids": [1, 2, 7, *[6] * 44, 8, 3]})

    vlm = vlm_for(serve(respond, tokenize=lambda text: TOKENS.get(text, [4])))
    assert vlm.answer([user("look", some_frames())], max_new_tokens=8)[0].error is None
