"""Before against after: numbers by hand, missing values counted, and each warning sentence exactly
when it is due.
"""

from dataclasses import replace

import pytest

from cac_align.evaluation.report.comparison import gains
from cac_align.evaluation.report.report_warnings import summary_sentence
from tests.support.clip_records import comparison, said


def test_rates_differences_and_tests_by_hand():
    made = comparison(lambda k: {"abnormal": k < 12, "cac": 0.4}, lambda k: {"abnormal": k < 6, "cac": 0.4 + 0.01 * k})
    rate = made.measure("cac_rate")
    assert (rate.before.value, rate.after.value, rate.difference.value) == (0.5, 0.25, -0.25)
    assert (rate.test.only_first, rate.test.only_second, rate.test.p_value) == (6, 0, pytest.approx(2 * 0.5**6))
    assert rate.verdict == "better" and rate.missing == 0
    assert made.measure("cac").difference.value == pytest.approx(0.115)
    assert "fell from 50 % to 25 % (−25 points" in summary_sentence(made) and "by CaC" in summary_sentence(made)
    label, gain = gains(made)
    assert label == "CaC score" and gain[23] == pytest.approx(0.23) and max(gain) == gain[23]


def test_a_value_missing_on_one_side_leaves_its_pair_out_and_is_counted():
    made = comparison(lambda k: {"cac": 0.5}, lambda k: {"cac": 0.6} if k else {})
    assert (made.measure("cac").difference.n, made.measure("cac").missing) == (23, 1)
    assert made.measure("unified") is None and gains(made)[1][0] is None
    assert said(made, "1 of 48 videos have no score")


def test_experts_are_the_raters_who_judged_both_sides():
    made = comparison(
        lambda k: {"raters": {"ann": True, "bob": True}}, lambda k: {"raters": {"ann": False, "bob": True, "cid": True}}
    )
    measure = made.measure("experts")
    assert (measure.before.value, measure.after.value) == (1.0, 0.5)  # cid saw one side only
    returned = made.pairs[0].after
    returned.ratings = [replace(record, review="returned") for record in returned.ratings]
    assert made.pairs[0].experts is None


def test_nothing_judged_is_said_and_not_made_up():
    made = comparison(lambda k: {}, lambda k: {}, n=2)
    assert [measure.key for measure in made.measures] == ["luminance_change"]
    assert "No verdict was found" in summary_sentence(made) and gains(made) == (None, [None, None])


def test_values_of_different_judges_are_not_compared_and_said():
    def side(abnormal, cac, judge, tta=""):
        provenance = {"vlm/weights": judge} | ({"tta": tta} if tta else {})
        return {"abnormal": abnormal, "cac": cac, "judges": {"cac": provenance, "cac_rate": provenance}}

    made = comparison(lambda k: side(True, 0.4, "A"), lambda k: side(False, 0.8, "B", "as_is, reversed"))
    assert [measure.key for measure in made.measures] == ["luminance_change"] and gains(made) == (None, [None] * 24)
    assert {fault.kind for fault in made.faults} == {"judged differently"} and len(made.faults) == 24
    assert "CaC score (tta, vlm/weights)" in made.faults[0].why
    assert said(
        made, "24 of 24 pairs were judged by different judges before and after"
    ) and "Different judges" in summary_sentence(made)
    some = comparison(lambda k: side(True, 0.4, "A"), lambda k: side(False, 0.8, "B" if k < 4 else "A"))
    for key in ("cac", "cac_rate"):
        assert (some.measure(key).missing, some.measure(key).difference.n) == (4, 20)
    assert gains(some)[1][:5] == [None] * 4 + [pytest.approx(0.4)] and len(some.faults) == 4


def test_seeds_of_one_prompt_are_one_case():
    def side(abnormal):
        return lambda k: {"abnormal": abnormal(k), "cac": 0.01 * k, "prompt": f"prompt {k // 4}"}

    # six prompts of four seeds; one of them is abnormal in all four before, and in none after
    made = comparison(side(lambda k: k < 4), side(lambda k: False))
    rate = made.measure("cac_rate")
    assert (rate.test.name, rate.test.n, rate.test.p_value) == (
        "paired permutation",
        6,
        1.0,
    )  # McNemar over 24 said p = 1/8
    assert rate.difference.n == 6 and rate.difference.value == pytest.approx(-1 / 6) and rate.verdict == "open"
    assert (rate.before.n, rate.before.value, len(rate.values)) == (6, pytest.approx(1 / 6), 24)
    assert rate.to_json()["pairs"] == 24 and rate.many == "6 prompts" and said(made, "Only 6 prompts (24 pairs)")


def test_few_prompts_are_never_certain():
    made = comparison(lambda k: {"cac": 0.4 + 0.01 * k}, lambda k: {"cac": 0.8}, n=4)
    cac = made.measure("cac")
    assert (cac.difference.low, cac.before.low, cac.verdict) == (None, None, "open")
    assert cac.no_interval == "no interval: fewer than 5 prompts" == cac.to_json()["no_interval"]
    five = comparison(lambda k: {"cac": 0.4 + 0.01 * k}, lambda k: {"cac": 0.8}, n=5).measure("cac")
    # the bootstrap interval lies above 0 whenever all differences do; the test knows that 2 of 2^5 sign
    # patterns are as extreme
    assert five.difference.low > 0 and five.test.p_value == pytest.approx(2 / 2**5) and five.verdict == "open"
    six = comparison(lambda k: {"cac": 0.4 + 0.01 * k}, lambda k: {"cac": 0.8}, n=6).measure("cac")
    assert six.test.p_value == pytest.approx(2 / 2**6) and six.verdict == "better"


def test_equal_differences_have_no_interval_and_the_test_decides():
    def certain(n):
        return comparison(lambda k: {"abnormal": True}, lambda k: {"abnormal": False}, n=n)

    five, six = (certain(n).measure("cac_rate") for n in (5, 6))
    assert (five.difference.low, five.verdict) == (None, "open") and (six.difference.low, six.verdict) == (
        None,
        "better",
    )
    assert six.no_interval == "no interval: every prompt has the same value"
    assert "(−100 points; no interval: every prompt has the same value)" in summary_sentence(certain(6))
    still = comparison(lambda k: {"cac": 0.4}, lambda k: {"cac": 0.4}).measure("cac")
    assert (still.difference.value, still.difference.low, still.verdict) == (0.0, None, "open")
