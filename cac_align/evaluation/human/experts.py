"""What people said: anomaly rate before and after with intervals, the paired difference, how far raters agree, and the review rules.

ratings (one Record per rater and video; extra: group, pair) → experts → rates, paired test, agreement, review, faults by name

- A video's value is the share of its raters who call it abnormal: 0 or 1 for one rater, and a half where two disagree. A group's
  anomaly rate is the mean over its prompts (a prompt's videos are averaged first), with a Wilson interval (n = prompts; conservative
  where raters or seeds split). A rater's own rate, over both groups, counts videos.
- Before and after are compared on pairs, by the raters who judged both. A prompt's pairs (seeds) are averaged first, since they are not
  independent: McNemar's exact test where every prompt has one pair and every value is 0 or 1, else a sign-flip permutation test over
  prompts. Negative differences mean fewer anomalies after.
- Agreement: Krippendorff's alpha (nominal) on the status and on each type; mean window IoU (in seconds) and box IoU (Eq. 5, both
  ways) over pairs of raters who both call a video abnormal.
- Review (Appendix B.1.3): every annotation is verified by a second person, who accepts or returns it; 10 % of the accepted ones are
  audited by others; a batch passes when agreement is *above* 95 %.
Returned and unreadable ratings, half-written ones, and videos without partner are left out by name, never silently.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from cac_align.core.iou import interval_iou, spatial_iou
from cac_align.core.judgement import ANOMALY_TYPES
from cac_align.data.records import Record
from cac_align.evaluation.bench.localisation import boxes_by_frame, windows_of
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

AUDIT_SHARE = 0.10
ACCEPTANCE = 0.95
SAME_PLACE = 0.5
"""Two annotations mark the same window or boxes when their IoU reaches this (the paper's own threshold in Appendix B.2)."""


@dataclass(frozen=True)
class Audit:
    """The second round of a batch. ``passed`` is None while nothing has been audited."""

    wanted: int
    agreement: Estimate
    disagreements: tuple[Fault, ...]

    @property
    def passed(self) -> bool | None:
        """Whether enough was audited and agreement lies above 95 %."""
        if self.agreement.value is None:
            return None
        return self.agreement.n >= self.wanted and self.agreement.value > ACCEPTANCE

    def to_json(self) -> dict[str, Any]:
        rows = [{"kind": one.kind, "name": one.name, "why": one.why} for one in self.disagreements]
        return {
            "wanted": self.wanted,
            "agreement": self.agreement.to_json(),
            "passed": self.passed,
            "disagreements": rows,
        }


@dataclass(frozen=True)
class ExpertsReport:
    """Statistics of ratings. ``difference`` compares the second group with the first (None without two groups)."""

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
        """Rates, the paired difference and agreement as a table and sentences, then everything that was left out, by name."""
        lines = ["| group | anomaly rate | prompts |", "| --- | ---: | ---: |"]
        lines += [f"| {_cell(name)} | {rate} | {rate.n} |" for name, rate in self.rates.items()]
        test, interval = self.difference, self.difference_interval
        if test is not None and test.difference is not None and self.groups:
            bounds = (
                f"[{interval.low:+.3f}, {interval.high:+.3f}]"
                if interval and interval.low is not None
                else "(no interval)"
            )
            lines += ["", f"{self.groups[1]} − {self.groups[0]}: {test.difference:+.3f} {bounds} over {test.n} prompts, "
                          f"p = {test.p_value:.2g} ({test.name})."]  # fmt: skip
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
    """Ratings from a JSON Lines file of records (or a folder's ``ratings*.jsonl``, which the rating page keeps), and a fault for
    each line that is none: half-written, or edited by hand.

    Raises ``ValueError`` when there is no such file, or no rating in it at all.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.glob("ratings*.jsonl"))
    if not files:
        raise ValueError(
            f"{path}: no ratings there (a file, or a folder with ratings*.jsonl); rate with `cac-align annotate {path}`"
        )
    faults: list[Fault] = []
    records = []
    for file in files:
        for number, row in json_rows(file, faults):
            try:
                records.append(Record.from_json(row))
            except (ValueError, KeyError, TypeError) as error:
                faults.append(Fault("unreadable rating", f"{file.name}:{number}", str(error)))
    if not records:
        raise ValueError(f"{path}: no rating in it; {faults[0].why if faults else 'the file is empty'}")
    return records, faults


def experts(
    ratings: Iterable[Record],
    *,
    groups: tuple[str, str] | None = None,
    faults: Sequence[Fault] = (),
    seed: int = 0,
) -> ExpertsReport:
    """Statistics of ratings. groups: (before, after); by default those names where both occur. faults: what the caller left out.

    Raises ``ValueError`` when there is no usable rating, or a named group has none.
    """
    named = list(faults)
    counted = _usable(ratings, named)
    if not counted:
        raise ValueError(
            f"no usable rating among them; {len(named)} were left out, first: {named[0].why if named else 'none given'}"
        )
    present = list(dict.fromkeys(group for group, _, _ in counted))
    if groups is None and {"before", "after"} <= set(present):
        groups = ("before", "after")
    if groups is not None and not set(groups) <= set(present):
        raise ValueError(
            f"expected ratings of the groups {groups}, received groups {present}; pass groups=(before, after)"
        )
    votes: dict[str, dict[str, dict[str, Record]]] = defaultdict(
        lambda: defaultdict(dict)
    )  # group → video → rater → rating
    for (group, video, rater), record in counted.items():
        votes[group][video][rater] = record
    for group, videos in votes.items():
        for video, row in videos.items():
            if len({record.status for record in row.values()}) > 1:
                said = ", ".join(f"{rater} {record.status}" for rater, record in sorted(row.items()))
                named.append(Fault("raters disagree", f"{group}/{video}" if group else video, said))
    rates = {group: _rate(videos.values(), _abnormal) for group, videos in votes.items()}
    type_rates = {
        group: {kind: _rate(videos.values(), lambda row, kind=kind: _carries(row, kind)) for kind in ANOMALY_TYPES}
        for group, videos in votes.items()
    }
    test, interval = _difference(votes, groups, named, seed) if groups else (None, None)
    by_rater: dict[str, dict[str, Record]] = defaultdict(dict)
    for (_, video, rater), record in counted.items():
        by_rater[rater][video] = record  # a clip that stands in two groups was judged once
    windows, boxes = _places(by_rater)
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
        faults=tuple(named),
    )


def _usable(ratings: Iterable[Record], named: list[Fault]) -> dict[tuple[str, str, str], Record]:
    """The ratings that count, by (group, video, rater); the others become faults."""
    counted: dict[tuple[str, str, str], Record] = {}
    for record in ratings:
        if not record.annotator:
            named.append(
                Fault("no rater", record.id, "the rating names no annotator, so it cannot be told from another's")
            )
        elif record.review == "returned":
            named.append(Fault("returned", record.id, "a reviewer sent it back and it was not corrected yet"))
        else:
            key = (str(record.extra.get("group") or ""), record.video, record.annotator)
            if key in counted:
                named.append(
                    Fault("rated twice", counted[key].id, f"{record.annotator} rated it again; the later rating counts")
                )
            counted[key] = record
    return counted


def _rate(videos: Iterable[Mapping[str, Record]], of: Callable[[Iterable[Record]], float]) -> Estimate:
    """The mean over prompts of what ``of`` says of each video's ratings, with its Wilson interval. videos: ratings by rater."""
    rows = [list(row.values()) for row in videos]
    return vote_share(prompt_means([of(row) for row in rows], [row[0].prompt or None for row in rows]))


def _abnormal(row: Iterable[Record]) -> float:
    said = [record.status == "abnormal" for record in row]
    return sum(said) / len(said)


def _carries(row: Iterable[Record], kind: str) -> float:
    said = [any(anomaly.type == kind for anomaly in record.anomalies) for record in row]
    return sum(said) / len(said)


def _difference(
    votes: Mapping[str, Mapping[str, Mapping[str, Record]]], groups: tuple[str, str], named: list[Fault], seed: int
) -> tuple[PairedTest, Estimate]:
    """The paired test of second − first, and the mean difference with its bootstrap interval, both over prompts."""
    sides: list[dict[str, dict[str, Record]]] = []
    for group in groups:
        pairs: dict[str, dict[str, Record]] = defaultdict(dict)
        for video, row in votes[group].items():
            for rater, record in row.items():
                pair = record.extra.get("pair")
                if pair is None:
                    named.append(Fault("unpaired video", f"{group}/{video}", f"{rater}'s rating names no pair"))
                else:
                    pairs[str(pair)][rater] = record
        sides.append(pairs)
    values, prompts = [], []
    for pair in sorted(set(sides[0]) | set(sides[1])):
        rows = [side.get(pair) for side in sides]
        if None in rows:
            named.append(Fault("unpaired video", pair, f"rated in {groups[rows[0] is None]} only"))
            continue
        both = sorted(set(rows[0]) & set(rows[1]))
        for rater in sorted(set(rows[0]) ^ set(rows[1])):
            named.append(
                Fault("half a pair", f"{pair} by {rater}", f"{rater} judged one side only; not used for the difference")
            )
        if both:
            first, second = (_abnormal(row[rater] for rater in both) for row in rows)
            values.append((first, second))
            prompts.append(rows[0][both[0]].prompt or None)
    found = compare_by_prompt(values, prompts, yes_no=True, seed=seed)
    return found.test, found.difference


def _places(by_rater: Mapping[str, Mapping[str, Record]]) -> tuple[list[float], list[float]]:
    """Window and box IoU of every two raters on every video that both call abnormal, where both marked something to compare."""
    windows, boxes = [], []
    for one, other in combinations(sorted(by_rater), 2):
        for video in sorted(set(by_rater[one]) & set(by_rater[other])):
            a, b = by_rater[one][video].anomalies, by_rater[other][video].anomalies
            if windows_of(a) and windows_of(b):
                windows.append(interval_iou(windows_of(a), windows_of(b)))
            if boxes_by_frame(a) and boxes_by_frame(b):
                boxes.append(_box_iou(a, b))
    return windows, boxes


def _box_iou(a: Sequence[Any], b: Sequence[Any]) -> float:
    """Eq. 5 has a truth and a guess; between two people neither is the truth, so the mean of both directions."""
    first, second = boxes_by_frame(a), boxes_by_frame(b)
    return (spatial_iou(first, second) + spatial_iou(second, first)) / 2


# ---- the paper's review rules -------------------------------------------------------------------------------------


def disagreements(annotation: Record, check: Record) -> tuple[str, ...]:
    """Why a second look does not confirm an annotation: status, types, windows or boxes. Empty: it does."""
    if annotation.status != check.status:
        return (f"status: {annotation.status} against {check.status}",)
    found = []
    kinds, others = ({anomaly.type for anomaly in record.anomalies} for record in (annotation, check))
    if kinds != others:
        found.append(f"types: {sorted(kinds)} against {sorted(others)}")
    windows = windows_of(annotation.anomalies), windows_of(check.anomalies)
    if all(windows) and (iou := interval_iou(*windows)) < SAME_PLACE:
        found.append(f"windows: IoU {iou:.2f}")
    boxed = all(boxes_by_frame(record.anomalies) for record in (annotation, check))
    if boxed and (iou := _box_iou(annotation.anomalies, check.anomalies)) < SAME_PLACE:
        found.append(f"boxes: IoU {iou:.2f}")
    return tuple(found)


def second_review(drafts: Iterable[Record], checks: Iterable[Record]) -> list[Record]:
    """The first round: each draft that another person also judged becomes ``accepted`` or ``returned`` (with the reasons in
    ``extra["flagged"]`` and the reviewer's name in ``extra["reviewer"]``). A draft that nobody else judged stays a draft."""
    by_video: dict[str, list[Record]] = defaultdict(list)
    for check in checks:
        by_video[check.video].append(check)
    decided = []
    for draft in drafts:
        second = next((check for check in by_video[draft.video] if check.annotator != draft.annotator), None)
        if second is None or draft.review not in ("draft", "returned"):
            decided.append(draft)
            continue
        reasons = disagreements(draft, second)
        extra = {**draft.extra, "reviewer": second.annotator, "flagged": list(reasons)}
        decided.append(replace(draft, review="returned" if reasons else "accepted", extra=extra))
    return decided


def audit_sample(records: Iterable[Record], *, share: float = AUDIT_SHARE, seed: int = 0) -> list[Record]:
    """The accepted annotations to audit: ``share`` of them, rounded up, drawn at random whatever the order of the file.

    Raises ``ValueError`` for an accepted annotation without a second reviewer (the first round was skipped), naming it.
    """
    accepted = sorted((one for one in records if one.review in ("accepted", "audited")), key=lambda one: one.id)
    unseen = [one.id for one in accepted if one.extra.get("reviewer") in (None, "", one.annotator)]
    if unseen:
        raise ValueError(
            f"{len(unseen)} accepted annotations had no second reviewer, first {unseen[0]}; run second_review first"
        )
    return sorted(random.Random(seed).sample(accepted, math.ceil(share * len(accepted) - 1e-9)), key=lambda one: one.id)


def audit(records: Iterable[Record], audits: Iterable[Record], *, share: float = AUDIT_SHARE) -> Audit:
    """The second round: accepted annotations against the audits of the same videos by people who had no part in them.

    An audit by the annotator or the reviewer themselves does not count and is named.
    """
    accepted = {one.video: one for one in records if one.review in ("accepted", "audited")}
    agreed, named = [], []
    for check in audits:
        one = accepted.get(check.video)
        if one is None:
            named.append(Fault("audit of nothing", check.id, "no accepted annotation of this video"))
        elif check.annotator in (one.annotator, one.extra.get("reviewer")):
            named.append(Fault("not independent", check.id, f"{check.annotator} annotated or reviewed this video"))
        else:
            reasons = disagreements(one, check)
            agreed.append(float(not reasons))
            if reasons:
                named.append(Fault("audit disagrees", one.id, "; ".join(reasons)))
    return Audit(math.ceil(share * len(accepted) - 1e-9), vote_share(agreed), tuple(named))
