"""Raters' records of clips, relabelled with the groups and pairs of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cac_align.data.records import Record
from cac_align.evaluation.human.experts import read_ratings
from cac_align.evaluation.pairing import Fault, Pairing
from cac_align.evaluation.report.clip_record import ClipRecord, is_counted


def add_ratings(
    clip_records: Sequence[ClipRecord],
    pairing: Pairing,
    folders: Sequence[Path],
    files: Sequence[Path],
    faults: list[Fault],
) -> None:
    """Give each clip the ratings that are about it, with this pairing's groups and pairs in
    ``extra``.

    Read are the folders' ``ratings*.jsonl`` and then ``files``; of one rater's ratings of a clip
    the last one counts. Raises ``ValueError`` for a named file without a rating.
    """
    own = [path for folder in folders for path in sorted(folder.glob("ratings*.jsonl"))]
    by_path: dict[Path, list[ClipRecord]] = {}
    for clip_record in clip_records:
        by_path.setdefault(clip_record.clip.path.resolve(), []).append(clip_record)
    named = {
        id(clip_record): pair.id
        for pair, two in zip(pairing.pairs, _two_by_two(clip_records), strict=True)
        for clip_record in two
    }
    groups = {pairing.before, pairing.after}
    for path in dict.fromkeys(path.resolve() for path in [*own, *map(Path, files)]):
        if path not in {Path(file).resolve() for file in files} and not path.stat().st_size:
            continue  # the rating page's export before the first rating
        records, unreadable = read_ratings(path)
        faults += unreadable
        for record in records:
            found = by_path.get((path.parent / record.video).resolve()) or _by_name(clip_records, record)
            group = record.extra.get("group")
            about = [each for each in found if group not in groups or each.clip.group == group]
            if not about:
                faults.append(Fault("rating of another video", record.id, f"{record.video} is in none of the pairs"))
            for clip_record in about:
                extra = {**record.extra, "group": clip_record.clip.group, "pair": named[id(clip_record)]}
                given = replace(record, video=str(clip_record.clip.path.resolve()), extra=extra)
                twice = [
                    old
                    for old in clip_record.ratings
                    if is_counted(old) and is_counted(given) and old.annotator == given.annotator
                ]
                if any(old != given for old in twice):
                    faults.append(
                        Fault("rated twice", record.id, f"{record.annotator} rated it again; the last one read counts")
                    )
                clip_record.ratings = [*(old for old in clip_record.ratings if old not in twice), given]


def _by_name(clip_records: Sequence[ClipRecord], record: Record) -> list[ClipRecord]:
    """For a folder that was moved: the clips of the rating's group with the same file name."""
    group, name = record.extra.get("group"), Path(record.video).name
    return [each for each in clip_records if each.clip.group == group and each.clip.path.name == name]


def _two_by_two(clip_records: Sequence[ClipRecord]) -> list[tuple[ClipRecord, ClipRecord]]:
    return list(zip(clip_records[::2], clip_records[1::2], strict=True))
