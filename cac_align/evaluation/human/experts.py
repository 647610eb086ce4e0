"""Statistics of people's ratings: anomaly rates, the paired difference, and agreement.

- A video's value is the share of its raters who call it abnormal. A group's anomaly rate is the
  mean over its prompts (a prompt's videos are averaged first), with a Wilson interval whose n is
  the number of prompts (conservative where raters or seeds split). A rater's own rate, over both
  groups, counts videos.
- Before and after are compared on pairs, by the raters who judged both clips, with a prompt's pairs
  averaged first: McNemar's exact test where every prompt has one pair and every value is 0 or 1,
  else a sign-flip permutation test over prompts. A negative difference means fewer anomalies after.
- Agreement: Krippendorff's alpha (nominal) on the status and on each type; mean window IoU (in
  seconds) and box IoU (Eq. 5, both ways) over pairs of raters who both call a video abnormal.

Returned, unreadable and unfinished ratings, and videos without partner, are left out and named.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from cac_align.core.iou import interval_iou, spatial_iou
from cac_align.core.judgement import ANOMALY_TYPES
from cac_align.data.records import Record
from cac_align.evaluation.bench.localisation import boxes_by_frame, windows_of
from cac_align.evaluation.human.export import export_database
from cac_align.evaluation.pairing import Fault, json_rows
from cac_align.evaluation.statistics import (
    Estimate,
    PairedTest,
    RaterAgreement,
    compare_by_prompt,
    krippendorff_alpha,
    mean_interval,
    prompt_means,
    vote_share,
)


@dataclass(frozen=True)
class ExpertsReport:
    """Statistics of ratings. ``difference`` compares the second group with the first; None without
    two groups.
    """

    rates: Mapping[str, Estimate]
    groups: tuple[str, str] | None
    difference: PairedTest | None
    difference_interval: Estimate | None
    type_rates: Mapping[str, Mapping[str, Estimate]]
    raters: Mapping[str, Estimate]
    status_agreement: RaterAgreement
    type_agreement: Mapping[str, RaterAgreement]
    window_iou: Estimate
    box_iou: Estimate
    review: Mapping[str, int]
    faults: tuple[Fault, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "groups": list(self.groups) if self.groups else None,
            "anomaly_rate": {name: rate.to_json() for name, rate in self.rates.items()},
            "difference": {
                **self.difference.to_json(),
                "interval": [self.difference_interval.low, self.difference_interval.high],
            }
            if self.difference and self.difference_interval
            else None,
            "type_rate": {
                group: {kind: one.to_json() for kind, one in row.items()} for group, row in self.type_rates.items()
            },
            "raters": {name: one.to_json() for name, one in self.raters.items()},
            "agreement": {
                "status": self.status_agreement.to_json(),
                "types": {kind: one.to_json() for kind, one in self.type_agreement.items()},
                "window_iou": self.window_iou.to_json(),
                "box_iou": self.box_iou.to_json(),
            },
            "review": dict(self.review),
            "faults": [{"kind": one.kind, "name": one.name, "why": one.why} for one in self.faults],
        }

    def to_markdown(self) -> str:
        """Rates, the paired difference and agreement, then everything that was left out, by name."""
        lines = ["| group | anomaly rate | prompts |", "| --- | ---: | ---: |"]
        lines += [f"| {_cell(name)} | {rate} | {rate.n} |" for name, rate in self.rates.items()]
        test, interval = self.difference, self.difference_interval
        if test is not None and test.difference is not None and self.groups:
            bounds = (
                f"[{interval.low:+.3f}, {interval.high:+.3f}]"
                if interval and interval.low is not None
                else "(no interval)"
            )
            lines += [
                "",
                f"{self.groups[1]} − {self.groups[0]}: {test.difference:+.3f} {bounds} over {test.n} prompts, "
                f"p = {test.p_value:.2g} ({test.name}).",
            ]
        status = self.status_agreement
        known = f"{status.alpha:.3f} over {status.units} videos" if status.alpha is not None else status.note
        lines += [
            "",
            f"Krippendorff's alpha on normal/abnormal: {known}. Window IoU {self.window_iou}, box IoU {self.box_iou}.",
        ]
        if self.faults:
            lines += ["", f"Left out or noteworthy ({len(self.faults)}):", ""]
            lines += [f"- {_cell(f'{one.kind}: {one.name}: {one.why}')}" for one in self.faults]
        return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def read_ratings(path: str | Path) -> tuple[list[Record], list[Fault]]:
    """Ratings from a records file, the rating page's database (``.sqlite``), or a folder's
    ``ratings*.jsonl`` (its ``ratings*.sqlite`` where there is none); and a fault for each line that
    is none and for each unfinished rating.

    Raises ``ValueError`` when there is no such file, or no rating in it.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.glob("ratings*.jsonl")) or sorted(path.glob("ratings*.sqlite"))
    if not files:
        raise ValueError(
            f"{path}: no ratings there (a file, or a folder with ratings*.jsonl); rate with `cac-align annotate {path}`"
        )
    faults: list[Fault] = []
    records: list[Record] = []
    for file in files:
        if _is_database(file):
            exported = export_database(file)
            records += exported.records
            faults += exported.half_written
            continue
        for number, row in json_rows(file, faults):
            try:
                records.append(Record.from_json(row))
            except (ValueError, KeyError, TypeError) as error:
                faults.append(Fault("unreadable rating", f"{file.name}:{number}", str(error)))
    if not records:
        raise ValueError(f"{path}: no rating in it; {faults[0].why if faults else 'the file is empty'}")
    return records, faults


