"""The page of `cac-align data inject`: pairs side by side, so that a person can look at what was made.

records.jsonl + audit → anomalous and sham clip of a pair, played together, with boxes → index.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cac_align.core.video import Video
from cac_align.data.records import Record, read_records
from cac_align.evaluation.pages.page import evenly_spaced, write_page
from cac_align.evaluation.pages.player import Player, file_player

MAX_PAIRS = 80
"""How many pairs the page shows; of more, evenly spaced ones of every injector."""


@dataclass(frozen=True)
class TwinCard:
    """One pair as the page shows it. sides: (title, player). ``facts``: name and value of what its record says."""

    record: Record
    sides: tuple[tuple[str, Player], ...]
    facts: tuple[tuple[str, str], ...]


def write_injection_page(out: Path, records: Path, audit: Mapping[str, Any]) -> Path:
    """Write ``index.html`` in the folder of the records and return its path.

    Raises ``ValueError`` when a clip cannot be read.
    """
    found = list(read_records(records))
    wrong = [record for record in found if record.status == "abnormal"]
    shams = {record.id: record for record in found if record.extra.get("sham")}
    by_injector: dict[str, list[int]] = {}
    for index, record in enumerate(wrong):
        by_injector.setdefault(str(record.extra["injector"]), []).append(index)
    share = max(MAX_PAIRS // max(len(by_injector), 1), 1)
    shown = sorted(index for indices in by_injector.values() for index in evenly_spaced(indices, share))
    cards = [_card(wrong[index], shams[str(wrong[index].extra["twin"])], out) for index in shown]
    cards.sort(key=lambda card: (card.record.anomalies[0].type, str(card.record.extra["subtype"])))
    tiles = [
        (str(audit["pairs"]), "pairs"),
        (str(audit["sources"]), "videos"),
        (str(len(by_injector)), "injectors"),
        (str(sum(audit["skipped"].values())), "places skipped"),
    ]
    tables = [
        (title, tuple(audit[key].items()))
        for title, key in (("Skipped", "skipped"), ("Failed", "failed"), ("Rejected attempts", "rejected_attempts"))
        if audit[key]
    ]
    return write_page(
        out / "index.html",
        "injection.html.jinja",
        title="Injected defects",
        tiles=tiles,
        cards=cards,
        hidden=len(wrong) - len(cards),
        aucs=audit["shortcut_auc"],
        tables=tables,
        self_contained=False,
    )


def _card(record: Record, sham: Record, out: Path) -> TwinCard:
    video, twin = (Video.open(out / one.video) for one in (record, sham))
    extra = record.extra
    facts = [(name, str(extra[name])) for name in ("injector", "severity", "contrast", "area_share", "source")]
    facts.append(("saliency", str(record.anomalies[0].saliency)))
    sides = [
        (title, file_player(clip, record.anomalies, one.video))
        for title, clip, one in (("anomalous", video, record), ("sham", twin, sham))
    ]
    return TwinCard(record, tuple(sides), tuple(facts))
