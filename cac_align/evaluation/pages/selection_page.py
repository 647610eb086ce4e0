"""The page of a Best-of-N run: for each prompt the chosen candidate beside the worst rejected one,
and all scores.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cac_align.core.judgement import Anomaly
from cac_align.core.video import Video
from cac_align.evaluation.pages.page import (
    confirmed_anomalies,
    lasting_a_frame,
    write_page,
)
from cac_align.evaluation.pages.player import Player, embedded_player, file_player
from cac_align.generation.selection import Selection
from cac_align.rewards.normalise import TIE
from cac_align.rewards.reward import Score

VIDEOS_BESIDE = "it plays the videos beside it; `cac-align report` with this folder writes one file"
"""What commands say about this page on the terminal."""


# What browsers show as pictures and do not play as videos: the page carries a small copy, as of folders of images.
_NOT_PLAYED = (".gif", ".webp")
_EMBEDDED_BYTES = 2_000_000


@dataclass(frozen=True)
class CandidateView:
    """One candidate as the page shows it."""

    title: str
    kind: str
    score: Score
    anomalies: tuple[Anomaly, ...]
    player: Player


@dataclass(frozen=True)
class CandidateRow:
    """One line of the score table."""

    index: int
    chosen: bool
    score: Score
    parts: Mapping[str, float]
    verdict: str


def write_selection_page(
    selections: Sequence[Selection],
    path: Path,
    *,
    title: str = "Best of N",
    tiles: Sequence[tuple[str, str]] = (),
    fps: float | None = None,
) -> Path:
    """Write the page and return its path. tiles: (figure, caption) shown at the top, before those
    of every run. fps: the candidates' true frame rate, as it was given to ``best_of_n``.
    """
    undecided = sum(selection.chosen is None for selection in selections)
    unscored = sum(not score.scored for selection in selections for score in selection.scores)
    candidates = sum(len(selection.candidates) for selection in selections)
    provenance = next(
        (dict(score.provenance) for selection in selections for score in selection.scores if score.provenance), {}
    )
    return write_page(
        path,
        "selection.html.jinja",
        title=title,
        tiles=[
            *tiles,
            (str(len(selections)), "prompts"),
            (str(candidates), "candidates judged"),
            (str(undecided), "undecided"),
        ],
        unscored=unscored,
        cards=[_card(selection, path.parent, fps) for selection in selections],
        self_contained=False,
        provenances=[provenance] if provenance else [],
    )


def _card(selection: Selection, folder: Path, fps: float | None) -> dict[str, object]:
    scored = [index for index, score in enumerate(selection.scores) if score.scored]
    rejected = [index for index in scored if index != selection.chosen]
    sides = []
    worst = min(rejected, key=lambda index: (selection.scores[index].value, index)) if rejected else None
    if selection.chosen is not None:
        best = selection.scores[selection.chosen].value
        tied = worst is not None and best - selection.scores[worst].value < TIE
        sides.append(_side(selection, selection.chosen, "tied" if tied else "chosen", folder, fps))
        if worst is not None:
            sides.append(_side(selection, worst, "tied" if tied else "rejected", folder, fps))
    columns = list(dict.fromkeys(name for score in selection.scores for name in _parts(score)))
    rows = [
        CandidateRow(index, index == selection.chosen, score, _parts(score), _verdict(score))
        for index, score in enumerate(selection.scores)
    ]
    return {"selection": selection, "sides": sides, "columns": columns, "rows": rows}


def _side(selection: Selection, index: int, kind: str, folder: Path, fps: float | None) -> CandidateView:
    score = selection.scores[index]
    anomalies = confirmed_anomalies(score.evidence)
    video = (
        selection.video
        if index == selection.chosen and selection.video is not None
        else Video.open(selection.candidates[index], fps=fps)
    )
    file = Path(selection.candidates[index])
    if file.suffix.lower() in _NOT_PLAYED or file.is_dir():
        player = embedded_player(video, anomalies, _EMBEDDED_BYTES)
    else:
        player = file_player(video, anomalies, os.path.relpath(video.path, folder) if video.path is not None else None)
    return CandidateView(
        title=f"{'Chosen' if index == selection.chosen else 'Rejected'}: candidate {index}"
        + (" (a tie)" if kind == "tied" else ""),
        kind=kind,
        score=score,
        anomalies=lasting_a_frame(anomalies, video.fps),
        player=player,
    )


def _parts(score: Score) -> dict[str, float]:
    """The columns of the table: component values as they are, and normalised where they were
    combined.
    """
    return {
        name: value
        for name, value in score.parts.items()
        if ("/" not in name or name.startswith("normalised/")) and not math.isnan(value)
    }


def _verdict(score: Score) -> str:
    if not score.scored:
        return f"no score: {score.error}"
    if score.evidence is None:
        return ""
    kinds = sorted({anomaly.type for anomaly in score.evidence.anomalies})
    return "normal" if score.evidence.status == "normal" else ", ".join(kinds) or "abnormal"
