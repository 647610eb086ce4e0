"""The page of a training run: each shown clip with its boxes beside its advantage, step by step,
from the run's ledger.

A clip's frames are drawn where its row names a file that still exists (hosts that score tensors
name none). A missing score is a dash with its reason.
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
from cac_align.evaluation.pages.page import (
    Picture,
    TimelineSpan,
    confirmed_anomalies,
    frame_strip,
    lasting_a_frame,
    timeline_spans,
    write_page,
)
from cac_align.rewards.reward import Score


class EvidenceVideo(Protocol):
    """A video of a run as its ledger describes it (``plugins.common.evidence.Evidence``)."""

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
    """One step of the host trainer. number: None where the host gave none. videos: all of them.
    shown: those with a card.
    """

    number: int | None
    videos: Sequence[EvidenceVideo]
    shown: Sequence[EvidenceVideo]

    @property
    def label(self) -> str:
        return "no step given" if self.number is None else f"step {self.number}"


@dataclass(frozen=True)
class EvidenceCard:
    """One clip as the page shows it. bar: its advantage as (left, width) in per cent. source: the
    file, relative to the page.
    """

    item: EvidenceVideo
    anomalies: tuple[Anomaly, ...]
    pictures: tuple[Picture, ...]
    spans: tuple[TimelineSpan, ...]
    duration_s: float
    source: str | None
    not_drawn: str | None
    bar: tuple[float, float] | None
    facts: tuple[tuple[str, str], ...]
    parts: Mapping[str, float]


def write_evidence_page(steps: Sequence[Step], path: Path, *, root: Path, title: str = "What was rewarded") -> Path:
    """Write the page and return its path. Steps are given in order of time; the latest is shown
    first.

    root: the folder that relative video names belong to. Raises ``ValueError`` when there is no
    video at all.
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
    """One line of the table of steps; undefined numbers are None and shown as a dash."""
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


def _card(item: EvidenceVideo, folder: Path, root: Path, reach: float) -> EvidenceCard:
    anomalies = confirmed_anomalies(item.score.evidence)
    video, why = _open_clip(item, root)
    pictures: tuple[Picture, ...] = ()
    if video is not None:
        try:
            pictures = frame_strip(video, anomalies)
        except ValueError as error:
            video, why = None, str(error)
    advantage = item.advantage
    width = 50 * abs(advantage) / reach if advantage is not None else 0.0
    return EvidenceCard(
        item=item,
        anomalies=anomalies if video is None else lasting_a_frame(anomalies, video),
        pictures=pictures,
        spans=timeline_spans(video, anomalies) if video is not None else (),
        duration_s=video.duration_s if video is not None else 0.0,
        source=os.path.relpath(video.path, folder) if video is not None and video.path is not None else None,
        not_drawn=why,
        bar=None if advantage is None else (50 - width if advantage < 0 else 50.0, max(width, 0.5)),
        facts=tuple((name, str(value)) for name, value in item.facts.items() if name != "advantage"),
        parts={name: value for name, value in item.score.parts.items() if not math.isnan(value)},
    )


def _open_clip(item: EvidenceVideo, root: Path) -> tuple[Video | None, str | None]:
    """The clip, or why its frames cannot be drawn. The host's ``fps`` overrides the file's, which
    is often wrong.
    """
    fps = item.facts.get("fps")
    if not isinstance(fps, (int, float)) or isinstance(fps, bool) or not math.isfinite(fps) or fps <= 0:
        fps = None
    for path in (Path(item.video), root / item.video):
        try:
            if path.is_file():
                return Video.open(path.resolve(), fps=None if fps is None else float(fps)), None
        except (ValueError, OSError) as error:
            return None, str(error)
    return None, f"{item.video}: no such file; the host scored frames in memory, or moved it"
