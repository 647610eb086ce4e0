"""What a server sent back: read where it is good, and otherwise a reason that a person can act on."""

import httpx
import pytest

from cac_align.vlm.server.reply import RequestFailed, excerpt, first_choice, parse_reply, retry_after_s, server_message


def completion(message, finish="stop"):
    return {
        "choices": [{"message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }


def test_a_reply_has_text_counts_and_whether_it_was_cut():
    whole = completion({"content": "fine"}, "length")
    reply = parse_reply(whole, first_choice(whole))
    assert (reply.text, reply.truncated, reply.num_prompt_tokens, reply.num_tokens) == ("fine", True, 7, 3)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        ({"choices": []}, "holds no choices"),
        (completion({"content": "x"}, "content_filter"), "stopped the answer: finish_reason 'content_filter'"),
        (completion({"content": "", "reasoning_content": "hm"}), "only reasoning; turn the server's thinking off"),
        (completion({"content": None}), "no text, finish_reason 'stop'"),
    ],
)
def test_what_is_no_reply_says_why(sent, why):
    with pytest.raises(RequestFailed, match=why):
        parse_reply(sent, first_choice(sent))


def test_messages_and_waits_are_read_from_what_servers_really_send():
    assert server_message(httpx.Response(400, json={"error": {"message": "too long"}})) == "too long"
    assert server_message(httpx.Response(400, json={"detail": "not found"})) == "not found"
    assert server_message(httpx.Response(502, text="<html> bad\n gateway")) == "<html> bad gateway"
    assert retry_after_s(httpx.Response(429, headers={"Retry-After": "2.5"})) == 2.5
    assert retry_after_s(httpx.Response(429, headers={"Retry-After": "soon"})) == 0.0
    assert excerpt("a" * 400) == "a" * 300 + "…"
