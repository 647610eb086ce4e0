"""The page of a training run: its curves, alarms and settings, then each shown clip with its boxes
beside its advantage, the latest step first.

A clip is shown where its row names a file that still exists (hosts that score tensors name none).
A missing score is a dash with its reason. The page embeds small copies of the clips; those that do
not fit into ``MAX_BYTES`` are shown as frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cac_align.core.judgement import Anomaly
from cac_align.core.video import Video
from cac_align.evaluation.pages.page import (
    confirmed_anomalies,
    lasting_a_frame,
    write_page,
)
from cac_align.evaluation.pages.player import MAX_BYTES, Player, embedded_player
from cac_align.evaluation.pages.run_record import RunRecord
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
    """One clip as the page shows it. bar: its advantage as (left, width) in per cent. not_drawn: why
    there is no player.
    """

    item: EvidenceVideo
    anomalies: tuple[Anomaly, ...]
    player: Player | None
    not_drawn: str | None
    bar: tuple[float, float] | None
    facts: tuple[tuple[str, str], ...]
    parts: Mapping[str, float]


def write_evidence_page(
    steps: Sequence[Step],
    path: Path,
    *,
    root: Path,
    run: RunRecord | None = None,
    title: str = "What was rewarded",
) -> Path:
    """Write the page and return its path. Steps are given in order of time; the latest is shown
    first.

    root: the folder that relative video names belong to. run: what the run's other files tell; None
    where a host trained. Raises ``ValueError`` when there is no video at all.
    """
    videos = [item for step in steps for item in step.videos]
    if not videos:
        raise ValueError(f"{root}: the ledger holds no score; there is nothing to report")
    path.parent.mkdir(parents=True, exist_ok=True)
    given = [abs(item.advantage) for item in videos if item.advantage is not None]
    reach = max(given, default=0.0) or 1.0
    unscored = sum(not item.score.scored for item in videos)
    each_bytes = MAX_BYTES // max(sum(len(step.shown) for step in steps), 1)
    provenance = next((dict(item.score.provenance) for item in videos if item.score.provenance), None)
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
            (step, [_card(item, root, reach, each_bytes) for item in step.shown])
            for step in reversed(steps)
            if step.shown
        ],
        hidden=len(videos) - sum(len(step.shown) for step in steps),
        run=run,
        self_contained=True,
        provenances=[] if provenance is None else [provenance],
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


def _card(item: EvidenceVideo, root: Path, reach: float, max_bytes: int) -> EvidenceCard:
    anomalies = confirmed_anomalies(item.score.evidence)
    video, why = _open_clip(item, root)
    player: Player | None = None
    if video is not None:
        try:
            player = embedded_player(video, anomalies, max_bytes)
        except ValueError as error:
            video, why = None, str(error)
    advantage = item.advantage
    width = 50 * abs(advantage) / reach if advantage is not None else 0.0
    return EvidenceCard(
        item=item,
        anomalies=anomalies if video is None else lasting_a_frame(anomalies, video.fps),
        player=player,
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
