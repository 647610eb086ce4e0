"""Published data sets of annotated videos as records: ViF-CoT-4K, GeneVA, BrokenVideos, VideoPhy-2,
Spotlight.

One file per data set. A loader fails on a field or label that it does not know, because a silently
skipped label is a wrong ground truth. A video that cannot be used is left out with its reason and
counted. ``unverified`` says what could not be checked against the real files. The data sets are not
ours to ship; the user points at a copy.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from cac_align.core.judgement import Anomaly
from cac_align.core.video import Video
from cac_align.data.records import Record


def balanced(records: Iterable[Record], *, per_class: int | None = None, seed: int = 0) -> list[Record]:
    """As many normal as anomalous records, drawn at random (Appendix A.2's subset), in the order of
    their ids.

    per_class: how many of each; None takes the smaller class whole. The paper names no size; all
    recalls of Table S1 are multiples of 1/500, so 500 fits. The draw depends on ids and seed, not
    on the order of the file. Raises ``ValueError`` when a class has fewer.
    """
    classes: dict[str, list[Record]] = {"normal": [], "abnormal": []}
    for record in sorted(records, key=lambda record: record.id):
        classes[record.status].append(record)
    counts = {name: len(rows) for name, rows in classes.items()}
    wanted = min(counts.values()) if per_class is None else per_class
    if wanted < 1 or min(counts.values()) < wanted:
        raise ValueError(
            f"balanced needs {max(wanted, 1)} of each class, received {counts}; ask for fewer or load more"
        )
    rng = random.Random(seed)
    drawn = [record for name in ("abnormal", "normal") for record in rng.sample(classes[name], wanted)]
    return sorted(drawn, key=lambda record: record.id)


# ---- what every loader checks -------------------------------------------------------------------------------------


def check_fields(
    row: Mapping[str, Any], *, required: Collection[str], optional: Collection[str] = (), where: str
) -> None:
    """Raise ``ValueError`` for missing or unknown fields of a row, naming them and the known ones."""
    missing = [name for name in required if name not in row]
    unknown = sorted(set(row) - set(required) - set(optional))
    if missing or unknown:
        known = ", ".join([*required, *optional])
        raise ValueError(f"{where}: missing fields {missing}, unknown fields {unknown}; this loader knows {known}")


def map_label(label: str, table: Mapping[str, str | None], *, where: str) -> str | None:
    """Our type for a label of theirs; None for a known label that is no anomaly of ours. Raises
    ``ValueError`` for an unknown one.
    """
    if label not in table:
        near = difflib.get_close_matches(label, table, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{where}: unknown label {label!r}; known: {', '.join(table)}{hint}")
    return table[label]


def open_or_reason(path: Path) -> Video | str:
    """The video, or why it cannot be used (a reason for ``left_out``)."""
    if not path.is_file():
        return f"video missing: expected {path}"
    try:
        return Video.open(path)
    except (ValueError, OSError) as error:
        return f"video unreadable: {error}"


def record_of(
    video: Video, *, id: str, prompt: str, anomalies: tuple[Anomaly, ...], annotator: str, extra: Mapping[str, Any]
) -> Record:
    """A record of an opened video: clock, length and size are the video's own; anomalies make it
    abnormal.
    """
    assert video.path is not None
    return Record(
        id=id,
        video=str(video.path.absolute()),
        prompt=prompt,
        fps=video.fps,
        num_frames=len(video),
        width=video.width,
        height=video.height,
        status="abnormal" if anomalies else "normal",
        anomalies=anomalies,
        annotator=annotator,
        extra=extra,
    )
