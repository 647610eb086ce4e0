"""`evaluate bench`: run any rewards over a records file, or read their stored scores, and lay them side by side.

records file, {name: Reward} → scores (through the ledger: cached, resumable) → one Report per judge → Bench(table, paired tests, plots)

Judges see the video on the record's own clock (its ``fps``), because the ground truth's windows are written on it. A video that
cannot be opened is an unscored video with its reason. Every pair of judges is compared on the videos both scored (McNemar, exact).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cac_align.core.judgement import ANOMALY_TYPES
from cac_align.core.video import Video
from cac_align.data.records import Record, all_records
from cac_align.evaluation.bench.detection import Report, check_threshold, evaluate
from cac_align.evaluation.bench.localisation import SPLITS
from cac_align.evaluation.statistics import Estimate, PairedTest, mcnemar
from cac_align.rewards.combine import bounds_of
from cac_align.rewards.normalise import NEEDS_GROUP
from cac_align.rewards.reward import Reward, Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cac_align.rewards.ledger import Ledger

CHUNK = (
    64  # videos handed to a reward at once: one long answer holds few others up, and little is lost when interrupted
)
_SCORE_KEYS = {"score", "parts", "judgement", "error", "provenance"}
SPLIT_TITLES = dict(zip(SPLITS, ("< 1 s, < 20 %", "< 1 s, ≥ 20 %", "≥ 1 s, < 20 %", "≥ 1 s, ≥ 20 %"), strict=True))


@dataclass(frozen=True)
class Comparison:
    """Two judges on the videos both scored: ``test.difference`` is second's accuracy minus first's."""

    first: str
    second: str
    test: PairedTest

    def to_json(self) -> dict[str, Any]:
        return {"first": self.first, "second": self.second, **self.test.to_json()}


@dataclass(frozen=True)
class Bench:
    """Several judges on one set of records. ``notes`` name what was odd about the videos themselves."""

    reports: tuple[Report, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = field(default=())

    def to_json(self, *, videos: bool = False) -> dict[str, Any]:
        """One judge: its report plus ``notes``. Several: ``judges`` by name, and ``comparisons``."""
        if len(self.reports) == 1:
            return {**self.reports[0].to_json(videos=videos), "notes": list(self.notes)}
        return {
            "judges": {report.judge: report.to_json(videos=videos) for report in self.reports},
            "comparisons": [one.to_json() for one in self.comparisons],
            "notes": list(self.notes),
        }

    def to_markdown(self) -> str:
        """The tables of the paper (1, S3, S4, Fig. 4's splits) for these judges, then tests and warnings in words."""
        return "\n\n".join(section for section in _sections(self) if section) + "\n"


def compare(reports: Sequence[Report], *, notes: Sequence[str] = ()) -> Bench:
    """Lay reports on the same records side by side. Raises ``ValueError`` for none, or when two share a name."""
    if not reports:
        raise ValueError(
            "compare needs at least one judge, received none; do the stored scores belong to these records?"
        )
    names = [report.judge for report in reports]
    if len(set(names)) != len(names):
        raise ValueError(f"judges need different names, received {names}")
    found = []
    for first, second in combinations(reports, 2):
        other = {one.id: one for one in second.verdicts if one.status is not None}
        both = [(one, other[one.id]) for one in first.verdicts if one.status is not None and one.id in other]
        found.append(
            Comparison(first.judge, second.judge, mcnemar([a.right for a, _ in both], [b.right for _, b in both]))
        )
    return Bench(tuple(reports), tuple(found), tuple(notes))


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
    """Run every reward over every video of a records file and compare them.

    rewards: judge's name → reward. ledger: a ``Ledger`` that keeps the scores, so that a second run judges only what is missing.
    threshold: None lets a judgement's own status decide (0.5 for rewards without evidence). progress: called with (judge, videos
    done, videos in all). out: folder for bench.json, bench.md and the plots.
    Raises ``ValueError`` for an empty or malformed records file, no reward, or one that compares the videos of a prompt.
    """
    if not rewards:
        raise ValueError("bench needs at least one reward, received none; pass {'cac': CaC.load(...)}")
    for name, reward in rewards.items():
        check_threshold(name, threshold, bounds_of(reward))
        if getattr(reward, "normalise", None) in NEEDS_GROUP:
            raise ValueError(
                f"judge {name!r} normalises by {reward.normalise!r}, which compares the videos of one prompt; a bench scores every "
                "video by itself, use normalise: range or reference"
            )
    records = all_records(records_path)
    videos, notes = _open_all(records, Path(records_path).parent)
    reports = []
    for name, reward in rewards.items():
        judge = reward if ledger is None else ledger.wrap(reward)
        scores = _run(judge, records, videos, lambda done, name=name: progress and progress(name, done, len(records)))
        reports.append(
            evaluate(
                records,
                scores,
                judge=name,
                threshold=threshold,
                false_alarm_rate=false_alarm_rate,
                provenance=reward.provenance,
            )
        )
    found = compare(reports, notes=notes)
    if out is not None:
        write(found, out)
    return found


def score_records(
    records_path: str | Path, records: Sequence[Record], reward: Reward, done: Callable[[int], Any]
) -> tuple[list[Score], list[str]]:
    """One reward's score of every record's video, and what was odd about the videos. done: called with how many are through."""
    videos, notes = _open_all(records, Path(records_path).parent)
    return _run(reward, records, videos, done), notes


def _open_all(records: Sequence[Record], root: Path) -> tuple[list[Video | str], list[str]]:
    """Each record's video, or the reason why it cannot be opened; and sentences about what does not fit the records."""
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
    broken = [record.id for record, video in zip(records, opened, strict=True) if isinstance(video, str)]
    named = [
        (broken, "videos cannot be opened and are unscored"),
        (lengths, "videos differ in length from their record"),
        (sizes, "videos differ in size from their record"),
        (empty, "records have no prompt; judges were given an empty one"),
    ]
    return opened, [f"{len(which)} {what}: {_some(which)}" for which, what in named if which]


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _run(
    reward: Reward, records: Sequence[Record], videos: Sequence[Video | str], done: Callable[[int], Any]
) -> list[Score]:
    """One score per record, in chunks; only videos that open reach the reward."""
    scores: list[Score | None] = [Score.missing(video) if isinstance(video, str) else None for video in videos]
    waiting = [position for position, score in enumerate(scores) if score is None]
    for start in range(0, len(waiting), CHUNK):
        chunk = waiting[start : start + CHUNK]
        given = reward([records[position].prompt for position in chunk], [videos[position] for position in chunk])
        if len(given) != len(chunk):
            raise ValueError(
                f"reward {reward.name} returned {len(given)} scores for {len(chunk)} videos; expected one per video"
            )
        for position, score in zip(chunk, given, strict=True):
            scores[position] = score
        done(len(records) - len(waiting) + start + len(chunk))
    return scores


# ---- stored scores ------------------------------------------------------------------------------------------------


def stored_scores(path: str | Path, records: Iterable[Record]) -> dict[str, dict[str, Score]]:
    """Scores from JSON Lines, by judge and record id, so that a bench needs no model and no video.

    Reads what `cac-align score --json` prints and what a ledger holds: Score.to_json() plus ``id`` or ``video`` (the record's id, its
    video path or that path's file name), and the judge in ``reward`` (the file's name where there is none). A row made with another
    prompt or for another set is not this record's score. One reward with several provenances (two checkpoints, two samplings) becomes
    several judges, ``name@digest``. The last score of a video wins; a failed attempt counts only where no score was ever made.
    A torn last line is left out. Raises ``ValueError`` naming the line for any other line that is no score, or a name two records share.
    """
    prompts: dict[str, str] = {}
    ids: dict[str, str] = {}
    shared: set[str] = set()
    for record in records:
        prompts[record.id] = record.prompt
        for name in {record.id, record.video, Path(record.video).name}:
            if ids.setdefault(name, record.id) != record.id:
                shared.add(name)
    found: dict[tuple[str, str], dict[str, Score]] = {}
    failed: dict[str, dict[str, Score]] = {}
    for number, row in _rows(path):
        name = next((key for key in _names(row) if key in ids), None)
        if name is None or row.get("prompt", prompts[ids[name]]) != prompts[ids[name]]:
            continue
        if name in shared:
            raise ValueError(f"{path}:{number}: {name!r} fits more than one record; give scores the record's id")
        judge, score = str(row.get("reward") or Path(path).stem), Score.from_json(row)
        if score.scored:
            digest = hashlib.sha256(json.dumps(dict(score.provenance), sort_keys=True).encode()).hexdigest()[:8]
            found.setdefault((judge, digest), {})[ids[name]] = score
        else:
            failed.setdefault(judge, {})[ids[name]] = score
    versions = Counter(judge for judge, _ in found)
    named = {
        judge if versions[judge] == 1 else f"{judge}@{digest}": scores for (judge, digest), scores in found.items()
    }
    for judge, scores in failed.items():
        for title in [name for name in named if name == judge or name.startswith(f"{judge}@")] or [judge]:
            named[title] = {**scores, **named.get(title, {})}
    return named


def _rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and row of every score in a JSON Lines file; ``extra`` rows of a ledger (notes added later) are passed over."""
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                if not line.endswith("\n"):
                    return  # a process was cut off while appending: that score was never finished
                raise ValueError(f"{path}:{number}: not JSON: {error}") from error
            if isinstance(row, dict) and row.get("kind") == "extra":
                continue
            if not isinstance(row, dict) or not set(row) >= _SCORE_KEYS:
                raise ValueError(
                    f"{path}:{number}: expected a score with {sorted(_SCORE_KEYS)}, received {line[:80]!r}"
                )
            yield number, row


def _names(row: Mapping[str, Any]) -> list[str]:
    given = [str(row[key]) for key in ("id", "video", "name") if row.get(key)]
    return given + [Path(name).name for name in given]


# ---- the face -----------------------------------------------------------------------------------------------------


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(_cell(str(cell)) for cell in row) + " |" for row in lines)


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _with_count(one: Estimate) -> str:
    return "–" if one.value is None else f"{one.value:.3f} (n {one.n})"


def _sections(found: Bench) -> Iterable[str]:
    reports = found.reports
    metrics = [f"{name}.{part}" for name in ("anomalous", "normal") for part in ("recall", "precision", "f1")]
    head = [
        "judge",
        "anomalous recall",
        "precision",
        "F1",
        "normal recall",
        "precision",
        "F1",
        "accuracy",
        "videos",
        "unscored",
    ]
    yield "## Detection\n\n" + _table(
        head,
        (
            [r.judge, *(str(r.metrics[name]) for name in metrics), str(r.metrics["accuracy"]), r.n, r.unscored]
            for r in reports
        ),
    )
    if any(one.n for r in reports for one in r.hard.values()):
        yield "## Hard: recall by duration and area\n\n" + _table(
            ["judge", *SPLIT_TITLES.values()],
            ([r.judge, *(_with_count(r.hard[name]) for name in SPLITS)] for r in reports),
        )
    yield "## Recall by type (called abnormal / type named)\n\n" + _table(
        ["judge", *ANOMALY_TYPES],
        (
            [
                r.judge,
                *(f"{_number(one.recall.value)} / {_number(one.type_recall.value)}" for one in r.per_type.values()),
            ]
            for r in reports
        ),
    )
    yield "## Localisation, over the anomalous videos judged abnormal\n\n" + _table(
        [
            "judge",
            "temporal IoU",
            "spatial IoU",
            "type IoU",
            "temporal IoU, all anomalous",
            "spatial IoU, all anomalous",
        ],
        (
            [
                r.judge,
                *map(str, r.localisation.values()),
                *(str(r.localisation_all[k]) for k in ("temporal", "spatial")),
            ]
            for r in reports
        ),
    )
    cuts = [(r, r.calibration, r.calibration.operating_point) for r in reports]
    yield "## The number behind the verdict\n\n" + _table(
        ["judge", "ECE", "AUROC", "false alarms allowed", "threshold", "recall there"],
        (
            [
                r.judge,
                _number(c.ece),
                _number(c.auroc),
                f"{o.wanted:.0%}",
                _number(o.threshold, 4),
                str(o.recall or "–"),
            ]
            for r, c, o in cuts
        ),
    )
    if found.comparisons:
        yield "## Paired comparison (McNemar, exact)\n\n" + _table(
            ["first → second", "videos", "accuracy difference", "only first right", "only second right", "p"],
            (
                [f"{c.first} → {c.second}", c.test.n, _number(c.test.difference), c.test.only_first, c.test.only_second,
                 "–" if c.test.p_value is None else f"{c.test.p_value:.2g}"]
                for c in found.comparisons
            ),
        )  # fmt: skip
    words = [f"{r.judge}: {sentence}" for r in reports for sentence in r.warnings] + list(found.notes)
    words += [f"{r.judge}: {r.calibration.note}" for r in reports if r.calibration.note]
    if words:
        yield "## Read before believing\n\n" + "\n".join(f"- {_cell(word)}" for word in words)


def _plain(name: str) -> str:
    """A judge's name as matplotlib may draw it: no mathematics, no hidden label, one line of bearable length."""
    name = " ".join(name.split()).replace("$", r"\$").lstrip("_") or "?"
    return name if len(name) <= 40 else name[:39] + "…"


def plots(found: Bench) -> dict[str, Figure]:
    """Figures by name: ``detection`` (recall of both classes), ``reliability``, ``splits`` (types and Hard). Drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    reports = found.reports

    def bars(axes: Any, groups: Mapping[str, Sequence[Estimate]], labels: Sequence[str]) -> None:
        width = 0.8 / max(1, len(groups))
        for number, (name, found_values) in enumerate(groups.items()):
            for place, one in enumerate(found_values):
                if one.value is None:
                    continue
                at = place + (number - (len(groups) - 1) / 2) * width
                error = None if one.low is None else [[max(0, one.value - one.low)], [max(0, one.high - one.value)]]
                label = name if place == next(i for i, v in enumerate(found_values) if v.value is not None) else None
                axes.bar(
                    at, one.value, width * 0.92, yerr=error, color=f"C{number}", label=label, ecolor="0.3", capsize=2
                )
        axes.set(xticks=range(len(labels)), xlim=(-0.6, len(labels) - 0.4), ylim=(0, 1.02))
        axes.set_axisbelow(True)
        axes.set_xticklabels(labels, rotation=20, ha="right")
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)

    drawn = {}
    figure = drawn["detection"] = Figure(figsize=(max(5, 1.6 + 1.3 * len(reports)), 3.6), layout="constrained")
    axes = figure.subplots()
    kinds = {"anomalous recall": "anomalous.recall", "normal recall": "normal.recall", "accuracy": "accuracy"}
    bars(
        axes,
        {title: [r.metrics[name] for r in reports] for title, name in kinds.items()},
        [_plain(r.judge) for r in reports],
    )
    axes.axhline(0.5, color="0.5", linewidth=0.8, linestyle=":")
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=3, loc="outside upper center")

    figure = drawn["splits"] = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(5, 4))
    bars(left, {_plain(r.judge): [r.per_type[kind].recall for kind in ANOMALY_TYPES] for r in reports}, ANOMALY_TYPES)
    left.set_title("recall by type of anomaly", fontsize=10)
    bars(right, {_plain(r.judge): [r.hard[name] for name in SPLITS] for r in reports}, list(SPLIT_TITLES.values()))
    right.set_title("recall by duration and area", fontsize=10)
    figure.legend(*left.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=6, loc="outside upper center")

    figure = drawn["reliability"] = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
    for number, report in enumerate(reports):
        filled = [one for one in report.calibration.bins if one.n]
        if filled:
            label = f"{_plain(report.judge)} (ECE {_number(report.calibration.ece)})"
            axes.plot(
                [b.mean_value for b in filled], [b.share_normal for b in filled], "o-", color=f"C{number}", label=label
            )
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="score (mean of the bin)", ylabel="share of normal videos", aspect="equal"
    )
    if any(report.calibration.bins for report in reports):
        axes.legend(frameon=False, fontsize=8)
    for figure in drawn.values():
        FigureCanvasAgg(figure)
    return drawn


def write(found: Bench, out: str | Path) -> list[Path]:
    """Write bench.json (with a row per video), bench.md and the plots as PNG into the folder ``out``; returns the paths."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "bench.json", folder / "bench.md"]
    written[0].write_text(
        json.dumps(found.to_json(videos=True), ensure_ascii=False, indent=1, allow_nan=False), encoding="utf-8"
    )
    figures = plots(found)
    pictures = "\n".join(f"![{name}]({name}.png)" for name in figures)
    written[1].write_text(found.to_markdown() + "\n" + pictures + "\n", encoding="utf-8")
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=110)
        written.append(folder / f"{name}.png")
    return written
