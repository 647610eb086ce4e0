"""The shipped small judge behind a real HTTP server that speaks as much of vLLM's chat protocol as our client and doctor ask for.

It stands for a served 8B judge where there is no GPU: it decodes the frames that arrive, answers with the model, and
gives the probabilities of the tokens that are asked for. It decodes greedily whatever the request says of sampling.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from PIL import Image

from cac_align.core.video import Frames
from cac_align.core.weights import shipped
from cac_align.vlm.inputs import encode_one
from cac_align.vlm.local import LocalVlm
from cac_align.vlm.protocol import Message

NAME = "cac"


def decoded(url: str) -> np.ndarray:
    """The frames of a data URL: one JPEG, or several with commas between them."""
    pictures = url.partition(";base64,")[2].split(",")
    return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg)))) for jpeg in pictures])


def shown_frames(parts: Sequence[Mapping[str, Any]], clock: Mapping[str, Any]) -> tuple[str, Frames | None]:
    """The text of a message and its frames, with the times that the request gives them."""
    texts = [part["text"] for part in parts if part["type"] == "text"]
    videos = [decoded(part["video_url"]["url"]) for part in parts if part["type"] == "video_url"]
    images = [decoded(part["image_url"]["url"])[0] for part in parts if part["type"] == "image_url"]
    if videos:
        indices = tuple(clock["frames_indices"])
        times_s = tuple(index / clock["fps"] for index in indices)
        return texts[-1], Frames(videos[0], indices, times_s, clock["fps"], clock["total_num_frames"])
    if images:  # each behind its time, "<0.5 seconds>"
        times_s = tuple(float(text.strip("<>").split()[0]) for text in texts[:-1])
        indices = tuple(round(16 * time_s) for time_s in times_s)
        return texts[-1], Frames(np.stack(images), indices, times_s, 16.0, indices[-1] + 1)
    return texts[-1], None


class Judge:
    """Answers one request at a time, and requests that differ in their seed alone once.

    kept: media by the key under which a client sent them. said: answers by request.
    """

    def __init__(self) -> None:
        self.vlm, self.lock = LocalVlm.load(shipped("cac")), threading.Lock()
        self.kept: dict[str, Any] = {}
        self.said: dict[str, dict[str, Any]] = {}

    def conversation(self, body: Mapping[str, Any]) -> tuple[Message, ...]:
        clock = body.get("media_io_kwargs", {}).get("video", {})
        messages = []
        for message in body["messages"]:
            if isinstance(message["content"], str):
                messages.append(Message(message["role"], message["content"]))
                continue
            parts = [dict(part) for part in message["content"]]
            for part in parts:
                if "uuid" in part and part[part["type"]] is not None:
                    self.kept[part["uuid"]] = part[part["type"]]
                elif "uuid" in part:
                    part[part["type"]] = self.kept[part["uuid"]]
            text, frames = shown_frames(parts, clock)
            messages.append(Message(message["role"], text, frames))
        return tuple(messages)

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        key = json.dumps({name: value for name, value in body.items() if name != "seed"}, sort_keys=True)
        with self.lock:
            if key not in self.said:
                self.said[key] = self.complete(body)
            return self.said[key]

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        conversation = self.conversation(body)
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        count = body.get("max_tokens") or body.get("max_completion_tokens")
        (reply,) = self.vlm.answer([conversation], max_new_tokens=count, schema=schema)
        prompt = encode_one(self.vlm.processor, conversation)
        logprobs = self.logprobs(prompt, body["logprob_token_ids"]) if "logprob_token_ids" in body else None
        choice = {"index": 0, "finish_reason": "length" if reply.truncated else "stop", "logprobs": logprobs}
        usage = {"prompt_tokens": prompt["input_ids"].shape[1], "completion_tokens": reply.num_tokens}
        answer = {"choices": [{**choice, "message": {"role": "assistant", "content": reply.text}}], "usage": usage}
        return answer | ({"prompt_token_ids": prompt["input_ids"][0].tolist()} if "return_token_ids" in body else {})

    def logprobs(self, prompt: Mapping[str, torch.Tensor], tokens: Sequence[int]) -> dict[str, Any]:
        """The log-probabilities of these tokens at the next place, as vLLM writes them."""
        with torch.no_grad():
            log_p = self.vlm.model(**prompt).logits[0, -1].float().log_softmax(-1)
        best = int(log_p.argmax())
        listed = [{"token": f"token_id:{token}", "logprob": float(log_p[token])} for token in {*tokens, best}]
        return {"content": [{"token": f"token_id:{best}", "logprob": float(log_p[best]), "top_logprobs": listed}]}

    def tokenize(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {"tokens": self.vlm.processor.tokenizer(body["prompt"], add_special_tokens=False).input_ids}


def _handler(judge: Judge) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            card = {"id": NAME, "root": "example/cac-small", "max_model_len": 4096}
            self.send({"object": "list", "data": [card]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send(judge.tokenize(body) if self.path == "/tokenize" else judge.answer(body))

        def send(self, answer: Any) -> None:
            raw = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    return Handler


@contextmanager
def judge_server() -> Iterator[str]:
    """The server's URL while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(Judge()))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
