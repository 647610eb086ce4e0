"""ServerVlm against a real HTTP server on this machine that speaks the OpenAI chat protocol, failures included."""

from __future__ import annotations

import base64
import io
import json
import math
import pickle
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cac_align.cac.readout import STATUS
from cac_align.video import Frames, Video
from cac_align.vlm.connect import connect
from cac_align.vlm.dialogue import Question, hold
from cac_align.vlm.protocol import Message, Readout, Vlm
from cac_align.vlm.server import ServerVlm

Respond = Callable[[dict[str, Any], int], "Answer"]


class Answer:
    """What the server does with one request: a JSON body, raw bytes, a delay, or a broken connection."""

    def __init__(self, body: Any = None, *, status: int = 200, headers: dict[str, str] | None = None, raw: bytes | None = None):
        self.raw = json.dumps(body).encode() if raw is None else raw
        self.status = status
        self.headers = headers or {}
        self.delay_s = 0.0
        self.reset = False

    def after(self, delay_s: float) -> Answer:
        self.delay_s = delay_s
        return self


def broken_connection() -> Answer:
    answer = Answer()
    answer.reset = True
    return answer


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, respond: Respond, models: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.respond, self.models = respond, models
        self.requests: list[dict[str, Any]] = []
        self.headers_seen: list[dict[str, str]] = []
        self.times_s: list[float] = []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._send(self.server.models if self.path == "/v1/models" else Answer({"detail": "Not Found"}, status=404))

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            return self._send(Answer({"detail": "Not Found"}, status=404))
        with server.lock:
            number = len(server.requests)
            server.requests.append(body)
            server.headers_seen.append(dict(self.headers))
            server.times_s.append(time.monotonic())
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            answer = server.respond(body, number)
            time.sleep(answer.delay_s)
        finally:
            with server.lock:
                server.in_flight -= 1
        return self._send(answer)

    def _send(self, answer: Answer) -> None:
        if answer.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST, not FIN
            self.connection.close()
            self.close_connection = True
            return
        try:
            self.send_response(answer.status)
            for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.raw)))
            self.end_headers()
            self.wfile.write(answer.raw)
        except OSError:
            pass  # the client has given up waiting


MODELS = Answer({"object": "list", "data": [{"id": "cac", "root": "example/cac-8b"}, {"id": "other", "root": "x"}]})


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    running = []

    def start(respond: Respond, models: Answer = MODELS) -> Server:
        server = Server(respond, models)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def completion(text: str | None, logprobs: Any = None, finish: str = "stop", **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "logprobs": logprobs}
    return {
        "id": "1",
        "object": "chat.completion",
        "choices": [{**choice, "message": {"role": "assistant", "content": text, **message}}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7},
    }


def vlm_for(server: Server, **settings: Any) -> ServerVlm:
    return ServerVlm(server.url, "cac", **{"backoff_s": 0.01, "timeout_s": 10, **settings})


def user(text: str = "hello", frames: Frames | None = None, **kind: Any) -> tuple[Message, ...]:
    return (Message("user", text, frames, **kind),)


def some_frames(count: int = 81, fps: float = 16, sample: float = 4) -> Frames:
    rows, columns = np.mgrid[:24, :32]
    pixels = np.stack([np.stack([rows * 5, columns * 4, np.full_like(rows, n % 256)], -1) for n in range(count)])
    return Video.open(pixels.astype(np.uint8), fps=fps, layout="THWC").sample(sample)


def parts_of(request: dict[str, Any], message: int = 0) -> list[dict[str, Any]]:
    return request["messages"][message]["content"]


def pixels_of(url: str) -> list[np.ndarray]:
    head, _, body = url.partition(",")
    assert head.endswith(";base64")
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg, validate=True)))) for jpeg in body.split(",")]


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
    assert "secret" not in repr(vlm) and "secret" not in json.dumps(dict(vlm.passport))


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_every_spelling_of_the_url_reaches_the_server(serve: Any, suffix: str) -> None:
    server = serve(lambda body, number: Answer(completion("fine")))
    assert ServerVlm(server.url + suffix, "cac").answer([user()], max_new_tokens=5)[0].text == "fine"


def test_frames_go_out_as_images_behind_their_time_stamps(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("fine")))
    frames = some_frames()
    vlm_for(server).answer([user("look", frames)], max_new_tokens=5)
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


def test_two_videos_in_one_request_go_out_as_images(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("fine")))
    frames = some_frames(8, 8, 4)
    chat = (*user("first", frames), Message("assistant", "so"), *user("second", frames))
    vlm_for(server, frames="video").answer([chat], max_new_tokens=5)
    assert {part["type"] for part in parts_of(server.requests[0], 2)} == {"text", "image_url"}
    assert "media_io_kwargs" not in server.requests[0]


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
    assert "continued" in reply.error and len(server.requests) == 1


