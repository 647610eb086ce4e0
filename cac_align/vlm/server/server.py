"""A vision-language model behind the OpenAI chat protocol, as vLLM and SGLang speak it: JSON over
HTTP, no pickle.

conversations → JPEG frames + text → POST /v1/chat/completions (bounded retries, thread pool)
    → Reply
readout: locate(text) → the answer up to the place, to be continued by one token
    → log-probabilities of the tokens that begin the words, by id → log P(word)

The readout's requests hold no schema, because a server takes its log-probabilities after the
grammar's mask, and no JPEGs: vLLM keeps what it has been sent under a key. Servers that are not asked
by id (SGLang, other dialects) report their 20 likeliest tokens; ``vlm.server.readout`` says what
can be concluded from them.

The client samples and stamps the frames itself, so that the judge sees exactly these: either one video
part with frame indices and rate (vLLM, started with --trust-request-mm-kwargs), or single images, each
after its time ("<0.5 seconds>", Qwen3-VL's own notation). Decoding is greedy (temperature 0, top_p 1,
seed 0) unless a temperature is given.

Protocol facts: vLLM 0.32 and 0.33 (``media_io_kwargs``, ``continue_final_message``, ``logprob_token_ids``),
SGLang 0.5.23.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from cac_align.vlm.dialogue import Dialogue, Question, run_one_dialogue
from cac_align.vlm.protocol import UNREACHABLE, Conversation, Readout, Reply
from cac_align.vlm.server.chat import chat_fields, continuation, response_format, without_media
from cac_align.vlm.server.first_tokens import first_tokens, first_tokens_of_table, token_ids
from cac_align.vlm.server.readout import (
    TokenStep,
    UnreadableLogprobs,
    WordProbabilities,
    likeliest_steps,
    read_words,
    requested_step,
    step_after,
    step_at,
)
from cac_align.vlm.server.reply import (
    RequestFailed,
    excerpt,
    first_choice,
    parse_reply,
    remedy,
    retry_after_s,
    served_checkpoint,
    served_names,
    server_message,
)

_LOG = logging.getLogger(__name__)


# The protocol's maximum.
TOP_LOGPROBS = 20

_RETRIED = frozenset({429, 500, 502, 503, 504})
# After one of these another process may answer, with another checkpoint.
_AWAY = frozenset({502, 503, 504})
_LONGEST_WAIT_S = 30.0
# How long a checkpoint that the server named counts as still loaded while no request is made.
_CHECKPOINT_VALID_S = 60.0
# Dialogues beyond ``concurrency``, so that frames are read while other requests are out.
_EXTRA_DIALOGUES = 4
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# Attributes that travel to another process; connections and what the server said do not.
_PICKLED = frozenset(
    ("url", "model", "concurrency", "timeout_s", "retries", "backoff_s", "frames", "dialect", "image_quality")
    + ("temperature", "seed", "revision", "tokenizer", "_api_key", "_headers")
)


class ServerVlm:
    """A Vlm that asks a server. Thread-safe and picklable; each process opens its own connections
    on first use.

    url: "http://host:8000", with or without "/v1". model: the name under which the server serves
    it. api_key: sent as bearer token. concurrency: limit of requests in flight over all threads.
    timeout_s: seconds per request and attempt. retries: further attempts after 429, 500, 502, 503,
    504, a lost connection or a timeout. Waits double
        from ``backoff_s`` seconds up to 30 s, are shortened at random by up to a half, and last at
        least as long as Retry-After says. Any other failure is final.
    frames: "video" (one part with frame indices, vLLM only, its default; further videos of one request are
        sent as images, because vLLM takes one set of indices per request) or "images" (each after its time
        stamp; the default elsewhere).
    dialect: "vllm", "sglang", or "openai" for servers that cannot continue an answer or enforce every schema.
    image_quality: of the JPEGs, 1 to 100. headers: further HTTP headers.
    revision: any text that distinguishes these weights from others at the same path, e.g. a date. It enters
        the provenance, because a server cannot say that the files were replaced.
    tokenizer: folder or hub id of the served model's tokenizer, for a vLLM server whose ``/tokenize`` cannot
        be reached. It says which tokens' log-probabilities are asked for.
    temperature: 0 decodes greedily; above 0 answers are sampled with ``seed``, where the server knows seeds.
    Raises ``ValueError`` for an argument that is out of range or a combination that the server
    cannot do.
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
        frames: Literal["images", "video"] | None = None,
        dialect: Literal["vllm", "sglang", "openai"] = "vllm",
        image_quality: int = 95,
        headers: Mapping[str, str] | None = None,
        tokenizer: str | None = None,
        revision: str | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        if dialect not in ("vllm", "sglang", "openai"):
            raise ValueError(f"dialect must be 'vllm', 'sglang' or 'openai', received {dialect!r}")
        frames = frames or ("video" if dialect == "vllm" else "images")
        if frames not in ("images", "video"):
            raise ValueError(f"frames must be 'images' or 'video', received {frames!r}")
        if frames == "video" and dialect != "vllm":
            raise ValueError(
                f"frames='video' needs vLLM: a {dialect} server would stamp the frames itself; use frames='images'"
            )
        if tokenizer is not None and dialect != "vllm":
            raise ValueError(
                f"tokenizer needs vLLM (logprob_token_ids); a {dialect} server has no such field, leave it out"
            )
        if (
            concurrency < 1
            or retries < 0
            or not timeout_s > 0
            or not 0 <= backoff_s < math.inf
            or not 1 <= image_quality <= 100
            or not 0 <= temperature <= 2
        ):
            raise ValueError(
                "expected concurrency >= 1, retries >= 0, timeout_s > 0, finite backoff_s >= 0, "
                "image_quality in 1 to 100, temperature in 0 to 2; "
                f"received {concurrency}, {retries}, {timeout_s}, {backoff_s}, {image_quality} and {temperature}"
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
        self.temperature = temperature
        self.seed = seed
        self.revision = revision
        self.tokenizer = tokenizer
        self._api_key = api_key
        self._headers = dict(headers or {})
        self._open()

    def _open(self) -> None:
        self._client: httpx.Client | None = None
        self._client_pid = -1
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self.concurrency)
        self._root, self._answered = None, False
        self._root_read_s = -math.inf  # on the monotonic clock
        self._num_resets = 0
        self._warned: set[str] = set()
        self._quiet_until_s = -math.inf  # on the monotonic clock
        # Whether tokens can be asked for by id, and which begin which words; None and empty until the server was asked.
        self._exact: bool | None = None
        self._first_tokens: dict[tuple[str, ...], dict[int, str]] = {}
        self._keeps_media = self.dialect == "vllm"
        # Counts and sizes of frames that the server was seen to show whole, and the ids with which a picture begins.
        self._seen_whole: set[tuple[Any, ...]] = set()
        self._picture_marks: list[tuple[int, ...]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name in _PICKLED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __repr__(self) -> str:
        return f"ServerVlm({self.url!r}, {self.model!r}, frames={self.frames!r}, dialect={self.dialect!r})"

    @property
    def provenance(self) -> Mapping[str, str]:
        """What identifies the answers, wherever the server runs.

        ``served`` is the checkpoint that the server says it has loaded. It is asked for again after
        a new or lost connection, after a 502, 503 or 504, and after a minute, because the server
        may have been restarted with another one. While it cannot be asked it is "unreachable",
        which identifies no score.
        """
        root = self._root
        if root is None or time.monotonic() - self._root_read_s > _CHECKPOINT_VALID_S:
            resets = self._num_resets
            root = self._ask_checkpoint()
            with self._lock:
                if resets == self._num_resets:  # else the server may have been restarted meanwhile
                    self._root, self._root_read_s = root, time.monotonic()
        revision = {} if self.revision is None else {"revision": self.revision}
        return revision | {
            "backend": "server",
            "model": self.model,
            "served": root or UNREACHABLE,
            "dialect": self.dialect,
            "frames": self._describe_frames(),
            "decoding": f"temperature {self.temperature:g}, top_p 1, seed {self.seed}",
            "readout": self._describe_readout(),
        }

    def _describe_readout(self) -> str:
        if self.dialect == "openai":
            return f"top {TOP_LOGPROBS}, upper bounds"
        if self._root is not None and self._can_ask_by_id(threading.Event()):
            return "by token id, every spelling, behind a schema without it"
        return f"top {TOP_LOGPROBS}, upper bounds, behind a schema by a request without it"

    def _describe_frames(self) -> str:
        how = f"jpeg {self.image_quality}"
        if self.frames == "images":
            return f"{how}, one image per frame behind '<t seconds>'"
        return f"{how}, one video part with frame indices (further ones in a request: as images behind '<t seconds>')"

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        schema: Mapping[str, Any] | None = None,
        readout: Readout | None = None,
    ) -> list[Reply]:
        """Answer every conversation, ``concurrency`` at a time; see ``Vlm.answer``. A failed
        request becomes Reply.error.

        log_p is None, with one warning per cause, when the server gives no usable
        log-probabilities. A word whose first token is not among the 20 likeliest gets the smallest
        reported probability, an upper bound.
        """
        questions = [Question(conversation, max_new_tokens, schema, readout) for conversation in conversations]
        for number, question in enumerate(questions):
            _check(question, f"conversation {number}")
        return self._map(self._answer_one, questions, self.concurrency)

    def run_dialogues(self, dialogues: Sequence[Dialogue[Any]], done: Callable[[int, Any], None]) -> None:
        """Run many dialogues at once, each on a thread of its own; ``done(number, result)`` as each
        ends.

        A dialogue's next request is sent as soon as its last one came back. Raises whatever a
        dialogue raises.
        """
        lock = threading.Lock()

        def run(number: int, *, stop: threading.Event) -> None:
            def ask(question: Question) -> Reply:
                _check(question, f"dialogue {number}'s question")
                return self._answer_one(question, stop=stop)

            result = run_one_dialogue(dialogues[number], ask)
            with lock:
                done(number, result)

        self._map(run, range(len(dialogues)), self.concurrency + _EXTRA_DIALOGUES)

    def _map(self, work: Callable[..., Any], items: Sequence[Any], threads: int) -> list[Any]:
        if not items:
            return []
        stop = threading.Event()
        pool = ThreadPoolExecutor(min(threads, len(items)), thread_name_prefix="vlm")
        try:
            return list(pool.map(partial(work, stop=stop), items))
        except BaseException:
            stop.set()  # Ctrl-C or a failed dialogue: no thread waits for another attempt
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer_one(self, question: Question, *, stop: threading.Event) -> Reply:
        try:
            with self._slots:  # also while encoding, so that waiting requests do not fill the memory
                request, tokens = self._request(question, stop)
                shown = self._unseen_frames(question.conversation)
                completion = self._post(request | {"return_token_ids": True} if shown else request, stop)
                if shown:
                    self._check_frames(shown, completion, stop)
                choice = first_choice(completion)
                reply = parse_reply(completion, choice)
                if question.readout is None:
                    return reply
                try:
                    found = self._read_words(question, request, tokens, reply.text, choice.get("logprobs"), stop)
                except (RequestFailed, UnreadableLogprobs) as error:
                    self._warn(f"no probabilities for {question.readout.words}: {error}")
                    return replace(reply, readout_error=str(error))
                return reply if found is None else replace(reply, log_p=found.log_p, bounded=found.bounded)
        except (RequestFailed, ValueError) as error:  # ValueError: frames that cannot be decoded
            return Reply("", error=str(error))

    def _unseen_frames(self, conversation: Conversation) -> tuple[Any, ...] | None:
        """What identifies the frames of this conversation, where a video part goes to vLLM and nobody has
        looked yet whether the server shows the model all frames of such a part.
        """
        frames = [message.frames.shape for message in conversation if message.frames is not None]
        key = (self._num_resets, *frames)
        wanted = self.dialect == "vllm" and self.frames == "video" and frames and key not in self._seen_whole
        return key if wanted and any(not message.as_images for message in conversation if message.frames) else None

    def _check_frames(self, shown: tuple[Any, ...], completion: Any, stop: threading.Event) -> None:
        """Raise ``RequestFailed`` when the prompt has fewer pictures than pairs of frames were sent.

        It is asked once per count and size of frames. It cannot be checked where a server does not return
        its prompt's tokens or has no ``/tokenize``, nor where a model marks a video as a whole (Qwen2.5-VL,
        which writes no time stamps either).
        """
        ids = completion.get("prompt_token_ids") if isinstance(completion, dict) else None
        if not isinstance(ids, list) or not self._can_ask_by_id(stop) or self.tokenizer is not None:
            return
        if self._picture_marks is None:
            pads = ("<|video_pad|>", "<|image_pad|>")
            self._picture_marks = [tuple(self._tokenize(f"<|vision_start|>{pad}", stop=stop)) for pad in pads]
        if any(len(marks) != 2 for marks in self._picture_marks):
            return  # another family of models
        # Qwen3-VL writes one <|vision_start|> more around the whole video; no picture follows that one.
        places = [place for place, two in enumerate(pairwise(ids)) if two in self._picture_marks]
        least = sum(-(-shape[0] // 2) for shape in shown[1:])
        found = len(places)
        if found < least and not (found == len(shown) - 1 and self._begin_turns(ids, places, stop)):
            raise RequestFailed(
                f"the server showed the model {found} of {least} pairs of frames; start vLLM with "
                '--media-io-kwargs \'{"video": {"num_frames": -1}}\' and --trust-request-mm-kwargs, and let a '
                "gateway pass media_io_kwargs and mm_processor_kwargs"
            )
        self._seen_whole.add((self._num_resets, *shown[1:]))  # a first connection counts as a reset

    def _begin_turns(self, ids: list[Any], places: list[int], stop: threading.Event) -> bool:
        """Whether each of these places is the first of a user's turn; in Qwen3-VL's prompt a time stamp is."""
        head = self._tokenize("<|im_start|>user\n", stop=stop)
        return all(ids[max(place - len(head), 0) : place] == head for place in places)

    def _request(self, question: Question, stop: threading.Event) -> tuple[dict[str, Any], dict[int, str] | None]:
        """The request, and the tokens that it asks for by id.

        Log-probabilities are asked for where the answer will be read: not behind a schema, whose mask acts on
        them, and not along a whole answer when its place can be asked for alone.
        """
        conversation, readout = question.conversation, question.readout
        if conversation[-1].role == "assistant" and self.dialect == "openai":
            raise RequestFailed("only vLLM and SGLang can continue an answer; the dialect is 'openai'")
        request = {"model": self.model, "temperature": self.temperature, "top_p": 1, "seed": self.seed}
        request["max_tokens"] = question.max_new_tokens
        keyed = readout is not None and self._keeps_media
        as_video = self.frames == "video"
        request |= chat_fields(conversation, as_video=as_video, quality=self.image_quality, keyed=keyed)
        if conversation[-1].role == "assistant":
            request |= continuation(self.dialect)
        if question.schema is not None:
            request["response_format"] = response_format(question.schema, self.dialect)
        if readout is None or (question.schema is not None and self.dialect != "openai"):
            return request, None
        if not self._can_ask_by_id(stop):
            if self.dialect == "vllm":
                self._warn(
                    "the server has no /tokenize, so log-probabilities are those of the 20 likeliest tokens and upper "
                    "bounds; let the gateway pass /tokenize, "
                    "or name the model's tokenizer in the recipe (tokenizer: PATH)"
                )
            return request | {"logprobs": True, "top_logprobs": TOP_LOGPROBS}, None
        prefix = prefix_of(conversation)
        if not prefix or readout.locate(prefix) != len(prefix):
            return request, None
        tokens = self._tokens_of(readout.words, stop)
        return request | _by_id(tokens), tokens

    def _read_words(
        self,
        question: Question,
        request: dict[str, Any],
        tokens: Mapping[int, str] | None,
        text: str,
        logprobs: Any,
        stop: threading.Event,
    ) -> WordProbabilities | None:
        """log P(word) at the readout's place; None when the answer has no such place.

        Raises ``UnreadableLogprobs`` or ``RequestFailed``.
        """
        readout, prefix = question.readout, prefix_of(question.conversation)
        assert readout is not None
        if (found := readout.locate(prefix + text)) is None or found < len(prefix):
            return None
        place = found - len(prefix)
        before = prefix + text[:place]

        def ask(piece: bytes, rests: Sequence[str]) -> TokenStep:
            written = before + piece.decode("utf-8", "replace")
            return self._ask_next_token(request, written, self._tokens_of(rests, stop) if by_id else None, stop)

        by_id = self._can_ask_by_id(stop)
        if by_id:
            if tokens is not None and place == 0:
                return read_words(requested_step(logprobs, tokens), readout.words, ask=ask)
            return read_words(ask(b"", readout.words), readout.words, ask=ask)
        if self.dialect == "openai" or "response_format" not in request:
            try:
                steps = likeliest_steps(logprobs)
                position = step_at(steps, text, place)
                along = partial(step_after, steps, position)
                return read_words(
                    steps[position], readout.words, along=along, ask=None if self.dialect == "openai" else ask
                )
            except UnreadableLogprobs as error:
                if not error.ask_again or self.dialect == "openai":
                    raise
        return read_words(ask(b"", readout.words), readout.words, ask=ask)

    def _ask_next_token(
        self, request: Mapping[str, Any], written: str, tokens: Mapping[int, str] | None, stop: threading.Event
    ) -> TokenStep:
        """What the server reports about the token after ``written``, the answer so far: these
        tokens, or the likeliest.
        """
        left_out = ("response_format", "logprobs", "top_logprobs", "logprob_token_ids", "return_tokens_as_token_ids")
        again = {name: value for name, value in request.items() if name not in left_out}
        messages = again["messages"]
        messages = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        again |= {"messages": [*messages, {"role": "assistant", "content": written}], "max_tokens": 1}
        again |= continuation(self.dialect)
        again |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS} if tokens is None else _by_id(tokens)
        completion = self._post_without_media(again, stop)
        logprobs = first_choice(completion).get("logprobs")
        if tokens is not None:
            return requested_step(logprobs, tokens)
        return likeliest_steps(logprobs)[0]

    def _post_without_media(self, request: dict[str, Any], stop: threading.Event) -> Any:
        """Send the request with the keys of its images and videos, and with themselves where the server lacks them."""
        if self._keeps_media and any("uuid" in part for part in _parts(request)):
            try:
                return self._post(request | {"messages": without_media(request["messages"])}, stop)
            except RequestFailed as error:
                if error.status != 400:
                    raise
                if "cache" not in str(error).lower():  # a server that does not know these keys
                    self._keeps_media = False
        return self._post(request, stop)

    def _can_ask_by_id(self, stop: threading.Event) -> bool:
        """Whether log-probabilities can be asked for by token id: vLLM with ``/tokenize``, or with
        a local tokenizer.
        """
        if self.dialect != "vllm" or self.tokenizer is not None:
            return self.dialect == "vllm"
        if self._exact is None:
            try:
                token_ids(
                    self._post({"model": self.model, "prompt": "a", "add_special_tokens": False}, stop, "/tokenize")
                )
                self._exact = True
            except ValueError:
                self._exact = False
            except RequestFailed as error:
                if error.status is None:
                    raise
                self._exact = False
        return self._exact

    def _tokens_of(self, words: Sequence[str], stop: threading.Event) -> dict[int, str]:
        """Text by id of the tokens that begin one of the words. Raises ``UnreadableLogprobs`` when there is none."""
        key = tuple(dict.fromkeys(words))
        if key not in self._first_tokens:
            if self.tokenizer is not None:
                found = first_tokens_of_table(key, self.tokenizer)
            else:
                found = first_tokens(key, partial(self._tokenize, stop=stop))
            if not found:
                raise UnreadableLogprobs(f"the tokenizer has no token that begins one of {key}")
            self._first_tokens[key] = found
        return self._first_tokens[key]

    def _tokenize(self, text: str, *, stop: threading.Event) -> list[int]:
        answer = self._post({"model": self.model, "prompt": text, "add_special_tokens": False}, stop, "/tokenize")
        try:
            return token_ids(answer)
        except ValueError as error:
            raise RequestFailed(f"/tokenize answered {error}") from error

    def why_unreachable(self, timeout_s: float = 2.0) -> str | None:
        """Why the server cannot be asked, with the command that starts it; None when it answers and has the model."""
        start = (
            f"vllm serve PATH --served-model-name {self.model} --port {urlsplit(self.url).port or 80} "
            "--trust-request-mm-kwargs"
        )
        try:
            response = self._http().get(f"{self.url}/models", timeout=timeout_s)
        except httpx.RequestError as error:
            return f"{self.url}: no answer ({error or type(error).__name__}); start the server, e.g. {start}"
        if response.status_code in (401, 403):
            return f"{self.url}: HTTP {response.status_code}{remedy(response.status_code, '', self.model)}"
        if response.status_code in _RETRIED:
            return f"{self.url}: HTTP {response.status_code}, {server_message(response)}; wait until it is up: {start}"
        names = served_names(response)
        if names and self.model not in names:
            return f"{self.url}: serves {', '.join(names)}, not {self.model!r}; set served_model, or start {start}"
        return None

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            _LOG.warning("%s (%s)", message, self.model)

    # ---- HTTP ---------------------------------------------------------------------------------------------------

    def _post(self, request: Mapping[str, Any], stop: threading.Event, *path: str) -> Any:
        """The JSON that came back. Raises ``RequestFailed`` when no attempt succeeded."""
        body = json.dumps(request, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        for attempt in range(self.retries + 1):
            outcome = self._attempt(body, *path)
            if not isinstance(outcome, _Retry):
                return outcome
            if attempt == self.retries:
                tried = f"{attempt + 1} attempts" if attempt else "one attempt"
                raise RequestFailed(f"{outcome.reason} (gave up after {tried})")
            wait_s = min(math.ldexp(self.backoff_s, min(attempt, 64)), _LONGEST_WAIT_S) * random.uniform(0.5, 1.0)
            wait_s = max(wait_s, min(outcome.after_s, self.timeout_s))
            self._announce_wait(outcome.reason, attempt, wait_s)
            if stop.wait(wait_s):
                raise RequestFailed("interrupted")
        raise AssertionError("unreachable")

    def _announce_wait(self, reason: str, attempt: int, wait_s: float) -> None:
        """Say on stderr that, and how much longer, this server is waited for; one line at a time for all threads."""
        now = time.monotonic()
        with self._lock:
            if now < self._quiet_until_s:
                return
            self._quiet_until_s = now + max(wait_s, 1.0)
        waits = (min(math.ldexp(self.backoff_s, min(n, 64)), _LONGEST_WAIT_S) for n in range(attempt, self.retries))
        print(
            f"{self.url}: {reason}; attempt {attempt + 2} of {self.retries + 1} in {wait_s:.0f} s, "
            f"giving up in at most {math.fsum(waits):.0f} s",
            file=sys.stderr,
            flush=True,
        )

    def _attempt(self, body: bytes, path: str = "") -> Any:
        url = f"{self.url.removesuffix('/v1')}{path}" if path else f"{self.url}/chat/completions"
        try:
            response = self._http().post(
                url, content=body, headers={"Content-Type": "application/json"}, extensions={"trace": self._trace}
            )
        except httpx.TimeoutException:
            self._forget_checkpoint()
            return _Retry(f"no answer from the server within {self.timeout_s:g} s")
        except httpx.RequestError as error:
            self._forget_checkpoint()
            return _Retry(f"the connection to the server failed: {error or type(error).__name__}")
        if response.status_code in (204, 304):  # a body sent all the same would be read as the next request's answer
            response.extensions["network_stream"].close()
        if response.status_code in _AWAY:
            self._forget_checkpoint()
        self._root_read_s, self._answered = time.monotonic(), True
        if response.status_code in _RETRIED:
            return _Retry(
                f"the server answered {response.status_code}: {server_message(response)}", retry_after_s(response)
            )
        if response.status_code != 200:
            message = server_message(response)
            raise RequestFailed(
                f"the server answered {response.status_code}: {message}"
                f"{remedy(response.status_code, message, self.model)}",
                response.status_code,
            )
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            raise RequestFailed(f"the server's answer is not JSON: {excerpt(response.text)}") from error

    def _http(self) -> httpx.Client:
        with self._lock:
            # A fork must not share its parent's connections.
            if self._client is None or self._client_pid != os.getpid():
                headers = dict(self._headers)
                if self._api_key:
                    headers["Authorization"] = f"Bearer {self._api_key}"
                self._client = httpx.Client(
                    headers=headers,
                    timeout=httpx.Timeout(self.timeout_s, connect=min(self.timeout_s, 10.0), pool=None),
                    limits=httpx.Limits(max_connections=None, max_keepalive_connections=self.concurrency),
                    trust_env=urlsplit(self.url).hostname not in _LOOPBACK,  # no proxy for this machine
                )
                self._client_pid = os.getpid()
            return self._client

    def _trace(self, event: str, _: Mapping[str, Any]) -> None:
        """Forget the checkpoint at a new connection: the server may have been restarted between two
        requests.
        """
        if event.startswith("connection.connect_") and event.endswith(".started"):
            self._forget_checkpoint()

    def _forget_checkpoint(self) -> None:
        with self._lock:
            self._root, self._exact = None, None
            self._first_tokens = {}
            self._num_resets += 1

    def _ask_checkpoint(self) -> str | None:
        """The checkpoint behind the served name, or the name itself; None while the server cannot
        be asked.
        """
        waits_s = (0.0, 1.0, 3.0) if self._answered else (0.0,)  # a busy server that has answered before gets more time
        for wait_s in waits_s:
            time.sleep(wait_s)
            try:
                response = self._http().get(f"{self.url}/models", timeout=min(self.timeout_s, 10.0))
            except httpx.RequestError:
                continue
            if response.status_code not in _RETRIED:
                break
        else:
            return None
        return served_checkpoint(response, self.model)


def _check(question: Question, where: str) -> None:
    """Raise ``ValueError`` for a question that no server could answer."""
    if question.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, received {question.max_new_tokens}")
    readout = question.readout
    if readout is not None and (not readout.words or not all(readout.words)):
        raise ValueError(f"readout needs words to read, received {readout.words!r}")
    if not any(message.role == "user" for message in question.conversation):
        raise ValueError(f"{where} has no user message; expected at least one")


def prefix_of(conversation: Conversation) -> str:
    """The assistant's message that is to be continued; "" when the last message is not an assistant's."""
    return conversation[-1].text if conversation[-1].role == "assistant" else ""


def _parts(request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [
        part for message in request["messages"] if isinstance(message["content"], list) for part in message["content"]
    ]


def _by_id(tokens: Mapping[int, str]) -> dict[str, Any]:
    """The request's fields for the log-probabilities of exactly these tokens."""
    return {"logprobs": True, "logprob_token_ids": sorted(tokens), "return_tokens_as_token_ids": True}


@dataclass(frozen=True)
class _Retry:
    """A failed attempt that may be repeated after ``after_s`` seconds, the server's wish."""

    reason: str
    after_s: float = 0.0


def _base_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url must look like http://host:8000 or http://host:8000/v1, received {url!r}")
    base = url.rstrip("/").removesuffix("/chat/completions")
    return base if parts.path.strip("/") else f"{base}/v1"
