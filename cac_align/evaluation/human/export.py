"""Export stored ratings as annotation records."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cac_align.core.judgement import Anomaly, Window
from cac_align.data.records import Record, Review, write_records
from cac_align.evaluation.human.rating import AnomalyDraft, Rating, fold
from cac_align.evaluation.human.store import AnnotationStore
from cac_align.evaluation.human.tasks import RatingTask, TaskMember
from cac_align.evaluation.pairing import Fault


@dataclass(frozen=True)
class RatingsExport:
    """Records of confirmed ratings, and every rating that was begun but is no record yet."""

    records: tuple[Record, ...]
    half_written: tuple[Fault, ...]


def export_ratings(
    store: AnnotationStore, tasks: Sequence[RatingTask], folder: Path, *, review: Review = "draft"
) -> RatingsExport:
    """All ratings as annotation records, with ``video`` relative to ``folder``, where the records
    file will be.

    tasks: those served now; rated tasks that the store describes are exported as well. Where a
    rater judged a clip in two tasks (alone and in a pair), the one they worked on last counts,
    and the other is named. ``extra`` holds group, pair (None without one) and task; the id is
    ``<group>/<video>#<rater>``.
    """
    by_token = {**store.described(), **{task.token: task for task in tasks}}
    records: dict[str, Record] = {}
    half: list[Fault] = []
    for (rater, token), actions in store.everything().items():
        if token not in by_token:
            half.append(
                Fault("rated, not there", rater, f"rated something that is not among these videos (task {token})")
            )
            continue
        task = by_token[token]
        state = fold(actions, task.lengths)
        if not state.touched:
            continue  # everything was undone again
        if not state.done:
            why = "; ".join(state.missing()) or "complete, but not confirmed with n"
            half.append(Fault("half-written rating", f"{rater}: {task.name}", why))
            continue
        for member in task.members:
            for record in _records(member, state.ratings[member.token], rater, task.name, folder, review):
                if (former := records.pop(record.id, None)) is not None:
                    why = f"{rater} rated it again in {task.name}; the later rating counts"
                    half.append(Fault("rated twice", f"{rater}: {former.extra['task']}", why))
                records[record.id] = record
    return RatingsExport(tuple(records.values()), tuple(half))


def check_described(store: AnnotationStore) -> None:
    """Raise ``ValueError`` for a file of an earlier release whose export would lose confirmed
    ratings.

    Such a file does not describe the tasks that were rated in it.
    """
    known = store.described()
    lost = []
    for (rater, token), actions in store.everything().items():
        if token not in known and fold(actions, {action.clip: sys.maxsize for action in actions}).done:
            lost.append((rater, token))
    if lost:
        names = store.names("task")
        raters = len({rater for rater, _ in lost})
        raise ValueError(
            f"{store.path}: {len(lost)} confirmed ratings of {raters} rater{'s' if raters > 1 else ''} belong to "
            f"other folders than "
            f"these (first: {names.get(lost[0][1], lost[0][1])}), and an earlier release did not keep what videos "
            f"these are: the "
            "export would lose them. Open it once with the folders that were rated (from then on any others will "
            "do), or give "
            "another --database and the report the former export, with --ratings"
        )


def _records(
    member: TaskMember, rating: Rating, rater: str, task: str, folder: Path, review: Review
) -> Iterator[Record]:
    clip, video = member.clip, member.clip.video
    assert rating.status is not None  # fold accepts ``done`` for complete ratings only
    anomalies = tuple(_anomaly(draft, video.times_s) for draft in rating.anomalies)
    for group, pair in member.groups.items():
        yield Record(
            id=f"{group}/{clip.name}#{rater}",
            video=os.path.relpath(clip.path, folder),
            prompt=clip.prompt or "",
            fps=video.fps,
            num_frames=len(video),
            width=video.width,
            height=video.height,
            status=rating.status,
            anomalies=anomalies,
            annotator=rater,
            review=review,
            extra={"group": group, "pair": pair, "task": task},
        )


def _anomaly(draft: AnomalyDraft, times_s: Sequence[float]) -> Anomaly:
    assert draft.type is not None and draft.start is not None and draft.end is not None
    window = Window(times_s[draft.start], times_s[draft.end])
    boxes = {frame: tuple(boxes) for frame, boxes in sorted(draft.boxes.items())}
    return Anomaly(draft.type, window, draft.reason, draft.region, boxes, draft.saliency)


def export_path(database: Path) -> Path:
    """Where the records of a database are written: beside it, with the ending ``.jsonl``."""
    return Path(database).with_suffix(".jsonl")


def write_export(store: AnnotationStore, tasks: Sequence[RatingTask], database: Path) -> RatingsExport:
    """Write the export of a database beside it, atomically, and return it."""
    target = export_path(database)
    exported = export_ratings(store, tasks, target.parent)
    write_records(target, exported.records)
    return exported


def export_database(database: Path) -> RatingsExport:
    """All ratings of a database as records, with ``video`` relative to its folder. Raises
    ``ValueError`` where it cannot be opened.
    """
    store = AnnotationStore(database)
    try:
        return export_ratings(store, (), database.parent)
    finally:
        store.close()


class RatingsExporter:
    """Keeps the export of a database up to date, one write at a time."""

    def __init__(self, store: AnnotationStore, tasks: Sequence[RatingTask], database: Path) -> None:
        self._arguments = store, tasks, database
        self._writing, self._stale = threading.Lock(), threading.Event()

    def write(self) -> RatingsExport:
        """Write the export now, after a write that is in progress."""
        with self._writing:
            self._stale.clear()
            return write_export(*self._arguments)

    def refresh(self) -> None:
        """Write what has changed; what changes while a file is written is in the next one.

        A caller that finds a write in progress returns at once, and that write is followed by
        another.
        """
        self._stale.set()
        while self._stale.is_set() and self._writing.acquire(blocking=False):
            self._stale.clear()
            try:
                write_export(*self._arguments)
            except BaseException:
                self._stale.set()
                raise
            finally:
                self._writing.release()
