"""A vision-language model behind the OpenAI chat protocol, as vLLM and SGLang speak it: JSON over HTTP, nothing pickled.

conversations → JPEG frames + text → POST /v1/chat/completions (bounded retries, thread pool) → Reply
readout: locate(text) → token at that place → its top-20 → log P(word);  not covered, or behind a schema → one more
request, without a schema, that ends at the place: the grammar's mask acts before a server takes its log-probabilities

The client samples and stamps the frames itself, so that what the judge sees is exact: either single images, each behind its time
("<0.5 seconds>", Qwen3-VL's own notation), or one video part whose frame indices and rate travel along (vLLM only). Decoding is
greedy: temperature 0, top_p 1, seed 0. Probabilities of whole words are worked out in ``server_readout``.

Protocol facts: vLLM 0.33 (``media_io_kwargs``, ``continue_final_message``, ``logprob_token_ids``), SGLang 0.5.23.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from cac_align.vlm.dialogue import Dialogue, Question, run_one_dialogue
from cac_align.vlm.protocol import UNREACHABLE, Conversation, Readout, Reply
from cac_align.vlm.server.chat import chat, continuation, response_format
from cac_align.vlm.server.readout import Uncovered, read_words
from cac_align.vlm.server.reply import Failed, choice_of, excerpt, reply_of, retry_after_s, root_of, server_message

_LOG = logging.getLogger(__name__)

GREEDY = {"temperature": 0, "top_p": 1, "seed": 0}

TOP_LOGPROBS = 20
"""As many as the protocol allows everywhere."""

_RETRIED = frozenset({429, 500, 502, 503, 504})
_AWAY = frozenset({502, 503, 504})
"""Whoever answers after one of these may be another process, with another checkpoint."""
_LONGEST_WAIT_S = 30.0
_BELIEVED_S = 60.0
"""How long the checkpoint that a server named is believed to be still there, while nothing is asked of it."""
_READERS = 4
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class ServerVlm:
    """A Vlm that asks a server. Thread-safe and picklable (connections are opened per process, on first use).

    url: "http://host:8000", with or without "/v1". model: the name under which the server serves it. api_key: sent as bearer token.
    concurrency: requests in flight at most, over all threads. timeout_s: per request and attempt, in seconds.
    retries: further attempts after 429, 500, 502, 503, 504, a broken connection or a timeout; waits double from ``backoff_s`` to
        at most 30 s, of which jitter takes up to half, and are at least what Retry-After says. Any other failure is final.
    frames: "images" (each behind its time stamp) or "video" (one part with frame indices; vLLM only. A request that holds several
        videos goes out as images all the same, because vLLM takes one set of indices per request).
    dialect: "vllm", "sglang", or "openai" for servers that can neither continue an answer nor enforce every JSON schema.
    image_quality: of the JPEGs, 1 to 100. headers: further HTTP headers.
    revision: any text that tells these weights from others at the same path, e.g. a date or a commit. It enters the provenance; a
        server names its checkpoint and cannot say that the files were exchanged.
    word_token_ids: token id → its text, e.g. {8252: "normal", 370: "ab"}: vLLM then reports exactly these tokens at every place,
        instead of the 20 likeliest.
    Raises ``ValueError`` for an argument that is out of range or a combination the server cannot do.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        concurrency: int = 16,
        timeout_s: float = 120.0,
        retries: int = 4,
        backoff_s: float = 0.5,
        frames: Literal["images", "video"] = "images",
        dialect: Literal["vllm", "sglang", "openai"] = "vllm",
        image_quality: int = 95,
        headers: Mapping[str, str] | None = None,
        word_token_ids: Mapping[int, str] | None = None,
        revision: str | None = None,
    ) -> None:
        if dialect not in ("vllm", "sglang", "openai"):
            raise ValueError(f"dialect must be 'vllm', 'sglang' or 'openai', received {dialect!r}")
        if frames not in ("images", "video"):
            raise ValueError(f"frames must be 'images' or 'video', received {frames!r}")
        if frames == "video" and dialect != "vllm":
            raise ValueError(
                f"frames='video' needs vLLM: a {dialect} server would stamp the frames itself; use frames='images'"
            )
        if word_token_ids is not None and dialect != "vllm":
            raise ValueError(
                f"word_token_ids needs vLLM (logprob_token_ids); a {dialect} server has no such field, leave it out"
            )
        if (
            concurrency < 1
            or retries < 0
            or not timeout_s > 0
            or not 0 <= backoff_s < math.inf
            or not 1 <= image_quality <= 100
        ):
            raise ValueError(
                "expected concurrency >= 1, retries >= 0, timeout_s > 0, finite backoff_s >= 0, image_quality in 1 to 100; "
                f"received {concurrency}, {retries}, {timeout_s}, {backoff_s} and {image_quality}"
            )
        self.url = _base_url(url)
        self.model = model
        self.concurrency = concurrency
        self.timeout_s = timeout_s
        self.retries = retries
        self.backoff_s = backoff_s
        self.frames = frames
        self.dialect = dialect
        self.image_quality = image_quality
        self.revision = revision
        self.word_token_ids = dict(word_token_ids) if word_token_ids else None
        self._api_key = api_key
        self._headers = dict(headers or {})
        self._open()

    def _open(self) -> None:
        self._client: httpx.Client | None = None
        self._client_pid = -1
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self.concurrency)
        self._root, self._answered = None, False
        self._asked_s, self._breaks = (
            -math.inf,
            0,
        )  # when it was asked for (monotonic clock), how often it was forgotten
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        private = {"_client", "_client_pid", "_lock", "_slots", "_warned", "_root", "_answered", "_asked_s", "_breaks"}
        return {name: value for name, value in self.__dict__.items() if name not in private}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.concurrency = state["concurrency"]
        self._open()
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return f"ServerVlm({self.url!r}, {self.model!r}, frames={self.frames!r}, dialect={self.dialect!r})"

    @property
    def provenance(self) -> Mapping[str, str]:
        """What identifies the answers, wherever the server runs. ``served`` is the checkpoint that the server says it has loaded,
        ``revision`` (only where one was given) which of those weights.

        It is asked for again after a new connection, a broken one, a 502, 503 or 504, and after a minute: the server may have been
        started anew, with something else. While it cannot be asked it is "unreachable", which identifies no score.
        """
        root = self._root
        if root is None or time.monotonic() - self._asked_s > _BELIEVED_S:
            breaks = self._breaks
            root = self._ask_root()
            with self._lock:
                if breaks == self._breaks:  # else the server went away meanwhile
                    self._root, self._asked_s = root, time.monotonic()
        revision = {} if self.revision is None else {"revision": self.revision}
        return revision | {
            "backend": "server",
            "model": self.model,
            "served": root or UNREACHABLE,
            "dialect": self.dialect,
            "frames": self._frames_entry(),
            "decoding": "temperature 0, top_p 1, seed 0",
            "readout": self._readout_entry(),
        }

    def _readout_entry(self) -> str:
        how = "logprob_token_ids" if self.word_token_ids else f"top {TOP_LOGPROBS}"
        return how if self.dialect == "openai" else f"{how}, behind a schema by a request without it"

    def _frames_entry(self) -> str:
        how = f"jpeg {self.image_quality}"
        if self.frames == "images":
            return f"{how}, one image per frame behind '<t seconds>'"
        return (
            f"{how}, one video part with frame indices (several videos in one request: as images behind '<t seconds>')"
        )

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        schema: Mapping[str, Any] | None = None,
        readout: Readout | None = None,
    ) -> list[Reply]:
        """Answer every conversation, ``concurrency`` at a time; see ``Vlm.answer``. A failed request becomes Reply.error.

        log_p is None (and a warning is logged once per cause) when the server gives no usable log-probabilities. A word whose first
        piece is not among the likeliest 20 gets the smallest probability that is: an upper bound of its own.
        """
        questions = [Question(conversation, max_new_tokens, schema, readout) for conversation in conversations]
        for number, question in enumerate(questions):
            _check(question, f"conversation {number}")
        return self._at_once(self._answer_one, questions, self.concurrency)

    def run_dialogues(self, dialogues: Sequence[Dialogue[Any]], done: Callable[[int, Any], None]) -> None:
        """Carry on many dialogues at once, each on a thread of its own; ``done(number, result)`` as each of them ends.

        A dialogue's next request leaves as soon as its last one came back. A few more dialogues than ``concurrency`` are under way,
        so that frames are read while other requests are out. Raises whatever a dialogue raises.
        """
        lock = threading.Lock()

        def carry_on(number: int, *, stop: threading.Event) -> None:
            def ask(question: Question) -> Reply:
                _check(question, f"dialogue {number}'s question")
                return self._answer_one(question, stop=stop)

            result = run_one_dialogue(dialogues[number], ask)
            with lock:
                done(number, result)

        self._at_once(carry_on, range(len(dialogues)), self.concurrency + _READERS)

    def _at_once(self, work: Callable[..., Any], items: Sequence[Any], threads: int) -> list[Any]:
        if not items:
            return []
        stop = threading.Event()
        pool = ThreadPoolExecutor(min(threads, len(items)), thread_name_prefix="vlm")
        try:
            return list(pool.map(partial(work, stop=stop), items))
        except BaseException:
            stop.set()  # Ctrl-C, or a dialogue that failed: whoever waits for another attempt gives up now
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer_one(self, question: Question, *, stop: threading.Event) -> Reply:
        conversation, readout = question.conversation, question.readout
        try:
            with self._slots:  # also around the encoding, so that waiting requests do not pile up in memory
                request = self._request(conversation, question.max_new_tokens, question.schema, readout)
                completion = self._post(request, stop)
                choice = choice_of(completion)
                reply = reply_of(completion, choice)
                if readout is None:
                    return reply
                return replace(reply, log_p=self._log_p(request, conversation, reply.text, choice, readout, stop))
        except (Failed, ValueError) as error:  # ValueError: frames that turn out broken as they are decoded
            return Reply("", error=str(error))

    def _request(
        self, conversation: Conversation, max_new_tokens: int, schema: Mapping[str, Any] | None, readout: Readout | None
    ) -> dict[str, Any]:
        if conversation[-1].role == "assistant" and self.dialect == "openai":
            raise Failed("an answer can only be continued by vLLM or SGLang; the dialect is 'openai'")
        request = {"model": self.model, **GREEDY, "max_tokens": max_new_tokens}
        request |= chat(conversation, as_video=self.frames == "video", quality=self.image_quality)
        if conversation[-1].role == "assistant":
            request |= continuation(self.dialect)
        if schema is not None:
            request["response_format"] = response_format(schema, self.dialect)
        if readout is not None:
            request["logprobs"] = True
            if self.word_token_ids:
                request["logprob_token_ids"] = sorted(self.word_token_ids)
            else:
                request["top_logprobs"] = TOP_LOGPROBS
        return request

    def _log_p(
        self,
        request: dict[str, Any],
        conversation: Conversation,
        text: str,
        choice: Mapping[str, Any],
        readout: Readout,
        stop: threading.Event,
    ) -> Mapping[str, float] | None:
        begun = conversation[-1].text if conversation[-1].role == "assistant" else ""
        if (found := readout.locate(begun + text)) is None or found < len(begun):
            return None
        place = found - len(begun)
        try:
            if "response_format" in request and self.dialect != "openai":
                raise Uncovered("the schema's mask acted on them", ask_again=True)
            return read_words(choice.get("logprobs"), text, place, readout.words, self.word_token_ids)
        except Uncovered as uncovered:
            if not uncovered.ask_again or self.dialect == "openai":
                self._warn(f"no probabilities for {readout.words}: {uncovered}")
                return None
        # The same question, with the answer up to the place already given: the next token is the word's first.
        messages = request["messages"][:-1] if conversation[-1].role == "assistant" else request["messages"]
        again = {name: value for name, value in request.items() if name != "response_format"}
        again |= {"messages": [*messages, {"role": "assistant", "content": begun + text[:place]}], "max_tokens": 1}
        again |= continuation(self.dialect)
        try:
            return read_words(
                choice_of(self._post(again, stop)).get("logprobs"), "", 0, readout.words, self.word_token_ids
            )
        except (Failed, Uncovered) as error:
            self._warn(f"no probabilities for {readout.words}: {error}")
            return None

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            _LOG.warning("%s (%s)", message, self.model)

    # ---- HTTP ---------------------------------------------------------------------------------------------------

    def _post(self, request: Mapping[str, Any], stop: threading.Event) -> Any:
        """The JSON that came back. Raises ``Failed`` when no attempt succeeded."""
        body = json.dumps(request, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        for attempt in range(self.retries + 1):
            outcome = self._attempt(body)
            if not isinstance(outcome, _Again):
                return outcome
            if attempt == self.retries:
                tried = f"{attempt + 1} attempts" if attempt else "one attempt"
                raise Failed(f"{outcome.why} (gave up after {tried})")
            wait_s = min(math.ldexp(self.backoff_s, min(attempt, 64)), _LONGEST_WAIT_S) * random.uniform(0.5, 1.0)
            if stop.wait(max(wait_s, min(outcome.after_s, self.timeout_s))):
                raise Failed("interrupted")
        raise AssertionError("unreachable")

    def _attempt(self, body: bytes) -> Any:
        url = f"{self.url}/chat/completions"
        try:
            response = self._http().post(
                url, content=body, headers={"Content-Type": "application/json"}, extensions={"trace": self._watch}
            )
        except httpx.TimeoutException:
            self._forget()
            return _Again(f"no answer from the server within {self.timeout_s:g} s")
        except httpx.RequestError as error:
            self._forget()
            return _Again(f"the connection to the server failed: {error or type(error).__name__}")
        if response.status_code in _AWAY:
            self._forget()
        self._asked_s, self._answered = time.monotonic(), True
        if response.status_code in _RETRIED:
            return _Again(
                f"the server answered {response.status_code}: {server_message(response)}", retry_after_s(response)
            )
        if response.status_code != 200:
            raise Failed(f"the server answered {response.status_code}: {server_message(response)}")
        try:
            return response.json()
        except ValueError as error:
            raise Failed(f"the server's answer is not JSON: {excerpt(response.text)}") from error

    def _http(self) -> httpx.Client:
        with self._lock:
            if (
                self._client is None or self._client_pid != os.getpid()
            ):  # a fork must not share its parent's connections
                headers = dict(self._headers)
                if self._api_key:
                    headers["Authorization"] = f"Bearer {self._api_key}"
                self._client = httpx.Client(
                    headers=headers,
                    timeout=httpx.Timeout(self.timeout_s, connect=min(self.timeout_s, 10.0), pool=None),
                    limits=httpx.Limits(max_connections=None, max_keepalive_connections=self.concurrency),
                    trust_env=urlsplit(self.url).hostname not in _LOOPBACK,  # no proxy stands between us and ourselves
                )
                self._client_pid = os.getpid()
            return self._client

    def _watch(self, event: str, _: Mapping[str, Any]) -> None:
        """A server that was started anew while nobody asked breaks no request: it is told by the connection being a new one."""
        if event.startswith("connection.connect_") and event.endswith(".started"):
            self._forget()

    def _forget(self) -> None:
        with self._lock:
            self._root = None
            self._breaks += 1

    def _ask_root(self) -> str | None:
        """The checkpoint behind the served name; the name itself where the server does not say; None while it cannot be asked."""
        for wait_s in (
            (0.0, 1.0, 3.0) if self._answered else (0.0,)
        ):  # what a busy server has judged is not given up at once
            time.sleep(wait_s)
            try:
                response = self._http().get(f"{self.url}/models", timeout=min(self.timeout_s, 10.0))
            except httpx.RequestError:
                continue
            if response.status_code not in _RETRIED:
                break
        else:
            return None
        return root_of(response, self.model)


def _check(question: Question, where: str) -> None:
    """Raise ``ValueError`` for a question that is wrong whatever the server says."""
    if question.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, received {question.max_new_tokens}")
    readout = question.readout
    if readout is not None and (not readout.words or not all(readout.words)):
        raise ValueError(f"readout needs words to read, received {readout.words!r}")
    if not any(message.role == "user" for message in question.conversation):
        raise ValueError(f"{where} has no user message; expected at least one")


@dataclass(frozen=True)
class _Again:
    """An attempt that may succeed later: why it failed, and how long the server asks us to wait."""

    why: str
    after_s: float = 0.0


def _base_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url must look like http://host:8000 or http://host:8000/v1, received {url!r}")
    base = url.rstrip("/").removesuffix("/chat/completions")
    return base if parts.path.strip("/") else f"{base}/v1"
