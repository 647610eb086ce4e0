"""Faulty clients of the scoring service, beside good ones."""

from __future__ import annotations

import base64
import json
import logging
import math
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from hypothesis import strategies as st

from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
from cac_align.serving.service import ServiceSettings
from cac_align.serving.video_parts import frames_part
from cac_align.serving.wire import PACKED, ScoreItem, ScoreRequest, message_to_json, pack
from tests.campaign.promise import Broken, Promise
from tests.campaign.wire import paths, put_at
from tests.support.hosting import Brightness, clip, serving

_ITEM = {"prompt": "a ball", "video": message_to_json(frames_part(Video.open(clip(200, 9), fps=16), tuple(range(9))))}
_REQUEST = {"items": [_ITEM]}
_PATHS = sorted(paths(_REQUEST)[1:], key=str)
_OUTSIDE = [
    "/etc/passwd",
    "../secret.mp4",
    "{root}/../secret.mp4",
    "{root}/%2e%2e/secret.mp4",
    "file:///etc/passwd",
    "",
    "\0",
    "{root}",
]
_EXPECTED = (200 + 196 + 192) / 3 / 255


class _Tracebacks(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        own = record.exc_info is not None and "the reward itself broke" in str(record.exc_info[1])  # it was asked to
        if (record.exc_info or "Traceback" in record.getMessage()) and not own:
            self.seen.append(str(record.exc_info[1] if record.exc_info else record.getMessage())[:200])


class _Context:
    """The real service on a free port."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "shared"
        self.root.mkdir()
        write_mp4(self.root / "clip.mp4", clip(200, 9), 16)
        write_mp4(folder / "secret.mp4", clip(200, 9), 16)
        self.file = (self.root / "clip.mp4").read_bytes()
        self.stack = ExitStack()
        self.url, _ = self.stack.enter_context(serving(Brightness(), ServiceSettings(roots=(self.root,))))
        self.client = self.stack.enter_context(httpx.Client(timeout=9))
        self.logged = _Tracebacks()
        for name in ("", "uvicorn", "uvicorn.error", "cac_align"):
            logging.getLogger(name).addHandler(self.logged)

    def close(self) -> None:
        self.stack.close()

    def post(self, body: bytes, kind: str = "application/json") -> httpx.Response:
        return self.client.post(f"{self.url}/v1/score", content=body, headers={"Content-Type": kind})


def _disconnect(url: str, sent: int, body: bytes) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        head = "POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        connection.sendall((head.encode() + body)[:sent])


def _check(context: _Context, case: tuple[str, Any]) -> None:
    kind, value = case
    answer, no_score = None, False
    body = json.dumps(_REQUEST).encode()
    if kind == "changed":
        path, new = value
        changed = json.dumps(put_at(_REQUEST, path, new)).encode("utf-8", "surrogatepass")
        answer = context.post(changed)
    elif kind == "bytes":
        answer, no_score = context.post(value), True
    elif kind == "cut":
        answer, no_score = context.post(body[: int(value * len(body))]), True
    elif kind == "deep":
        answer, no_score = context.post(b"[" * value), True
    elif kind == "path":
        item = {"prompt": "p", "video": {"kind": "path", "path": value.replace("{root}", str(context.root))}}
        answer, no_score = context.post(json.dumps({"items": [item]}).encode()), True
    elif kind == "file":
        data = context.file[: int(value * len(context.file))]
        item = {"prompt": "p", "video": {"kind": "file", "data": base64.b64encode(data).decode()}}
        answer, no_score = context.post(json.dumps({"items": [item]}).encode()), True
    elif kind == "packed":
        part = frames_part(Video.open(clip(200, 9), fps=16), tuple(range(9)))
        whole = bytearray(pack(ScoreRequest((ScoreItem("p", part),))))
        place, change = value
        whole[int(place * min(len(whole), 400))] ^= change
        answer = context.post(bytes(whole), PACKED)
    else:
        _disconnect(context.url, int(value * (len(body) + 120)), body)
    if answer is not None:
        if answer.status_code >= 500 and answer.status_code != 503:
            raise Broken(f"HTTP {answer.status_code} for {case!r:.200}")
        if answer.status_code == 200:
            scores = [row["score"] for row in answer.json()["scores"]]
            if no_score and any(score is not None for score in scores):
                raise Broken(f"{scores} for {case!r:.200}")
            if any(score is not None and not (math.isfinite(score) and 0 <= score <= 1) for score in scores):
                raise Broken(f"scores {scores}")
    fine = context.post(body)
    if fine.status_code != 200 or not abs(fine.json()["scores"][0]["score"] - _EXPECTED) < 1e-6:
        raise Broken(f"the good client got {fine.status_code} {fine.text[:200]}")
    if context.logged.seen:
        seen, context.logged.seen = context.logged.seen, []
        raise Broken(f"a traceback in the log: {seen[0]}")


_values = st.sampled_from(
    [
        None,
        3,
        -1,
        "x",
        "",
        True,
        [],
        {},
        math.nan,
        math.inf,
        1e308,
        10**400,
        "\ud800",
        [[]],
        ...,
        "unscorable",
        "explode",
        1e-300,
    ]
)
_share = st.floats(0, 1, exclude_max=True)
_changed = st.tuples(st.just("changed"), st.tuples(st.sampled_from(_PATHS), _values))
_case = st.one_of(
    _changed,
    _changed,
    st.tuples(st.just("bytes"), st.binary(max_size=60)),
    st.tuples(st.just("cut"), _share),
    st.tuples(st.just("deep"), st.sampled_from([1, 500, 990, 100_000])),
    st.tuples(st.just("path"), st.one_of(st.sampled_from(_OUTSIDE), st.text(st.characters(), max_size=30))),
    st.tuples(st.just("file"), _share),
    st.tuples(st.just("packed"), st.tuples(_share, st.integers(1, 255))),
    st.tuples(st.just("disconnect"), _share),
)
PROMISES = (
    Promise("service clients", "A faulty client harms no other: no HTTP 500, traceback or score from outside the roots",
            _Context, _case, _check, 2.0),
)  # fmt: skip
