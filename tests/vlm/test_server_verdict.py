"""Where the verdict stands in a server's answer, and its probability: the pieces of real tables, bounded, or not read at all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cac_align.cac.readout import STATUS_READOUT
from cac_align.cac.verdict_only import VerdictOnly
from cac_align.core.video import Video
from cac_align.plugins.doctor.server import check_server
from cac_align.rewards.cac import CaC
from cac_align.vlm.protocol import Message, Readout
from tests.support.chat_server import (
    Answer,
    Server,
    after_status,
    completion,
    parts_of,
    some_frames,
    user,
    vlm_for,
)

BEFORE = ['{"', "C", "OT", '":', ' "', "a sixth", " finger", '",', ' "', "status", '":', ' "']
AFTER = ['",', ' "', "anomalies", '":', " []", "}"]


def token(text: str, p: float | None, top: dict[str, float] | None = None) -> dict[str, Any]:
    entries = {text: 1.0 if p is None else p} if top is None else top
    top_logprobs = [
        {"token": piece, "logprob": math.log(q), "bytes": list(piece.encode())}
        for piece, q in sorted(entries.items(), key=lambda item: -item[1])
    ]
    return {
        "token": text,
        "logprob": math.log(entries.get(text, p)),
        "bytes": list(text.encode()),
        "top_logprobs": top_logprobs,
    }


def answer_with(*verdict: dict[str, Any], finish: str = "stop") -> dict[str, Any]:
    """A whole answer in Qwen's own pieces, with the given tokens as the status."""
    tokens = [*(token(piece, 1.0) for piece in BEFORE), *verdict, *(token(piece, 1.0) for piece in AFTER)]
    text = "".join(item["token"] for item in tokens)
    end = {"token": "<|im_end|>", "logprob": 0.0, "bytes": list(b"<|im_end|>"), "top_logprobs": []}
    return completion(text, {"content": [*tokens, end]}, finish)


def read(serve: Any, *bodies: dict[str, Any], **settings: Any) -> tuple[dict[str, float] | None, Server]:
    server = serve(lambda body, number: Answer(bodies[min(number, len(bodies) - 1)]))
    (reply,) = vlm_for(server, **settings).answer([user()], max_new_tokens=500, readout=STATUS_READOUT)
    assert reply.error is None
    return None if reply.log_p is None else {word: math.exp(value) for word, value in reply.log_p.items()}, server


def test_abnormal_is_read_over_both_of_its_pieces(serve: Any) -> None:
    # The second piece of "abnormal" is the token "normal" with probability 0.9: whoever searches for it inverts the reward.
    body = answer_with(
        token("ab", None, {"ab": 0.8, "normal": 0.15, "un": 0.05}), token("normal", None, {"normal": 0.9, "surd": 0.1})
    )
    p, server = read(serve, body)
    assert p == pytest.approx({"normal": 0.15, "abnormal": 0.8 * 0.9})
    assert len(server.requests) == 1
    assert (server.requests[0]["logprobs"], server.requests[0]["top_logprobs"]) == (True, 20)


def test_a_short_piece_is_followed_and_never_counted_as_its_word(serve: Any) -> None:
    # Of "no" and "n" the model makes "none" and "null": counted as "normal" they gave R = .419.
    first = answer_with(token("normal", None, {"ab": 0.5, "no": 0.3, "normal": 0.05, "n": 0.01}))
    p, server = read(serve, first, one_token("ne", {"ne": 0.999, "rm": 1e-6}))
    assert p == pytest.approx({"normal": 0.05, "abnormal": 0.5}, rel=1e-3)
    assert p["normal"] / (p["normal"] + p["abnormal"]) == pytest.approx(0.0909, abs=1e-3)
    after = [request["messages"][-1]["content"] for request in server.requests[1:]]
    assert after and all(text.endswith(('"status": "no', '"status": "n', '"status": "norm')) for text in after)


def test_a_short_piece_that_cannot_be_followed_gives_no_reading(serve: Any) -> None:
    first = answer_with(token("normal", None, {"ab": 0.5, "no": 0.3, "normal": 0.05, "n": 0.01}))
    p, server = read(serve, first, dialect="openai")
    assert p is None and len(server.requests) == 1


@pytest.mark.parametrize("unusable", [None, math.nan, math.inf, -math.inf, -9999.0, 0.5, 10**400, "x"])
@pytest.mark.parametrize("word", ["normal", "ab"])
def test_an_unusable_log_probability_of_a_word_is_no_reading(serve: Any, word: str, unusable: Any) -> None:
    item = token("normal", None, {"normal": 0.9, "ab": 0.1})
    next(entry for entry in item["top_logprobs"] if entry["token"] == word)["logprob"] = unusable
    item["logprob"] = unusable if word == "normal" else item["logprob"]
    assert read(serve, answer_with(item))[0] is None