# ---- the readout --------------------------------------------------------------------------------------------------

BEFORE = ['{"', "C", "OT", '":', ' "', "a sixth", " finger", '",', ' "', "status", '":', ' "']
AFTER = ['",', ' "', "anomalies", '":', " []", "}"]


def token(text: str, p: float | None, top: dict[str, float] | None = None) -> dict[str, Any]:
    entries = {text: 1.0 if p is None else p} if top is None else top
    top_logprobs = [
        {"token": piece, "logprob": math.log(q), "bytes": list(piece.encode())}
        for piece, q in sorted(entries.items(), key=lambda item: -item[1])
    ]
    return {"token": text, "logprob": math.log(entries.get(text, p)), "bytes": list(text.encode()), "top_logprobs": top_logprobs}


def answer_with(*verdict: dict[str, Any], finish: str = "stop") -> dict[str, Any]:
    """A whole answer in Qwen's own pieces, with the given tokens as the status."""
    tokens = [*(token(piece, 1.0) for piece in BEFORE), *verdict, *(token(piece, 1.0) for piece in AFTER)]
    text = "".join(item["token"] for item in tokens)
    end = {"token": "<|im_end|>", "logprob": 0.0, "bytes": list(b"<|im_end|>"), "top_logprobs": []}
    return completion(text, {"content": [*tokens, end]}, finish)


def read(serve: Any, *bodies: dict[str, Any], **settings: Any) -> tuple[dict[str, float] | None, Server]:
    server = serve(lambda body, number: Answer(bodies[min(number, len(bodies) - 1)]))
    (reply,) = vlm_for(server, **settings).answer([user()], max_new_tokens=500, readout=STATUS)
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


def test_normal_is_read_at_its_only_piece(serve: Any) -> None:
    p, _ = read(serve, answer_with(token("normal", None, {"normal": 0.7, "ab": 0.2, " normal": 0.06, "n": 0.04})))
    # "n" begins the word too, and counts in full; a leading space is another text
    assert p == pytest.approx({"normal": 0.74, "abnormal": 0.2})


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
    item["top_logprobs"] += [{"token": "x", "logprob": -9999.0, "bytes": [120]}, {"token": "y", "logprob": None, "bytes": [121]}]
    assert read(serve, answer_with(item))[0] == pytest.approx({"normal": 0.9, "abnormal": 0.1})


