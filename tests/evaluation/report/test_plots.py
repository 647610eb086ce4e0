"""Plots are images: nothing in them runs, and the same numbers give the same bytes."""

import base64

from cac_align.evaluation.report.measure import Measure
from cac_align.evaluation.report.plots import distributions
from cac_align.evaluation.statistics import NO_ESTIMATE, PairedTest


def measure(values, label="CaC score"):
    test = PairedTest("paired permutation", len(values), 0.1, 0.5)
    return Measure("cac", label, "Rewards", True, False, NO_ESTIMATE, NO_ESTIMATE, NO_ESTIMATE, test, 0, tuple(values))


def test_a_plot_is_an_inert_image_and_reproducible():
    hostile = "<script>alert(1)</script> $\\frac{1}{"
    drawn = [
        distributions([measure([(0.1, 0.4), (0.3, 0.2)], hostile), measure([(0.5, 0.5)])], hostile, "after")
        for _ in (1, 2)
    ]
    assert drawn[0] == drawn[1]
    svg = base64.b64decode(drawn[0].removeprefix("data:image/svg+xml;base64,")).decode()
    assert svg.count("</svg>") == 1 and "<script" not in svg
    assert distributions([], "before", "after") is None