def test_probabilities_that_add_up_to_two_are_no_reading(serve: Any) -> None:
    assert read(serve, answer_with(token("normal", None, {"normal": 1.0, "ab": 1.0})))[0] is None


def test_bounds_are_said_to_be_bounds(serve: Any) -> None:
    server = serve(lambda body, number: Answer(answer_with(token("normal", None, {"normal": 0.99, "x": 0.001}))))
    (reply,) = vlm_for(server).answer([user()], max_new_tokens=500, readout=STATUS_READOUT)
    assert reply.bounded == ("abnormal",)
    assert vlm_for(server).provenance["readout"].startswith("top 20, upper bounds")


def test_behind_sglang_a_bound_stands_in_the_scores_parts_and_the_doctor_warns(serve: Any, tmp_path: Path) -> None:
    confident = answer_with(token("normal", None, {"normal": 0.999, "x": 0.0004, "y": 0.0001}))
    server = serve(lambda body, number: Answer(confident))
    (score,) = CaC(vlm_for(server, dialect="sglang"))(["p"], [Video.open(np.zeros((17, 32, 32, 3), np.uint8), fps=16)])
    assert score.error is None and score.parts["p_abnormal_is_bound"] == 1 and "p_normal_is_bound" not in score.parts
    assert score.value == pytest.approx(0.999 / (0.999 + 0.0001))
    assert "logprob_token_ids" not in server.requests[0] and "media_io_kwargs" not in server.requests[0]
    server = serve(lambda body, number: Answer(one_token("normal", {"normal": 0.999, "x": 0.0001})))
    recipe = tmp_path / "sglang.yaml"
    recipe.write_text(f'components:\n  cac: {{kind: cac, model: "{server.url}", served_model: cac, dialect: sglang}}\n')
    (check,) = [check for check in check_server(server.url, recipe) if check.name == "log-probabilities"]
    assert check.ok is None and "upper bound" in check.text and "serve with vLLM" in check.fix


def test_a_merged_closing_quote_counts_and_a_longer_word_does_not(serve: Any) -> None:
    top = {"normal": 0.5, 'normal",': 0.2, "normally": 0.2, "ab": 0.1}
    assert read(serve, answer_with(token("normal", None, top)))[0] == pytest.approx({"normal": 0.7, "abnormal": 0.1})


def test_a_word_outside_the_top_is_bounded_by_the_smallest_that_is_there(serve: Any) -> None:
    top = {"normal": 0.99} | {f"x{n}": 0.0001 * (n + 1) for n in range(4)}
    p, _ = read(serve, answer_with(token("normal", None, top)))
    assert p == pytest.approx({"normal": 0.99, "abnormal": 0.0001})


def test_the_rest_of_a_word_outside_the_top_is_bounded_too(serve: Any) -> None:
    body = answer_with(token("ab", None, {"ab": 0.8, "normal": 0.2}), token("surd", None, {"surd": 0.97, "out": 0.03}))
    assert read(serve, body)[0] == pytest.approx({"normal": 0.2, "abnormal": 0.8 * 0.03})


def test_no_word_among_the_likeliest_is_no_reading_and_never_one_half(serve: Any) -> None:
    p, server = read(serve, answer_with(token("broken", None, {"broken": 0.9, "bad": 0.1})))
    assert p is None and len(server.requests) == 1


def test_a_verdict_forced_by_the_grammar_against_the_model_is_no_reading(serve: Any) -> None:
    # The grammar forced "normal" although the model wanted "null": the likeliest 20 say nothing about "abnormal".
    body = answer_with(token("normal", 1e-6, {"null": 0.9, "None": 0.1}))
    assert read(serve, body)[0] is None


def test_masked_tokens_are_not_probabilities(serve: Any) -> None:
    item = token("normal", None, {"normal": 0.9, "ab": 0.1})
    item["top_logprobs"] += [
        {"token": "x", "logprob": -9999.0, "bytes": [120]},
        {"token": "y", "logprob": None, "bytes": [121]},
    ]
    assert read(serve, answer_with(item))[0] == pytest.approx({"normal": 0.9, "abnormal": 0.1})


def test_the_place_is_found_by_bytes_behind_any_text(serve: Any) -> None:
    tokens = [
        token('{"COT": "', 1.0),
        {
            "token": "\ufffd",
            "logprob": 0.0,
            "bytes": [0xF0, 0x9F],
            "top_logprobs": [],
        },  # half an emoji, as vLLM writes it
        {"token": "\ufffd", "logprob": 0.0, "bytes": [0x98, 0x80], "top_logprobs": []},
        token(' é normal \\"status\\": \\"normal\\"", "status": "', 1.0),
        token("ab", None, {"ab": 0.6, "normal": 0.4}),
        token("normal", 1.0),
        token('"}', 1.0),
    ]
    text = b"".join(bytes(item["bytes"]) for item in tokens).decode()
    assert read(serve, completion(text, {"content": tokens}))[0] == pytest.approx({"normal": 0.4, "abnormal": 0.6})


