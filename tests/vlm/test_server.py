"""ServerVlm against a real HTTP server on this machine that speaks the OpenAI chat protocol: requests, identity, the door."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from cac_align.core.video import Frames
from cac_align.core.weights import shipped
from cac_align.vlm.connect import connect
from cac_align.vlm.local import LocalVlm
from cac_align.vlm.protocol import CONTROL_TOKENS, Message, Readout, Vlm
from cac_align.vlm.server.server import ServerVlm
from tests.support import tiny_qwen
from tests.support.chat_server import (
    Answer,
    Server,
    after_status,
    completion,
    parts_of,
    pixels_of,
    some_frames,
    user,
    vlm_for,
)

# ---- the request --------------------------------------------------------------------------------------------------


def test_it_is_a_vlm_and_asks_greedily(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("fine")))
    vlm = vlm_for(server, api_key="secret", headers={"X-Team": "a"})
    assert isinstance(vlm, Vlm)
    (reply,) = vlm.answer([user('Is it broken? {x} "y" <b> é 😀')], max_new_tokens=77)
    assert (reply.text, reply.error, reply.truncated) == ("fine", None, False)
    assert (reply.num_prompt_tokens, reply.num_tokens, reply.log_p) == (11, 7, None)
    (request,) = server.requests
    assert {name: request[name] for name in ("model", "temperature", "top_p", "seed", "max_tokens")} == {
        "model": "cac",
        "temperature": 0,
        "top_p": 1,
        "seed": 0,
        "max_tokens": 77,
    }
    assert request["messages"] == [{"role": "user", "content": 'Is it broken? {x} "y" <b> é 😀'}]
    assert not {"logprobs", "response_format", "media_io_kwargs", "continue_final_message"} & set(request)
    assert server.headers_seen[0]["Authorization"] == "Bearer secret"
    assert server.headers_seen[0]["X-Team"] == "a"
    assert "secret" not in repr(vlm) and "secret" not in json.dumps(dict(vlm.provenance))


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_every_spelling_of_the_url_reaches_the_server(serve: Any, suffix: str) -> None:
    server = serve(lambda body, number: Answer(completion("fine")))
    assert ServerVlm(server.url + suffix, "cac").answer([user()], max_new_tokens=5)[0].text == "fine"


def test_frames_go_out_as_images_behind_their_time_stamps(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("fine")))
    frames = some_frames()
    vlm_for(server, frames="images").answer([user("look", frames)], max_new_tokens=5)
    parts = parts_of(server.requests[0])
    assert [part["text"] for part in parts[:-1:2]] == [f"<{n / 4:.1f} seconds>" for n in range(21)]
    assert parts[-1] == {"type": "text", "text": "look"}
    for part, expected in zip(parts[1::2], frames.pixels, strict=True):
        (seen,) = pixels_of(part["image_url"]["url"])
        assert seen.shape == expected.shape
        assert np.abs(seen.astype(int) - expected).mean() < 3  # JPEG at quality 95


def test_plain_images_carry_no_stamps(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("fine")))
    vlm_for(server, frames="video").answer([user("score it", some_frames(8, 8, 8), as_images=True)], max_new_tokens=5)
    assert [part["type"] for part in parts_of(server.requests[0])] == ["image_url"] * 8 + ["text"]
    assert "media_io_kwargs" not in server.requests[0]


def test_a_video_part_carries_the_source_clock(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("fine")))
    frames = some_frames()
    vlm_for(server, frames="video").answer([user("look", frames)], max_new_tokens=5)
    request = server.requests[0]
    video, text = parts_of(request)
    assert text == {"type": "text", "text": "look"}
    assert video["video_url"]["url"].startswith("data:video/jpeg;base64,")
    assert len(pixels_of(video["video_url"]["url"])) == 21
    assert request["media_io_kwargs"] == {
        "video": {"num_frames": -1, "fps": 16.0, "frames_indices": list(range(0, 81, 4)), "total_num_frames": 81}
    }
    assert request["mm_processor_kwargs"] == {"do_sample_frames": False}


def test_a_video_with_variable_rate_is_stamped_in_milliseconds(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("fine")))
    pixels = np.zeros((3, 24, 32, 3), np.uint8)
    frames = Frames(pixels, (0, 5, 6), (0.0, 0.3004, 1.25), 4.0, 30)
    vlm_for(server, frames="video").answer([user("look", frames)], max_new_tokens=5)
    video = server.requests[0]["media_io_kwargs"]["video"]
    assert [index / video["fps"] for index in video["frames_indices"]] == [0.0, 0.3, 1.25]


def test_one_frame_is_sent_twice_as_a_video(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("fine")))
    vlm_for(server, frames="video").answer([user("look", some_frames(1))], max_new_tokens=5)
    request = server.requests[0]
    assert len(pixels_of(parts_of(request)[0]["video_url"]["url"])) == 2
    assert request["media_io_kwargs"]["video"]["frames_indices"] == [0, 0]


def test_of_two_videos_in_one_request_the_first_is_a_video_part_and_the_other_images(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("fine")))
    frames, look = some_frames(8, 8, 4), some_frames(16, 8, 8)
    vlm = vlm_for(server, frames="video")
    vlm.answer([user("first", frames)], max_new_tokens=5)
    vlm.answer([(*user("first", frames), Message("assistant", "so"), *user("second", look))], max_new_tokens=5)
    one, two = server.requests
    assert two["messages"][0] == one["messages"][0]  # the server's prefix cache holds turn 1
    assert one["media_io_kwargs"] == two["media_io_kwargs"] and two["media_io_kwargs"]["video"]["fps"] == 8
    kinds = [part["type"] for part in parts_of(two, 2)]
    assert kinds == ["text", "image_url"] * len(look) + ["text"]
    assert parts_of(two, 2)[2]["text"] == "<0.1 seconds>"
    assert "further ones in a request: as images" in vlm.provenance["frames"]


@pytest.mark.parametrize(("dialect", "strict"), [("vllm", True), ("sglang", True), ("openai", False)])
def test_a_schema_becomes_structured_output(serve: Any, dialect: str, strict: bool) -> None:
    server = serve(lambda body, number: Answer(completion("{}")))
    schema = {"type": "object", "additionalProperties": False}
    vlm_for(server, dialect=dialect).answer([user()], max_new_tokens=5, schema=schema)
    assert server.requests[0]["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": strict, "schema": schema},
    }


def test_an_assistants_last_message_is_continued(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("normal")))
    chat = (*user(), Message("assistant", '{"status": "'))
    assert vlm_for(server).answer([chat], max_new_tokens=5)[0].text == "normal"
    assert server.requests[0]["messages"][-1] == {"role": "assistant", "content": '{"status": "'}
    assert (server.requests[0]["continue_final_message"], server.requests[0]["add_generation_prompt"]) == (True, False)
    (reply,) = vlm_for(server, dialect="openai").answer([chat], max_new_tokens=5)
    assert "can continue an answer" in reply.error and len(server.requests) == 1


def test_a_control_token_in_a_text_fails_its_own_conversation_as_the_local_judge_says_it(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("fine")))
    for hostile in CONTROL_TOKENS:
        asked = [user(), user(f"ball {hostile}"), (*user(), Message("assistant", hostile))]
        replies = vlm_for(server).answer(asked, max_new_tokens=5)
        for reply, role, at in zip(replies[1:], ("user", "assistant"), (5, 0), strict=True):
            said = f"the {role}'s text contains the control token {hostile!r} at character {at}; remove it"
            assert reply.text == "" and reply.error.startswith(said)
        assert replies[0].text == "fine"
    assert {len(request["messages"]) for request in server.requests} == {1} and len(server.requests) == len(
        CONTROL_TOKENS
    )
    (local,) = LocalVlm(tiny_qwen.model(), tiny_qwen.processor(), name="x").answer(
        [user("ball <|im_end|>")], max_new_tokens=1
    )
    (remote,) = vlm_for(server).answer([user("ball <|im_end|>")], max_new_tokens=1)
    assert local.error == f"could not be encoded: {remote.error}" and set(tiny_qwen.SPECIAL) <= set(CONTROL_TOKENS)
    tokenizer = AutoTokenizer.from_pretrained(shipped("cac"))
    assert set(CONTROL_TOKENS) == set(tokenizer.all_special_tokens)  # those of the judges that ship


# ---- identity -----------------------------------------------------------------------------------------------------


def test_the_provenance_names_the_checkpoint_and_not_the_address(serve: Any) -> None:
    servers = [serve(lambda body, number: Answer(completion("fine"))) for _ in range(2)]
    first, second = (dict(vlm_for(server).provenance) for server in servers)
    assert first == second
    assert (first["model"], first["served"], first["frames"][:7], first["dialect"]) == (
        "cac",
        "example/cac-8b",
        "jpeg 95",
        "vllm",
    )
    assert first == dict(vlm_for(servers[0], frames="video").provenance)
    assert first != dict(vlm_for(servers[0], frames="images").provenance)
    assert "one image per frame" in vlm_for(servers[0], dialect="sglang").provenance["frames"]
    assert dict(vlm_for(servers[0], revision="2 May").provenance) == first | {"revision": "2 May"}
    assert all(isinstance(value, str) for value in first.values())


@pytest.mark.parametrize(
    "models", [Answer({"detail": "Not Found"}, status=404), Answer(raw=b"<html>"), Answer({"data": None})]
)
def test_a_server_that_does_not_say_what_it_runs_is_known_by_the_name(serve: Any, models: Answer) -> None:
    assert vlm_for(serve(lambda body, number: Answer(completion("fine")), models)).provenance["served"] == "cac"


def test_it_survives_pickling(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("fine")))
    vlm = vlm_for(server, api_key="secret", frames="images", revision="2 May")
    vlm.answer([user()], max_new_tokens=5)
    twin = pickle.loads(pickle.dumps(vlm))
    assert dict(twin.provenance) == dict(vlm.provenance)
    assert twin.answer([user()], max_new_tokens=5)[0].text == "fine"
    assert server.headers_seen[-1]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dialect": "tgi"}, "dialect must be"),
        ({"frames": "gif"}, "frames must be"),
        ({"frames": "video", "dialect": "sglang"}, "needs vLLM"),
        ({"tokenizer": "folder", "dialect": "sglang"}, "needs vLLM"),
        ({"concurrency": 0}, "concurrency >= 1"),
        ({"image_quality": 0}, "image_quality in 1 to 100"),
        ({"timeout_s": 0}, "timeout_s > 0"),
        ({"retries": -1}, "retries >= 0"),
        ({"backoff_s": -1.0}, "finite backoff_s >= 0"),
        ({"backoff_s": float("nan")}, "finite backoff_s >= 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ServerVlm("http://localhost:8000", "cac", **settings)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "", "http://"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url must look like"):
        ServerVlm(url, "cac")


def test_a_call_that_is_wrong_as_a_whole_is_refused() -> None:
    vlm = ServerVlm("http://localhost:8000", "cac")
    with pytest.raises(ValueError, match="conversation 1 has no user message"):
        vlm.answer([user(), (Message("assistant", "x"),)], max_new_tokens=5)
    with pytest.raises(ValueError, match="max_new_tokens"):
        vlm.answer([user()], max_new_tokens=0)
    with pytest.raises(ValueError, match="needs words"):
        vlm.answer([user()], max_new_tokens=5, readout=Readout((), after_status))
    assert vlm.answer([], max_new_tokens=5) == []


# ---- the door -----------------------------------------------------------------------------------------------------


def test_a_url_connects_to_a_server(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("fine")))
    vlm = connect(server.url, served_model="cac", timeout_s=5, frames="video")
    assert isinstance(vlm, ServerVlm) and (vlm.model, vlm.timeout_s, vlm.frames) == ("cac", 5, "video")
    with pytest.raises(ValueError, match="pass served_model="):
        connect(server.url)


def test_frames_that_turn_out_broken_fail_their_own_conversation(serve: Callable[..., Server]) -> None:
    class Broken:
        shape, jpegs = (2, 8, 8, 3), None

        def decode(self) -> np.ndarray:
            raise ValueError("clip: frame 1 is not a readable JPEG or PNG: truncated")

    server = serve(lambda request, number: Answer(completion("fine")))
    broken = Frames.undecoded(Broken(), (0, 1), (0.0, 0.25), 4.0, 2)
    replies = vlm_for(server).answer([user("a"), user("b", broken), user("c", some_frames(9))], max_new_tokens=5)
    assert [reply.text for reply in replies] == ["fine", "", "fine"] and len(server.requests) == 2
    assert replies[1].error == "clip: frame 1 is not a readable JPEG or PNG: truncated"
