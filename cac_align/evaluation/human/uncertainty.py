"""The order in which clips are worth a person's time: those of whose verdict the judge is least sure.

stored scores, or a CaC and the clips → log-odds by clip → ``uncertainty_first`` → the tasks' order

The measure is |log-odds| of the verdict, the smallest first. A clip without a score comes before all
others: nothing is known of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cac_align.core.video import Video
from cac_align.evaluation.human.tasks import RatingTask, Sources, gather_tasks
from cac_align.evaluation.pairing import FolderClip
from cac_align.rewards.reward import Reward, Score
from cac_align.runs.metrics_log import read_rows

if TYPE_CHECKING:
    from cac_align.rewards.ledger import Ledger

LogOdds = Mapping[Path, float]
"""A judge's log-odds by the clip's resolved path; clips without a score are not in it."""

_CLIPS_PER_CALL = 64


def source_clips(sources: Sources) -> list[FolderClip]:
    """The clips that are to be rated, each once. Raises ``ValueError`` as ``gather_tasks`` does."""
    gathered, _ = gather_tasks(sources)
    return list({clip.path.resolve(): clip for _, members in gathered for clip, _ in members}.values())


def stored_log_odds(path: Path, clips: Sequence[FolderClip]) -> dict[Path, float]:
    """A judge's log-odds from a ledger or from what `cac-align score --json` printed.

    A row belongs to the clip with its ``video_hash``; without one, to the clip whose path or whose
    name in its folder it gives as ``video``. Rows of other rewards than CaC have no log-odds and are
    not read; the last score of a clip counts. Raises ``ValueError`` where the file has no score of
    any of these clips.
    """
    if not path.is_file():
        raise ValueError(f"--queue {path}: expected a ledger or the rows of `cac-align score --json`, found no file")
    by_hash = {clip.video.content_hash: clip for clip in clips}
    by_name: dict[str, set[Path]] = {}
    for clip in clips:
        for name in {clip.name, str(clip.path), str(clip.path.resolve())}:
            by_name.setdefault(name, set()).add(clip.path.resolve())
    found: dict[Path, float] = {}
    for row in read_rows(path):
        value = (row.get("parts") or {}).get("log_odds") if row.get("score") is not None else None
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            continue
        if row.get("video_hash") is not None:
            paths = {by_hash[row["video_hash"]].path.resolve()} if row["video_hash"] in by_hash else set()
        else:
            paths = by_name.get(str(row.get("video")), set())
        if len(paths) == 1:
            found[next(iter(paths))] = float(value)
    if not found:
        raise ValueError(
            f"--queue {path}: none of its rows is a CaC's score of one of these {len(clips)} clips; make them with "
            "`cac-align annotate … --reward RECIPE`, or with `cac-align score --json`"
        )
    return found


def judged_log_odds(
    reward: Reward,
    clips: Sequence[FolderClip],
    ledger: Ledger | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> dict[Path, float]:
    """Ask a CaC about every clip. ledger: keeps and reuses its scores. progress: called with (clips
    done, number of clips). Raises ``ValueError`` where no clip gets a score, with the first reason.
    """
    from cac_align.rewards.cached import cached

    judge = reward if ledger is None else cached(reward, ledger)
    scores: list[Score] = []
    for start in range(0, len(clips), _CLIPS_PER_CALL):
        chunk = clips[start : start + _CLIPS_PER_CALL]
        videos: list[Video] = [clip.video for clip in chunk]
        scores += judge([clip.prompt or "" for clip in chunk], videos)
        if progress is not None:
            progress(len(scores), len(clips))
    found = {
        clip.path.resolve(): score.parts["log_odds"]
        for clip, score in zip(clips, scores, strict=True)
        if score.scored and "log_odds" in score.parts
    }
    if not found:
        raise ValueError(f"none of {len(clips)} clips has a score; the first says: {scores[0].error}")
    return found


def uncertainty_first(tasks: Sequence[RatingTask], log_odds: LogOdds) -> list[RatingTask]:
    """The tasks by their least certain clip: first those with a clip without a score, then by
    |log-odds|, the smallest first. Equals keep their order.
    """

    def doubt(task: RatingTask) -> float:
        values = [log_odds.get(member.clip.path.resolve()) for member in task.members]
        return -1.0 if None in values else min(abs(value) for value in values if value is not None)

    return sorted(tasks, key=doubt)