def test_the_place_is_found_by_bytes_behind_any_text(serve: Any) -> None:
    tokens = [
        token('{"COT": "', 1.0),
        {"token": "\ufffd", "logprob": 0.0, "bytes": [0xF0, 0x9F], "top_logprobs": []},  # half an emoji, as vLLM writes it
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
    readout = Readout(("normal", "abnormal"), _after_status)
    (reply,) = vlm_for(server).answer([chat], max_new_tokens=9, readout=readout, schema={"type": "object"})
    assert math.exp(reply.log_p["normal"]) == pytest.approx(0.9)
    assert server.requests[1]["messages"][-1]["content"] == '{"COT": "", "status": "'
    assert len(server.requests[1]["messages"]) == 2 and "response_format" not in server.requests[1]


def _after_status(text: str) -> int | None:
    at = text.find('"status": "')
    return None if at < 0 else at + len('"status": "')


def test_openai_servers_are_not_asked_to_continue(serve: Any) -> None:
    p, server = read(serve, completion('{"status": "normal"}'), dialect="openai")
    assert p is None and len(server.requests) == 1


def test_an_answer_without_the_place_has_no_probabilities(serve: Any) -> None:
    p, server = read(serve, completion("I cannot say."))
    assert p is None and len(server.requests) == 1


def test_asked_for_tokens_replace_the_likeliest(serve: Any) -> None:
    item = token("normal", None, {"normal": 0.9})
    item["top_logprobs"] = [
        {"token": "token_id:8252", "logprob": math.log(0.9), "bytes": None},
        {"token": "token_id:370", "logprob": math.log(1e-7), "bytes": None},
    ]
    p, server = read(serve, answer_with(item), word_token_ids={8252: "normal", 370: "ab"})
    assert p == pytest.approx({"normal": 0.9, "abnormal": 1e-7})
    assert server.requests[0]["logprob_token_ids"] == [370, 8252] and "top_logprobs" not in server.requests[0]


def test_a_missing_asked_for_token_has_no_bound(serve: Any) -> None:
    body = answer_with(token("normal", None, {"normal": 0.9}))
    assert read(serve, body, word_token_ids={8252: "normal", 370: "ab"})[0] is None


def test_words_that_begin_alike_are_not_guessed_apart(serve: Any) -> None:
    body = completion("x: goo", {"content": [token("x: ", 1.0), token("goo", None, {"goo": 0.8, "bad": 0.2})]})
    server = serve(lambda request, number: Answer(body))
    readout = Readout(("good", "goofy"), lambda text: 3)
    assert vlm_for(server).answer([user()], max_new_tokens=5, readout=readout)[0].log_p is None


# ---- failures -----------------------------------------------------------------------------------------------------


def one(server: Server, **settings: Any) -> Any:
    return vlm_for(server, **settings).answer([user()], max_new_tokens=5)[0]


def test_retry_after_is_honoured(serve: Any) -> None:
    busy = Answer({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "0.3"})
    server = serve(lambda body, number: busy if number == 0 else Answer(completion("fine")))
    assert one(server).text == "fine"
    assert server.times_s[1] - server.times_s[0] >= 0.3


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_passing_failures_are_retried(serve: Any, status: int) -> None:
    server = serve(lambda body, number: Answer(raw=b"oops", status=status) if number < 2 else Answer(completion("fine")))
    assert one(server).text == "fine"
    assert len(server.requests) == 3 and server.requests[0] == server.requests[2]


def test_retries_are_bounded_and_the_reason_is_kept(serve: Any) -> None:
    server = serve(lambda body, number: Answer({"error": {"message": "out of memory"}}, status=500))
    reply = one(server, retries=2)
    assert (reply.text, len(server.requests)) == ("", 3)
    assert reply.error == "the server answered 500: out of memory (gave up after 3 attempts)"


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (400, {"error": {"message": "maximum context length is 100"}}, "maximum context length is 100"),
        (400, {"object": "error", "message": "bad image", "code": 400}, "bad image"),
        (401, {"error": "Unauthorized"}, "Unauthorized"),
        (404, {"detail": "The model `cac` does not exist."}, "The model `cac` does not exist."),
        (422, {"detail": [{"msg": "field required"}]}, "field required"),
    ],
)
def test_wrong_requests_are_final_with_the_servers_words(serve: Any, status: int, body: Any, said: str) -> None:
    server = serve(lambda request, number: Answer(body, status=status))
    reply = one(server)
    assert len(server.requests) == 1
    assert reply.error.startswith(f"the server answered {status}: ") and said in reply.error


def test_a_hanging_server_times_out(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("late")).after(0.6 if number == 0 else 0))
    assert one(server, timeout_s=0.2, retries=0).error == "no answer from the server within 0.2 s (gave up after one attempt)"
    assert one(server, timeout_s=0.2).text == "late"


def test_a_reset_connection_is_retried(serve: Any) -> None:
    server = serve(lambda body, number: broken_connection() if number == 0 else Answer(completion("fine")))
    assert one(server).text == "fine"


def test_a_dead_server_is_an_error_not_an_exception() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    vlm = ServerVlm(url, "cac", retries=1, backoff_s=0.01)
    replies = vlm.answer([user(), user()], max_new_tokens=5)
    assert all("connection to the server failed" in reply.error and reply.text == "" for reply in replies)
    assert vlm.passport["served"] == "unreachable"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(raw=b"<html>gateway</html>"), "not JSON: <html>gateway</html>"),
        (Answer(raw=b""), "not JSON"),
        (Answer(raw=b"\xff\xfe\x00garbage"), "not JSON"),
        (Answer([1, 2]), "no choices"),
        (Answer({"choices": []}), "no choices"),
        (Answer({"error": {"message": "quota"}}), "quota"),
        (Answer(completion(None)), "empty (no text"),
        (Answer(completion("")), "empty"),
        (Answer(completion(None, reasoning_content="hmm")), "thinking off"),
        (Answer(completion("half", finish="content_filter")), "content_filter"),
        (Answer(completion("half", finish="abort")), "abort"),
        (Answer({"choices": [{"message": "text"}]}), "empty"),
    ],
)
def test_broken_answers_are_errors(serve: Any, answer: Answer, said: str) -> None:
    server = serve(lambda body, number: answer)
    reply = one(server)
    assert said in reply.error and reply.text == ""
    assert len(server.requests) == 1


def test_a_truncated_answer_says_so(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion('{"COT": "Step 1', finish="length")))
    reply = one(server)
    assert (reply.text, reply.truncated, reply.error) == ('{"COT": "Step 1', True, None)


def test_one_failure_touches_no_other_and_order_is_kept(serve: Any) -> None:
    def respond(body: dict[str, Any], number: int) -> Answer:
        text = body["messages"][0]["content"]
        if text == "3":
            return Answer({"error": {"message": "no"}}, status=400)
        return Answer(completion(f"reply {text}")).after(0.05 * (int(text) % 3))

    replies = vlm_for(serve(respond)).answer([user(str(n)) for n in range(8)], max_new_tokens=5)
    assert [reply.text for reply in replies] == [f"reply {n}" if n != 3 else "" for n in range(8)]
    assert [n for n, reply in enumerate(replies) if reply.error] == [3]


