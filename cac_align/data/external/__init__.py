"""Other people's annotated videos as our records: ViF-CoT-4K, GeneVA, BrokenVideos, VideoPhy-2, Spotlight.

their files → load(…) → Loaded(records, left_out, unverified) → balanced(records) → evaluate bench

One file per data set. Each loader fails on a field or label it does not know, because a silently skipped label is a wrong
ground truth; a video that cannot be used is left out under its reason, and counted. ``unverified`` says what nobody here could
check against the real files. None of these data sets is ours to ship; the user points at a copy.
"""

from __future__ import annotations

import difflib
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cac_align.core.judgement import Anomaly
from cac_align.core.video import Video
from cac_align.data.records import Record


@dataclass(frozen=True)
class Loaded:
    """What a loader made of a data set. ``left_out``: their id → why it is no record. ``unverified``: doubts about the format."""

    records: tuple[Record, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    unverified: tuple[str, ...] = ()

    def summary(self) -> str:
        """One paragraph: how many of which class, how many left out for which reason."""
        classes = Counter(record.status for record in self.records)
        reasons = Counter(reason.split(":")[0] for reason in self.left_out.values())
        out = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        return (
            f"{len(self.records)} records ({classes['abnormal']} abnormal, {classes['normal']} normal), "
            f"{len(self.left_out)} left out{f' ({out})' if out else ''}"
        )


def balanced(records: Iterable[Record], *, per_class: int | None = None, seed: int = 0) -> list[Record]:
    """As many normal as anomalous records, drawn at random (Appendix A.2's subset), in the order of their ids.

    per_class: how many of each; None takes the smaller class whole. The paper names no size; all recalls of Table S1 are multiples
    of 1/500, so 500 is the size that fits. The draw depends on the ids and the seed only, not on the order of the file.
    Raises ``ValueError`` when a class has fewer.
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
    """Raise ``ValueError`` naming the missing or unknown fields of a row, and the known ones."""
    missing = [name for name in required if name not in row]
    unknown = sorted(set(row) - set(required) - set(optional))
    if missing or unknown:
        known = ", ".join([*required, *optional])
        raise ValueError(f"{where}: missing fields {missing}, unknown fields {unknown}; this loader knows {known}")


def mapped(label: str, table: Mapping[str, str | None], *, where: str) -> str | None:
    """Our type for their label; None means: known, and deliberately not an anomaly of ours. Raises ``ValueError`` for an unknown one."""
    if label not in table:
        near = difflib.get_close_matches(label, table, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{where}: unknown label {label!r}; known: {', '.join(table)}{hint}")
    return table[label]


def opened(path: Path) -> Video | str:
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
    """A record of an opened video: clock, length and size are the video's own, and anomalies make it abnormal."""
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


def finished(records: list[Record], left_out: dict[str, str], unverified: tuple[str, ...], where: str) -> Loaded:
    """``Loaded``; raises ``ValueError`` when nothing at all could be used, which is a wrong folder rather than a fact."""
    if not records:
        first = next(iter(left_out.values()), "the file is empty")
        raise ValueError(
            f"{where}: none of {len(left_out)} entries became a record; the first was left out because: {first}"
        )
    return Loaded(tuple(records), left_out, unverified)
