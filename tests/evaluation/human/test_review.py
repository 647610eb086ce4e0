"""The paper's review rules."""

import dataclasses

import pytest

from cac_align.core.judgement import Box, Window
from cac_align.evaluation.human.review import audit, audit_sample, disagreements, second_review
from tests.support.ratings import MOTION, rating


def test_a_second_look_confirms_or_returns():
    draft = rating("a.mp4", "ann", True)
    same = rating("a.mp4", "rev", True, box=Box(0, 0, 500, 600))
    assert disagreements(draft, same) == ()
    assert disagreements(draft, rating("a.mp4", "rev", False)) == ("status: abnormal against normal",)
    elsewhere = rating("a.mp4", "rev", True, kind=MOTION, window=Window(3, 4), box=Box(600, 600, 700, 700))
    reasons = disagreements(draft, elsewhere)
    assert [reason.split(":")[0] for reason in reasons] == ["types", "windows", "boxes"]
    drafts = [draft, rating("b.mp4", "ann", False), rating("c.mp4", "ann", True)]
    checks = [same, rating("b.mp4", "rev", True), rating("c.mp4", "ann", True)]  # nobody reviews their own work
    accepted, returned, waiting = second_review(drafts, checks)
    assert (accepted.review, returned.review, waiting.review) == ("accepted", "returned", "draft")
    assert accepted.extra["reviewer"] == "rev" and returned.extra["flagged"] == ["status: normal against abnormal"]
    assert second_review([returned], [rating("b.mp4", "rev", False)])[0].review == "accepted"  # corrected, seen again


def accepted(n):
    extra = {"group": "", "reviewer": "rev"}
    return [rating(f"{i:03}.mp4", "ann", i % 2, review="accepted", extra=extra) for i in range(n)]


def test_a_tenth_is_audited_and_more_than_95_percent_must_agree():
    rows = accepted(205)
    sample = audit_sample(rows, seed=4)
    assert len(sample) == 21 and sample == audit_sample(rows[::-1], seed=4) != audit_sample(rows, seed=5)
    assert len(audit_sample(accepted(1))) == 1
    agree = [dataclasses.replace(one, annotator="aud", id=one.id + "!") for one in sample]
    flipped = dataclasses.replace(agree[0], status="normal", anomalies=()) if agree[0].anomalies else rating(
        agree[0].video.removeprefix("before/"), "aud", True)  # fmt: skip
    assert audit(rows, agree).passed is True
    one_wrong = audit(rows, [flipped, *agree[1:]])
    assert one_wrong.agreement.value == pytest.approx(20 / 21) and one_wrong.passed is True  # 95.2 % is above 95 %
    exactly = audit(accepted(200), [flipped, *agree[1:20]])
    assert exactly.agreement.value == 0.95 and exactly.passed is False  # 95 % is not above 95 %
    assert exactly.disagreements[0].kind == "audit disagrees"
    assert audit(rows, agree[:20]).passed is False and audit(rows, []).passed is None  # too few; none


def test_an_audit_must_be_independent_and_reviewed():
    rows = accepted(10)
    own = [dataclasses.replace(rows[0], annotator="rev"), dataclasses.replace(rows[1], annotator="ann")]
    found = audit(rows, [*own, rating("other.mp4", "aud", True)])
    assert [one.kind for one in found.disagreements] == ["not independent", "not independent", "audit of nothing"]
    assert found.agreement.n == 0 and found.passed is None
    with pytest.raises(ValueError, match="1 accepted annotations had no second reviewer"):
        audit_sample([*rows, rating("z.mp4", "ann", True, review="accepted")])