def _is_database(file: Path) -> bool:
    with open(file, "rb") as opened:
        return opened.read(16) == b"SQLite format 3\0"


def summarise_ratings(
    ratings: Iterable[Record],
    *,
    groups: tuple[str, str] | None = None,
    faults: Sequence[Fault] = (),
    seed: int = 0,
) -> ExpertsReport:
    """Statistics of ratings. faults: what the caller left out.

    groups: (before, after); by default those names where both occur. Raises ``ValueError`` when
    there is no usable rating, or none of a named group.
    """
    all_faults = list(faults)
    counted = _counted_ratings(ratings, all_faults)
    if not counted:
        raise ValueError(
            f"no usable rating among them; {len(all_faults)} were left out, first: "
            f"{all_faults[0].why if all_faults else 'none given'}"
        )
    present = list(dict.fromkeys(group for group, _, _ in counted))
    if groups is None and {"before", "after"} <= set(present):
        groups = ("before", "after")
    if groups is not None and not set(groups) <= set(present):
        raise ValueError(
            f"expected ratings of the groups {groups}, received groups {present}; pass groups=(before, after)"
        )
    # By group, video and rater.
    votes: dict[str, dict[str, dict[str, Record]]] = defaultdict(lambda: defaultdict(dict))
    for (group, video, rater), record in counted.items():
        votes[group][video][rater] = record
    for group, videos in votes.items():
        for video, row in videos.items():
            if len({record.status for record in row.values()}) > 1:
                statuses = ", ".join(f"{rater} {record.status}" for rater, record in sorted(row.items()))
                all_faults.append(Fault("raters disagree", f"{group}/{video}" if group else video, statuses))
    rates = {group: _rate(videos.values(), _abnormal) for group, videos in votes.items()}
    type_rates = {
        group: {kind: _rate(videos.values(), lambda row, kind=kind: _carries(row, kind)) for kind in ANOMALY_TYPES}
        for group, videos in votes.items()
    }
    test, interval = _difference(votes, groups, all_faults, seed) if groups else (None, None)
    by_rater: dict[str, dict[str, Record]] = defaultdict(dict)
    for (_, video, rater), record in counted.items():
        by_rater[rater][video] = record  # a clip that stands in two groups was judged once
    windows, boxes = _pairwise_ious(by_rater)
    return ExpertsReport(
        rates=rates,
        groups=groups,
        difference=test,
        difference_interval=interval,
        type_rates=type_rates,
        raters={
            rater: vote_share([_abnormal([one]) for one in rows.values()]) for rater, rows in sorted(by_rater.items())
        },
        status_agreement=krippendorff_alpha(
            {rater: {video: one.status for video, one in rows.items()} for rater, rows in by_rater.items()}
        ),
        type_agreement={
            kind: krippendorff_alpha(
                {rater: {v: bool(_carries([one], kind)) for v, one in rows.items()} for rater, rows in by_rater.items()}
            )
            for kind in ANOMALY_TYPES
        },
        window_iou=mean_interval(windows, seed=seed),
        box_iou=mean_interval(boxes, seed=seed),
        review={
            state: sum(one.review == state for one in counted.values()) for state in ("draft", "accepted", "audited")
        },
        faults=tuple(all_faults),
    )