def test_concurrency_holds_over_all_callers(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("fine")).after(0.05))
    vlm = vlm_for(server, concurrency=3)
    with ThreadPoolExecutor(4) as callers:
        for replies in callers.map(lambda _: vlm.answer([user()] * 4, max_new_tokens=5), range(4)):
            assert [reply.text for reply in replies] == ["fine"] * 4
    assert server.most_in_flight == 3 and len(server.requests) == 16


def talk(name: str, *turns: str) -> Any:
    """A dialogue of several turns; returns what it heard."""
    heard = []
    for turn in turns:
        heard += [reply.text or reply.error for reply in (yield [Question(user(f"{name} {turn}"), 5)])]
    return heard


def test_a_second_turn_does_not_wait_for_the_first_turns_of_others(serve: Any) -> None:
    second = threading.Event()

    def respond(body: dict[str, Any], number: int) -> Answer:
        text = body["messages"][0]["content"]
        if text == "quick two":
            second.set()
        waited = second.wait(8) if text == "slow one" else True  # answered only once the other dialogue is at its second turn
        return Answer(completion(f"{text}: {waited}"))

    finished = []
    vlm_for(serve(respond), concurrency=2).hold(
        [talk("slow", "one"), talk("quick", "one", "two")], lambda number, heard: finished.append((number, heard))
    )
    assert sorted(finished) == [(0, ["slow one: True"]), (1, ["quick one: True", "quick two: True"])]


def test_dialogues_keep_the_server_full_but_no_fuller(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("fine")).after(0.05))
    results = hold(vlm_for(server, concurrency=3), [talk(str(n), "one", "two") for n in range(8)])
    assert results == [["fine", "fine"]] * 8 and server.most_in_flight == 3 and len(server.requests) == 16


def test_a_dialogue_that_raises_ends_the_call(serve: Any) -> None:
    def broken() -> Any:
        yield [Question(user("x"), 5)]
        raise ValueError("no such wording")

    def asks_nobody() -> Any:
        yield [Question((), 5)]

    with pytest.raises(ValueError, match="no such wording"):
        hold(vlm_for(serve(lambda body, number: Answer(completion("fine")))), [broken()])
    with pytest.raises(ValueError, match="dialogue 0's question has no user message"):
        hold(vlm_for(serve(lambda body, number: Answer(completion("fine")))), [asks_nobody()])


# ---- identity -----------------------------------------------------------------------------------------------------


def test_the_passport_names_the_checkpoint_and_not_the_address(serve: Any) -> None:
    servers = [serve(lambda body, number: Answer(completion("fine"))) for _ in range(2)]
    first, second = (dict(vlm_for(server).passport) for server in servers)
    assert first == second
    assert (first["model"], first["served"], first["frames"][:7], first["dialect"]) == (
        "cac",
        "example/cac-8b",
        "jpeg 95",
        "vllm",
    )
    assert first != dict(vlm_for(servers[0], frames="video").passport)
    assert all(isinstance(value, str) for value in first.values())


@pytest.mark.parametrize("models", [Answer({"detail": "Not Found"}, status=404), Answer(raw=b"<html>"), Answer({"data": None})])
def test_a_server_that_does_not_say_what_it_runs_is_known_by_the_name(serve: Any, models: Answer) -> None:
    assert vlm_for(serve(lambda body, number: Answer(completion("fine")), models)).passport["served"] == "cac"


def test_it_survives_pickling(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("fine")))
    vlm = vlm_for(server, api_key="secret", frames="video", word_token_ids={1: "a"})
    vlm.answer([user()], max_new_tokens=5)
    twin = pickle.loads(pickle.dumps(vlm))
    assert dict(twin.passport) == dict(vlm.passport)
    assert twin.answer([user()], max_new_tokens=5)[0].text == "fine"
    assert server.headers_seen[-1]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dialect": "tgi"}, "dialect must be"),
        ({"frames": "gif"}, "frames must be"),
        ({"frames": "video", "dialect": "sglang"}, "needs vLLM"),
        ({"word_token_ids": {1: "a"}, "dialect": "sglang"}, "needs vLLM"),
        ({"concurrency": 0}, "concurrency >= 1"),
        ({"image_quality": 0}, "image_quality in 1 to 100"),
        ({"timeout_s": 0}, "timeout_s > 0"),
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
        vlm.answer([user()], max_new_tokens=5, readout=Readout((), _after_status))
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
