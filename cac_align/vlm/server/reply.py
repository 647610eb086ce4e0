"""What a server sent back, read: the first choice, its text and token counts, or why there is none.

HTTP response → choice_of → reply_of → Reply;  whatever is wrong becomes a Failed that a person can read
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from cac_align.vlm.protocol import Reply


class Failed(Exception):
    """This request has no answer; the message says why, for a person."""


def choice_of(completion: Any) -> Mapping[str, Any]:
    """The first choice. Raises ``Failed`` when there is none."""
    choices = completion.get("choices") if isinstance(completion, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Failed(f"the server's answer holds no choices: {excerpt(json.dumps(completion))}")
    if choices[0].get("finish_reason") in ("content_filter", "abort", "error"):
        raise Failed(f"the server broke the answer off: finish_reason {choices[0]['finish_reason']!r}")
    return choices[0]


def reply_of(completion: Mapping[str, Any], choice: Mapping[str, Any]) -> Reply:
    """Text and token counts. Raises ``Failed`` when there is no text."""
    message, finish = choice.get("message"), choice.get("finish_reason")
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str) or not text:
        thought = isinstance(message, dict) and (message.get("reasoning_content") or message.get("reasoning"))
        why = "only reasoning; turn the server's thinking off" if thought else f"no text, finish_reason {finish!r}"
        raise Failed(f"the server's answer is empty ({why})")
    usage = completion.get("usage") or {}
    return Reply(
        text,
        truncated=finish == "length",
        num_prompt_tokens=int(usage.get("prompt_tokens") or 0),
        num_tokens=int(usage.get("completion_tokens") or 0),
    )


def server_message(response: httpx.Response) -> str:
    """What the server says went wrong: the error's message where it is JSON, else the beginning of the body."""
    try:
        body = response.json()
        error = body.get("error", body)
        message = error if isinstance(error, str) else error.get("message") or body.get("detail")
        return excerpt(message if isinstance(message, str) else json.dumps(body))
    except (ValueError, AttributeError):
        return excerpt(response.text) or response.reason_phrase


def excerpt(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:300] + "…"


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


def root_of(response: httpx.Response, model: str) -> str:
    """The checkpoint that ``/models`` names behind this served name; the name itself where it does not say."""
    try:
        cards = response.json()["data"] if response.status_code == 200 else []
        card = next((card for card in cards if card.get("id") == model), {})
        return str(card.get("root") or model)
    except (ValueError, KeyError, TypeError, AttributeError):
        return model
