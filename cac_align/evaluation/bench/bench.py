"""The bench: run rewards over the videos of a records file and compare them as judges.

Judges see each video on its record's clock (``fps``), because the windows of the ground truth are
written on that clock. A video that cannot be opened is an unscored video with its reason. Scores go
through a ledger where one is given, so that a second run scores only what is missing.

records → chunks of videos → every judge scores the chunk, on frames that are decoded once → reports
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cac_align.core.shared_frames import decoded_bytes, release_frames, shared_video
from cac_align.core.video import Video
from cac_align.core.whole_file import whole_file
from cac_align.data.records import Record, all_records
from cac_align.evaluation.bench.detection import JudgeReport, check_threshold, evaluate_judge, needs_fit
from cac_align.evaluation.bench.figures import draw_figures
from cac_align.evaluation.bench.results import Bench, compare_judges
from cac_align.evaluation.bench.tables import to_markdown
from cac_align.evaluation.bench.thresholds import FIT, FittedThresholds, file_groups
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

SHARED_BYTES = 2 * 1024**3
"""Memory for the decoded frames that the judges of one bench share: 20 videos of 81 frames at 832×480."""


def bench(
    records_path: str | Path,
    rewards: Mapping[str, Reward],
    *,
    ledger: Ledger | None = None,
    out: str | Path | None = None,
    threshold: float | str | None = None,
    false_alarm_rate: float = 0.05,
    progress: Callable[[str, int, int], None] | None = None,
    protocols: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    shared_bytes: int = SHARED_BYTES,
) -> Bench:
    """Run every reward over every video of a records file and compare the results.

    Every judge scores a chunk of videos before the next chunk is decoded, and all of them read the
    same decoded frames: each video is decoded once, however many judges there are.

    rewards: reward by the judge's name.
    ledger: keeps the scores, so that a second run scores only what is missing.
    out: folder for bench.json, bench.md and the plots.
    threshold: a video with a lower score counts as abnormal. None lets a judgement's own status
        decide; of rewards without judgements it is 0.5 where their values lie on [0, 1], and "fit"
        elsewhere. "fit" takes, for each half of the videos, the best one on the other half.
    progress: called with (judge, videos done, number of videos).
    protocols: by judge, the protocol it is asked under; kept in the report. notes: sentences for
        the report.
    shared_bytes: memory for decoded frames. A video that takes more by itself is not kept.

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
    records, root = all_records(records_path), Path(records_path).parent
    videos, odd = _open_all(records, root)
    judges = {name: reward if ledger is None else cached(reward, ledger) for name, reward in rewards.items()}
    scores = _score_all(
        judges, records, videos, lambda name, done: progress and progress(name, done, len(records)), shared_bytes
    )
    groups, unread = file_groups(records, root)
    reports = []
    for name, reward in rewards.items():
        fit = threshold is None and needs_fit(scores[name], bounds_of(reward))
        reports.append(
            evaluate_judge(
                records,
                scores[name],
                judge=name,
                threshold=FIT if fit else threshold,
                groups=groups,
                protocol=(protocols or {}).get(name, ""),
                false_alarm_rate=false_alarm_rate,
                provenance=reward.provenance,
            )
        )
    found = compare_judges(reports, notes=[*notes, *odd, *threshold_notes(reports, unread)])
    if out is not None:
        write_bench(found, out)
    return found


def threshold_notes(reports: Sequence[JudgeReport], unread: int) -> list[str]:
    """What a reader must know about fitted thresholds. unread: files whose bytes could not be compared."""
    names = [report.judge for report in reports if isinstance(report.threshold, FittedThresholds)]
    if not names:
        return []
    told = [
        f"The thresholds of {', '.join(names)} were fitted: for each half of the videos on the other half, for the "
        "largest mean of the two recalls. Files of equal bytes lie in the same half."
    ]
    if unread:
        told.append(f"{unread} videos could not be read, so equal ones among them are told by their path alone.")
    return told


def score_records(
    records_path: str | Path, records: Sequence[Record], reward: Reward, done: Callable[[int], Any]
) -> tuple[list[Score], list[str]]:
    """Score every record's video with one reward.

    Returns the scores in the order of the records, and sentences about videos that differ from
    their records. done: called with the number of videos scored so far.
    """
    videos, notes = _open_all(records, Path(records_path).parent)
    scores = _score_all({"": reward}, records, videos, lambda _, number: done(number), SHARED_BYTES)
    return scores[""], notes


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
    judges: Mapping[str, Reward],
    records: Sequence[Record],
    videos: Sequence[Video | str],
    done: Callable[[str, int], Any],
    shared_bytes: int,
) -> dict[str, list[Score]]:
    """By judge one score per record. Videos that cannot be opened never reach a judge.

    Frames are shared where there are several judges: one alone decodes less than the whole video.
    done: called with the judge and the number of its videos so far.
    """
    unreadable = {position: Score.missing(video) for position, video in enumerate(videos) if isinstance(video, str)}
    scores: dict[str, dict[int, Score]] = {name: dict(unreadable) for name in judges}
    readable = [(position, video) for position, video in enumerate(videos) if not isinstance(video, str)]
    for chunk in chunks_within(readable, shared_bytes):
        several = len(judges) > 1
        shared = [shared_video(v) if several and decoded_bytes(v) <= shared_bytes else v for _, v in chunk]
        for name, reward in judges.items():
            given = reward([records[position].prompt for position, _ in chunk], shared)
            if len(given) != len(chunk):
                raise ValueError(
                    f"reward {reward.name} returned {len(given)} scores for {len(chunk)} videos; expected one per video"
                )
            scores[name].update(zip((position for position, _ in chunk), given, strict=True))
            done(name, len(scores[name]))
        for video in shared:
            release_frames(video)
    return {name: [of_judge[position] for position in range(len(videos))] for name, of_judge in scores.items()}


def chunks_within(readable: Sequence[tuple[int, Video]], shared_bytes: int) -> Iterator[list[tuple[int, Video]]]:
    """Chunks in order, of at most ``VIDEOS_PER_CALL`` videos whose decoded frames take at most ``shared_bytes``.

    A video that takes more by itself counts as nothing, because its frames are not kept.
    """
    chunk: list[tuple[int, Video]] = []
    taken = 0
    for position, video in readable:
        needs = decoded_bytes(video) if decoded_bytes(video) <= shared_bytes else 0
        if chunk and (len(chunk) == VIDEOS_PER_CALL or taken + needs > shared_bytes):
            yield chunk
            chunk, taken = [], 0
        chunk.append((position, video))
        taken += needs
    if chunk:
        yield chunk


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
