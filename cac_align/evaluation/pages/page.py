"""What all HTML pages are drawn with: frames with boxes, timelines with windows, one style, one
Jinja environment.

Prompts, file names and model answers are escaped; no script, font or style is loaded from
elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cac_align.core.judgement import Anomaly, Box, Judgement, Window
from cac_align.core.text import well_formed
from cac_align.core.video import Video
from cac_align.rewards.domain import page_notice
from cac_align.runs.files import atomic_write

TYPE_COLOURS: Mapping[str, str] = {
    "Object Distortion": "#e8590c",
    "Human Distortion": "#d6336c",
    "Motion Anomalies": "#1c7ed6",
    "Physical Violations": "#7950f2",
    "Character Anomalies": "#0c8599",
}
"""One colour per anomaly type, for boxes and lines: 3 to 1 or more against the paper of light and dark
pages, and none of those that mean normal, abnormal or no score.
"""


COMPONENT_TITLES: Mapping[str, str] = {
    "cac": "CaC score",
    "unified": "UnifiedReward",
    "normal_flow_speed": "Normal-flow speed, share of full_speed",
    "reward": "Combined reward",
}
"""How a page calls the components of a reward."""


PAGES = "cac_align.evaluation.pages"
"""The package whose templates all pages share."""


@dataclass(frozen=True)
class Picture:
    """One frame on a page: an embedded JPEG, its time, and its boxes with their colours.
    suspicious: it lies in a window.
    """

    uri: str
    time_s: float
    frame: int
    suspicious: bool
    boxes: tuple[tuple[Box, str], ...]


@dataclass(frozen=True)
class TimelineSpan:
    """A window on a timeline, in per cent of the video's duration."""

    left: float
    width: float
    colour: str
    label: str


def picture_uri(pixels: UInt8[np.ndarray, "H W 3"], width_px: int = 160) -> str:
    """The frame as a JPEG data URI, scaled to ``width_px``. Small frames keep hard pixels."""
    import PIL.Image

    image = PIL.Image.fromarray(pixels)
    height_px = max(round(image.height * width_px / image.width), 1)
    how = PIL.Image.Resampling.NEAREST if width_px > 2 * image.width else PIL.Image.Resampling.LANCZOS
    buffer = io.BytesIO()
    image.resize((width_px, height_px), how).save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def frame_strip(
    video: Video, anomalies: Sequence[Anomaly] = (), *, count: int = 6, width_px: int = 160
) -> tuple[Picture, ...]:
    """``count`` frames in order of time: boxed frames first, then frames in the windows, then
    evenly spaced ones.

    Raises ``ValueError`` when the video cannot be decoded.
    """
    boxed = sorted({frame for anomaly in anomalies for frame in anomaly.boxes if frame < len(video)})
    windows = [anomaly.window for anomaly in anomalies if anomaly.window is not None]
    inside = [index for index, time in enumerate(video.times_s) if any(within(time, window) for window in windows)]
    even = evenly_spaced(range(len(video)), count)
    chosen: list[int] = []
    for source, share in ((boxed, count // 2 + 1), (inside, count - 1), (even, count)):
        room = share - len(chosen)
        chosen.extend(evenly_spaced([index for index in source if index not in chosen], room) if room > 0 else [])
    frames = video.frames(sorted(set(chosen)))
    return tuple(
        Picture(
            uri=picture_uri(pixels, width_px),
            time_s=time,
            frame=index,
            suspicious=any(within(time, window) for window in windows),
            boxes=tuple((box, TYPE_COLOURS[a.type]) for a in anomalies for box in a.boxes.get(index, ())),
        )
        for pixels, index, time in zip(frames.pixels, frames.indices, frames.times_s, strict=True)
    )


def within(time_s: float, window: Window) -> bool:
    """Whether a time lies inside a window, ends included."""
    return window.start_s - 1e-6 <= time_s <= window.end_s + 1e-6


def evenly_spaced(items: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of ``items``, evenly spaced, both ends included."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[len(items) // 2]]
    return [items[round(k * (len(items) - 1) / (count - 1))] for k in range(count)]


def timeline_spans(video: Video, anomalies: Sequence[Anomaly]) -> tuple[TimelineSpan, ...]:
    """The anomalies' windows as spans. A window lasts until the end of its last frame's display."""
    total = video.duration_s
    found = []
    for anomaly in anomalies:
        if anomaly.window is not None:
            left = 100 * anomaly.window.start_s / total
            width = 100 * (min(anomaly.window.end_s + 1 / video.fps, total) - anomaly.window.start_s) / total
            shown = anomaly.window.lasting(1 / video.fps)
            label = f"{anomaly.type}, {shown.start_s:.2f} to {shown.end_s:.2f} s"
            found.append(TimelineSpan(left, max(width, 1.0), TYPE_COLOURS[anomaly.type], label))
    return tuple(found)


def confirmed_anomalies(judgement: Judgement | None) -> tuple[Anomaly, ...]:
    """The anomalies that a page draws; none for a normal verdict, and none without a judgement."""
    return judgement.anomalies if judgement is not None and judgement.status == "abnormal" else ()


def lasting_a_frame(anomalies: Sequence[Anomaly], fps: float) -> tuple[Anomaly, ...]:
    """The anomalies as a page writes them: no window is shorter than one frame."""
    return tuple(replace(anomaly, window=anomaly.window and anomaly.window.lasting(1 / fps)) for anomaly in anomalies)


def format_number(value: float | None, digits: int = 3) -> str:
    """A number with ``digits`` decimals; a dash for None and NaN."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def format_percent(share: float | None) -> str:
    """A share as a whole per cent; a dash for None and NaN."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.0f} %"


def with_code(text: object) -> Any:
    """Text as HTML: escaped, and what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(escape(text))))


@cache
def environment(package: str = PAGES) -> Any:
    """The Jinja environment of all pages: it escapes by default and refuses unknown names.

    Templates are looked for in ``package`` first, then in ``PAGES`` (where the shared parts and the
    style are).
    """
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in dict.fromkeys((package, PAGES))]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["number"] = format_number
    made.filters["percent"] = format_percent
    made.filters["code"] = with_code
    made.globals["type_colours"] = TYPE_COLOURS
    script = Path(__file__).with_name("templates").joinpath("player.js").read_text(encoding="utf-8")
    made.globals["player_script"] = script
    made.globals["player_hash"] = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return made


def write_page(
    path: Path,
    template: str,
    *,
    title: str,
    self_contained: bool,
    provenances: Sequence[Mapping[str, Any]] = (),
    package: str = PAGES,
    **values: Any,
) -> Path:
    """Render a template that extends ``base.html.jinja``, write it atomically to ``path`` and return
    the path.

    self_contained: whether the page is one file, or plays the videos beside it; it says which.
    provenances: of the rewards whose scores it shows. Where one states a domain, the template's
    ``notices`` say so. package: see ``environment``.
    """
    notices = [text for text in dict.fromkeys(page_notice(provenance) for provenance in provenances) if text]
    page = environment(package).get_template(template)
    shared = {"title": title, "self_contained": self_contained, "provenances": provenances, "notices": notices}
    atomic_write(path, well_formed(page.render(**shared, **values)))
    return path