def _counted_ratings(ratings: Iterable[Record], all_faults: list[Fault]) -> dict[tuple[str, str, str], Record]:
    """The ratings that count, by (group, video, rater); the others become faults."""
    counted: dict[tuple[str, str, str], Record] = {}
    for record in ratings:
        if not record.annotator:
            all_faults.append(
                Fault("no rater", record.id, "the rating names no annotator, so it cannot be told from another's")
            )
        elif record.review == "returned":
            all_faults.append(Fault("returned", record.id, "a reviewer sent it back and it was not corrected yet"))
        else:
            key = (str(record.extra.get("group") or ""), record.video, record.annotator)
            if key in counted:
                all_faults.append(
                    Fault("rated twice", counted[key].id, f"{record.annotator} rated it again; the later rating counts")
                )
            counted[key] = record
    return counted


def _rate(videos: Iterable[Mapping[str, Record]], of: Callable[[Iterable[Record]], float]) -> Estimate:
    """The mean over prompts of ``of`` each video's ratings, with its Wilson interval. videos:
    ratings by rater.
    """
    rows = [list(row.values()) for row in videos]
    return vote_share(prompt_means([of(row) for row in rows], [row[0].prompt or None for row in rows]))


def _abnormal(row: Iterable[Record]) -> float:
    votes = [record.status == "abnormal" for record in row]
    return sum(votes) / len(votes)


def _carries(row: Iterable[Record], kind: str) -> float:
    votes = [any(anomaly.type == kind for anomaly in record.anomalies) for record in row]
    return sum(votes) / len(votes)


def _difference(
    votes: Mapping[str, Mapping[str, Mapping[str, Record]]], groups: tuple[str, str], all_faults: list[Fault], seed: int
) -> tuple[PairedTest, Estimate]:
    """The paired test of second − first, and the mean difference with its bootstrap interval, both
    over prompts.
    """
    sides: list[dict[str, dict[str, Record]]] = []
    for group in groups:
        pairs: dict[str, dict[str, Record]] = defaultdict(dict)
        for video, row in votes[group].items():
            for rater, record in row.items():
                pair = record.extra.get("pair")
                if pair is None:
                    all_faults.append(Fault("unpaired video", f"{group}/{video}", f"{rater}'s rating names no pair"))
                else:
                    pairs[str(pair)][rater] = record
        sides.append(pairs)
    values, prompts = [], []
    for pair in sorted(set(sides[0]) | set(sides[1])):
        before, after = (side.get(pair) for side in sides)
        if before is None or after is None:
            all_faults.append(Fault("unpaired video", pair, f"rated in {groups[before is None]} only"))
            continue
        both = sorted(set(before) & set(after))
        for rater in sorted(set(before) ^ set(after)):
            all_faults.append(
                Fault("half a pair", f"{pair} by {rater}", f"{rater} judged one side only; not used for the difference")
            )
        if both:
            first, second = (_abnormal(row[rater] for rater in both) for row in (before, after))
            values.append((first, second))
            prompts.append(before[both[0]].prompt or None)
    found = compare_by_prompt(values, prompts, yes_no=True, seed=seed)
    return found.test, found.difference


def _pairwise_ious(by_rater: Mapping[str, Mapping[str, Record]]) -> tuple[list[float], list[float]]:
    """Window and box IoU of every two raters on every video that both call abnormal and annotated."""
    windows, boxes = [], []
    for one, other in combinations(sorted(by_rater), 2):
        for video in sorted(set(by_rater[one]) & set(by_rater[other])):
            a, b = by_rater[one][video].anomalies, by_rater[other][video].anomalies
            if windows_of(a) and windows_of(b):
                windows.append(interval_iou(windows_of(a), windows_of(b)))
            if boxes_by_frame(a) and boxes_by_frame(b):
                boxes.append(box_iou_both_ways(a, b))
    return windows, boxes


def box_iou_both_ways(a: Sequence[Any], b: Sequence[Any]) -> float:
    """The mean of Eq. 5 in both directions, since neither of two people is the ground truth."""
    first, second = boxes_by_frame(a), boxes_by_frame(b)
    return (spatial_iou(first, second) + spatial_iou(second, first)) / 2
