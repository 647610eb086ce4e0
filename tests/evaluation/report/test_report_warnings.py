"""Each warning where its reason is given, and only there."""

import math

import pytest

from cac_align.evaluation.pairing import Pairing
from cac_align.evaluation.report.comparison import compare_pairs
from tests.support.clip_records import comparison, said


def test_a_luminance_change_that_fell_while_the_rate_improved_is_a_warning():
    def after(luminance_change):
        return lambda k: {"abnormal": k < 2, "luminance_change": luminance_change}

    made = comparison(lambda k: {"abnormal": k < 12}, after(0.01))
    assert said(made, "The luminance change fell by 50% while the anomaly rate by CaC improved") and said(
        made, "excludes no change"
    )
    assert not said(comparison(lambda k: {"abnormal": k < 12}, after(0.02)), "luminance change")
    assert not said(comparison(lambda k: {"abnormal": k < 2}, after(0.01)), "luminance change")


def test_cac_that_rose_while_experts_did_not_agree_is_a_warning():
    def side(cac, abnormal):
        return lambda k: {"cac": cac + 0.001 * k, "raters": {"ann": abnormal(k)}}

    def third(number):
        return number % 3 == 0

    made = comparison(side(0.4, third), side(0.8, third))
    assert said(made, "CaC rose, but experts did not agree: their anomaly rate did not change")
    assert said(comparison(side(0.4, third), side(0.8, lambda k: k % 2 == 0)), "rose by 17 points")
    assert not said(comparison(side(0.4, third), side(0.8, lambda k: False)), "experts did not agree")
    assert said(
        comparison(lambda k: {"cac": 0.4}, lambda k: {"cac": 0.8}), "no expert's rating of both sides was found"
    )


def test_unified_that_rose_while_cac_fell_is_a_warning():
    made = comparison(lambda k: {"cac": 0.6, "unified": 3.0}, lambda k: {"cac": 0.5, "unified": 3.6})
    assert said(made, "UnifiedReward rose by 0.600 while CaC fell by 0.100")
    assert not said(
        comparison(lambda k: {"cac": 0.6, "unified": 3.0}, lambda k: {"cac": 0.7, "unified": 3.6}), "UnifiedReward"
    )


def test_a_component_that_drowns_the_other_is_a_warning():
    made = comparison(lambda k: {"cac": 0.5, "unified": 3.0}, lambda k: {"cac": 0.5, "unified": 3.0}, n=4)
    assert made.shares == {} and said(made, "Only 4 pairs")
    for row in made.pairs:
        number = int(row.pair.id)
        row.before.normalised |= {"cac": 0.5, "unified": 0.5}
        row.after.normalised |= {"cac": 0.5 + 0.01 * number, "unified": 0.5 + 0.19 * number}
    flat = [clip_record for row in made.pairs for clip_record in (row.before, row.after)]
    again = compare_pairs(Pairing("before", "after", tuple(row.pair for row in made.pairs), (), ()), flat)
    assert again.shares_of_change and again.shares["unified"].value == pytest.approx(0.95)
    assert math.isclose(sum(share.value for share in again.shares.values()), 1.0)
    assert said(again, "UnifiedReward makes 95% of the combined reward's variance between before and after")
