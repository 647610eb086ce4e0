"""Replies of a server of the chat protocol, changed at one place or altogether, beside a good one."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from cac_align.cac.verdict_only import VerdictOnly
from cac_align.core.video import Video
from cac_align.rewards.cac import CaC
from tests.campaign.promise import Broken, Promise
from tests.support.chat_server import MODELS, Answer, Server, broken_connection, completion, vlm_for

_TEXT = '{"COT": "", "status": "normal"}'
_TOKENS = ['{"COT": "", "status": "', "normal", '"}']
_GOOD_ODDS = math.log(0.9) - math.log(0.1)
_UNUSABLE = [math.nan, math.inf, -math.inf, -9999.0, -1e5, None, "-0.1", [], {}, 0.5, 1e400, True]


def _entry(token: str, p: float) -> dict[str, Any]:
    return {"token": token, "logprob": math.log(p), "bytes": list(token.encode())}


def good() -> dict[str, Any]:
    """A completion that says normal with P = 0.9 against abnormal's 0.1."""
    steps = []
    for token in _TOKENS:
        top = [_entry("normal", 0.9), _entry("abnormal", 0.1)] if token == "normal" else [_entry(token, 1.0)]
        steps.append({**top[0], "top_logprobs": top})
    return completion(_TEXT, logprobs={"content": steps})


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(path for key, inner in items for path in paths(inner, (*here, key)))]


_PATHS = sorted(paths(good())[1:], key=str)
_WORD = ("choices", 0, "logprobs", "content", 1, "top_logprobs", 0, "logprob")
_RIVAL = ("choices", 0, "logprobs", "content", 1, "top_logprobs", 1, "logprob")


def put_at(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The JSON value with another one at a place; ``...`` removes what is there."""
    made = json.loads(json.dumps(value))
    at = made
    for key in path[:-1]:
        at = at[key]
    if new is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = new
    return made


class _Context:
    """One server and one client for all cases."""

    def __init__(self, _: Path) -> None:
        self.bad: Answer = Answer(good())
        self.server = Server(self._respond, MODELS)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        vlm = vlm_for(self.server, dialect="openai", retries=0, concurrency=2, timeout_s=5)
        self.judge = CaC(vlm, VerdictOnly("json"))
        self.video = Video.open(np.zeros((5, 16, 16, 3), np.uint8), fps=16)

    def _respond(self, request: dict[str, Any], _: int) -> Answer:
        return self.bad if "HOSTILE" in json.dumps(request["messages"]) else Answer(good())

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def _check(context: _Context, case: tuple[str, Any]) -> None:
    kind, value = case
    must_miss = kind in ("unusable", "bytes", "broken", "deep")
    if kind in ("unusable", "changed"):
        path, new = value
        context.bad = Answer(raw=json.dumps(put_at(good(), path, new)).encode("utf-8", "surrogatepass"))
    elif kind == "deep":
        context.bad = Answer(raw=b'{"choices": ' + b"[" * value)
    elif kind == "broken":
        context.bad = broken_connection() if value else Answer(status=500)
    elif kind == "bytes":
        context.bad = Answer(raw=value)
    else:
        status, headers = value
        context.bad, must_miss = Answer(good(), status=status, headers=headers), status != 200
    hostile, neighbour = context.judge(["HOSTILE", "a ball"], [context.video] * 2)
    if not neighbour.scored or not abs(neighbour.value - 0.9) < 1e-6:
        raise Broken(f"the neighbour has {neighbour.value}: {neighbour.error}")
    if hostile.scored and (must_miss or not 0 <= hostile.value <= 1):
        raise Broken(f"{hostile.value} for {case!r:.200}")
    if hostile.scored and hostile.evidence is not None:
        odds = hostile.evidence.log_odds
        if (
            not math.isfinite(odds)
            or hostile.evidence.mass > 1.003
            or (odds >= 0) != (hostile.evidence.status == "normal")
        ):
            raise Broken(f"{hostile.value} with log-odds {odds}, mass {hostile.evidence.mass}")


_values = st.one_of(
    st.sampled_from([None, 3, -1, "x", "", True, [], {}, 1e400, math.nan, 10**400, "\ud800", [[]], {"a": []}, 0, ...]),
    st.floats(),
    st.text(max_size=5),
)
_headers = st.dictionaries(st.sampled_from(["Retry-After", "X-A"]), st.sampled_from(["nan", "-1", "x"]))
_case = st.one_of(
    st.tuples(st.just("unusable"), st.tuples(st.sampled_from([_WORD, _RIVAL]), st.sampled_from(_UNUSABLE))),
    st.tuples(st.just("changed"), st.tuples(st.sampled_from(_PATHS), _values)),
    st.tuples(st.just("changed"), st.tuples(st.sampled_from(_PATHS), _values)),
    st.tuples(st.just("deep"), st.sampled_from([5, 500, 990, 5000, 200_000])),
    st.tuples(st.just("bytes"), st.binary(max_size=50)),
    st.tuples(st.just("broken"), st.booleans()),
    st.tuples(st.just("status"), st.tuples(st.sampled_from([200, 201, 204, 301, 400, 404, 413, 418]), _headers)),
)  # fmt: skip
PROMISES = (
    Promise("wire replies", "A malformed reply is its own video's error; the neighbour keeps its score",
            _Context, _case, _check, 2.0),
)  # fmt: skip
