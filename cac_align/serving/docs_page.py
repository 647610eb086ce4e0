"""``GET /docs`` of the service: its routes, a request that can be pasted, and what the answer holds. One page that
loads nothing.

The routes' sentences are their functions' docstrings, and the fields those of the messages in ``wire``.
"""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from cac_align.serving.wire import FilePart, FramesPart, PathPart, ScoreItem, ScoreRequest, ScoreResult

CURL_EXAMPLE = """\
curl -s {url}/v1/score -H 'Content-Type: application/json' -d @- <<END
{{"items": [{{"prompt": "a red ball rolls to the right on grass",
            "video": {{"kind": "file", "fps": 16, "data": "$(base64 < clip.mp4 | tr -d '\\n')"}}}}]}}
END"""
"""A request for one video file, with ``{url}`` for the service's address."""

_MESSAGES = (ScoreRequest, ScoreItem, FilePart, FramesPart, PathPart, ScoreResult)

_STYLE = """:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1.5rem; }
pre { overflow-x: auto; padding: .8rem 1rem; border: 1px solid #8886; border-radius: 8px; }
table { border-collapse: collapse; width: 100%; } td:first-child { width: 34%; }
code { overflow-wrap: anywhere; }
td { border-top: 1px solid #8886; padding: .35rem .8rem .35rem 0; vertical-align: top; }"""


def docs_page(routes: Sequence[Any], url: str, *, needs_token: bool) -> str:
    """The page as HTML. routes: the application's, each with ``path``, ``methods`` and ``endpoint``. url: of the
    service, as the caller reached it. needs_token: whether requests need the service's token.
    """
    rows = [
        (f"{'/'.join(sorted(route.methods - {'HEAD'}))} {route.path}", inspect.getdoc(route.endpoint) or "")
        for route in routes
    ]
    url = url.rstrip("/")
    example = CURL_EXAMPLE.format(url=url)
    if needs_token:
        example = example.replace(" -d @-", ' -H "Authorization: Bearer $CAC_ALIGN_TOKEN" -d @-')
    messages = [(", ".join(map(_field, fields(kind))), inspect.getdoc(kind) or "") for kind in _MESSAGES]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>cac-align: the service</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>
<h1>cac-align: a video reward behind HTTP</h1>
<p>Higher scores are better. A video that cannot be scored has <code>"score": null</code> and a sentence in
<code>error</code>; no failure is a number. What is served, its bounds and its limits: <a href="health">health</a>.</p>
<h2>Score a file</h2>
<pre>{html.escape(example)}</pre>
<p>From Python: <code>cac_align.load_reward("{html.escape(url)}")</code>; every verb takes
<code>--reward {html.escape(url)}</code>.</p>
<h2>Routes</h2>{_table(rows)}
<h2>Messages of /v1/score</h2>{_table(messages)}
</body></html>
"""


def _field(item: Any) -> str:
    """A field's name; of ``kind``, which tells the parts apart, the value too."""
    return f'kind="{item.default}"' if item.name == "kind" else item.name


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td><code>{html.escape(name)}</code></td><td>{_prose(text)}</td></tr>" for name, text in rows)
    return f"<table>{cells}</table>"


def _prose(text: str) -> str:
    """A docstring as HTML, its ``names`` as code."""
    return re.sub(r"``(.+?)``", r"<code>\1</code>", html.escape(text))
