"""The paper's review rules (Appendix B.1.3): a second person accepts or returns each annotation,
then a sample is audited.

10 % of the accepted annotations are audited by people who had no part in them; a batch passes
when agreement is above 95 %.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from cac_align.core.iou import interval_iou
from cac_align.data.records import Record
from cac_align.evaluation.bench.localisation import boxes_by_frame, windows_of
from cac_align.evaluation.human.experts import box_iou_both_ways
from cac_align.evaluation.pairing import Fault
from cac_align.evaluation.statistics import Estimate, vote_share

AUDIT_SHARE = 0.10


ACCEPTANCE = 0.95


SAME_PLACE = 0.5
"""Two annotations agree on windows or boxes when their IoU reaches this (the paper's threshold in
Appendix B.2).
"""


@dataclass(frozen=True)
class Audit:
    """The audit of a batch. ``passed`` is None while nothing has been audited. wanted: number of
    audits needed.
    """

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


def disagreements(annotation: Record, check: Record) -> tuple[str, ...]:
    """In what a second annotation differs: status, types, windows or boxes. Empty where it confirms
    the first.
    """
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
    if boxed and (iou := box_iou_both_ways(annotation.anomalies, check.anomalies)) < SAME_PLACE:
        found.append(f"boxes: IoU {iou:.2f}")
    return tuple(found)


def second_review(drafts: Iterable[Record], checks: Iterable[Record]) -> list[Record]:
    """Each draft that another person also judged becomes ``accepted`` or ``returned``.

    The reasons are written to ``extra["flagged"]``, the reviewer's name to ``extra["reviewer"]``. A
    draft that nobody else judged stays a draft.
    """
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
    """The accepted annotations to audit: ``share`` of them, rounded up, drawn at random.

    The draw does not depend on the order of the file. Raises ``ValueError`` for an accepted
    annotation without a second reviewer.
    """
    accepted = sorted((one for one in records if one.review in ("accepted", "audited")), key=lambda one: one.id)
    unseen = [one.id for one in accepted if one.extra.get("reviewer") in (None, "", one.annotator)]
    if unseen:
        raise ValueError(
            f"{len(unseen)} accepted annotations had no second reviewer, first {unseen[0]}; run second_review first"
        )
    return sorted(random.Random(seed).sample(accepted, math.ceil(share * len(accepted) - 1e-9)), key=lambda one: one.id)


def audit(records: Iterable[Record], audits: Iterable[Record], *, share: float = AUDIT_SHARE) -> Audit:
    """Compare accepted annotations with audits of the same videos by people who had no part in
    them.

    An audit by the annotator or the reviewer does not count and is named.
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
