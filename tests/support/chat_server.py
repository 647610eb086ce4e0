"""A real HTTP server on this machine that speaks the OpenAI chat protocol, failures included, and what tests of ServerVlm say to it."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cac_align.core.video import Frames, Video
from cac_align.vlm.protocol import Message
from cac_align.vlm.server.server import ServerVlm

Respond = Callable[[dict[str, Any], int], "Answer"]


class Answer:
    """What the server does with one request: a JSON body, raw bytes, a delay, or a broken connection."""

    def __init__(
        self, body: Any = None, *, status: int = 200, headers: dict[str, str] | None = None, raw: bytes | None = None
    ):
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

    def __init__(self, respond: Respond, models: Answer, tokenize: Callable[[str], list[int]] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.respond, self.models, self.tokenize = respond, models, tokenize
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
        if self.path == "/tokenize" and server.tokenize is not None:
            return self._send(Answer({"tokens": server.tokenize(body["prompt"])}))
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

    def start(respond: Respond, models: Answer = MODELS, tokenize: Callable[[str], list[int]] | None = None) -> Server:
        server = Server(respond, models, tokenize)
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


def after_status(text: str) -> int | None:
    at = text.find('"status": "')
    return None if at < 0 else at + len('"status": "')
