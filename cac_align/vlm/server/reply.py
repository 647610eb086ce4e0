"""Reading a server's response: the first choice, its text and token counts, or the reason why there
is none.

HTTP response → first_choice → parse_reply → Reply;  any fault
    → RequestFailed with a message for people
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from cac_align.vlm.protocol import Reply


class RequestFailed(Exception):
    """A request without answer; the message says why. ``status``: the HTTP status, if the server refused it."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


# What a server says when it refuses a request, and the flag or setting that it takes.
_REMEDIES: tuple[tuple[str, str], ...] = (
    (
        r"(media_io_kwargs|mm_processor_kwargs) are disabled",
        "start vLLM with --trust-request-mm-kwargs (each frame's own time travels in these fields), "
        "or set frames: images",
    ),
    (
        r"at most 0 video|video.*(not support|unsupported)|(not support|unsupported).*video|unknown part type: video",
        "start vLLM with --limit-mm-per-prompt '{\"video\": 1}', or set frames: images for a server without video",
    ),
    (
        r"at most \d+ (image|video)",
        'start vLLM with a higher --limit-mm-per-prompt, e.g. \'{"video": 1, "image": 64}\'',
    ),
    (
        r"max(imum)?[ _-]?(model[ _-]?len|context)|context length",
        "start vLLM with a larger --max-model-len (SGLang: --context-length), or lower max_new_tokens",
    ),
    (r"model.*(does not exist|not found)|no such model", "set served_model to the server's --served-model-name"),
    (r"number of frames sent|frames_indices", "use vLLM 0.32 or newer, or set frames: images"),
    (r"json_schema|response_format|guided|grammar|structured", "set constrained: false"),
    (r"logprob", "use vLLM 0.32 or newer, or set dialect: openai"),
)


def remedy(status: int, message: str, model: str) -> str:
    """The flag or setting that a refused request calls for, as the end of a sentence; "" where none is known."""
    for pattern, what in _REMEDIES:
        if re.search(pattern, message, re.IGNORECASE):
            return f"; {what}"
    if status in (401, 403):
        return "; name the variable that holds the server's key in the recipe (api_key_env)"
    if status == 404:
        return (
            f"; check that the URL is that of an OpenAI-compatible server and that it serves {model!r} (served_model)"
        )
    return ""


def first_choice(completion: Any) -> Mapping[str, Any]:
    """The first choice. Raises ``RequestFailed`` when there is none."""
    choices = completion.get("choices") if isinstance(completion, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise RequestFailed(f"the server's answer holds no choices: {_shown(completion)}")
    if choices[0].get("finish_reason") in ("content_filter", "abort", "error"):
        raise RequestFailed(f"the server stopped the answer: finish_reason {choices[0]['finish_reason']!r}")
    return choices[0]


def parse_reply(completion: Mapping[str, Any], choice: Mapping[str, Any]) -> Reply:
    """Text and token counts. Raises ``RequestFailed`` when there is no text or a count is no number of tokens."""
    message, finish = choice.get("message"), choice.get("finish_reason")
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str) or not text:
        reasoning = isinstance(message, dict) and (message.get("reasoning_content") or message.get("reasoning"))
        reason = "only reasoning; turn the server's thinking off" if reasoning else f"no text, finish_reason {finish!r}"
        raise RequestFailed(f"the server's answer is empty ({excerpt(reason)})")
    usage = completion.get("usage")
    if usage is not None and not isinstance(usage, dict):
        raise RequestFailed(f"the server's usage is no object: {_shown(usage)}")
    counts = usage or {}
    return Reply(
        text,
        truncated=finish == "length",
        num_prompt_tokens=_count(counts, "prompt_tokens"),
        num_tokens=_count(counts, "completion_tokens"),
    )


def _count(usage: Mapping[str, Any], name: str) -> int:
    count = usage.get(name)
    if count is None:
        return 0
    if isinstance(count, bool) or not isinstance(count, (int, float)) or not 0 <= count < 2**53 or count != int(count):
        raise RequestFailed(f"the server's {name} is no number of tokens: {_shown(count)}")
    return int(count)


def server_message(response: httpx.Response) -> str:
    """The server's error message, or the beginning of its body when that is not JSON."""
    try:
        body = response.json()
        error = body.get("error", body)
        message = error if isinstance(error, str) else error.get("message") or body.get("detail")
        return excerpt(message if isinstance(message, str) else json.dumps(body))
    except (ValueError, AttributeError, RecursionError):
        return excerpt(response.text) or response.reason_phrase


def excerpt(text: str) -> str:
    text = " ".join(text[:2000].split())
    return text if len(text) <= 300 else text[:300] + "…"


def _shown(value: Any) -> str:
    """A part of an answer for a message, whatever it is."""
    try:
        return excerpt(json.dumps(value))
    except (ValueError, TypeError, RecursionError):
        return f"a {type(value).__name__}"


def retry_after_s(response: httpx.Response) -> float:
    """Seconds that the Retry-After header asks for (a number or a date); 0 without one."""
    header = response.headers.get("Retry-After", "")
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def served_checkpoint(response: httpx.Response, model: str) -> str:
    """The checkpoint that ``/models`` lists for this served name, or the name itself."""
    try:
        cards = response.json()["data"] if response.status_code == 200 else []
        card = next((card for card in cards if card.get("id") == model), {})
        return str(card.get("root") or model)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return model


def served_names(response: httpx.Response) -> list[str]:
    """The names that ``/models`` lists; none where it does not say."""
    try:
        cards = response.json()["data"] if response.status_code == 200 else []
        return [str(card["id"]) for card in cards]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
