"""The page of `cac-align score --html`: one file with every clip, its verdict, and the boxes drawn over
the video.

rows of ``score`` (JSON) → a table of all videos, in their order → cards, the lowest score first

A video without a score has its reason in place of a number. The page embeds small copies of the
clips; those that do not fit into ``MAX_BYTES`` are shown as frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cac_align.core.judgement import Anomaly
from cac_align.core.video import Video
from cac_align.evaluation.pages.page import confirmed_anomalies, lasting_a_frame, write_page
from cac_align.evaluation.pages.player import MAX_BYTES, Player, embedded_player
from cac_align.rewards.reward import Score

MAX_CARDS = 200
"""How many videos have a card; all of them are in the table."""


@dataclass(frozen=True)
class ScoreCard:
    """One video as the page shows it. number: its place on the command line, from 1. verdict:
    "normal", "abnormal" or "none". not_drawn: why there is no player.
    """

    number: int
    name: str
    prompt: str
    score: Score
    verdict: str
    components: tuple[tuple[str, float | None], ...]
    anomalies: tuple[Anomaly, ...]
    player: Player | None
    not_drawn: str | None


def write_score_page(rows: Sequence[Mapping[str, Any]], path: Path, *, scales: Mapping[str, str]) -> Path:
    """Write the page and return its path.

    rows: as `score --json` prints them, in order. scales: the scale in words of "score" and of each
    component, by name; they are the columns (a reward without components: its parts).
    Raises ``ValueError`` where there is no row.
    """
    if not rows:
        raise ValueError("there is no score to show; pass at least one video")
    scores = [Score.from_json(row) for row in rows]
    columns = [name for name in scales if name != "score"] or _parts(scores)
    order = sorted(range(len(rows)), key=lambda at: (scores[at].scored, scores[at].value if scores[at].scored else 0.0))
    each_bytes = MAX_BYTES // min(len(rows), MAX_CARDS)
    shown = set(order[:MAX_CARDS])
    cards = [
        _card(at + 1, rows[at], scores[at], columns, each_bytes if at in shown else None) for at in range(len(rows))
    ]
    scored = [score.value for score in scores if score.scored]
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_page(
        path,
        "score.html.jinja",
        title=f"{len(rows)} video{'s' if len(rows) > 1 else ''} scored",
        self_contained=True,
        provenances=_distinct([dict(score.provenance) for score in scores if score.provenance]),
        tiles=[
            (str(len(rows)), "videos"),
            (str(sum(card.verdict == "abnormal" for card in cards)), "judged abnormal"),
            (f"{math.fsum(scored) / len(scored):.3f}" if scored else "–", "mean score"),
            (str(len(rows) - len(scored)), "without a score"),
        ],
        scales=scales,
        columns=columns,
        rows=cards,
        cards=[cards[at] for at in order[:MAX_CARDS]],
    )


def _card(
    number: int, row: Mapping[str, Any], score: Score, columns: Sequence[str], max_bytes: int | None
) -> ScoreCard:
    """max_bytes: what its clip may take; None: it has no card, and the video is not opened."""
    anomalies = confirmed_anomalies(score.evidence)
    if row["fps"]:
        anomalies = lasting_a_frame(anomalies, row["fps"])
    player, why = None, None
    if max_bytes is not None:
        try:
            video = Video.open(row["video"], fps=row["fps"])
            player = embedded_player(video, confirmed_anomalies(score.evidence), max_bytes)
        except (ValueError, OSError) as error:
            why = str(error)
    status = score.evidence.status if score.evidence is not None else None
    return ScoreCard(
        number=number,
        name=Path(row["video"]).name,
        prompt=row["prompt"],
        score=score,
        verdict=status or "none",
        components=tuple((name, score.parts.get(name)) for name in columns),
        anomalies=anomalies,
        player=player,
        not_drawn=why,
    )


def _parts(scores: Sequence[Score]) -> list[str]:
    """The first four parts of a score that is no combination."""
    return list(dict.fromkeys(name for score in scores for name in score.parts if "/" not in name))[:4]


def _distinct(provenances: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    return [one for at, one in enumerate(provenances) if one not in provenances[:at]]
