"""The bench: run rewards over the videos of a records file and compare them as judges.

Judges see each video on its record's clock (``fps``), because the windows of the ground truth are
written on that clock. A video that cannot be opened is an unscored video with its reason. Scores go
through a ledger where one is given, so that a second run scores only what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cac_align.core.video import Video
from cac_align.core.whole_file import whole_file
from cac_align.data.records import Record, all_records
from cac_align.evaluation.bench.detection import check_threshold, evaluate_judge
from cac_align.evaluation.bench.figures import draw_figures
from cac_align.evaluation.bench.results import Bench, compare_judges
from cac_align.evaluation.bench.tables import to_markdown
from cac_align.rewards.cached import cached
from cac_align.rewards.combine import bounds_of, compares_videos, pointwise_remedy
from cac_align.rewards.reward import Reward, Score
from cac_align.runs.files import atomic_write

if TYPE_CHECKING:
    from cac_align.rewards.ledger import Ledger

VIDEOS_PER_CALL = 64
"""Videos handed to a reward at once: few wait for one long answer, and an interrupted run loses
little.
"""


def bench(
    records_path: str | Path,
    rewards: Mapping[str, Reward],
    *,
    ledger: Ledger | None = None,
    out: str | Path | None = None,
    threshold: float | None = None,
    false_alarm_rate: float = 0.05,
    progress: Callable[[str, int, int], None] | None = None,
) -> Bench:
    """Run every reward over every video of a records file and compare the results.

    rewards: reward by the judge's name.
    ledger: keeps the scores, so that a second run scores only what is missing.
    out: folder for bench.json, bench.md and the plots.
    threshold: a video with a lower score counts as abnormal. None lets a judgement's own status
        decide (0.5 for rewards without judgements).
    progress: called with (judge, videos done, number of videos).

    Raises ``ValueError`` for an empty or malformed records file, for no reward, and for a reward
    that compares the videos of a prompt with each other.
    """
    if not rewards:
        raise ValueError("bench needs at least one reward, received none; pass {'cac': CaC.load(...)}")
    for name, reward in rewards.items():
        check_threshold(name, threshold, bounds_of(reward))
        if reason := compares_videos(reward):
            raise ValueError(
                f"judge {name!r}: {reason}, and a bench scores every video by itself; {pointwise_remedy(reason)}"
            )
    records = all_records(records_path)
    videos, notes = _open_all(records, Path(records_path).parent)
    reports = []
    for name, reward in rewards.items():
        judge = reward if ledger is None else cached(reward, ledger)
        scores = _score_all(
            judge, records, videos, lambda done, name=name: progress and progress(name, done, len(records))
        )
        reports.append(
            evaluate_judge(
                records,
                scores,
                judge=name,
                threshold=threshold,
                false_alarm_rate=false_alarm_rate,
                provenance=reward.provenance,
            )
        )
    found = compare_judges(reports, notes=notes)
    if out is not None:
        write_bench(found, out)
    return found


def score_records(
    records_path: str | Path, records: Sequence[Record], reward: Reward, done: Callable[[int], Any]
) -> tuple[list[Score], list[str]]:
    """Score every record's video with one reward.

    Returns the scores in the order of the records, and sentences about videos that differ from
    their records. done: called with the number of videos scored so far.
    """
    videos, notes = _open_all(records, Path(records_path).parent)
    return _score_all(reward, records, videos, done), notes


def _open_all(records: Sequence[Record], root: Path) -> tuple[list[Video | str], list[str]]:
    """Each record's video or the reason why it cannot be opened, and sentences about mismatches
    with the records.
    """
    opened: list[Video | str] = []
    lengths, sizes = [], []
    for record in records:
        try:
            video = Video.open(root / record.video, fps=record.fps, name=record.id)
        except (ValueError, OSError) as error:
            opened.append(f"cannot open {record.video}: {error}")
            continue
        opened.append(video)
        if len(video) != record.num_frames:
            lengths.append(f"{record.id} ({len(video)} frames, record says {record.num_frames})")
        if (video.width, video.height) != (record.width, record.height):
            sizes.append(f"{record.id} ({video.width}×{video.height}, record says {record.width}×{record.height})")
    empty = [record.id for record in records if not record.prompt.strip()]
    unreadable = [record.id for record, video in zip(records, opened, strict=True) if isinstance(video, str)]
    named = [
        (unreadable, "videos cannot be opened and are unscored"),
        (lengths, "videos differ in length from their record"),
        (sizes, "videos differ in size from their record"),
        (empty, "records have no prompt; judges were given an empty one"),
    ]
    return opened, [f"{len(which)} {what}: {_first_names(which)}" for which, what in named if which]


def _first_names(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _score_all(
    reward: Reward, records: Sequence[Record], videos: Sequence[Video | str], done: Callable[[int], Any]
) -> list[Score]:
    """One score per record, a chunk of videos per call. Videos that cannot be opened never reach
    the reward.
    """
    readable = [(position, video) for position, video in enumerate(videos) if not isinstance(video, str)]
    scores = {position: Score.missing(video) for position, video in enumerate(videos) if isinstance(video, str)}
    for start in range(0, len(readable), VIDEOS_PER_CALL):
        chunk = readable[start : start + VIDEOS_PER_CALL]
        given = reward([records[position].prompt for position, _ in chunk], [video for _, video in chunk])
        if len(given) != len(chunk):
            raise ValueError(
                f"reward {reward.name} returned {len(given)} scores for {len(chunk)} videos; expected one per video"
            )
        scores.update(zip((position for position, _ in chunk), given, strict=True))
        done(len(records) - len(readable) + start + len(chunk))
    return [scores[position] for position in range(len(videos))]


def write_bench(found: Bench, out: str | Path) -> list[Path]:
    """Write bench.json (with one row per video), bench.md and the plots as PNG into the folder
    ``out``; return their paths.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "bench.json", folder / "bench.md"]
    atomic_write(written[0], json.dumps(found.to_json(videos=True), ensure_ascii=False, indent=1, allow_nan=False))
    figures = draw_figures(found)
    pictures = "\n".join(f"![{name}]({name}.png)" for name in figures)
    atomic_write(written[1], to_markdown(found) + "\n" + pictures + "\n")
    for name, figure in figures.items():
        written.append(folder / f"{name}.png")
        with whole_file(written[-1]) as part:
            figure.savefig(part, dpi=110, format="png")
    return written
