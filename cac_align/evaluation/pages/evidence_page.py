"""The page of a training run: the boxed clip beside the advantage it was given, step by step, from the run's ledger.

steps of evidence (score, judgement, and what the host said: step, group, advantage) → one card per telling clip → report.html

A clip is drawn where its row names a file that is still there (hosts that score tensors name none); everything else about it is shown
in any case. A missing score is a dash with its reason, never a number.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cac_align.core.judgement import Anomaly
from cac_align.core.video import Video
from cac_align.evaluation.pages.page import Picture, Span, frame_strip, shown_anomalies, spans, write_page
from cac_align.rewards.reward import Score


class Scored(Protocol):
    """A video of a run as its ledger tells of it (``plugins.evidence.Evidence``)."""

    @property
    def kind(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def video(self) -> str: ...
    @property
    def score(self) -> Score: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...
    @property
    def step(self) -> int | None: ...
    @property
    def advantage(self) -> float | None: ...


@dataclass(frozen=True)
class Step:
    """One host step. number: None where the host gave none. videos: all of it; shown: those that get a card."""

    number: int | None
    videos: Sequence[Scored]
    shown: Sequence[Scored]

    @property
    def label(self) -> str:
        return "no step given" if self.number is None else f"step {self.number}"


@dataclass(frozen=True)
class Card:
    """One clip as the page shows it. bar: its advantage as (left, width) in percent of the card. source: the file, relative to the page."""

    item: Scored
    anomalies: tuple[Anomaly, ...]
    pictures: tuple[Picture, ...]
    spans: tuple[Span, ...]
    duration_s: float
    source: str | None
    not_drawn: str | None
    bar: tuple[float, float] | None
    facts: tuple[tuple[str, str], ...]
    parts: Mapping[str, float]


def write_evidence_page(steps: Sequence[Step], path: Path, *, root: Path, title: str = "What was rewarded") -> Path:
    """Write the page; steps in order of time, the latest stands first on it. root: the folder that relative video names belong to.

    Raises ``ValueError`` when there is no video at all.
    """
    videos = [item for step in steps for item in step.videos]
    if not videos:
        raise ValueError(f"{root}: the ledger holds no score; there is nothing to report")
    path.parent.mkdir(parents=True, exist_ok=True)
    given = [abs(item.advantage) for item in videos if item.advantage is not None]
    reach = max(given, default=0.0) or 1.0
    unscored = sum(not item.score.scored for item in videos)
    return write_page(
        path,
        "evidence.html.jinja",
        title=title,
        tiles=[
            (str(len(steps)), "steps"),
            (str(len(videos)), "videos judged"),
            (str(unscored), "without a score"),
            (str(len(given)), "with an advantage"),
        ],
        without_advantage=not given,
        rows=[_row(step) for step in steps],
        steps=[
            (step, [_card(item, path.parent, root, reach) for item in step.shown])
            for step in reversed(steps)
            if step.shown
        ],
        hidden=len(videos) - sum(len(step.shown) for step in steps),
        provenance=sorted(next((dict(item.score.provenance) for item in videos if item.score.provenance), {}).items()),
    )


def _row(step: Step) -> dict[str, Any]:
    """One line of the table of steps; what cannot be computed is None, shown as a dash."""
    scores = [item.score.value for item in step.videos if item.score.scored]
    advantages = [item.advantage for item in step.videos if item.advantage is not None]
    judged = [item.score.evidence.status for item in step.videos if item.score.evidence and item.score.evidence.status]
    return {
        "label": step.label,
        "videos": len(step.videos),
        "unscored": len(step.videos) - len(scores),
        "mean": math.fsum(scores) / len(scores) if scores else None,
        "abnormal": judged.count("abnormal") / len(judged) if judged else None,
        "lowest": min(advantages, default=None),
        "highest": max(advantages, default=None),
    }


def _card(item: Scored, folder: Path, root: Path, reach: float) -> Card:
    anomalies = shown_anomalies(item.score.evidence)
    video, why = _opened(item, root)
    pictures: tuple[Picture, ...] = ()
    if video is not None:
        try:
            pictures = frame_strip(video, anomalies)
        except ValueError as error:
            video, why = None, str(error)
    advantage = item.advantage
    width = 50 * abs(advantage) / reach if advantage is not None else 0.0
    return Card(
        item=item,
        anomalies=anomalies,
        pictures=pictures,
        spans=spans(video, anomalies) if video is not None else (),
        duration_s=video.duration_s if video is not None else 0.0,
        source=os.path.relpath(video.path, folder) if video is not None and video.path is not None else None,
        not_drawn=why,
        bar=None if advantage is None else (50 - width if advantage < 0 else 50.0, max(width, 0.5)),
        facts=tuple((name, str(value)) for name, value in item.facts.items() if name != "advantage"),
        parts={name: value for name, value in item.score.parts.items() if not math.isnan(value)},
    )


def _opened(item: Scored, root: Path) -> tuple[Video | None, str | None]:
    """The clip's file, or why it is not drawn. Its clock is the host's own where it said so: files carry wrong ones."""
    fps = item.facts.get("fps")
    known = isinstance(fps, (int, float)) and not isinstance(fps, bool) and math.isfinite(fps) and fps > 0
    for path in (Path(item.video), root / item.video):
        try:
            if path.is_file():
                return Video.open(path.resolve(), fps=float(fps) if known else None), None
        except (ValueError, OSError) as error:
            return None, str(error)
    return None, f"{item.video}: no such file; the host scored frames in memory, or moved it"