def test_reasoning_that_was_cut_off_in_front_does_not_shift_the_place(serve: Any) -> None:
    body = answer_with(token("normal", None, {"normal": 0.9, "ab": 0.1}))
    body["choices"][0]["logprobs"]["content"].insert(0, token("<think>normal</think>\n", 1.0))
    assert read(serve, body)[0] == pytest.approx({"normal": 0.9, "abnormal": 0.1})


def one_token(text: str, top: dict[str, float] | None) -> dict[str, Any]:
    return completion(text, None if top is None else {"content": [token(text, None, top)]}, "length")


def test_without_logprobs_the_place_is_asked_again_and_then_given_up(serve: Any) -> None:
    first = completion('{"COT": "x", "status": "normal", "anomalies": []}')
    p, server = read(serve, first, one_token("normal", None))
    assert p is None
    _, again = server.requests
    assert again["messages"] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": '{"COT": "x", "status": "'},
    ]
    assert (again["max_tokens"], again["continue_final_message"], again["add_generation_prompt"]) == (1, True, False)


def test_the_second_request_reads_what_the_first_did_not_cover(serve: Any) -> None:
    # A tokenizer that writes quote and word as one token: no token begins at the place.
    tokens = [token('{"status":', 1.0), token(' "normal', None, {' "normal': 0.9, ' "ab': 0.1}), token('"}', 1.0)]
    first = completion('{"status": "normal"}', {"content": tokens})
    p, server = read(serve, first, one_token("ab", {"ab": 0.7, "normal": 0.3}))
    assert p == pytest.approx({"normal": 0.3, "abnormal": 0.7})
    assert server.requests[1]["messages"][-1]["content"] == '{"status": "'


def test_the_second_request_extends_an_answer_that_was_being_continued(serve: Any) -> None:
    bodies = [completion(' "status": "normal"}'), one_token("normal", {"normal": 0.9, "ab": 0.1})]
    server = serve(lambda body, number: Answer(bodies[number]))
    chat = (*user(), Message("assistant", '{"COT": "",'))
    readout = Readout(("normal", "abnormal"), after_status)
    (reply,) = vlm_for(server).answer([chat], max_new_tokens=9, readout=readout, schema={"type": "object"})
    assert math.exp(reply.log_p["normal"]) == pytest.approx(0.9)
    assert server.requests[1]["messages"][-1]["content"] == '{"COT": "", "status": "'
    assert len(server.requests[1]["messages"]) == 2 and "response_format" not in server.requests[1]


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_behind_a_schema_the_probabilities_are_those_without_it(serve: Any, dialect: str) -> None:
    # The mask leaves "normal" and "ab" alone: they sum to 1, whatever the model wanted to write. It wanted "null".
    masked = answer_with(token("normal", None, {"normal": 0.6, "ab": 0.4}))
    bodies = [masked, one_token("null", {"null": 0.995, "normal": 0.003, "ab": 0.002})]
    server = serve(lambda body, number: Answer(bodies["response_format" not in body]))
    (reply,) = vlm_for(server, dialect=dialect).answer(
        [user()], max_new_tokens=500, schema={"type": "object"}, readout=STATUS_READOUT
    )
    p = {word: math.exp(value) for word, value in reply.log_p.items()}
    assert p == pytest.approx({"normal": 0.003, "abnormal": 0.002}) and '"status": "normal"' in reply.text
    assert ["response_format" in request for request in server.requests] == [True, False]
    judge = CaC(vlm_for(server, dialect=dialect), VerdictOnly(form="json"))
    (score,) = judge(["a"], [Video.open(np.zeros((9, 32, 32, 3), np.uint8), fps=16)])
    assert not score.scored and "P(normal) + P(abnormal) is only 0.005" in score.error


def test_behind_a_schema_a_second_request_that_fails_leaves_no_probabilities(serve: Any) -> None:
    masked = answer_with(token("normal", None, {"normal": 0.6, "ab": 0.4}))
    server = serve(
        lambda body, number: Answer(masked) if "response_format" in body else Answer({"error": "no"}, status=400)
    )
    (reply,) = vlm_for(server).answer([user()], max_new_tokens=500, schema={"type": "object"}, readout=STATUS_READOUT)
    assert reply.log_p is None and reply.error is None


def test_openai_servers_are_not_asked_to_continue(serve: Any) -> None:
    p, server = read(serve, completion('{"status": "normal"}'), dialect="openai")
    assert p is None and len(server.requests) == 1


def test_an_answer_without_the_place_has_no_probabilities(serve: Any) -> None:
    p, server = read(serve, completion("I cannot say."))
    assert p is None and len(server.requests) == 1


# ---- by token id ---------------------------------------------------------------------------------------------------

TABLE = {"o": 4, "n": 1, "no": 2, "normal": 8252, "a": 3, "ab": 370}


def by_id(serve: Any, p: dict[str, dict[str, float]], *, keeps_media: bool = True) -> Server:
    """A vLLM that holds ``TABLE`` and gives P(token) after the assistant's last characters; P("abnormal" forms) by id."""

    def respond(body: dict[str, Any], number: int) -> Answer:
        if "logprob_token_ids" not in body:
            return Answer(answer_with(token("normal", 1.0)))
        parts = [
            part for message in body["messages"] if isinstance(message["content"], list) for part in message["content"]
        ]
        sent = [message["content"] for request in server.requests for message in request["messages"]]
        known = any(part.get("video_url") for content in sent if isinstance(content, list) for part in content)
        if any("uuid" in part and not part.get("video_url") for part in parts) and not (keeps_media and known):
            return Answer(
                {"error": {"message": "Cache miss for video at index 0 but data is not provided."}}, status=400
            )
        written = body["messages"][-1]["content"].split('"status": "')[-1]
        ids = {index: text for text, index in TABLE.items()}
        entries = [
            {"token": f"token_id:{index}", "logprob": math.log(p[written].get(ids[index], 1e-30)), "bytes": None}
            for index in body["logprob_token_ids"]
        ]
        return Answer(completion("x", {"content": [{**entries[0], "top_logprobs": entries}]}, "length"))

    server = serve(respond, tokenize=lambda text: [TABLE[text]] if text in TABLE else [0] * len(text))
    return server


def test_words_are_asked_for_by_id_and_followed_over_all_their_pieces(serve: Any) -> None:
    server = by_id(serve, {"": {"normal": 0.9, "ab": 1e-7, "n": 1e-3, "a": 1e-12}, "ab": {"normal": 0.25}, "n": {}})
    vlm = vlm_for(server)
    (reply,) = vlm.answer([user()], max_new_tokens=500, readout=STATUS_READOUT)
    assert {word: math.exp(v) for word, v in reply.log_p.items()} == pytest.approx({"normal": 0.9, "abnormal": 0.25e-7})
    assert reply.bounded == () and vlm.provenance["readout"].startswith("by token id")
    first, at_place, *after = server.requests
    assert "logprobs" not in first  # nothing is asked for along the whole answer
    assert at_place["logprob_token_ids"] == [1, 2, 3, 370, 8252] and at_place["max_tokens"] == 1
    assert [request["messages"][-1]["content"][-2:] for request in after] == ['"n', "ab"]


@pytest.mark.parametrize("keeps_media", [True, False])
def test_frames_are_sent_once_to_a_server_that_keeps_them(serve: Any, keeps_media: bool) -> None:
    server = by_id(serve, {"": {"normal": 0.9, "ab": 0.1}, "ab": {"normal": 1.0}}, keeps_media=keeps_media)
    frames = some_frames(16, 16, 4)
    (reply,) = vlm_for(server).answer([user("look", frames)], max_new_tokens=500, readout=STATUS_READOUT)
    assert reply.log_p is not None and math.exp(reply.log_p["normal"]) == pytest.approx(0.9)
    sent = [bool(parts_of(request)[0]["video_url"]) for request in server.requests]
    assert sent == ([True, False, False] if keeps_media else [True, False, True, False, True])
    assert len({parts_of(request)[0]["uuid"] for request in server.requests}) == 1


def test_a_missing_token_has_no_bound(serve: Any) -> None:
    def respond(body: dict[str, Any], number: int) -> Answer:
        item = token("normal", None, {"normal": 0.9})
        return Answer(answer_with(item) if "logprob_token_ids" not in body else completion("x", {"content": [item]}))

    server = serve(respond, tokenize=lambda text: [TABLE[text]] if text in TABLE else [0] * len(text))
    (reply,) = vlm_for(server).answer([user()], max_new_tokens=500, readout=STATUS_READOUT)
    assert reply.log_p is None and "needs vLLM 0.32 or newer" in reply.readout_error


def test_words_that_begin_alike_are_not_guessed_apart(serve: Any) -> None:
    body = completion("x: goo", {"content": [token("x: ", 1.0), token("goo", None, {"goo": 0.8, "bad": 0.2})]})
    server = serve(lambda request, number: Answer(body))
    readout = Readout(("good", "goofy"), lambda text: 3)
    assert vlm_for(server).answer([user()], max_new_tokens=5, readout=readout)[0].log_p is None
